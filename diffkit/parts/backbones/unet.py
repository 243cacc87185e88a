"""The U-Net of the DDPM family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit.errors import Message, OptionError
from diffkit.options import choice, flag, integer, integers, number, numbers
from diffkit.parts.backbones._labels import label_count, null_conditions
from diffkit.parts.backbones._layout import Layout, refuse
from diffkit.protocols import ConditionalBackbone, ResizableBackbone, SelfConditionedBackbone, TwoTimeBackbone
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import nn

    from diffkit.protocols import Composition


@registry("backbone").register("unet")
@frozen
class UNet(ConditionalBackbone, ResizableBackbone, SelfConditionedBackbone, TwoTimeBackbone):
    """U-Net with attention at coarse levels, as in improved-diffusion and guided-diffusion (ADM).

    Data has one, two or three spatial axes, of any size that the levels can halve; of three axes only the inner two
    are halved. Keys of the state dict are those of the public checkpoints.
    With ``resblock_updown=True, num_head_channels=64, attention_order="new"`` it is ADM.

    Attributes:
        channels: Base width.
        num_res_blocks: Residual blocks per level on the way down; one more on the way up.
        channel_mult: Width of each level in units of channels, finest first; fractions are allowed. None takes the
            published choice for 32, 64, 128, 256 or 512 pixels, whichever is the largest not above the shorter side
            (32 for smaller images), cut to the levels that the sides can be halved into, none smaller than 4.
        attention_resolutions: Sizes (shorter side, in pixels) of the levels that have attention besides the middle
            block, which always has it. None means every level of 8 to 16 pixels: (16, 8) if sides are powers of two.
        num_heads: Attention heads; not used if num_head_channels is given.
        num_head_channels: Channels per head; None to fix the number of heads instead.
        num_heads_upsample: Attention heads on the way up; None for num_heads.
        attention_order: How checkpoints lay out the joint projection: "legacy" (improved-diffusion, most of
            guided-diffusion) or "new" (ADM at 64 pixels). Loading one as the other fails silently.
        scale_shift_norm: The time embedding scales and shifts after the norm; False adds it before.
        dropout: Probability in [0, 1), inside residual blocks.
        resblock_updown: Resample inside residual blocks, without a convolution of its own.
        conv_resample: Resample with a convolution; False averages and repeats.
        num_classes: Number of classes; the network then needs ``y``. None or 0 for none.
        null_class: Add a label "no class", with index num_classes, for classifier-free guidance.
        low_res_channels: Channels of a smaller image ``low_res`` which is enlarged to the size of the data and read
            along with it; for super-resolution. 0 for none.
        context: Width of the vectors of a sequence ``context``, such as an encoded text, that the network attends to
            wherever it attends to itself; 0 for none. Weights of a network without it load, and compute what they did.
        checkpoint: Recompute activations in the backward pass: less memory, about a third more time.
        groups: Groups of every group norm; divides every level's width. The published networks have 32.
        times: 1, or 2 for a network that is also given the time that a step goes to, as losses and samplers of flow
            maps need it. Weights of a network of one time load, and compute what they did.
        self_condition: The network also reads its own estimate of x_start from the call before, as Chen et al. 2022,
            arXiv:2208.04202, section 3.3: training gives half of the examples one, by another pass without gradient.
        low_res_level: The network also reads how much noise the small image has, ``low_res_level`` from 0, the default,
            to 1, as Ho et al. 2021, arXiv:2106.15282, section 4.2. Weights of a network without it load.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, appendix A; Dhariwal & Nichol 2021, arXiv:2105.05233, section 3.
    Deviates: attention_resolutions are sizes, never factors, and one that no level has is an error.
    """

    channels: int = integer(128, ge=1)
    num_res_blocks: int = integer(2, ge=1, le=1000)
    channel_mult: tuple[float, ...] | None = numbers(None, optional=True, gt=0)
    attention_resolutions: tuple[int, ...] | None = integers(None, optional=True, ge=1)
    num_heads: int = integer(4, ge=1)
    num_head_channels: int | None = integer(None, optional=True, ge=1)
    num_heads_upsample: int | None = integer(None, optional=True, ge=1)
    attention_order: str = choice("legacy", ("legacy", "new"))
    scale_shift_norm: bool = flag(True)
    dropout: float = number(0.0, ge=0, lt=1)
    resblock_updown: bool = flag(False)
    conv_resample: bool = flag(True)
    num_classes: int | None = integer(None, optional=True, ge=0)
    null_class: bool = flag(False)
    low_res_channels: int = integer(0, ge=0)
    context: int = integer(0, ge=0)
    checkpoint: bool = flag(False)
    groups: int = integer(32, ge=1)
    times: int = integer(1, ge=1, le=2)
    self_condition: bool = flag(False)
    low_res_level: bool = flag(False)

    def __attrs_post_init__(self) -> None:
        """Raise `OptionError` for options without effect."""
        label_count(self.num_classes, self.null_class)
        if self.num_head_channels is not None and self.num_heads_upsample is not None:
            raise OptionError(
                "has no effect with num_head_channels",
                option="num_heads_upsample",
                value=self.num_heads_upsample,
                fix=[{"num_heads_upsample": None}, {"num_head_channels": None}],
            )
        if self.resblock_updown and not self.conv_resample:
            raise OptionError(
                "has no effect without conv_resample",
                option="resblock_updown",
                value=True,
                fix=[{"resblock_updown": False}, {"conv_resample": True}],
            )
        if self.low_res_level and not self.low_res_channels:
            raise OptionError(
                "has no effect without low_res_channels",
                option="low_res_level",
                value=True,
                fix=[{"low_res_level": False}, {"low_res_channels": 3}],
            )

    def channels_in(self, data_shape: tuple[int, ...]) -> int:
        """Return the channels of the data plus those of low_res."""
        return data_shape[0] + self.low_res_channels

    def reads_low_res_level(self) -> bool:
        """Return whether the network reads the level of the noise on low_res."""
        return self.low_res_level

    def problems(self, composition: Composition) -> Iterable[str]:
        """Return one sentence for each problem with the shape of the data."""
        label = composition.label("backbone")
        return [Message(f"{label}: ", each) for each in self._layout(composition.data_shape).problems()]

    def null_conditions(self) -> Mapping[str, Any] | None:
        """Return the null class, and the empty context."""
        return null_conditions(self.num_classes, self.null_class, self.context)

    def context_width(self) -> int:
        """Return the width of the vectors of the context."""
        return self.context

    def count_classes(self) -> int:
        """Return the number of classes."""
        return self.num_classes or 0

    def resized(self, data_shape: tuple[int, ...], other: tuple[int, ...]) -> UNet:
        """Return the recipe with explicit widths and attention of each level, independent of sizes in pixels."""
        if data_shape[1:] == other[1:]:
            return self
        here = self._layout(data_shape)
        there = attrs.evolve(self, channel_mult=here.mults)
        sizes = zip(there._layout(other).sizes, here.attention, strict=True)
        return attrs.evolve(there, attention_resolutions=tuple(size for size, attends in sizes if attends and size))

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, y=None, low_res=None, *, context=None, context_mask=None)``."""
        layout = self._layout(data_shape)
        refuse(layout.problems())
        from diffkit.parts.backbones._normalize import laid_out
        from diffkit.parts.backbones._unet import UNetNetwork

        num_labels = label_count(self.num_classes, self.null_class)
        more = (self.low_res_channels, self.times, self.self_condition, self.low_res_level)
        return laid_out(UNetNetwork(layout, out_channels, num_labels, *more))

    def _layout(self, data_shape: tuple[int, ...]) -> Layout:
        # the published networks attend at 16 and 8 pixels
        own = data_shape[0] if self.self_condition else 0
        return Layout.of(self, data_shape, self.channels_in(data_shape) + own, (8, 16))
