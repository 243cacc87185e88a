"""The noise-aware classifier of classifier guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import check_integer, choice, flag, integer, integers, number, numbers
from diffkit.parts.backbones._layout import Layout, refuse

if TYPE_CHECKING:
    from torch import nn


@frozen
class Classifier:
    """Classifier of noisy data: the way down of a U-Net and a pooling head, as in guided-diffusion.

    It is built like the way down of the backbone `unet`. Data may have one, two or three spatial axes. Keys
    of the state dict are those of the public checkpoints.

    Attributes:
        channels: Base width.
        num_res_blocks: Residual blocks per level.
        channel_mult: Width of each level in units of channels, finest first; None chooses by size, as the U-Net
            does.
        attention_resolutions: Sides, in pixels, of the levels that have attention; None means every level of 8 to 32
            pixels.
        num_heads: Attention heads; not used if num_head_channels is given.
        num_head_channels: Channels per head, also in the attention head; None to fix the number of heads instead.
        attention_order: How checkpoints lay out the joint projection: "legacy" or "new".
        scale_shift_norm: The time embedding scales and shifts after the norm; False adds it before.
        dropout: Probability in [0, 1), inside residual blocks.
        resblock_updown: Shrink within residual blocks.
        conv_resample: Shrink by a convolution with stride, not by averages.
        pool: What turns features into logits: "adaptive" (mean of the last features), "attention" (the mean attends
            to all positions; the size of the data is then fixed), "spatial" and "spatial_v2" (a perceptron on the
            means after every block; the second one is normed).
        checkpoint: Recompute the activations of each block in the backward pass: less memory, more time.
        groups: Groups of every group norm; divides every level's width.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4; defaults are those of the published classifiers.
    """

    channels: int = integer(128, ge=1)
    num_res_blocks: int = integer(2, ge=1)
    channel_mult: tuple[float, ...] | None = numbers(None, optional=True, gt=0)
    attention_resolutions: tuple[int, ...] | None = integers(None, optional=True, ge=1)
    num_heads: int = integer(4, ge=1)
    num_head_channels: int | None = integer(64, optional=True, ge=1)
    attention_order: str = choice("legacy", ("legacy", "new"))
    scale_shift_norm: bool = flag(True)
    dropout: float = number(0.0, ge=0, lt=1)
    resblock_updown: bool = flag(True)
    conv_resample: bool = flag(True)
    pool: str = choice("attention", ("adaptive", "attention", "spatial", "spatial_v2"))
    checkpoint: bool = flag(False)
    groups: int = integer(32, ge=1)

    def __attrs_post_init__(self) -> None:
        """Refuse options without effect."""
        if self.resblock_updown and not self.conv_resample:
            raise OptionError(
                "has no effect without conv_resample",
                option="resblock_updown",
                value=True,
                fix=[{"resblock_updown": False}, {"conv_resample": True}],
            )

    def build(self, data_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network, ``forward(x, time)``: (B, C, *S), (B,) -> logits (B, num_classes).

        Raises:
            OptionError: The options do not fit the data's shape, or there is no class.
        """
        check_integer("num_classes", num_classes, ge=1)
        layout = self._layout(data_shape)
        refuse(layout.problems())
        from diffkit.guidance._classifier import ClassifierNetwork
        from diffkit.parts.backbones._normalize import laid_out

        return laid_out(ClassifierNetwork(layout, num_classes, self.pool))

    def _layout(self, data_shape: tuple[int, ...]) -> Layout:
        # the published classifiers attend at 32, 16 and 8 pixels
        return Layout.of(self, data_shape, data_shape[0], (8, 32))
