"""Show training runs side by side: progress, metrics, composition, and differences.

A folder that holds runs stands for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.errors import OptionError
from diffkit.options import flag
from diffkit.runtime.output import log, show
from diffkit.runtime.run_layout import CHECKPOINTS, CONFIG, is_run, step_of
from diffkit.runtime.run_layout import SPEC as SPEC_FILE
from diffkit.runtime.strict_json import check_fields, read_json, word

_QUARTILE = re.compile(r".*_q\d")
_NO_TERMS = {"step", "samples", "grad_norm", "param_norm", "lr", "skipped", "images_per_s", "loss_scale"}
_NONE = "-"


@frozen
class Options:
    """Options of ``diffkit runs``.

    Attributes:
        run: Training runs, or folders of them.
        json: Print everything as JSON instead: "runs", each with its last metrics, and "differences" by name.
    """

    run: tuple[Path, ...] = field(metadata=POSITIONAL)
    json: bool = flag(False)


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
        terms = {name: _number(line[name]) for name in line if name not in _NO_TERMS and not _QUARTILE.fullmatch(name)}
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


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Print the runs."""
    options = parsed.make(Options)
    found = _readable(_expanded(options.run))
    different = differences(found)
    if options.json:
        show(json.dumps({"runs": [one.plain() for one in found], "differences": different}, indent=2))
        return
    show("\n".join(table([one.row() for one in found])))
    for line in _about_parts(found, different):
        show(line)


def _readable(folders: Sequence[Path]) -> list[Run]:
    """Read runs; print one line for each that cannot be read, unless none can.

    Raises:
        OptionError: There is none that can be read.
    """
    found, faults = list[Run](), list[str]()
    for folder in folders:
        try:
            found.append(read(folder))
        except OptionError as error:
            faults.append(str(error))
    if not found:
        raise OptionError("\n  ".join(faults))
    for fault in faults:
        log(f"left out: {fault}")
    return found


def read(folder: Path) -> Run:
    """Return the description of a run in its files.

    Raises:
        OptionError: The folder is not a run, or its files cannot be read.
    """
    from diffkit.training.checkpoint import newest_first
    from diffkit.training.metrics_file import read_metrics

    config = read_json(folder / CONFIG, OptionError)
    if not isinstance(config.get("train"), dict) or "steps" not in config["train"]:
        raise OptionError(f"{folder} is not a training run: its config.json says nothing of training")
    check_fields(config, str(folder / CONFIG), OptionError, data=(dict, type(None)))
    spec = read_json(folder / SPEC_FILE, OptionError) if (folder / SPEC_FILE).exists() else {}
    check_fields(spec, str(folder / SPEC_FILE), OptionError, parts=(dict, type(None)), settings=(dict, type(None)))
    parts = {kind: part for kind, part in (spec.get("parts") or {}).items() if part is not None}
    for kind, part in parts.items():
        check_fields(part, f"{kind} of {folder / SPEC_FILE}", OptionError, options=(dict, type(None)))
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


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return rows as aligned lines, a column for each name; what a row lacks is a dash.

    The first row's columns come first, and the others' further ones before "lr".
    """
    names = list(rows[0])
    for name in dict.fromkeys(name for row in rows for name in row if name not in names):
        names.insert(names.index("lr") if "lr" in names else len(names), name)
    lines = [names, *([row.get(name, _NONE) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _about_parts(runs: Sequence[Run], different: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The parts of all runs, and a table of their differences."""
    same = {kind: name for kind, name in runs[0].parts.items() if kind not in different}
    if same:
        yield ""
        yield ("parts: " if len(runs) == 1 else "in all: ") + ", ".join(f"{kind} {name}" for kind, name in same.items())
    if different:
        yield ""
        rows = [
            {"differs": name} | {str(one.path): _shown(value) for one, value in zip(runs, values, strict=True)}
            for name, values in different.items()
        ]
        yield from table(rows)


def _expanded(paths: Sequence[Path]) -> list[Path]:
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


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) if len(value) <= 8 else f"{len(value)} of them"
    return _NONE if value is None else str(value).lower() if isinstance(value, bool) else word(value)
