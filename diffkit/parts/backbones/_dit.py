"""The transformer that `diffkit.parts.backbones.dit` builds, named so that public checkpoints load as they are.

Shapes: tokens (B, N, H), conditioning vectors (B, H) or (1, H).
Source: Peebles & Xie 2022, arXiv:2212.09748, section 3.2 and figure 3.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from diffkit.parts.backbones._blocks import attend, run
from diffkit.parts.backbones._context import Context, CrossAttention, read_context
from diffkit.parts.backbones._embedding import (
    SecondTimeEmbedding,
    TimeEmbedding,
    add_labels,
    embed_times,
    join_previous,
)
from diffkit.parts.backbones._slices import in_slices

_TIME_COLUMNS = 256  # width of the sinusoidal embedding, for every hidden width (DiT paper, section 4)
_EMBEDDING_STD = 0.02  # of the normal initial values of label and time embeddings, ViT's choice
_ZERO = ("final_layer", "r_embedder.mlp.2")
_NORM_EPS = 1e-6  # of every layer norm, ViT's choice


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed sine and cosine positions of a grid: (rows * columns, width), float32, row by row.

    The first half of the columns encodes the column index, the second the row index; each is
    ``[sin(p f_i) | cos(p f_i)]`` with ``f_i = 10000^(-4 i / width)``.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, one axis after the other.
    """
    frequencies = 10_000.0 ** (-4 / width * torch.arange(width // 4, dtype=torch.float64))

    def axis(length: int) -> Tensor:
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    along = axis(columns).repeat(rows, 1)
    down = axis(rows).repeat_interleave(columns, dim=0)
    return torch.cat([along, down], dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x (1 + scale) + shift`` of (B, N, H), with a scale and a shift for each channel, (B, 1, H).

    One operation, on a CPU too, unlike `modulate` of the convolutional networks: here the operands are contiguous in
    the channels, and one operation is 1.3 to 1.5 times faster.
    """
    return torch.addcmul(shift, x, 1 + scale)


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, H) -> (B, N, H)."""
        out: Tensor = self.proj(attend(self.qkv(x), self.heads, "new"))
        return out


class AdaLNZeroBlock(nn.Module):
    """Attention and a two-layer perceptron, each scaled, shifted and gated by the conditioning; starts as identity.

    Between them, attention to the context if the network reads one, without a gate as it starts at zero by itself.
    Source of that: Chen et al. 2023, arXiv:2310.00426, section 2.2.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, context: int = 0):
        super().__init__()
        inner = round(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, inner), act=nn.GELU(approximate="tanh"), fc2=nn.Linear(inner, width))
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.cross = CrossAttention(width, heads, context) if context else None

    def forward(self, x: Tensor, emb: Tensor, context: Context | None = None) -> Tensor:
        """(B, N, H), (B, H) -> (B, N, H)."""
        shift, scale, gate, *rest = self.adaLN_modulation(emb)[:, None].chunk(6, dim=2)
        x = x + gate * self.attn(modulate(self.norm1(x), shift, scale))
        if self.cross is not None and context is not None:
            x = x + self.cross(x, context)
        shift, scale, gate = rest
        out: Tensor = x + gate * self.mlp(modulate(self.norm2(x), shift, scale))
        return out


class FinalLayer(nn.Module):
    """Scaled and shifted norm, then a projection to the values of a patch; starts as zero."""

    def __init__(self, width: int, values: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, N, H), (B, H) -> (B, N, values)."""
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, dim=2)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


class LabelEmbedder(nn.Module):
    """The label table, under the name that its weights have in checkpoints."""

    def __init__(self, num_labels: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_labels, width)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) integers -> (B, H)."""
        out: Tensor = self.embedding_table(y)
        return out


class DiTNetwork(nn.Module):
    """Diffusion transformer on patches of images; a fresh one returns exactly zero.

    The positions `pos_embed`, (1, N, H), are a buffer: in the state dict, but not trained.

    Args:
        data_shape: (C, rows, columns).
        out_channels: Channels of the result.
        patch: Side of a patch in pixels.
        depth, width, heads, mlp_ratio: Blocks, hidden width, attention heads, inner width in units of width.
        num_labels: Rows of the label table, one more than classes if there is a row for "no class"; 0 for none.
        checkpoint: Recompute the activations of each block in the backward pass.
        times: How many times it takes, 1 or 2.
        self_condition: Whether it reads its previous estimate of x_start.
        context: Width of the vectors of a context; 0 for none.
    """

    pos_embed: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        out_channels: int,
        *,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        num_labels: int,
        checkpoint: bool,
        times: int = 1,
        self_condition: bool = False,
        context: int = 0,
    ):
        super().__init__()
        self.context = context
        channels, height, breadth = data_shape
        self.self_condition, channels = self_condition, channels * (2 if self_condition else 1)
        rows, columns = self.grid = (height // patch, breadth // patch)
        self.patch, self.num_labels, self.checkpoint = patch, num_labels, checkpoint
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict({"mlp": TimeEmbedding(_TIME_COLUMNS, width)})
        self.r_embedder = nn.ModuleDict({"mlp": SecondTimeEmbedding(_TIME_COLUMNS, width)}) if times == 2 else None
        self.y_embedder = LabelEmbedder(num_labels, width) if num_labels else None
        self.register_buffer("pos_embed", positions(rows, columns, width)[None])
        self.blocks = nn.ModuleList(AdaLNZeroBlock(width, heads, mlp_ratio, context) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * out_channels)
        self._initialize()

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        y: Tensor | None = None,
        *,
        context: Tensor | float | None = None,
        context_mask: Tensor | None = None,
        time_to: Tensor | None = None,
        previous_x_start: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the diffusion transformer.

        Args:
            x: (B, C, rows, columns), in the dtype of the weights.
            time: (B,) or (), any real dtype.
            y: Class labels, (B,) integers; required exactly if the network has classes.
            context: Vectors to attend to, (B, L, context), or 0 for none; required exactly if the network reads them.
            context_mask: Which of them are there, (B, L) bool, or 1 and 0; all of them by default.
            time_to: The time that a step goes to, as ``time``, which it is by default; for a network of two times.
            previous_x_start: Its estimate before this one, as x; zeros by default. For a network that reads one.
        Returns:
            (B, out_channels, rows, columns).
        Raises:
            OptionError: A condition is missing, not accepted or of the wrong shape.
        """
        second = None if self.r_embedder is None else self.r_embedder["mlp"]
        emb = embed_times(self.t_embedder["mlp"], second, time, time_to, x)
        emb = add_labels(emb, self.y_embedder, self.num_labels, y, x)
        read = read_context(context, context_mask, self.context, x)
        x = join_previous(x, previous_x_start, self.self_condition)
        return in_slices(self, self._evaluate, x, emb, read, self.pos_embed.numel())

    def _evaluate(self, x: Tensor, emb: Tensor, context: Context | None) -> Tensor:
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = run(block, h, emb, context, recompute=self.checkpoint)
        return self._image(self.final_layer(h, emb))

    def _image(self, tokens: Tensor) -> Tensor:
        """Assemble patches, (B, N, patch * patch * out_channels), into images."""
        patches = tokens.reshape(tokens.shape[0], *self.grid, self.patch, self.patch, -1)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _initialize(self) -> None:
        """Xavier for linear maps and patches, small normal embeddings, zeros where a block starts as the identity.

        Source: arXiv:2212.09748, section 3.2 (adaLN-zero) and 4 (the rest as in ViT).
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "cross.proj.weight")) or "adaLN_modulation" in name or name.startswith(_ZERO):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "r_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=_EMBEDDING_STD)
            else:
                nn.init.xavier_uniform_(parameter.detach().flatten(1))
