"""The U-Net that `diffkit.parts.backbones.unet` builds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.parts.backbones._blocks import Head, convolution, down_blocks, middle_block, run, up_blocks, zeroed
from diffkit.parts.backbones._context import Context, read_context
from diffkit.parts.backbones._embedding import (
    SecondTimeEmbedding,
    TimeEmbedding,
    add_labels,
    embed_times,
    join_previous,
)
from diffkit.parts.backbones._layout import Layout
from diffkit.parts.backbones._slices import in_slices

_LEVELS = 1000
"""Level 1 of the noise on a small image, in units of the network's time, whose embedding tells hundredths apart."""
_LINEAR = ("linear", "bilinear", "trilinear")


class Features(NamedTuple):
    """Activations of a U-Net.

    Attributes:
        down: After each input block, finest first.
        middle: After the middle block.
        up: After each output block, coarsest first.
    """

    down: list[Tensor]
    middle: Tensor
    up: list[Tensor]


class UNetNetwork(nn.Module):
    """U-Net with time, class and low-resolution conditioning; a fresh one returns exactly zero.

    Args:
        layout: Sizes and block options.
        out_channels: Channels of the result.
        num_labels: Rows of the label table, one more than classes if there is a row for "no class"; 0 for none.
        low_res_channels: Channels of the low-resolution image; 0 for none.
        times: How many times it takes, 1 or 2.
        self_condition: Whether it reads its previous estimate of x_start.
        low_res_level: Whether it reads the level of noise on the low-resolution image.
    """

    def __init__(
        self,
        layout: Layout,
        out_channels: int,
        num_labels: int = 0,
        low_res_channels: int = 0,
        times: int = 1,
        self_condition: bool = False,
        low_res_level: bool = False,
    ):
        super().__init__()
        self.context = layout.context
        self.num_labels, self.low_res_channels, self.checkpoint = num_labels, low_res_channels, layout.checkpoint
        self.time_embed = TimeEmbedding(layout.channels, layout.emb_width)
        self.self_condition = self_condition
        self.time_to_embed = SecondTimeEmbedding(layout.channels, layout.emb_width) if times == 2 else None
        self.low_res_embed = SecondTimeEmbedding(layout.channels, layout.emb_width) if low_res_level else None
        self.label_emb = nn.Embedding(num_labels, layout.emb_width) if num_labels else None
        self.input_blocks, left = down_blocks(layout)
        self.middle_block = middle_block(layout)
        self.output_blocks = up_blocks(layout, left)
        width = self.width = layout.widths[0]
        self.out = Head(
            nn.GroupNorm(layout.groups, width),
            nn.SiLU(),
            zeroed(convolution(layout.axes, width, out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        y: Tensor | None = None,
        low_res: Tensor | None = None,
        *,
        low_res_level: Tensor | None = None,
        context: Tensor | float | None = None,
        context_mask: Tensor | None = None,
        time_to: Tensor | None = None,
        previous_x_start: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the U-Net.

        Args:
            x: (B, C, *S), in the dtype of the weights.
            time: (B,) or (), any real dtype.
            y: Class labels, (B,) integers; required exactly if the network has classes.
            low_res: (B, low_res_channels, *s), required exactly if the network has such channels.
            low_res_level: Level of the noise on low_res, (B,) from 0 to 1; 0 by default. For a network that reads it.
            context: Vectors to attend to, (B, L, context), or 0 for none; required exactly if the network reads them.
            context_mask: Which of them are there, (B, L) bool, or 1 and 0; all of them by default.
            time_to: The time that a step goes to, as ``time``, which it is by default; for a network of two times.
            previous_x_start: Its estimate before this one, as x; zeros by default. For a network that reads one.
        Returns:
            (B, out_channels, *S).
        Raises:
            OptionError: A condition is missing, not accepted or of the wrong shape.
        """
        emb = self._embed(x, time, y, low_res_level, time_to)
        read = read_context(context, context_mask, self.context, x)
        values = self.width * math.prod(x.shape[2:])
        joined = self._join(join_previous(x, previous_x_start, self.self_condition), low_res)
        return in_slices(self, self._evaluate, joined, emb, read, values)

    def features(
        self,
        x: Tensor,
        time: Tensor,
        y: Tensor | None = None,
        low_res: Tensor | None = None,
        *,
        low_res_level: Tensor | None = None,
        context: Tensor | float | None = None,
        context_mask: Tensor | None = None,
        time_to: Tensor | None = None,
        previous_x_start: Tensor | None = None,
    ) -> Features:
        """Return the activations that `forward`, called with the same arguments, passes through."""
        emb = self._embed(x, time, y, low_res_level, time_to)
        read = read_context(context, context_mask, self.context, x)
        down = self._down(self._join(join_previous(x, previous_x_start, self.self_condition), low_res), emb, read)
        h = middle = run(self.middle_block, down[-1], emb, read, recompute=self.checkpoint)
        up = []
        for block, skip in zip(self.output_blocks, reversed(down), strict=True):
            h = run(block, torch.cat([h, skip], dim=1), emb, read, recompute=self.checkpoint)
            up.append(h)
        return Features(down, middle, up)

    def _embed(
        self, x: Tensor, time: Tensor, y: Tensor | None, low_res_level: Tensor | None, time_to: Tensor | None
    ) -> Tensor:
        emb = embed_times(self.time_embed, self.time_to_embed, time, time_to, x)
        if self.low_res_embed is not None:
            level = x.new_zeros(1) if low_res_level is None else low_res_level * _LEVELS
            emb = emb + self.low_res_embed(level, x)
        elif low_res_level is not None:
            raise OptionError("low_res_level was given, but the network reads none; build with low_res_level=True")
        return add_labels(emb, self.label_emb, self.num_labels, y, x)

    def _evaluate(self, x: Tensor, emb: Tensor, context: Context | None) -> Tensor:
        skips = self._down(x, emb, context)
        h = run(self.middle_block, skips[-1], emb, context, recompute=self.checkpoint)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1), emb, context, recompute=self.checkpoint)
        out: Tensor = self.out(h)
        return out.contiguous()  # whatever memory format the layers have

    def _down(self, h: Tensor, emb: Tensor, context: Context | None) -> list[Tensor]:
        skips = []
        for block in self.input_blocks:
            h = run(block, h, emb, context, recompute=self.checkpoint)
            skips.append(h)
        return skips

    def _join(self, x: Tensor, low_res: Tensor | None) -> Tensor:
        if low_res is None and not self.low_res_channels:
            return x
        if low_res is None:
            raise OptionError(
                f"low_res is missing, but the network reads {self.low_res_channels} channels of it; "
                f"pass low_res, (B, {self.low_res_channels}, ...)"
            )
        if not self.low_res_channels:
            raise OptionError("low_res was given, but the network reads none; build with low_res_channels")
        if low_res.ndim != x.ndim or low_res.shape[1] != self.low_res_channels:
            raise OptionError(
                f"low_res must have {x.ndim} axes and {self.low_res_channels} channels, got {tuple(low_res.shape)}"
            )
        if low_res.shape[0] != x.shape[0]:
            raise OptionError(f"low_res must have one image for each of {x.shape[0]} examples, got {low_res.shape[0]}")
        larger = F.interpolate(low_res.to(x.dtype), x.shape[2:], mode=_LINEAR[x.ndim - 3], align_corners=False)
        return torch.cat([x, larger], dim=1)
