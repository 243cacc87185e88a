"""The folder of a run, as `diffkit.folders` has it: whether a training that is asked for may continue it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from diffkit import __version__
from diffkit._errors import CheckpointError, OptionError
from diffkit._strict import check_fields, read_json, shown, word
from diffkit.data.base import Data, description
from diffkit.files import read_weights, write_atomically
from diffkit.folders import CHECKPOINTS, CONFIG, RECIPE, SPEC, WEIGHTS, is_run
from diffkit.training import checkpoint
from diffkit.training.config import TrainConfig, differences
from diffkit.training.lock import NAME as LOCK

FORMAT = 1
BEFORE = (LOCK, RECIPE)
"""What may lie in a folder before its run begins: the lock, and the recipe that the command line writes."""


def prepare(out: str | Path) -> Path:
    """Return the run's folder, made if it was not there and found writable.

    Raises:
        OptionError: It cannot be written, or holds something else than a run.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(f"out {str(folder)!r} cannot be written: {error}; choose another folder") from error
    if is_run(folder):
        return folder
    if (folder / SPEC).exists():
        raise OptionError(f"out {str(folder)!r} holds a saved system, not a run; choose another folder")
    other = sorted(path.name for path in folder.iterdir() if path.name not in BEFORE)
    if other:
        raise OptionError(
            f"out {str(folder)!r} is no run but holds {len(other)} other files (first: {other[0]!r}); choose another "
            "folder"
        )
    return folder


def facts(config: TrainConfig, data: Data) -> dict[str, Any]:
    """Return what config.json holds."""
    return {"format": FORMAT, "diffkit": __version__, "train": attrs.asdict(config), "data": data.describe()}


def check_options(folder: Path, config: TrainConfig) -> None:
    """Raise unless a run that is in the folder, if any, could go on with these options, whatever its system and data.

    Raises:
        OptionError: It was begun with others; the text lists each difference.
        CheckpointError: What describes the run cannot be read.
    """
    if is_run(folder):
        _refuse(folder, differences(_options_in(folder, _kept(folder)), config))


def check_same(folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Data) -> None:
    """Raise unless a run that is in the folder, if any, is of the same system, options and data.

    Raises:
        OptionError: It is of others; the text lists each difference.
        CheckpointError: What describes the run cannot be read.
    """
    if not is_run(folder):
        return
    kept = _kept(folder)
    found = differences(_options_in(folder, kept), config)
    if (folder / SPEC).exists():
        found += _differences_of_system(folder, json.loads(json.dumps(spec)))
    now = identity(data)
    found += [
        f"data {name}={kept['data'].get(name)!r}, now {value!r}"
        for name, value in now.items()
        if kept["data"].get(name) != value
    ]
    _refuse(folder, found)


def _refuse(folder: Path, found: Sequence[str]) -> None:
    """Raise `OptionError` if there are differences."""
    if found:
        raise OptionError(
            "\n  ".join([f"out {str(folder)!r} holds a run that this training would not continue:", *found])
            + "\nask for the same, or choose another folder"
        )


def _kept(folder: Path) -> dict[str, Any]:
    """What config.json holds."""
    kept = read_json(folder / CONFIG, CheckpointError)
    if kept.get("format") != FORMAT:
        found = shown(kept.get("format"))
        raise CheckpointError(f"{folder / CONFIG} has format {found}, this diffkit reads {FORMAT}")
    check_fields(kept, str(folder / CONFIG), CheckpointError, train=dict, data=dict)
    return kept


def _options_in(folder: Path, kept: Mapping[str, Any]) -> TrainConfig:
    unknown = kept["train"].keys() - attrs.fields_dict(TrainConfig).keys()
    if unknown:
        raise CheckpointError(f"{folder / CONFIG} has an option {min(unknown)!r} of training that is not known here")
    try:
        return TrainConfig(**{name: _tuple(value) for name, value in kept["train"].items()})
    except (OptionError, TypeError) as error:  # the second where steps are missing
        raise CheckpointError(f"{folder / CONFIG} is damaged: {error}") from error


def identity(data: Data) -> dict[str, Any]:
    """Return what must be the same of data when a run goes on, and in all processes that train it, as plain JSON."""
    found = json.loads(json.dumps(data.describe()))
    return {name: found.get(name) for name in (*description(data), "low_res", "fingerprint")}


def write_facts(folder: Path, config: TrainConfig, data: Data) -> None:
    """Write config.json."""
    _write_json(folder / CONFIG, facts(config, data))


def fault(folder: Path) -> str | None:
    """Return what is wrong with the system that lies in the folder, or None if it can be loaded."""
    try:
        read_weights(folder / WEIGHTS, _read_spec(folder).get("weights"))
    except CheckpointError as error:
        return str(error)
    return None


def reader(spec: Mapping[str, Any]) -> str:
    """Return the function that reads the run of what has this spec."""
    return "diffkit.weights.load_classifier" if "classifier" in spec else "diffkit.load"


def _differences_of_system(folder: Path, spec: Mapping[str, Any]) -> list[str]:
    """Hold a system against the run's; where its file is damaged, against what the newest whole checkpoint says."""
    try:
        return _spec_differences(_read_spec(folder), spec)
    except CheckpointError:
        return _manifest_differences(folder / CHECKPOINTS, spec)


def _manifest_differences(checkpoints: Path, spec: Mapping[str, Any]) -> list[str]:
    """Differences from the system of the newest whole checkpoint; earlier versions kept the names of its parts only."""
    for path in checkpoint.newest_first(checkpoints):
        with suppress(CheckpointError):
            return _differences_of_manifest(path, spec)
    return []


def _differences_of_manifest(path: Path, spec: Mapping[str, Any]) -> list[str]:
    manifest = checkpoint.manifest_of(path)
    if "spec" in manifest:
        return _spec_differences(_checked(manifest["spec"], str(path)), spec)
    manifest = _checked({"settings": {}, **manifest}, str(path))
    pairs = [(kind, manifest["parts"].get(kind), spec["parts"][kind]) for kind in spec["parts"]]
    named = [(kind, was and word(was.get("name")), now and now["name"]) for kind, was, now in pairs]
    return [f"{kind} {was}, now {now}" for kind, was, now in named if was != now]


def _spec_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for kind in new["parts"]:
        found += _part_differences(kind, old["parts"].get(kind), new["parts"][kind])
    was_set = {**old["settings"], **_of_classifier(old)}
    for name, now in {**new["settings"], **_of_classifier(new)}.items():
        was = was_set.get(name)
        if was != now:
            found.append(f"{name}={shown(was)}, now {name}={shown(now)}")
    return found


def _part_differences(kind: str, was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """The options that differ of one part, or both parts where they are two."""
    if _identity(was) == _identity(now):
        return []
    if was is None or now is None or _identity({**was, "options": 0}) != _identity({**now, "options": 0}):
        return [f"{kind} {_label(was)}, now {_label(now)}"]
    old_options, new_options = (part.get("options") or {} for part in (was, now))
    pairs = [(f"{kind}.{name}", old_options.get(name), new_options.get(name)) for name in new_options | old_options]
    return [f"{name}={shown(old)}, now {name}={shown(new)}" for name, old, new in pairs if old != new]


def _of_classifier(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network of a classifier, and its classes; nothing for a system."""
    return {**spec["classifier"], "num_classes": spec.get("num_classes")} if "classifier" in spec else {}


def _identity(part: Mapping[str, Any] | None) -> Any:
    """A part but its version."""
    return None if part is None else {key: value for key, value in part.items() if key != "version"}


def _label(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "none"
    options = ", ".join(f"{key}={shown(value)}" for key, value in (part.get("options") or {}).items())
    return f"{word(part.get('name') or part.get('class'))}({options})"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_spec(folder: Path) -> dict[str, Any]:
    return _checked(read_json(folder / SPEC, CheckpointError), str(folder / SPEC))


def _checked(spec: dict[str, Any], what: str) -> dict[str, Any]:
    """A spec that can be compared with another one, or an error that says what is wrong with it."""
    none = type(None)
    check_fields(
        spec, what, CheckpointError, parts=dict, settings=dict, classifier=(dict, none), num_classes=(int, none)
    )
    for kind, part in spec["parts"].items():
        if part is not None:
            check_fields(part, f"{kind} of {what}", CheckpointError, name=(str, none), options=(dict, none))
    return spec


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
