"""NaN and infinity in a batch of tensors: which examples have them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.errors import DivergedError
from diffkit.runtime.output import log

_SHOWN = 4


def rows_not_finite(values: Tensor) -> list[int]:
    """Return the rows of a tensor (B, ...) with NaN or infinity, ascending; the host waits for the device."""
    if not values.is_floating_point() or not values.numel() or bool(torch.isfinite(values).all()):
        return []
    rows = values.reshape(len(values), -1).isfinite().all(1)
    return [int(row) for row in (~rows).nonzero().flatten()]


def examples_hold(rows: Sequence[int]) -> str:
    """Return a text that names the examples with values that are not finite: "example 5 holds NaN or infinity"."""
    if len(rows) == 1:
        return f"example {rows[0]} holds NaN or infinity"
    return f"examples {', '.join(map(str, rows[:_SHOWN]))}{', ...' if len(rows) > _SHOWN else ''} hold NaN or infinity"


def check_finite(samples: Tensor, first: int = 0) -> None:
    """Log which samples are not finite; raise `DivergedError` if none is.

    Args:
        samples: (N, C, *S).
        first: Index of the first sample.
    Raises:
        DivergedError: No sample is finite.
    """
    if math.isfinite(float(samples.sum())):  # so is every term; faster than a look at each
        return
    bad = (~samples.isfinite().flatten(1).all(1)).nonzero().flatten().add(first).tolist()
    if bad and len(bad) == len(samples):
        raise DivergedError(
            f"none of {len(bad)} samples is finite: the network's weights are not, after a run that diverged; or the "
            "guidance is too strong or the precision too low; or errors grow from step to step (clip=True limits them; "
            "diffkit explain shows how much a mean enlarges them)"
        )
    if bad:
        some = ", ".join(map(str, bad[:5])) + (", ..." if bad[5:] else "")
        log(f"warning: {len(bad)} of {len(samples)} samples are not finite ({some})")
