"""Warm-up, stable, decay: constant for most of the run, then a short fall to 0."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import choice, integer, number
from diffkit.protocols import LRSchedule
from diffkit.registry import registry


@registry("lr_schedule").register("wsd")
@frozen
class WSD(LRSchedule):
    """Warm-up, stable, decay: constant for most of the run, then a short fall to 0.

    u = (step - (1 - decay) end) / (decay end)
    factor = 1 where u < 0, else 1 - u ("linear") or 1 - sqrt(u) ("sqrt")

    The warm-up is that of the run, its option ``warmup``. A run that is interrupted before the fall begins can go on to
    another end.

    Attributes:
        decay: Share of the run in which the learning rate falls, in (0, 1].
        shape: How it falls: "linear" or "sqrt".
        end: Updates after which it is 0, >= 1; those of the run by default.
    Source: Hu et al. 2024, arXiv:2404.06395, section 4; the share and "sqrt" are those of Hägele et al. 2024,
        arXiv:2405.18392, sections 3 and 4.
    """

    decay: float = number(0.2, gt=0, le=1)
    shape: str = choice("linear", ("linear", "sqrt"))
    end: int | None = integer(None, optional=True, ge=1)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor, 0 from the end on."""
        end = self.end or steps
        share = (step - (1 - self.decay) * end) / (self.decay * end)
        share = min(max(share, 0.0), 1.0)
        return 1 - share if self.shape == "linear" else 1 - share**0.5
