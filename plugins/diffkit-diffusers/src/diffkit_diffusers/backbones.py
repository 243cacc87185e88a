"""Networks of diffusers as backbones. Their options are diffusers' own, under the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit import OptionError
from diffkit.options import choice, flag, integer, integers, number
from diffkit.protocols import Backbone, Composition, ConditionalBackbone

if TYPE_CHECKING:
    from torch import nn


def _words(default: tuple[str, ...]) -> Any:
    """Field holding a tuple of strings; a list is accepted, so that JSON and TOML can say it."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise OptionError(f"{attribute.name} must be a list of names, got {value!r}")

    return attrs.field(default=default, validator=check, converter=lambda v: tuple(v) if isinstance(v, list) else v)


def _word(default: str | None) -> Any:
    """Field holding a string or None."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None and not isinstance(value, str):
            raise OptionError(f"{attribute.name} must be a name or None, got {value!r}")

    return attrs.field(default=default, validator=check)


@frozen
class DiffusersUNet2D(Backbone):
    """``diffusers.UNet2DModel``, with the shape of the data filled in; labels are the condition ``y``.

    See its documentation for what the options mean; defaults are the same.
    """

    center_input_sample: bool = flag(False)
    time_embedding_type: str = choice("positional", ("positional", "fourier", "learned"))
    time_embedding_dim: int | None = integer(None, optional=True, ge=1)
    freq_shift: int = integer(0)
    flip_sin_to_cos: bool = flag(True)
    down_block_types: tuple[str, ...] = _words(("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"))
    mid_block_type: str | None = _word("UNetMidBlock2D")
    up_block_types: tuple[str, ...] = _words(("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
    block_out_channels: tuple[int, ...] = integers((224, 448, 672, 896), ge=1)
    layers_per_block: int = integer(2, ge=1)
    mid_block_scale_factor: float = number(1.0)
    downsample_padding: int = integer(1, ge=0)
    downsample_type: str = choice("conv", ("conv", "resnet"))
    upsample_type: str = choice("conv", ("conv", "resnet"))
    dropout: float = number(0.0, ge=0, lt=1)
    act_fn: str = _word("silu")
    attention_head_dim: int | None = integer(8, optional=True, ge=1)
    norm_num_groups: int = integer(32, ge=1)
    attn_norm_num_groups: int | None = integer(None, optional=True, ge=1)
    norm_eps: float = number(1e-5, gt=0)
    resnet_time_scale_shift: str = choice("default", ("default", "scale_shift"))
    add_attention: bool = flag(True)
    class_embed_type: str | None = _word(None)
    num_class_embeds: int | None = integer(None, optional=True, ge=1)
    num_train_timesteps: int | None = integer(None, optional=True, ge=1)

    def problems(self, composition: Composition) -> Iterable[str]:
        """Say that data of this shape cannot be taken."""
        return _problems(composition, _halving_fault(composition.data_shape, self.block_out_channels))

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, y=None)``."""
        from diffusers import UNet2DModel

        from diffkit_diffusers.networks import LabelledNetwork

        made = _made_unet(UNet2DModel, self, data_shape, out_channels)
        return LabelledNetwork(made, self.time_embedding_type == "learned")


@frozen
class DiffusersUNet2DCondition(ConditionalBackbone):
    """``diffusers.UNet2DConditionModel``, with the shape of the data filled in; it attends to ``context``.

    ``context`` is (B, L, cross_attention_dim), ``context_mask`` (B, L) says which of its vectors are there, and labels
    are ``y``. The null condition is a context of zeros. See its documentation for what the options mean; defaults are
    the same.
    """

    center_input_sample: bool = flag(False)
    flip_sin_to_cos: bool = flag(True)
    freq_shift: int = integer(0)
    down_block_types: tuple[str, ...] = _words(("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    mid_block_type: str | None = _word("UNetMidBlock2DCrossAttn")
    up_block_types: tuple[str, ...] = _words(("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = integers((320, 640, 1280, 1280), ge=1)
    layers_per_block: int = integer(2, ge=1)
    downsample_padding: int = integer(1, ge=0)
    mid_block_scale_factor: float = number(1.0)
    dropout: float = number(0.0, ge=0, lt=1)
    act_fn: str = _word("silu")
    norm_num_groups: int = integer(32, ge=1)
    norm_eps: float = number(1e-5, gt=0)
    cross_attention_dim: int = integer(1280, ge=1)
    transformer_layers_per_block: int = integer(1, ge=1)
    attention_head_dim: int = integer(8, ge=1)
    use_linear_projection: bool = flag(False)
    class_embed_type: str | None = _word(None)
    num_class_embeds: int | None = integer(None, optional=True, ge=1)
    upcast_attention: bool = flag(False)
    resnet_time_scale_shift: str = choice("default", ("default", "scale_shift"))

    def null_conditions(self) -> Mapping[str, Any]:
        """Return the empty context."""
        return {"context": 0.0}

    def context_width(self) -> int:
        """Return the width of the vectors of the context."""
        return self.cross_attention_dim

    def problems(self, composition: Composition) -> Iterable[str]:
        """Say that data of this shape cannot be taken."""
        return _problems(composition, _halving_fault(composition.data_shape, self.block_out_channels))

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, *, context, context_mask=None, y=None)``."""
        from diffusers import UNet2DConditionModel

        from diffkit_diffusers.networks import ContextNetwork

        made = _made_unet(UNet2DConditionModel, self, data_shape, out_channels)
        return ContextNetwork(made, self.cross_attention_dim)


@frozen
class DiffusersDiT(ConditionalBackbone):
    """``diffusers.DiTTransformer2DModel``, with the shape of the data filled in; labels are the condition ``y``.

    See its documentation for what the options mean; defaults are the same. The class of index num_embeds_ada_norm means
    "no class"; a tenth of the labels is replaced by it in training, as diffusers does.
    """

    num_attention_heads: int = integer(16, ge=1)
    attention_head_dim: int = integer(72, ge=1)
    num_layers: int = integer(28, ge=1)
    dropout: float = number(0.0, ge=0, lt=1)
    norm_num_groups: int = integer(32, ge=1)
    attention_bias: bool = flag(True)
    patch_size: int = integer(2, ge=1)
    activation_fn: str = _word("gelu-approximate")
    num_embeds_ada_norm: int = integer(1000, ge=1)
    upcast_attention: bool = flag(False)
    norm_elementwise_affine: bool = flag(False)
    norm_eps: float = number(1e-5, gt=0)

    def null_conditions(self) -> Mapping[str, Any]:
        """Return the label that means "no class"."""
        return {"y": self.num_embeds_ada_norm}

    def count_classes(self) -> int:
        """Return the number of classes."""
        return self.num_embeds_ada_norm

    def problems(self, composition: Composition) -> Iterable[str]:
        """Say that data of this shape cannot be taken."""
        return _problems(composition, self._fault(composition.data_shape))

    def _fault(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) == 3 and shape[1] == shape[2] and shape[1] % self.patch_size == 0:
            return None
        wanted = f"square images (C, H, H) with H a multiple of patch_size={self.patch_size}"
        return f"takes {wanted}, but data_shape is {shape}"

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, y)``."""
        from diffusers import DiTTransformer2DModel

        from diffkit_diffusers.networks import LabelledNetwork

        _refuse(self._fault(data_shape))
        shape = dict(sample_size=data_shape[-1], in_channels=data_shape[0], out_channels=out_channels)
        return LabelledNetwork(_made(DiTTransformer2DModel, attrs.asdict(self), shape))


def _halving_fault(shape: tuple[int, ...], block_out_channels: tuple[int, ...]) -> str | None:
    halvings = len(block_out_channels) - 1
    if len(shape) != 3:
        return f"takes images (C, H, W), but data_shape is {shape}"
    if shape[1] % 2**halvings or shape[2] % 2**halvings:
        return (
            f"halves images {halvings} times, so their sides must be multiples of {2**halvings}, but data_shape is "
            f"{shape}; use fewer block_out_channels"
        )
    return None


def _problems(composition: Composition, fault: str | None) -> list[str]:
    return [f"{composition.label('backbone')} {fault}"] if fault else []


def _refuse(fault: str | None) -> None:
    if fault:
        raise OptionError(f"this network {fault}")


def _made_unet(
    model: Any, part: DiffusersUNet2D | DiffusersUNet2DCondition, data_shape: tuple[int, ...], out_channels: int
) -> nn.Module:
    _refuse(_halving_fault(data_shape, part.block_out_channels))
    channels, *sides = data_shape
    size = sides[0] if sides[0] == sides[-1] else tuple(sides)
    return _made(model, attrs.asdict(part), dict(sample_size=size, in_channels=channels, out_channels=out_channels))


def _made(model: Any, options: Mapping[str, Any], shape: Mapping[str, Any]) -> nn.Module:
    """Make a model; what it thinks of its options comes back as `OptionError`."""
    try:
        made: nn.Module = model(**options, **shape)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise OptionError(f"{model.__name__} cannot be made with these options: {error}") from error
    return made
