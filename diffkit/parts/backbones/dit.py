"""The Diffusion Transformer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from diffkit.errors import Message, problem
from diffkit.options import choice, flag, integer, number
from diffkit.parts.backbones._labels import label_count, null_conditions
from diffkit.parts.backbones._layout import refuse
from diffkit.protocols import ConditionalBackbone, SelfConditionedBackbone, TwoTimeBackbone
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import nn

    from diffkit.protocols import Composition

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
"""Size -> depth, hidden width, heads; table 1 of the paper."""


@registry("backbone").register("dit")
@frozen
class DiT(ConditionalBackbone, SelfConditionedBackbone, TwoTimeBackbone):
    """Diffusion Transformer with adaLN-zero conditioning, for images.

    Data is (C, rows, columns) with any number of channels; sides are multiples of the patch and fixed once built.
    Keys of the state dict are those of the public checkpoints, which have ``num_classes=1000, null_class=True``.

    Attributes:
        size: "S", "B", "L" or "XL": depth, hidden and heads of the published models.
        patch: Side of a patch in pixels; 2, 4 and 8 are published.
        depth: Number of blocks; None for that of the size.
        hidden: Width of a token, a multiple of 4; None for that of the size.
        heads: Attention heads, which divide the width; None for that of the size.
        mlp_ratio: Inner width of the perceptrons in units of hidden.
        num_classes: Number of classes; the network then needs ``y``. None or 0 for none.
        null_class: Add a label "no class", with index num_classes, for classifier-free guidance.
        context: Width of the vectors of a sequence ``context``, such as an encoded text, that the network attends to
            wherever it attends to itself; 0 for none. Weights of a network without it load, and compute what they did.
        checkpoint: Recompute activations in the backward pass: less memory, about a third more time.
        times: 1, or 2 for a network that is also given the time that a step goes to, as losses and samplers of flow
            maps need it. Weights of a network of one time load, and compute what they did.
        self_condition: The network also reads its own estimate of x_start from the call before, as Chen et al. 2022,
            arXiv:2208.04202, section 3.3: training gives half of the examples one, by another pass without gradient.
    Source: Peebles & Xie 2022, arXiv:2212.09748.
    Deviates: labels are never dropped inside the network; training for guidance passes index num_classes.
    """

    size: str = choice("S", tuple(SIZES))
    patch: int = integer(2, ge=1)
    depth: int | None = integer(None, optional=True, ge=1, le=10_000)
    hidden: int | None = integer(None, optional=True, ge=4)
    heads: int | None = integer(None, optional=True, ge=1)
    mlp_ratio: float = number(4.0, gt=0)  # the paper's, after ViT
    num_classes: int | None = integer(None, optional=True, ge=0)
    null_class: bool = flag(False)
    context: int = integer(0, ge=0)
    checkpoint: bool = flag(False)
    times: int = integer(1, ge=1, le=2)
    self_condition: bool = flag(False)

    def __attrs_post_init__(self) -> None:
        """Raise `OptionError` for options without effect."""
        label_count(self.num_classes, self.null_class)

    def problems(self, composition: Composition) -> Iterable[str]:
        """Return one sentence for each problem with the shape of the data."""
        label = composition.label("backbone")
        return [Message(f"{label}: ", each) for each in self._problems(composition.data_shape)]

    def null_conditions(self) -> Mapping[str, Any] | None:
        """Return the null class, and the empty context."""
        return null_conditions(self.num_classes, self.null_class, self.context)

    def context_width(self) -> int:
        """Return the width of the vectors of the context."""
        return self.context

    def count_classes(self) -> int:
        """Return the number of classes."""
        return self.num_classes or 0

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, y=None, *, context=None, context_mask=None)``."""
        refuse(tuple(self._problems(data_shape)))
        from diffkit.parts.backbones._dit import DiTNetwork

        depth, hidden, heads = self._dimensions()
        return DiTNetwork(
            data_shape,
            out_channels,
            patch=self.patch,
            depth=depth,
            width=hidden,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            num_labels=label_count(self.num_classes, self.null_class),
            checkpoint=self.checkpoint,
            times=self.times,
            self_condition=self.self_condition,
            context=self.context,
        )

    def _dimensions(self) -> tuple[int, int, int]:
        depth, hidden, heads = SIZES[self.size]
        return self.depth or depth, self.hidden or hidden, self.heads or heads

    def _problems(self, data_shape: tuple[int, ...]) -> Iterator[str]:
        _, hidden, heads = self._dimensions()
        axes, sides = len(data_shape) - 1, data_shape[1:]
        if axes != 2:
            yield f"data_shape {data_shape} has {axes} spatial axes, but dit needs 2; backbone 'mlp' takes any shape"
        elif any(side % self.patch for side in sides):
            fits = [patch for patch in (8, 4, 2, 1) if not any(side % patch for side in sides)]
            yield problem(
                f"does not divide the sides {sides[0]}x{sides[1]}",
                option="patch",
                value=self.patch,
                fix={"patch": fits[0]},
            )
        if hidden % 4:
            yield problem(
                "has no sine and cosine positions for two axes; use a multiple of 4", option="hidden", value=hidden
            )
        if hidden % heads:
            yield problem(f"does not divide the width {hidden}; use a divisor of it", option="heads", value=heads)
