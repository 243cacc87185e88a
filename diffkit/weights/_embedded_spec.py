"""The spec in the metadata of an exported file, which other programs ignore.

In safetensors it is metadata of the header; in PyTorch's files it is in the metadata of a state dict, which
`torch.nn.Module.load_state_dict` reads by the names of modules only.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit.errors import CheckpointError, SpecError
from diffkit.runtime.strict_json import parse_json, shown
from diffkit.system.module import System

KEY = "diffkit"


def own_spec(target: Any) -> dict[str, Any] | None:
    """Return the spec of a system; None for a network, or a system with parts that have no registered name."""
    if not isinstance(target, System) or target.parts.backbone is None:
        return None
    try:
        return target.spec()
    except SpecError:
        return None  # its parts have no names, but its weights can be exported


def as_text(spec: Mapping[str, Any]) -> str:
    """Return a spec as text, without its entry about a file of weights, which would be that of another file."""
    return json.dumps({name: value for name, value in spec.items() if name != "weights"})


def with_text(tensors: Mapping[str, Tensor], text: str | None) -> Mapping[str, Tensor]:
    """Return tensors by name that carry a text."""
    if text is None:
        return tensors
    found = OrderedDict(tensors)
    found._metadata = OrderedDict({KEY: text})  # type: ignore[attr-defined]  # as Module.state_dict does
    return found


def carried(path: Path, tensors: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    """Return the spec that a dictionary of tensors carries, or None.

    Raises:
        CheckpointError: There is one, and it cannot be read.
    """
    metadata = getattr(tensors, "_metadata", None)
    text = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    if text is None:
        return None
    try:
        spec = parse_json(text) if isinstance(text, str) else None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: the spec in it is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path} is damaged: the spec in it is not a JSON object but {shown(spec)}")
    return spec
