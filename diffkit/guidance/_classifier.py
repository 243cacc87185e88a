"""The network that `diffkit.guidance.classifier` builds, with the parameter names of the public checkpoints.

Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4 and appendix; the attention head is that of CLIP
    (Radford et al. 2021, arXiv:2103.00020, section 2.4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffkit.parts.backbones._blocks import Head, Pointwise, attend, convolution, down_blocks, middle_block, run, zeroed
from diffkit.parts.backbones._embedding import TimeEmbedding
from diffkit.parts.backbones._layout import Layout

_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SPATIAL_WIDTH = 2048  # hidden width of the spatial heads, guided-diffusion's
_SPATIAL_GROUPS = 32  # of the norm inside spatial_v2, likewise


class AttentionPool(nn.Module):
    """Self-attention over all positions and their mean; the result is the attention output of the mean."""

    def __init__(self, positions: int, width: int, heads: int, out_channels: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(width, positions + 1) / math.sqrt(width))
        self.qkv_proj = Pointwise(width, 3 * width)
        self.c_proj = Pointwise(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, out_channels)."""
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding.to(x.dtype)
        tokens = attend(self.qkv_proj(x).transpose(1, 2), self.heads, "new")
        out: Tensor = self.c_proj(tokens[:, :1].transpose(1, 2))
        return out.flatten(1)


class ClassifierNetwork(nn.Module):
    """The way down of a U-Net and one of four heads.

    Args:
        layout: Sizes and block options.
        num_classes: Number of logits.
        pool: "adaptive", "attention", "spatial" or "spatial_v2".
    """

    def __init__(self, layout: Layout, num_classes: int, pool: str):
        super().__init__()
        self.checkpoint, self.spatial = layout.checkpoint, pool.startswith("spatial")
        self.time_embed = TimeEmbedding(layout.channels, layout.emb_width)
        self.input_blocks, left = down_blocks(layout)
        self.middle_block = middle_block(layout)
        if self.spatial:
            self.out = _spatial_head(sum(left) + layout.widths[-1], num_classes, normed=pool == "spatial_v2")
        else:
            self.out = _pooled_head(layout, num_classes, pool)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return logits.

        Args:
            x: Noisy data, (B, C, *S), in the dtype of the weights.
            time: (B,) or (), any real dtype; as the network receives it.
        Returns:
            (B, num_classes).
        """
        emb, h, means = self.time_embed(time, x), x, []
        for block in [*self.input_blocks, self.middle_block]:
            h = run(block, h, emb, recompute=self.checkpoint)
            if self.spatial:
                means.append(h.flatten(2).mean(dim=2))
        logits: Tensor = self.out(torch.cat(means, dim=1) if self.spatial else h)
        return logits


def _spatial_head(columns: int, num_classes: int, *, normed: bool) -> nn.Sequential:
    """Head on the means of every block's result."""
    middle = [nn.GroupNorm(_SPATIAL_GROUPS, _SPATIAL_WIDTH), nn.SiLU()] if normed else [nn.ReLU()]
    return nn.Sequential(nn.Linear(columns, _SPATIAL_WIDTH), *middle, nn.Linear(_SPATIAL_WIDTH, num_classes))


def _pooled_head(layout: Layout, num_classes: int, pool: str) -> nn.Sequential:
    """Head on the result of the middle block."""
    width = layout.widths[-1]
    layers: list[nn.Module] = [nn.GroupNorm(layout.groups, width), nn.SiLU()]
    if pool == "adaptive":
        last = zeroed(convolution(layout.axes, width, num_classes, 1))
        layers += [_POOLS[layout.axes - 1](1), last, nn.Flatten()]
    else:
        shrink = 2 ** (len(layout.widths) - 1)
        outer, inner = layout.data_shape[1 : -len(layout.sides)], layout.sides
        positions = math.prod(outer) * math.prod(side // shrink for side in inner)
        layers.append(AttentionPool(positions, width, layout.heads(width), num_classes))
    return Head(*layers)
