"""Runs as their files describe them: progress, metrics, composition, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.runtime.run_layout import CHECKPOINTS, CONFIG, SPEC, is_run, step_of
from diffkit.runtime.strict_json import check_fields, read_json, word
from diffkit.training.checkpoint import newest_first
from diffkit.training.metrics import FIXED_NAMES, is_of_quartile
from diffkit.training.metrics_file import read_metrics

_NONE = "-"


@frozen
class Run:
    """The description of a run in its files.

    Attributes:
        path: Its folder.
        train: Its options, as TrainConfig has them.
        data: What is known of its data.
        parts: Kind -> name; empty before the first checkpoint.
        options: "kind.option" -> value.
        settings: Settings of its composition besides the parts.
        metrics: The last line; empty before the first.
        checkpoints: Steps of those that are there, ascending.
    """

    path: Path
    train: Mapping[str, Any]
    data: Mapping[str, Any]
    parts: Mapping[str, str]
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checkpoints: tuple[int, ...]

    @property
    def choices(self) -> dict[str, Any]:
        """Everything that runs can differ in, by name."""
        data = {f"data {name}": value for name, value in self.data.items()}
        return {**self.parts, **self.options, **self.settings, **self.train, **data}

    def row(self) -> dict[str, str]:
        """One line of the table, by column."""
        line = self.metrics
        shown = [name for name in line if name not in FIXED_NAMES and not is_of_quartile(name) and "/" not in name]
        terms = {name: _number(line[name]) for name in shown}
        return {
            "run": str(self.path),
            "step": f"{line.get('step', 0)}/{self.train['steps']}",
            **terms,
            "lr": _number(line.get("lr")),
            "images/s": _number(line.get("images_per_s")),
            "checkpoint": str(self.checkpoints[-1]) if self.checkpoints else _NONE,
            "seed": str(self.train.get("seed", _NONE)),
        }

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "run": str(self.path),
            "step": self.metrics.get("step", 0),
            "steps": self.train["steps"],
            "metrics": dict(self.metrics),
            "checkpoints": list(self.checkpoints),
            "parts": dict(self.parts),
            "options": dict(self.options),
            "settings": dict(self.settings),
            "train": dict(self.train),
            "data": dict(self.data),
        }


def read(folder: Path) -> Run:
    """Return the description of a run in its files.

    Raises:
        OptionError: The folder is not a run, or its files cannot be read.
    """
    config = read_json(folder / CONFIG, OptionError)
    if not isinstance(config.get("train"), dict) or "steps" not in config["train"]:
        raise OptionError(f"{folder} is not a training run: its config.json says nothing of training")
    check_fields(config, str(folder / CONFIG), OptionError, data=(dict, type(None)))
    spec = read_json(folder / SPEC, OptionError) if (folder / SPEC).exists() else {}
    check_fields(spec, str(folder / SPEC), OptionError, parts=(dict, type(None)), settings=(dict, type(None)))
    parts = {kind: part for kind, part in (spec.get("parts") or {}).items() if part is not None}
    for kind, part in parts.items():
        check_fields(part, f"{kind} of {folder / SPEC}", OptionError, options=(dict, type(None)))
    steps = sorted(map(step_of, newest_first(folder / CHECKPOINTS)))
    lines = read_metrics(folder)
    return Run(
        path=folder,
        train=config["train"],
        data=config.get("data") or {},
        parts={kind: word(part.get("name") or part.get("class")) for kind, part in parts.items()},
        options={f"{kind}.{key}": v for kind, part in parts.items() for key, v in (part.get("options") or {}).items()},
        settings=spec.get("settings") or {},
        metrics={name: value for line in lines for name, value in line.items()},  # no line need have all of them
        checkpoints=tuple(steps),
    )


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return what the runs differ in: name -> the value of each, None where it is not known."""
    names = dict.fromkeys(name for one in runs for name in one.choices)
    values = {name: [one.choices.get(name) for one in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Runs, and those in the folders that are none themselves, each once, in order of name."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise OptionError(f"{path} is {'a file' if path.exists() else 'not there'}; name the folder of a run")
        inside = sorted(child.parent for child in path.glob(f"*/{CONFIG}"))
        if not is_run(path) and not inside:
            raise OptionError(f"{path} is not a training run, and holds none")
        found += [path] if is_run(path) else inside
    return list(dict.fromkeys(found))


def _number(value: Any) -> str:
    """At most four digits, or a dash where there is none or it is not finite."""
    return f"{value:.4g}" if isinstance(value, int | float) else _NONE
