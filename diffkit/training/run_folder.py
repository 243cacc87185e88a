"""The folder of a run, laid out as in `diffkit.runtime.run_layout`: created, described, checked before resuming."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen
from torch import Tensor, nn

from diffkit._version import __version__
from diffkit.data.base import Data, description
from diffkit.errors import CheckpointError, Message, OptionError, joined
from diffkit.runtime.files import write_atomically
from diffkit.runtime.output import log
from diffkit.runtime.run_layout import (
    CHECKPOINTS,
    CONFIG,
    PREVIEWS,
    RECIPE,
    SPEC,
    TENSORBOARD,
    WEIGHTS,
    is_run,
)
from diffkit.runtime.strict_json import check_fields, read_json, shown
from diffkit.runtime.temporaries import is_temporary, sweep
from diffkit.runtime.weights_files import read_weights, weights_record
from diffkit.training import checkpoint
from diffkit.training.config import RETIRED, TrainConfig
from diffkit.training.lock import NAME as LOCK
from diffkit.training.run_differences import (
    config_differences,
    data_differences,
    is_of_length,
    read_comparable_spec,
    system_differences,
    trained_parameter_differences,
)

FORMAT = 1
FOLDERS = (CHECKPOINTS, PREVIEWS, TENSORBOARD, "wandb")
"""Names of the folders in the folder of a run."""
FILES_BEFORE_RUN = (LOCK, RECIPE)
"""Files that the folder may have before its run begins: the lock, and the recipe that the command line writes."""


def prepare_folder(out: str | Path) -> Path:
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
    if other := foreign_files(folder):
        raise OptionError(
            f"out {str(folder)!r} is not a run but holds {len(other)} other files (first: {other[0]!r}); choose "
            "another folder"
        )
    return folder


def foreign_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that diffkit does not write before a run begins."""
    return sorted(
        path.name for path in folder.iterdir() if path.name not in FILES_BEFORE_RUN and not is_temporary(path)
    )


def _refuse_links(folder: Path) -> None:
    """Raise `OptionError` if files of the run would be written to, or removed from, another folder through a link."""
    for name in FOLDERS:
        if (folder / name).is_symlink():
            raise OptionError(
                f"{folder / name} is a link, and a run does not write through links; move its target here, or "
                f"let {folder} itself be the link"
            )


def sweep_folders(folder: Path) -> None:
    """Remove temporary files of killed processes from a run's folders; `checkpoint.write` does so for checkpoints."""
    for path in (folder, *(folder / name for name in FOLDERS)):
        sweep(path)


def frozen_parameters(network: nn.Module) -> list[str]:
    """Return the names of the parameters of a network that are not trained."""
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def config_content(config: TrainConfig, data: Data, frozen: Sequence[str]) -> dict[str, Any]:
    """Return the content of config.json: the options, the data, and the parameters that are not trained."""
    found = {"train": attrs.asdict(config), "data": data.describe(), "frozen": list(frozen)}
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, "diffkit": __version__, **found}))
    return plain


def check_options(folder: Path, config: TrainConfig) -> None:
    """Raise if the folder holds a run that cannot be resumed with these options.

    Raises:
        OptionError: The run has other options; the text lists each difference.
        CheckpointError: The description of the run cannot be read.
    """
    if (known := _read_description(folder)) is not None:
        _raise_differences(folder, config_differences(known.config, config, checkpoint.completed_updates(folder)))


def check_same_run(folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Data, network: nn.Module) -> None:
    """Raise if the folder holds a run of another system, options, data or set of trained parameters.

    Raises:
        OptionError: There are differences; the text lists each.
        CheckpointError: The description of the run cannot be read.
    """
    known = _read_description(folder, warn=True)
    if known is None:
        return
    found = config_differences(known.config, config, checkpoint.completed_updates(folder))
    if (folder / SPEC).exists():
        found += system_differences(folder, json.loads(json.dumps(spec)))
    found += data_differences(known.data, data_identity(data))
    trained = [] if known.frozen is None else trained_parameter_differences(known.frozen, network)
    _raise_differences(folder, found + trained, begins_anew=bool(trained))


def _raise_differences(folder: Path, found: Sequence[str], begins_anew: bool = False) -> None:
    """Raise `OptionError` with the differences, if there are any.

    Args:
        folder: The folder of the run.
        found: The differences.
        begins_anew: Whether what differs can be had by a new run with the weights of this one.
    """
    if found:
        more = _init_advice(folder) if begins_anew or any(map(is_of_length, found)) else ""
        lines = joined("\n  ", [f"out {str(folder)!r} holds a run that differs from this one:", *found])
        raise OptionError(Message(lines, f"\npass the same options, or choose another folder{more}"))


def _init_advice(folder: Path) -> str:
    """Return advice on how to go on with the same network in another run."""
    if not (folder / WEIGHTS).exists():
        return ""
    return (
        f"; a new run can begin with the weights of this one: --init {folder}, or in Python "
        f"diffkit.weights.load_matching(system, {str(folder / WEIGHTS)!r})"
    )


@frozen
class _RunDescription:
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
    def of(cls, found: Mapping[str, Any], path: Path) -> _RunDescription:
        """Return the description in the content of config.json."""
        check_fields(found, str(path), CheckpointError, train=dict, data=dict, frozen=(list, type(None)))
        train: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in found["train"].items() if k not in RETIRED
        }
        if unknown := train.keys() - attrs.fields_dict(TrainConfig).keys():
            raise CheckpointError(f"{path} has an unknown option {min(unknown)!r} of training")
        try:
            config = TrainConfig(**train)
        except (OptionError, TypeError) as error:  # TypeError if steps are missing
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return cls(config, found["data"], found.get("frozen"))


def _read_description(folder: Path, *, warn: bool = False) -> _RunDescription | None:
    """Return the description of the run in a folder; None if there is no run, or no checkpoint to resume it from.

    If config.json is damaged, the description is read from the newest checkpoint with an intact manifest.
    """
    if not is_run(folder):
        return None
    path = folder / CONFIG
    try:
        found = read_json(path, CheckpointError)
        if (written := found.get("format")) in range(1, FORMAT + 1):
            return _RunDescription.of(found, path)
        if not isinstance(written, int):
            raise CheckpointError(f"{path} is damaged: it does not describe a run")
    except CheckpointError as error:
        if warn:
            log(f"warning: {error}; it is written again")
        return _description_in_checkpoints(folder, error)
    raise CheckpointError(f"{path} has format {shown(written)}, this diffkit reads {FORMAT}; upgrade diffkit")


def _description_in_checkpoints(folder: Path, error: CheckpointError) -> _RunDescription | None:
    """Return the run's description in the newest intact manifest; None if there are no checkpoints.

    Args:
        folder: The folder of the run.
        error: The fault of config.json.
    Raises:
        CheckpointError: No manifest has a description, which earlier versions did not write.
    """
    for path, manifest in checkpoint.intact_manifests(folder / CHECKPOINTS):
        if "run" in manifest:
            return _RunDescription.of(manifest["run"], path)
    if next(checkpoint.newest_first(folder / CHECKPOINTS), None) is None:
        return None
    raise CheckpointError(f"{error}; put a copy of it back, or choose another folder") from error


def data_identity(data: Data) -> dict[str, Any]:
    """Return the facts of a run's data that must be the same after resuming and in all processes, as plain JSON."""
    found = json.loads(json.dumps(data.describe()))
    return {name: found.get(name) for name in (*description(data), "low_res", "fingerprint")}


def write_config(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the config.json of a run, with the content that `config_content` returned."""
    write_atomically(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


@frozen
class SystemFault:
    """A fault of the saved system in a run's folder.

    Attributes:
        text: Its description.
        damaged: True if the system cannot be loaded.
    """

    text: str
    damaged: bool


def find_system_fault(folder: Path, weights: Mapping[str, Tensor]) -> SystemFault | None:
    """Return the fault of the saved system in a run's folder, or None if it can be loaded and has these weights.

    A run that was killed after it wrote a checkpoint may have a saved system with the weights of an older checkpoint.

    Args:
        folder: The folder of the run.
        weights: Weights for sampling in the newest checkpoint.
    """
    path = folder / WEIGHTS
    try:
        record = read_comparable_spec(folder).get("weights") or {}
        expected = weights_record(weights, chunked="chunk" in record)
        recorded = all(record.get(key) == value for key, value in expected.items())
        if recorded and _is_intact(path, expected):
            return None
        read_weights(path, record or None)
    except CheckpointError as error:
        return SystemFault(str(error), damaged=True)
    name = WEIGHTS if recorded else SPEC
    return SystemFault(f"{folder / name} is of another step than the newest checkpoint", damaged=False)


def samples_otherwise(folder: Path, spec: Mapping[str, Any]) -> bool:
    """Return whether the saved system in a run's folder has other defaults of sampling than a spec."""
    was, now = (found["settings"].get("sampling") for found in (read_comparable_spec(folder), spec))
    return bool(was != json.loads(json.dumps(now)))


def _is_intact(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        read_weights(path, record)
    except CheckpointError:
        return False
    return True


def result_text(spec: Mapping[str, Any], folder: Path) -> str:
    """Return a text with the code that loads the trained system of a run."""
    where = str(folder)
    if "classifier" in spec:
        own, reader, slot = spec["classifier"].get("class"), "diffkit.weights.load_classifier", "network"
    else:
        own, reader, slot = (spec["parts"]["backbone"] or {}).get("class"), "diffkit.load", "backbone"
    if own is None:
        return f"{reader}({where!r}) has the result"
    return f"{reader}({where!r}, {slot}=network) has the result; network must be of the class {own}, as trained here"
