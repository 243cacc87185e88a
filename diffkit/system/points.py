"""Points between two steps of sampling, in files of tensors and JSON.

A point holds all that later steps need but their noise, which is a function of the seed: a call that goes on draws the
noise of the steps before it once more, and so makes the same samples to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import CheckpointError, OptionError
from diffkit.protocols import State
from diffkit.runtime.files import write_atomically
from diffkit.runtime.strict_json import check_fields, check_ordinary, parse_json, reason
from diffkit.runtime.weights_files import to_safetensors
from diffkit.system.conditions import mapped
from diffkit.system.sampling import Program, TrajectoryPoint

_FORMAT = "diffkit sampling point 1"
_HEADER = "diffkit"


def check_point(point: TrajectoryPoint, program: Program, shape: tuple[int, ...]) -> None:
    """Raise `OptionError` unless a program for data of a shape, (B, C, *S), can go on from a point."""
    if not isinstance(point, TrajectoryPoint):
        raise OptionError(f"after must be a point of a trajectory, got {type(point).__name__}")
    if tuple(point.x.shape) != shape:
        raise OptionError(f"after is a point of data {tuple(point.x.shape)}, but this call makes {shape}")
    if not 1 <= point.step <= program.num_steps or program.levels[point.step - 1] != point.level:
        raise OptionError(
            f"after is a point at level {point.level} after step {point.step}, which this call does not visit; pass "
            "the sampler and the steps of the call it is from"
        )
    if _shapes(point.state) != _shapes(program.sampler.init(point.x)):
        raise OptionError("after has the state of another sampler; pass the sampler of the call it is from")


def placed(point: TrajectoryPoint, device: torch.device) -> TrajectoryPoint:
    """Return a point on a device."""
    x, x_start, state = mapped(lambda tensor: tensor.to(device), (point.x, point.x_start, point.state))
    return TrajectoryPoint(point.step, point.level, x, x_start, state)


def save_point(point: TrajectoryPoint, path: str | Path) -> Path:
    """Write a point of a trajectory into a safetensors file, for `load_point`; return its path."""
    return write_point(Path(path), point, {}, {})


def load_point(path: str | Path) -> TrajectoryPoint:
    """Return the point that `save_point` wrote, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, or of another kind.
    """
    point, _, _ = read_point(Path(path))
    if point is None:
        raise CheckpointError(f"{path} has no point: the call was interrupted between two batches")
    return point


def _shapes(state: State) -> Any:
    return tuple(state.shape) if isinstance(state, Tensor) else [_shapes(each) for each in state]


def _flat(state: State, tensors: dict[str, Tensor]) -> Any:
    """The structure of a state as JSON, lists of names; its tensors go into ``tensors``."""
    if isinstance(state, Tensor):
        name = f"state.{len(tensors)}"
        tensors[name] = state
        return name
    return [_flat(each, tensors) for each in state]


def _nested(structure: Any, tensors: Mapping[str, Tensor]) -> State:
    return tensors[structure] if isinstance(structure, str) else tuple(_nested(each, tensors) for each in structure)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_point(
    path: Path, point: TrajectoryPoint | None, call: Mapping[str, Any], further: Mapping[str, Tensor]
) -> Path:
    """Write a point, or that there is none, with facts of its call as JSON and further tensors; return the path."""
    from safetensors.torch import save

    header: dict[str, Any] = {"format": _FORMAT, "call": dict(call), "step": 0, "level": 0, "state": []}
    tensors = dict(further)
    if point is not None:
        tensors |= {"x": point.x, "x_start": point.x_start}
        header |= {"step": point.step, "level": point.level, "state": _flat(point.state, tensors)}
    write_atomically(path, save(to_safetensors(tensors), {_HEADER: json.dumps(header)}))
    return path


def read_point(path: Path) -> tuple[TrajectoryPoint | None, dict[str, Any], dict[str, Tensor]]:
    """Return the point of a file, what it says of the call, and all its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        check_ordinary(path)
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = parse_json((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        check_fields(header, str(path), CheckpointError, format=str, call=dict, step=int, level=int, state=object)
        if header["format"] != _FORMAT:
            raise ValueError(f"it has the format {header['format']!r}")
        if not header["step"]:
            return None, header["call"], tensors
        state = _nested(header["state"], tensors)
        point = TrajectoryPoint(header["step"], header["level"], tensors["x"], tensors["x_start"], state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a saved point of sampling: {reason(error)}") from error
    return point, header["call"], tensors
