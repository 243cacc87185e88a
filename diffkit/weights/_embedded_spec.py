"""The spec that is embedded in the metadata of an exported file, which other programs ignore.

In safetensors it is in the header's metadata; in PyTorch's files it is in the metadata of a state dict, of which
`torch.nn.Module.load_state_dict` reads only the names of modules.
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


def spec_to_embed(target: Any) -> dict[str, Any] | None:
    """Return the spec to embed in a file: that of a system; None for a network, or parts without registered names."""
    if not isinstance(target, System) or target.parts.backbone is None:
        return None
    try:
        return target.spec()
    except SpecError:
        return None  # parts without names: the weights can be exported, but no spec


def spec_text(spec: Mapping[str, Any]) -> str:
    """Return a spec as text to embed, without its record of the file of weights, which is another file."""
    return json.dumps({name: value for name, value in spec.items() if name != "weights"})


def embed_text(tensors: Mapping[str, Tensor], text: str | None) -> Mapping[str, Tensor]:
    """Return tensors by name with a text embedded in their metadata."""
    if text is None:
        return tensors
    found = OrderedDict(tensors)
    found._metadata = OrderedDict({KEY: text})  # type: ignore[attr-defined]  # as Module.state_dict does
    return found


def read_embedded_spec(path: Path, tensors: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    """Return the spec that is embedded in a dictionary of tensors, or None.

    Raises:
        CheckpointError: The embedded spec cannot be read.
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
