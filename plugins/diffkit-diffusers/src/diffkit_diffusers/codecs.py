"""Autoencoders of diffusers as codecs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from attrs import frozen

from diffkit import OptionError
from diffkit.errors import CheckpointError
from diffkit.options import number, word
from diffkit.protocols import AutoencoderCodec
from diffkit.runtime.strict_json import json_object, parse_json, reason

if TYPE_CHECKING:
    from torch import Tensor, nn


def _text(config: object) -> object:
    """A configuration as JSON text; anything else as it is."""
    return json.dumps(dict(config), sort_keys=True) if isinstance(config, Mapping) else config


def _check_config(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    try:
        good = isinstance(value, str) and isinstance(parse_json(value), dict)
    except ValueError:
        good = False
    if not good:
        raise OptionError("must be a mapping, or its JSON text, as in config.json", option="config", value=value)


@frozen
class DiffusersKL(AutoencoderCodec):
    """Latents of ``diffusers.AutoencoderKL``: ``(E(x) - shift) scale``.

    Attributes:
        folder: Folder with config.json and weights in safetensors files, as ``save_pretrained`` writes; such as the
            folder "vae" of a pipeline.
        config: The content of config.json, a mapping or its text, in place of a folder; weights are then random.
        scale: Factor on latents, > 0; by default that of the configuration, 0.18215 in Stable Diffusion and DiT.
        shift: Subtracted from latents first; by default that of the configuration, or 0.
    Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1.
    """

    spatial: ClassVar[bool] = True

    folder: str | None = word(None, optional=True)
    config: str | None = attrs.field(default=None, validator=_check_config, converter=_text)
    scale: float | None = number(None, optional=True, gt=0)
    shift: float | None = number(None, optional=True)

    def open(self) -> tuple[AutoencoderCodec, nn.Module]:
        """Return this codec with the folder's configuration, and the module with its weights; nothing is unpickled."""
        from diffusers import AutoencoderKL

        config = self._known_config()
        try:
            module = AutoencoderKL.from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            raise CheckpointError(f"{self.folder} cannot be read as an AutoencoderKL: {text}") from error
        return attrs.evolve(self, folder=None, config=config), module

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of latents: sides divided by 2 for each block after the first."""
        config = self._known_config()
        factor, channels = 2 ** (len(config["block_out_channels"]) - 1), config["in_channels"]
        if len(data_shape) != 3 or data_shape[0] != channels or any(side % factor for side in data_shape[1:]):
            raise OptionError(
                f"takes images of {channels} channels with sides that are multiples of {factor}, got {data_shape}"
            )
        return (config["latent_channels"], *(side // factor for side in data_shape[1:]))

    def build(self, data_shape: tuple[int, ...]) -> nn.Module:
        """Return the autoencoder with random weights."""
        from diffusers import AutoencoderKL

        self.latent_shape(data_shape)
        module: nn.Module = AutoencoderKL.from_config(dict(self._known_config()))
        return module

    def moments(self, x: Tensor, module: nn.Module) -> Tensor:
        """Return mean and log-variance of scaled latents."""
        import torch

        scale, shift = self._units()
        found = module.encode(x.to(module.dtype), return_dict=False)[0]  # type: ignore[operator, arg-type]
        mean, log_variance = found.mean.to(x.dtype), found.logvar.to(x.dtype)
        return torch.cat([(mean - shift) * scale, log_variance + 2 * math.log(scale)], 1)

    def decode(self, z: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        """Return the images of scaled latents."""
        scale, shift = self._units()
        x: Tensor = module.decode((z / scale + shift).to(module.dtype), return_dict=False)[0]  # type: ignore[operator, arg-type]
        return x.to(z.dtype)

    def _units(self) -> tuple[float, float]:
        config = self._known_config()
        scale = config.get("scaling_factor", 0.18215) if self.scale is None else self.scale
        return scale, (config.get("shift_factor") or 0.0) if self.shift is None else self.shift

    def _known_config(self) -> Mapping[str, Any]:
        config: Any = self._read_config() if self.config is None else parse_json(self.config)
        defaults = {"block_out_channels": (64,), "in_channels": 3, "latent_channels": 4}
        return {**defaults, **{name: value for name, value in config.items() if not name.startswith("_")}}

    def _read_config(self) -> Mapping[str, Any]:
        if self.folder is None:
            raise OptionError("has neither a folder nor a config; name the folder of an AutoencoderKL")
        path = Path(self.folder) / "config.json"
        try:
            return json_object(path)
        except (OSError, ValueError) as error:
            text = f"{path} cannot be read, so there is no AutoencoderKL: {reason(error)}"
            raise CheckpointError(text) from error
