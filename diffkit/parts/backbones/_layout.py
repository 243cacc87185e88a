"""Sizes of a U-Net, computed and validated from options and the data's shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
from attrs import frozen

from diffkit.errors import OptionError, joined, problem

CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Image side -> width of each level; the choices of the improved-diffusion and guided-diffusion code."""

SMALLEST_SIDE = 4
"""No level chosen by default is smaller: 4 is the smallest in `CHANNEL_MULT`, at 32 pixels."""


@frozen(kw_only=True)
class Layout:
    """What the blocks of one U-Net, or of a classifier's half of one, are built from.

    Attributes:
        data_shape: Shape of the data without the batch, (C, *S).
        in_channels: Channels the first convolution reads.
        attention_range: Smallest and largest size of the levels with attention if attention_resolutions is None.
        num_heads_upsample: As num_heads, on the way up; None for the same.
        others: The options of the same name, see `diffkit.parts.backbones.unet.UNet`.
    """

    data_shape: tuple[int, ...]
    in_channels: int
    channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...] | None
    attention_resolutions: tuple[int, ...] | None
    attention_range: tuple[int, int]
    num_heads: int
    num_heads_upsample: int | None = None
    num_head_channels: int | None
    attention_order: str
    scale_shift_norm: bool
    dropout: float
    resblock_updown: bool
    conv_resample: bool
    groups: int
    checkpoint: bool
    context: int = 0

    @classmethod
    def of(cls, recipe: Any, data_shape: tuple[int, ...], in_channels: int, attention_range: tuple[int, int]) -> Layout:
        """Return the layout of a recipe, whose options have the names of the attributes here."""
        names = attrs.fields_dict(cls).keys() & attrs.fields_dict(type(recipe)).keys()
        options = {name: getattr(recipe, name) for name in names}
        return cls(data_shape=data_shape, in_channels=in_channels, attention_range=attention_range, **options)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.data_shape) - 1

    @property
    def sides(self) -> tuple[int, ...]:
        """Spatial sizes that a level halves: all of them, but only the inner two of three."""
        return self.data_shape[1:][-2:]

    @property
    def mults(self) -> tuple[float, ...]:
        """Width of each level in units of `channels`."""
        return default_channel_mult(self.sides) if self.channel_mult is None else self.channel_mult

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(round(self.channels * mult) for mult in self.mults)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shorter halved side at each level, finest first."""
        return tuple(min(self.sides) // 2**level for level in range(len(self.mults)))

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether each level has attention."""
        low, high = self.attention_range
        sizes = self.attention_resolutions
        return tuple(low <= size <= high if sizes is None else size in sizes for size in self.sizes)

    @property
    def emb_width(self) -> int:
        """Width of the time embedding: four times the base width in every published U-Net."""
        return 4 * self.channels

    def heads(self, width: int, *, up: bool = False) -> int:
        """Return how many attention heads a block of that width has."""
        if self.num_head_channels is not None:
            return width // self.num_head_channels
        return (self.num_heads_upsample if up else None) or self.num_heads

    def problems(self) -> tuple[str, ...]:
        """Return one sentence for each problem, with what would work."""
        fatal = tuple(self._shape_problems())
        return fatal or (*self._width_problems(), *self._attention_problems(), *self._head_problems())

    def _shape_problems(self) -> Iterator[str]:
        if not 1 <= self.axes <= 3:
            yield (
                f"data_shape {self.data_shape} has {self.axes} spatial axes, but a U-Net needs 1, 2 or 3; "
                f"backbone 'mlp' takes data of any shape"
            )
            return
        if not self.mults:
            yield "channel_mult must name at least one level, got ()"
            return
        factor = 2 ** (len(self.mults) - 1)
        if any(side % factor for side in self.sides):
            levels = _halvings(self.sides) + 1
            yield problem(
                f"sides {_by(self.sides)} cannot be halved {len(self.mults) - 1} times, as {len(self.mults)} "
                f"levels need; take sides that are multiples of {factor}, or fewer levels",
                fix={"channel_mult": self.mults[:levels]},
            )

    def _width_problems(self) -> Iterator[str]:
        if any(width < 1 or width % self.groups for width in self.widths):
            fitting = math.gcd(*self.widths)
            yield problem(
                f"does not divide every level's width ({_list(self.widths)})",
                option="groups",
                value=self.groups,
                fix={"groups": fitting},
            )

    def _attention_problems(self) -> Iterator[str]:
        unknown = [size for size in self.attention_resolutions or () if size not in self.sizes]
        if unknown:
            yield problem(
                f"names the size {_list(unknown)} of no level; the levels of sides {_by(self.sides)} have sizes "
                f"{_list(self.sizes)}",
                option="attention_resolutions",
                value=self.attention_resolutions,
            )

    def _head_problems(self) -> Iterator[str]:
        here = [width for width, attention in zip(self.widths, self.attention, strict=True) if attention]
        attended = sorted({*here, self.widths[-1]})  # the middle block always attends
        if self.num_head_channels is not None:
            splits = {"num_head_channels": self.num_head_channels}
        else:
            splits = {"num_heads": self.num_heads, "num_heads_upsample": self.heads(1, up=True)}
            if self.num_heads == splits["num_heads_upsample"]:
                del splits["num_heads_upsample"]
        for name, split in splits.items():
            if any(width % split for width in attended):
                yield problem(
                    f"does not divide the width of every level with attention ({_list(attended)}); use a divisor of "
                    f"{math.gcd(*attended)}",
                    option=name,
                    value=split,
                )


def default_channel_mult(sides: tuple[int, ...]) -> tuple[float, ...]:
    """Return the level widths for an image of those sides.

    The row of `CHANNEL_MULT` for the largest side not above the shortest one (32 for smaller images), cut to as
    many levels as the sides can be halved into without a remainder and without falling below `SMALLEST_SIDE`.
    """
    row = CHANNEL_MULT[max((side for side in CHANNEL_MULT if side <= min(sides)), default=min(CHANNEL_MULT))]
    room = (min(sides) // SMALLEST_SIDE).bit_length() - 1
    return row[: max(0, min(_halvings(sides), room)) + 1]


def refuse(problems: tuple[str, ...]) -> None:
    """Raise one `OptionError` with all problems, if there are any."""
    if problems:
        raise OptionError(joined("\n", problems))


def _halvings(sides: tuple[int, ...]) -> int:
    """Number of times that all sides can be halved without a remainder."""
    common = math.gcd(*sides)
    return (common & -common).bit_length() - 1


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _list(values: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, values))
