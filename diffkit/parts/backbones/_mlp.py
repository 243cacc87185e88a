"""The perceptron that `diffkit.parts.backbones.mlp` builds."""

from __future__ import annotations

import math

from torch import Tensor, nn

from diffkit.parts.backbones._blocks import zeroed
from diffkit.parts.backbones._embedding import (
    SecondTimeEmbedding,
    TimeEmbedding,
    add_labels,
    embed_times,
    join_previous,
)


class ResidualLayer(nn.Module):
    """``h + linear(silu(linear(norm(h)) + linear(silu(emb))))``; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.last = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """(B, H), (B, H) or (1, H) -> (B, H)."""
        change: Tensor = self.last(self.first(self.norm(h)) + self.emb(emb))
        return h + change


class MLPNetwork(nn.Module):
    """Residual perceptron on flattened data; a fresh one returns exactly zero.

    Args:
        data_shape: (C, *S), with any number of spatial axes, also none.
        out_channels: Channels of the result.
        width, depth: Hidden width and number of residual layers.
        num_labels: Rows of the label table, one more than classes if there is a row for "no class"; 0 for none.
        times: How many times it takes, 1 or 2.
        self_condition: Whether it reads its previous estimate of x_start.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        out_channels: int,
        *,
        width: int,
        depth: int,
        num_labels: int,
        times: int = 1,
        self_condition: bool = False,
    ):
        super().__init__()
        self.num_labels, self.out_shape = num_labels, (out_channels, *data_shape[1:])
        self.time_embed = TimeEmbedding(width, width)
        self.label_emb = nn.Embedding(num_labels, width) if num_labels else None
        self.self_condition = self_condition
        self.first = nn.Linear((2 if self_condition else 1) * math.prod(data_shape), width)
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(depth))
        self.time_to_embed = SecondTimeEmbedding(width, width) if times == 2 else None
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, math.prod(self.out_shape))))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        y: Tensor | None = None,
        *,
        time_to: Tensor | None = None,
        previous_x_start: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the perceptron.

        Args:
            x: (B, C, *S), in the dtype of the weights.
            time: (B,) or (), any real dtype.
            y: Class labels, (B,) integers; required exactly if the network has classes.
            time_to: The time that a step goes to, as ``time``, which it is by default; for a network of two times.
            previous_x_start: Its estimate before this one, as x; zeros by default. For a network that reads one.
        Returns:
            (B, out_channels, *S).
        Raises:
            OptionError: y is missing, not accepted or of the wrong shape.
        """
        emb = embed_times(self.time_embed, self.time_to_embed, time, time_to, x)
        emb = add_labels(emb, self.label_emb, self.num_labels, y, x)
        h: Tensor = self.first(join_previous(x, previous_x_start, self.self_condition).flatten(1))
        for layer in self.layers:
            h = layer(h, emb)
        out: Tensor = self.out(h)
        return out.reshape(-1, *self.out_shape)
