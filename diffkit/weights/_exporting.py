"""Weights back into the layout of the public checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffkit._errors import CheckpointError, OptionError
from diffkit.files import replacing, storable
from diffkit.system import System
from diffkit.weights._matching import network_of

_ENDINGS = (".pt", ".pth", ".safetensors")


def export(target: System | nn.Module, path: str | Path) -> Path:
    """Write the weights of a U-Net, a classifier or a DiT with the names that the published code gives them.

    What was loaded from a public file and not changed is written with the same names in the same order, bit by bit.

    Args:
        target: A system or a network of it.
        path: Ends in ".pt" or ".pth" (PyTorch, readable with ``weights_only=True``) or ".safetensors".
    Returns:
        The path.
    Raises:
        OptionError: The file's ending is another, or the network has no public layout.
        CheckpointError: The file cannot be written.
    """
    from diffkit.backbones._dit import DiTNetwork
    from diffkit.backbones._unet import UNetNetwork
    from diffkit.guidance._classifier import ClassifierNetwork

    path, network = Path(path), network_of(target)
    if not isinstance(network, UNetNetwork | DiTNetwork | ClassifierNetwork):
        raise OptionError(
            f"a {type(network).__name__} has no public layout of weights; backbones 'unet', 'dit' and classifiers have"
        )
    if path.suffix not in _ENDINGS:
        raise OptionError(f"a file of weights must end in {', '.join(_ENDINGS)}, got {path.name!r}")
    tensors = storable(network.state_dict())
    try:
        with replacing(path) as temporary:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file(tensors, temporary)
            else:
                torch.save(tensors, temporary)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter where it cannot write
        raise CheckpointError(f"cannot write {path}: {error}") from error
    return path
