"""Laws of samplers: how fast the error falls, down and back up."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from diffkit._errors import OptionError
from diffkit.protocols import Sampler
from diffkit.testing._check import LawError, NotApplicableError, check
from diffkit.testing._close import require
from diffkit.testing._paths import Path, segment
from diffkit.testing._probe import (
    NORMAL,
    Walk,
    accepted,
    encoding,
    error_at,
    fitted_order,
    pointwise_error,
    walk,
)

COUNTS = (40, 80, 160, 320, 640)
_SLACK = 0.2  # of the fitted slope below the declared order, as finite numbers of steps show it
_SMALL = 0.05  # error that a sampler must reach at the finest count, in standard deviations


def measured_orders(sampler: Sampler, counts: Sequence[int] = COUNTS) -> dict[str, float]:
    """Return the order of convergence found on each path, "vp", "ve" and "linear", that a sampler accepts.

    Data is normal, so the denoiser, the path of the ODE and all marginals are known exactly. A stochastic sampler is
    measured by mean and standard deviation (weak order), worked out exactly, not by drawing.
    """
    return {path.label: fitted_order(counts, _errors(sampler, path, counts)) for path in accepted(sampler)}


def _errors(sampler: Sampler, path: Path, counts: Sequence[int]) -> list[float]:
    """Error at level 1 of tables that have that many steps above it."""
    measure = error_at if sampler.stochastic else pointwise_error
    walks = (walk(sampler, segment(path), n + 1) for n in counts)
    return [measure(found, found.program.num_steps - 1) for found in walks]


def _require_order(sampler: Sampler, path: Path, counts: Sequence[int], errors: Sequence[float], what: str) -> None:
    order = fitted_order(counts, errors)
    shown = ", ".join(f"{e:.2g}" for e in errors[-3:])
    found = f"order {order:.2f} (errors {shown} at {', '.join(map(str, counts[-3:]))} steps)"
    where = attrs.evolve(walk(sampler, segment(path), 2).where, num_steps=counts[-1], detail=what)
    require(order >= sampler.order - _SLACK, f"order {sampler.order} as declared", found, where)
    require(errors[-1] < _SMALL, f"an error below {_SMALL} at {counts[-1]} steps", f"{errors[-1]:.3g}", where)


@check("sampler")
def order_as_declared(sampler: Sampler) -> None:
    """The error falls with the number of steps at the declared order, on every path.

    Usually: a coefficient at the wrong end of the step, a history weighted for equal steps on unequal ones, or a
    method of lower order than its name says.
    """
    for path in accepted(sampler):
        _require_order(sampler, path, COUNTS, _errors(sampler, path, COUNTS), "log_snr -4 to 4, normal data")


@check("sampler")
def encodes_at_its_order(sampler: Sampler) -> None:
    """A deterministic sampler run upwards follows the same path, and what it encodes it decodes, at its order.

    Usually: a plan that takes the larger sigma for granted at the start of a step; it may use t and s only.
    """
    if sampler.stochastic:
        raise NotApplicableError("it adds noise, so it has no way back")
    counts = COUNTS[:4]
    for path in accepted(sampler):
        up = [_upwards(sampler, path, n) for n in counts]
        _require_order(
            sampler, path, counts, [pointwise_error(w, n) for w, n in zip(up, counts, strict=True)], "encode"
        )
        errors = [_round_trip(w, walk(sampler, segment(path), n + 1), n) for w, n in zip(up, counts, strict=True)]
        _require_order(sampler, path, counts, errors, "encode, then decode")


def _upwards(sampler: Sampler, path: Path, steps: int) -> Walk:
    try:
        return encoding(sampler, segment(path), steps + 1)
    except OptionError as error:
        raise NotApplicableError(f"it refuses to encode: {error}") from error
    except Exception as error:
        expected = "a plan upwards, or an OptionError that says why not"
        raise LawError(expected, f"{type(error).__name__}: {error}") from error


def _round_trip(up: Walk, down: Walk, steps: int) -> float:
    """Distance after encoding from level 1 to T and decoding back, in standard deviations."""
    data = NORMAL.at(float(up.table.alpha[1]), float(up.table.sigma[1]))
    x = data.sample(torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(5, 2))
    *_, top = up.run(up.with_variance(NORMAL), x)
    for _, after in zip(range(steps), down.run(down.with_variance(NORMAL), top), strict=False):
        back = after
    return float(((back - x).abs() / data.std).max())
