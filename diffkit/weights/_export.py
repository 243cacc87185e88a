"""Export weights in the layout of the public checkpoints."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.files import write_atomically
from diffkit.runtime.output import log
from diffkit.runtime.strict_json import reason
from diffkit.runtime.weights_files import to_safetensors
from diffkit.system.attached import adapter_of
from diffkit.system.module import System
from diffkit.weights._embedded_spec import KEY, embed_text, spec_text, spec_to_embed
from diffkit.weights._partial_load import target_network

_ENDINGS = (".pt", ".pth", ".safetensors")


def export(target: System | nn.Module, path: str | Path, *, spec: Mapping[str, Any] | None = None) -> Path:
    """Export the weights of a U-Net, a classifier or a DiT to a file with the names of the public checkpoints.

    Weights that were loaded from a public file and not changed are written with the same names in the same order, bit
    for bit. The system's spec is embedded in the file, so that `diffkit.load_checkpoint` needs no options; other
    programs read the tensors and ignore the spec. Weights of a system's parts are left out, which a note says.

    Args:
        target: A system or its network.
        path: The file; its name ends in ".pt" or ".pth" (PyTorch, read with ``weights_only=True``) or ".safetensors".
        spec: The spec to embed; by default that of a system, none for a network.
    Returns:
        The path.
    Raises:
        OptionError: The file has another suffix, or the network has no public layout, or an adapter.
        CheckpointError: The file cannot be written.
    """
    from safetensors import SafetensorError

    from diffkit.guidance._classifier import ClassifierNetwork
    from diffkit.parts.backbones._dit import DiTNetwork
    from diffkit.parts.backbones._unet import UNetNetwork

    path, network = Path(path), target_network(target)
    if not isinstance(network, UNetNetwork | DiTNetwork | ClassifierNetwork):
        raise OptionError(
            f"a {type(network).__name__} has no public layout of weights; backbones 'unet', 'dit' and classifiers have"
        )
    if adapter_of(network) is not None:
        raise OptionError(
            "the network has an adapter, which no public layout has; merge it first: diffkit.weights.merged(system)"
        )
    if path.suffix not in _ENDINGS:
        raise OptionError(f"a file of weights must end in {', '.join(_ENDINGS)}, got {path.name!r}")
    carried = spec_to_embed(target) if spec is None else spec
    tensors, text = to_safetensors(network.state_dict()), None if carried is None else spec_text(carried)
    try:
        write_atomically(path, _file_bytes(path, tensors, text))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {reason(error)}") from error
    if isinstance(target, System) and (kinds := [*target.learned, *target.frozen]):
        parts = ", ".join(target.parts.label(kind) for kind in kinds)
        log(f"note: {path.name} holds the network; weights of {parts} are left out, system.save keeps them")
    return path


def _file_bytes(path: Path, tensors: dict[str, Tensor], text: str | None) -> bytes:
    """Return the bytes of the exported file, which do not depend on its name, unlike those of torch.save to a path."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        return save(tensors, None if text is None else {KEY: text})
    buffer = io.BytesIO()
    torch.save(embed_text(tensors, text), buffer)
    return buffer.getvalue()
