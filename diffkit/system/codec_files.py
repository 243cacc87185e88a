"""Autoencoders in folders: a codec with its options, and the weights of its module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from diffkit._version import __version__
from diffkit.errors import CheckpointError, OptionError, SpecError, naming
from diffkit.options import option_names
from diffkit.protocols import AutoencoderCodec
from diffkit.registry.resolve import resolve
from diffkit.runtime.files import load_weights, new_file, write_through
from diffkit.runtime.publishing import new_folder
from diffkit.runtime.strict_json import check_fields, json_object, readable_json, reason
from diffkit.runtime.weights_files import read_weights, write_weights
from diffkit.system.saving import FORMAT, part_spec

SPEC, WEIGHTS = "codec.json", "codec.safetensors"


def save_codec(codec: AutoencoderCodec, module: nn.Module, folder: str | Path, data_shape: tuple[int, ...]) -> Path:
    """Write a codec and the weights of its module into a folder, for its option ``folder``.

    Args:
        codec: The codec, with ``folder=None``; it builds a module such as this one.
        module: The module.
        folder: Created if missing.
        data_shape: Shape of one example of data, (C, *S).
    Returns:
        The folder.
    Raises:
        CheckpointError: The folder cannot be written.
    """
    folder = Path(folder)
    spec = {"format": FORMAT, "diffkit": __version__, "codec": part_spec("codec", codec), "data_shape": data_shape}
    try:
        with new_folder(folder) as work:
            with new_file(work / WEIGHTS) as file:
                record = write_weights(file, module.state_dict())
            write_through(work / SPEC, readable_json({**spec, "weights": record}).encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {reason(error)}") from error
    return folder


def open_codec(codec: AutoencoderCodec) -> tuple[AutoencoderCodec, nn.Module]:
    """Return the codec of a codec's folder, with ``folder=None``, and its module with its weights.

    Options that are given besides the folder are used in place of those that were saved.

    Raises:
        CheckpointError: There is no autoencoder in the folder, or a file is damaged.
        OptionError: The folder holds a codec of another name, or the weights do not fit.
    """
    assert codec.folder is not None, "asked before"
    with naming(f"codec {type(codec).__name__!r}"):
        own = codec.open()
    if own is not None:
        return own
    folder = Path(codec.folder)
    spec = _read(folder)
    found, name = resolve("codec", (spec["codec"]["name"], spec["codec"]["options"]))
    if type(found) is not type(codec):
        raise OptionError(f"{folder} holds codec {name!r}; use codec=({name!r}, {{'folder': {str(folder)!r}}})")
    found = attrs.evolve(found, **_given(codec))  # type: ignore[misc]  # all parts are attrs classes
    module = found.build(tuple(spec["data_shape"]))
    if module is None:
        raise OptionError(f"codec {name!r} builds no module, so that none can be read from {folder}")
    load_weights(module, read_weights(folder / WEIGHTS, spec["weights"]))
    return found, module


def _given(codec: AutoencoderCodec) -> dict[str, Any]:
    """Options of a codec that are not its defaults, besides the folder."""
    plain = type(codec)()
    options = {name: getattr(codec, name) for name in option_names(type(codec)) or () if name != "folder"}
    return {name: value for name, value in options.items() if value != getattr(plain, name)}


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        spec = json_object(folder / SPEC)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no autoencoder ({SPEC}: {reason(error)}); train one, and write it by "
            "diffkit.weights.save_codec"
        ) from error
    check_fields(spec, f"{folder / SPEC}", SpecError, codec=dict, data_shape=list, weights=dict)
    check_fields(spec["codec"], f"{folder / SPEC}", SpecError, name=str, options=dict)
    return spec
