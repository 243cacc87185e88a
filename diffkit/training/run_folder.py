"""The folder of a run, laid out as in `diffkit.runtime.run_layout`: whether `train` may continue the run in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen
from torch import Tensor, nn

from diffkit._version import __version__
from diffkit.data.base import Data, description
from diffkit.errors import CheckpointError, Message, OptionError, changed, joined
from diffkit.runtime.files import digest, read_weights, write_atomically
from diffkit.runtime.run_layout import CHECKPOINTS, CONFIG, PREVIEWS, RECIPE, SPEC, TENSORBOARD, WEIGHTS, is_run
from diffkit.runtime.strict_json import check_fields, read_json, shown, word
from diffkit.runtime.temporaries import is_temporary, sweep
from diffkit.system.saving import as_file
from diffkit.training import checkpoint
from diffkit.training.config import RETIRED, TrainConfig, differences
from diffkit.training.lock import NAME as LOCK
from diffkit.training.logs import say

FORMAT = 1
FOLDERS = (CHECKPOINTS, PREVIEWS, TENSORBOARD, "wandb")
"""Names of the folders of a run."""
BEFORE = (LOCK, RECIPE)
"""Files that a folder may hold before its run begins: the lock, and the recipe that the command line writes."""


def prepare(out: str | Path) -> Path:
    """Return the run's folder, created if needed, after checking that it can be written.

    Raises:
        OptionError: It cannot be written, or holds something other than a run.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except (OSError, ValueError) as error:  # no path has a zero byte
        raise OptionError(f"out {str(folder)!r} cannot be written: {error}; choose another folder") from error
    if is_run(folder):
        _refuse_links(folder)
        return folder
    if (folder / SPEC).exists():
        raise OptionError(f"out {str(folder)!r} holds a saved system, not a run; choose another folder")
    if other := foreign(folder):
        raise OptionError(
            f"out {str(folder)!r} is not a run but holds {len(other)} other files (first: {other[0]!r}); choose "
            "another folder"
        )
    return folder


def foreign(folder: Path) -> list[str]:
    """Return the names in a folder that diffkit does not write before a run begins."""
    return sorted(path.name for path in folder.iterdir() if path.name not in BEFORE and not is_temporary(path))


def _refuse_links(folder: Path) -> None:
    """Raise `OptionError` if files of the run would be written to, or removed from, another folder through a link."""
    for name in FOLDERS:
        if (folder / name).is_symlink():
            raise OptionError(
                f"{folder / name} is a link, and a run does not write through links; move its target here, or "
                f"let {folder} itself be the link"
            )


def sweep_folders(folder: Path) -> None:
    """Remove half-written files of killed processes from the folders of a run, except that of the checkpoints."""
    for path in (folder, *(folder / name for name in FOLDERS)):
        sweep(path)


def frozen_in(network: nn.Module) -> list[str]:
    """Return the names of the parameters of a network that are not trained."""
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def facts(config: TrainConfig, data: Data, frozen: Sequence[str]) -> dict[str, Any]:
    """Return the content of config.json: the options, the data, and the parameters that are not trained."""
    found = {"train": attrs.asdict(config), "data": data.describe(), "frozen": list(frozen)}
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, "diffkit": __version__, **found}))
    return plain


def check_options(folder: Path, config: TrainConfig) -> None:
    """Raise if the folder holds a run that could not be resumed with these options, whatever its system and data.

    Raises:
        OptionError: The run has other options; the text lists each difference.
        CheckpointError: The description of the run cannot be read.
    """
    if (known := _known(folder)) is not None:
        _refuse(folder, differences(known.config, config))


def check_same(folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Data, network: nn.Module) -> None:
    """Raise if the folder holds a run of another system, options, data or set of trained parameters.

    Raises:
        OptionError: There are differences; the text lists each.
        CheckpointError: The description of the run cannot be read.
    """
    known = _known(folder, warn=True)
    if known is None:
        return
    found = differences(known.config, config)
    if (folder / SPEC).exists():
        found += _differences_of_system(folder, json.loads(json.dumps(spec)))
    now = identity(data)
    found += [
        f"data {name}={known.data.get(name)!r}, now {value!r}"
        for name, value in now.items()
        if known.data.get(name) != value
    ]
    trained = [] if known.frozen is None else differences_of_training(known.frozen, network)
    _refuse(folder, found + trained, _way_to_train(folder) if trained else "")


def differences_of_training(frozen: Collection[str], network: nn.Module) -> list[str]:
    """Return the parameters of a network that are trained and were not before, or the other way round.

    Args:
        frozen: Names of the parameters that were not trained.
        network: The network.
    """
    pairs = [(name, p.requires_grad) for name, p in network.named_parameters()]
    stopped = [name for name, trains in pairs if not trains and name not in frozen]
    begun = [name for name, trains in pairs if trains and name in frozen]
    found = [f"{_named(stopped)} trained, now frozen"] if stopped else []
    return found + ([f"{_named(begun)} frozen, now trained"] if begun else [])


def _named(names: Sequence[str]) -> str:
    return f"parameter {names[0]}" if len(names) == 1 else f"{len(names)} parameters (the first is {names[0]})"


def _refuse(folder: Path, found: Sequence[str], more: str = "") -> None:
    """Raise `OptionError` if there are differences."""
    if found:
        lines = joined("\n  ", [f"out {str(folder)!r} holds a run that differs from this one:", *found])
        raise OptionError(Message(lines, f"\npass the same options, or choose another folder{more}"))


def _way_to_train(folder: Path) -> str:
    """Advice on how to train other parameters of the same network."""
    if not (folder / WEIGHTS).exists():
        return ""
    return (
        f"; a new run can begin with the weights of this one: --init {folder}, or in Python "
        f"diffkit.weights.load_matching(system, {str(folder / WEIGHTS)!r})"
    )


@frozen
class _Known:
    """The description of a run in its config.json.

    Attributes:
        config: Its options.
        data: Facts of its data.
        frozen: Names of parameters that are not trained; None if an earlier diffkit did not record them.
    """

    config: TrainConfig
    data: Mapping[str, Any]
    frozen: Sequence[str] | None

    @classmethod
    def of(cls, found: Mapping[str, Any], path: Path) -> _Known:
        """Return the description in the content of config.json."""
        check_fields(found, str(path), CheckpointError, train=dict, data=dict, frozen=(list, type(None)))
        train = {name: value for name, value in found["train"].items() if name not in RETIRED}
        if unknown := train.keys() - attrs.fields_dict(TrainConfig).keys():
            raise CheckpointError(f"{path} has an unknown option {min(unknown)!r} of training")
        try:
            config = TrainConfig(**{name: _tuple(value) for name, value in train.items()})
        except (OptionError, TypeError) as error:  # TypeError if steps are missing
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return cls(config, found["data"], found.get("frozen"))


def _known(folder: Path, *, warn: bool = False) -> _Known | None:
    """Return the description of the run in a folder; None if there is no run, or nothing to resume it from.

    Where config.json is damaged, the description is read from the newest readable checkpoint.
    """
    if not is_run(folder):
        return None
    path = folder / CONFIG
    try:
        found = read_json(path, CheckpointError)
        if (written := found.get("format")) in range(1, FORMAT + 1):
            return _Known.of(found, path)
        if not isinstance(written, int):
            raise CheckpointError(f"{path} is damaged: it does not describe a run")
    except CheckpointError as error:
        if warn:
            say(f"warning: {error}; it is written again")
        return _known_by_checkpoints(folder, error)
    raise CheckpointError(f"{path} has format {shown(written)}, this diffkit reads {FORMAT}; upgrade diffkit")


def _known_by_checkpoints(folder: Path, error: CheckpointError) -> _Known | None:
    """Return the description of the run in the newest readable checkpoint; None if there are no checkpoints.

    Raises:
        CheckpointError: It has no description, as those of earlier versions; the fault of config.json is the cause.
    """
    for path, manifest in _manifests(folder / CHECKPOINTS):
        if "run" in manifest:
            return _Known.of(manifest["run"], path)
    if next(checkpoint.newest_first(folder / CHECKPOINTS), None) is None:
        return None
    raise CheckpointError(f"{error}; put a copy of it back, or choose another folder") from error


def identity(data: Data) -> dict[str, Any]:
    """Return the facts of data that must agree when a run is resumed, and between its processes, as plain JSON."""
    found = json.loads(json.dumps(data.describe()))
    return {name: found.get(name) for name in (*description(data), "low_res", "fingerprint")}


def write_facts(folder: Path, found: Mapping[str, Any]) -> None:
    """Write config.json, from what `facts` returned."""
    write_atomically(folder / CONFIG, (json.dumps(found, indent=2) + "\n").encode())


@frozen
class Fault:
    """A fault of the system in a run's folder.

    Attributes:
        text: Its description.
        damaged: True if the system cannot be loaded.
    """

    text: str
    damaged: bool


def fault(folder: Path, weights: Mapping[str, Tensor]) -> Fault | None:
    """Return the fault of the system in the folder, or None if it can be loaded and has these weights.

    Only the weights of the newest checkpoint are right: a run that was killed before it wrote them has older ones.
    """
    path, wanted = folder / WEIGHTS, digest(as_file(weights))
    try:
        record = _read_spec(folder).get("weights") or {}
        read_weights(path, record or None)
    except CheckpointError as error:
        return Fault(str(error), damaged=True)
    for name, found in ((SPEC, record), (WEIGHTS, digest(path.read_bytes()))):
        if any(found.get(key) != value for key, value in wanted.items()):
            return Fault(f"{folder / name} is of another step than the newest checkpoint", damaged=False)
    return None


def result(spec: Mapping[str, Any], folder: Path) -> str:
    """Return a text with the code that loads the result of a run."""
    named, where = "has the result", str(folder)
    if "classifier" in spec:
        own, reader, slot = spec["classifier"].get("class"), "diffkit.weights.load_classifier", "network"
    else:
        own, reader, slot = (spec["parts"]["backbone"] or {}).get("class"), "diffkit.load", "backbone"
    if own is None:
        return f"{reader}({where!r}) {named}"
    return f"{reader}({where!r}, {slot}=network) {named}; network must be of the class {own}, as trained here"


def _differences_of_system(folder: Path, spec: Mapping[str, Any]) -> list[str]:
    """Differences from the run's system; where its file is damaged, from that of the newest whole checkpoint."""
    try:
        return _spec_differences(_read_spec(folder), spec)
    except CheckpointError:
        return _manifest_differences(folder / CHECKPOINTS, spec)


def _manifest_differences(checkpoints: Path, spec: Mapping[str, Any]) -> list[str]:
    """Differences from the system of the newest whole checkpoint; earlier versions stored only names of parts."""
    for path, manifest in _manifests(checkpoints):
        with contextlib.suppress(CheckpointError):
            return _differences_of_manifest(manifest, spec, str(path))
    return []


def _manifests(checkpoints: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Checkpoints and their manifests, the newest first, without damaged ones."""
    for path in checkpoint.newest_first(checkpoints):
        with contextlib.suppress(CheckpointError):
            yield path, checkpoint.manifest_of(path)


def _differences_of_manifest(manifest: Mapping[str, Any], spec: Mapping[str, Any], what: str) -> list[str]:
    if "spec" in manifest:
        return _spec_differences(_checked(manifest["spec"], what), spec)
    old = _checked({"settings": {}, **manifest}, what)
    pairs = [(kind, old["parts"].get(kind), spec["parts"][kind]) for kind in spec["parts"]]
    named = [(kind, was and word(was.get("name")), now and now["name"]) for kind, was, now in pairs]
    return [f"{kind} {was}, now {now}" for kind, was, now in named if was != now]


def _spec_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for kind in new["parts"]:
        found += _part_differences(kind, old["parts"].get(kind), new["parts"][kind])
    was_set = {**old["settings"], **_of_classifier(old)}
    for name, now in {**new["settings"], **_of_classifier(new)}.items():
        was = was_set.get(name)
        if was != now and name != "sampling":  # without effect on training
            found.append(changed(name, was, now))
    return found


def _part_differences(kind: str, was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """The differing options of a part, or both parts if their names differ."""
    if _identity(was) in (_identity(now), _identity(_recipe(now))):
        return []
    if was is None or now is None or _identity({**was, "options": 0}) != _identity({**now, "options": 0}):
        return [f"{kind} {_label(was)}, now {_label(now)}"]
    old_options, new_options = (part.get("options") or {} for part in (was, now))
    pairs = [(f"{kind}.{name}", old_options.get(name), new_options.get(name)) for name in new_options | old_options]
    return [changed(name, old, new) for name, old, new in pairs if old != new]


def _of_classifier(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network of a classifier, and its classes; nothing for a system."""
    return {**spec["classifier"], "num_classes": spec.get("num_classes")} if "classifier" in spec else {}


def _identity(part: Mapping[str, Any] | None) -> Any:
    """A part without its version and without the recipe of a network of the user's own."""
    return None if part is None else {key: value for key, value in part.items() if key not in ("version", "recipe")}


def _recipe(part: Mapping[str, Any] | None) -> Any:
    """The part that a network of the user's own was first built from; earlier versions wrote only that."""
    return part.get("recipe", part) if part else part


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
    """Return a spec that can be compared with another one, or raise an error that names its fault."""
    none = type(None)
    check_fields(
        spec, what, CheckpointError, parts=dict, settings=dict, classifier=(dict, none), num_classes=(int, none)
    )
    for kind, part in spec["parts"].items():
        if part is not None:
            check_fields(part, f"{kind} of {what}", CheckpointError, name=(str, none), options=(dict, none))
    return spec
