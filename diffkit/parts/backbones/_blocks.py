"""Blocks of the U-Net and of the classifier, named so that public checkpoints load as they are.

Shapes: data (B, C, *S) with one to three spatial axes, embeddings (B, E) or (1, E).
Source: Ho et al. 2020, arXiv:2006.11239, appendix B; Nichol & Dhariwal 2021, arXiv:2102.09672, appendix A;
    Dhariwal & Nichol 2021, arXiv:2105.05233, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffkit.parts.backbones._attention import attention
from diffkit.parts.backbones._context import Context, CrossAttention
from diffkit.parts.backbones._layout import Layout
from diffkit.parts.backbones._normalize import normalize

M = TypeVar("M", bound=nn.Module)

_CONVOLUTIONS: tuple[Callable[..., nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: tuple[Callable[..., nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_FACTORS = ((2,), (2, 2), (1, 2, 2))  # of three axes only the inner two are resampled, as in improved-diffusion


def convolution(axes: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a convolution over that many spatial axes."""
    return _CONVOLUTIONS[axes - 1](*args, **kwargs)


def zeroed(module: M) -> M:
    """Set all weights of a module to zero, so that a residual branch starts as the identity; return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def attend(qkv: Tensor, heads: int, order: str) -> Tensor:
    """Multi-head self-attention of joint projections.

    Args:
        qkv: (B, N, 3 C), N tokens.
        heads: Number of heads; divides C.
        order: How the columns are laid out: "legacy" is (heads, 3, C / heads), "new" is (3, heads, C / heads).
    Returns:
        (B, N, C). Queries, keys and values have unit stride, which the fused kernels require.
    """
    if order == "legacy":
        q, k, v = qkv.reshape(*qkv.shape[:2], heads, 3, -1).unbind(3)
    else:
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, heads, -1).unbind(2)
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))


class Pointwise(nn.Conv1d):
    """Convolution of width one, computed as the matrix product it is: data that is tokens (B, N, C) is not copied.

    It is called with (B, C, N) like any other convolution, so that hooks, adapters and replacements work.
    """

    def __init__(self, width_in: int, width: int, *_: Any, **how: Any):
        """Arguments are those of `nn.Conv1d` of width one, by which peft makes layers of the same class."""
        super().__init__(width_in, width, 1, **how)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, N) -> (B, width, N)."""
        return F.linear(x.transpose(1, 2), self.weight.flatten(1), self.bias).transpose(1, 2)


def repeated(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return x, (B, C, *S), with every value repeated along each spatial axis."""
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=[float(factor) for factor in factors], mode="nearest")
    # Torch 2.13's compiler loses the gradient of interpolate between two convolutions in bfloat16 on a CPU: it drops
    # the scatter that the backward pass becomes. Repetition has a sum for its gradient.
    for axis, factor in enumerate(factors, start=2):
        x = x.repeat_interleave(factor, dim=axis)
    return x


class Downsample(nn.Module):
    """Halve every resampled side by a strided convolution or by averaging."""

    def __init__(self, axes: int, width: int, *, conv: bool):
        super().__init__()
        factors = _FACTORS[axes - 1]
        if conv:
            self.op = convolution(axes, width, width, 3, stride=factors, padding=1)
        else:
            self.op = _POOLS[axes - 1](factors)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S/2)."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Double every resampled side by repeating values, then convolve if so built."""

    def __init__(self, axes: int, width: int, *, conv: bool):
        super().__init__()
        self.factors = _FACTORS[axes - 1]
        self.conv = convolution(axes, width, width, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *2S)."""
        out: Tensor = self.conv(repeated(x, self.factors))
        return out


class ResBlock(nn.Module):
    """Two convolutions with the embedding between them, and a residual connection.

    The embedding enters as ``norm(h) (1 + scale) + shift`` or, without scale_shift_norm, as ``norm(h + shift)``.
    With a resampler the block also halves or doubles the sides, before the first convolution and on the skip.
    """

    def __init__(self, layout: Layout, width_in: int, width: int, resample: nn.Module | None = None):
        super().__init__()
        axes, groups = layout.axes, layout.groups
        self.axes, self.scale_shift_norm = axes, layout.scale_shift_norm
        self.in_layers = nn.ModuleList(
            [nn.GroupNorm(groups, width_in), nn.SiLU(), convolution(axes, width_in, width, 3, padding=1)]
        )
        self.resample = resample or nn.Identity()
        columns = 2 * width if self.scale_shift_norm else width
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(layout.emb_width, columns))
        self.out_layers = nn.ModuleList(
            [
                nn.GroupNorm(groups, width),
                nn.SiLU(),
                nn.Dropout(layout.dropout),
                zeroed(convolution(axes, width, width, 3, padding=1)),
            ]
        )
        self.skip_connection = nn.Identity() if width_in == width else convolution(axes, width_in, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, width_in, *S), (B, E) -> (B, width, *S), resampled if so built."""
        norm, silu, conv = self.in_layers
        h = conv(self.resample(normalize(x, norm, silu)))
        columns = self.emb_layers(emb)
        norm, silu, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            h = normalize(h, norm, silu, columns)
        else:
            h = normalize(h + columns[(..., *[None] * self.axes)], norm, silu)
        out: Tensor = self.skip_connection(self.resample(x)) + conv(dropout(h))
        return out


class AttentionBlock(nn.Module):
    """Self-attention over all positions, then attention to the context if the network reads one, both residual."""

    def __init__(self, layout: Layout, width: int, *, up: bool = False):
        super().__init__()
        self.heads, self.order = layout.heads(width, up=up), layout.attention_order
        self.norm = nn.GroupNorm(layout.groups, width)
        self.qkv = Pointwise(width, 3 * width)
        self.proj_out = zeroed(Pointwise(width, width))
        self.cross = CrossAttention(width, self.heads, layout.context) if layout.context else None

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        tokens = attend(self.qkv(normalize(x, self.norm).flatten(2)).transpose(1, 2), self.heads, self.order)
        out: Tensor = self.proj_out(tokens.transpose(1, 2))
        x = x + out.reshape(x.shape)
        if self.cross is not None and context is not None:
            x = x + self.cross(x.flatten(2).transpose(1, 2), context).transpose(1, 2).reshape(x.shape)
        return x


class Head(nn.Sequential):
    """A norm and an activation, then further layers in sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> output of the last layer."""
        norm, act, *rest = self
        x = normalize(x, norm, act)
        for layer in rest:
            x = layer(x)
        return x


class Stage(nn.ModuleList):
    """Layers in sequence; residual blocks receive the embedding too, those that read it the context.

    What replaces a layer receives what that did.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)
        self.residual = tuple(i for i, layer in enumerate(layers) if isinstance(layer, ResBlock))
        self.reading = tuple(
            i for i, layer in enumerate(layers) if isinstance(layer, AttentionBlock) and layer.cross is not None
        )

    def forward(self, x: Tensor, emb: Tensor, context: Context | None = None) -> Tensor:
        """(B, C, *S), (B, E) -> output of the last layer."""
        for i, layer in enumerate(self):
            if i in self.residual:
                x = layer(x, emb)
            elif i in self.reading:
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def run(block: nn.Module, x: Tensor, emb: Tensor, context: Context | None = None, *, recompute: bool) -> Tensor:
    """Return ``block(x, emb)``, or with a context ``block(x, emb, context)``.

    With recompute, its activations are recomputed in the backward pass.
    """
    arguments = (x, emb) if context is None else (x, emb, context)
    if recompute and torch.is_grad_enabled():
        x = checkpoint(block, *arguments, use_reentrant=False)
    else:
        x = block(*arguments)
    return x


def down_blocks(layout: Layout) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks from full size to the coarsest level, and the width each one leaves."""
    width = layout.widths[0]
    stages = [Stage(convolution(layout.axes, layout.in_channels, width, 3, padding=1))]
    left = [width]
    for level, level_width in enumerate(layout.widths):
        for _ in range(layout.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(layout, width, level_width)]
            width = level_width
            if layout.attention[level]:
                layers.append(AttentionBlock(layout, width))
            stages.append(Stage(*layers))
            left.append(width)
        if level < len(layout.widths) - 1:
            stages.append(Stage(_smaller(layout, width)))
            left.append(width)
    return nn.ModuleList(stages), left


def middle_block(layout: Layout) -> Stage:
    """Return the blocks at the coarsest level."""
    width = layout.widths[-1]
    return Stage(ResBlock(layout, width, width), AttentionBlock(layout, width), ResBlock(layout, width, width))


def up_blocks(layout: Layout, left: list[int]) -> nn.ModuleList:
    """Return the blocks from the coarsest level to full size; each reads the last output joined with a skip.

    Args:
        layout: Layout of the network.
        left: Widths of the skips, as `down_blocks` gives them.
    """
    skips, width = list(left), layout.widths[-1]
    stages = []
    for level, level_width in reversed(list(enumerate(layout.widths))):
        for index in range(layout.num_res_blocks + 1):
            layers: list[nn.Module] = [ResBlock(layout, width + skips.pop(), level_width)]
            width = level_width
            if layout.attention[level]:
                layers.append(AttentionBlock(layout, width, up=True))
            if level and index == layout.num_res_blocks:
                layers.append(_larger(layout, width))
            stages.append(Stage(*layers))
    return nn.ModuleList(stages)


def _smaller(layout: Layout, width: int) -> nn.Module:
    if layout.resblock_updown:
        return ResBlock(layout, width, width, Downsample(layout.axes, width, conv=False))
    return Downsample(layout.axes, width, conv=layout.conv_resample)


def _larger(layout: Layout, width: int) -> nn.Module:
    if layout.resblock_updown:
        return ResBlock(layout, width, width, Upsample(layout.axes, width, conv=False))
    return Upsample(layout.axes, width, conv=layout.conv_resample)
