"""Export weights in the layout of the public checkpoints."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.files import to_safetensors, write_atomically
from diffkit.runtime.strict_json import reason
from diffkit.system.module import System
from diffkit.weights._embedded_spec import KEY, as_text, own_spec, with_text
from diffkit.weights._partial_load import network_of

_ENDINGS = (".pt", ".pth", ".safetensors")


def export(target: System | nn.Module, path: str | Path, *, spec: Mapping[str, Any] | None = None) -> Path:
    """Write the weights of a U-Net, a classifier or a DiT with the names of the public checkpoints.

    Weights that were loaded from a public file and not changed are written with the same names in the same order, bit
    by bit. The file also carries the system's spec, so that `diffkit.load_checkpoint` needs no options; other
    programs read the tensors and ignore the spec.

    Args:
        target: A system or a network of it.
        path: Ends in ".pt" or ".pth" (PyTorch, readable with ``weights_only=True``) or ".safetensors".
        spec: The spec to store in the file; a system's own by default, none for a bare network.
    Returns:
        The path.
    Raises:
        OptionError: The file has another ending, or the network has no public layout.
        CheckpointError: The file cannot be written.
    """
    from safetensors import SafetensorError

    from diffkit.guidance._classifier import ClassifierNetwork
    from diffkit.parts.backbones._dit import DiTNetwork
    from diffkit.parts.backbones._unet import UNetNetwork

    path, network = Path(path), network_of(target)
    if not isinstance(network, UNetNetwork | DiTNetwork | ClassifierNetwork):
        raise OptionError(
            f"a {type(network).__name__} has no public layout of weights; backbones 'unet', 'dit' and classifiers have"
        )
    if path.suffix not in _ENDINGS:
        raise OptionError(f"a file of weights must end in {', '.join(_ENDINGS)}, got {path.name!r}")
    carried = own_spec(target) if spec is None else spec
    tensors, text = to_safetensors(network.state_dict()), None if carried is None else as_text(carried)
    try:
        write_atomically(path, _content(path, tensors, text))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {reason(error)}") from error
    return path


def _content(path: Path, tensors: dict[str, Tensor], text: str | None) -> bytes:
    """The bytes of the file, the same at any time: torch.save to a path would store the file's name."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        return save(tensors, None if text is None else {KEY: text})
    buffer = io.BytesIO()
    torch.save(with_text(tensors, text), buffer)
    return buffer.getvalue()
