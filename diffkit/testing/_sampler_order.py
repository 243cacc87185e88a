"""Laws of samplers: how fast the error falls, down and back up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from diffkit.errors import OptionError
from diffkit.protocols import Sampler
from diffkit.testing._check import NotApplicableError, Where, check
from diffkit.testing._close import require
from diffkit.testing._exact_runs import (
    MIXTURE,
    SLACK,
    distribution_error,
    fitted_order,
    pointwise_error,
    require_order,
)
from diffkit.testing._paths import NoisePath, middle_segment
from diffkit.testing._probe import (
    PreparedSampler,
    accepted_paths,
    prepare_encoder,
    prepare_sampler,
    round_trip_error,
    tells_the_end,
)

_SLACK_UP = 0.3  # SLACK for the way up, measured on fewer steps
_HOW = "log_snr from -4 to 4, every second step twice as wide"


_EXACT = 1e-9
"""Rounding of a step, in units of the scale of the data."""


def measured_orders(sampler: Sampler) -> dict[str, float]:
    """Return the order of convergence measured on each path, "vp", "ve" and "linear", that a sampler accepts.

    A deterministic sampler is compared with the exact solution for normal data and, on the first path, for a mixture
    (the lower order counts); a stochastic one by mean and standard deviation of normal data (weak order), worked out,
    not drawn. It is infinite for a sampler that is exact with the exact flow map.
    """
    if tells_the_end(sampler):
        return {path.label: math.inf for path in accepted_paths(sampler)}
    counts, found = _counts(sampler), dict[str, float]()
    for path, _, errors in _errors(sampler):
        found[path.label] = min(found.get(path.label, math.inf), fitted_order(counts, errors))
    return found


def _counts(sampler: Sampler) -> tuple[int, ...]:
    """Return numbers of steps fine enough to show the order and coarse enough to stay above rounding."""
    return (160, 320, 640) if sampler.order < 4 else (40, 80, 160)


def _errors(sampler: Sampler) -> Iterator[tuple[NoisePath, str, list[float]]]:
    """Yield the path, the kind of data, and the errors at level 1 with `_counts` steps above it."""
    for i, path in enumerate(accepted_paths(sampler)):
        down = [prepare_sampler(sampler, middle_segment(path), n + 1) for n in _counts(sampler)]
        measure = distribution_error if sampler.stochastic else pointwise_error
        yield path, "normal data", [measure(w, w.program.num_steps - 1) for w in down]
        if i == 0 and not sampler.stochastic:
            errors = [pointwise_error(w, w.program.num_steps - 1, MIXTURE) for w in down]
            yield path, "a mixture of two normals", errors


def _where(path: NoisePath, counts: Sequence[int], what: str) -> Where:
    return Where(path.label, counts[-1], detail=f"{what}, {_HOW}")


@check("sampler")
def order_as_declared(sampler: Sampler) -> str:
    """A sampler's error falls with the number of steps at the declared order, on every path, also with uneven steps.

    One that tells the network where a step goes has no error with the exact flow map, in however few steps.
    Usually: a coefficient at the wrong end of the step, a history weighted for equal steps on unequal ones, or a
    method of lower order than its name says.
    """
    if tells_the_end(sampler):
        return _exact_by_the_flow_map(sampler)
    counts, found = _counts(sampler), dict[str, float]()
    for path, data, errors in _errors(sampler):
        require_order(counts, errors, sampler.order - SLACK, _where(path, counts, data))
        found[path.label] = min(found.get(path.label, math.inf), fitted_order(counts, errors))
    return f"order {sampler.order} declared; " + ", ".join(f"{order:.2f} on {path}" for path, order in found.items())


def _exact_by_the_flow_map(sampler: Sampler) -> str:
    measure = distribution_error if sampler.stochastic else pointwise_error
    for path in accepted_paths(sampler):
        for steps in (1, 3):
            prepared = prepare_sampler(sampler, middle_segment(path), steps + 1)
            error = measure(prepared, steps)
            require(error <= _EXACT, "no error with the exact flow map", f"{error:.3g}", prepared.where)
    return "exact with the exact flow map"


@check("sampler")
def encodes_at_its_order(sampler: Sampler) -> None:
    """A deterministic sampler encodes with errors of its declared order, and decoding adds no other error.

    Usually: a plan that takes the larger sigma for granted at the start of a step; it may use t and s only.
    """
    if sampler.stochastic or tells_the_end(sampler):
        what = "it adds noise" if sampler.stochastic else "it steps by the network's own flow map"
        raise NotApplicableError(f"{what}, so it has no way back")
    counts = tuple(n // 2 for n in _counts(sampler))
    for i, path in enumerate(accepted_paths(sampler)):
        up = [_upwards(sampler, path, n) for n in counts]
        errors = [pointwise_error(u, n) for u, n in zip(up, counts, strict=True)]
        require_order(counts, errors, sampler.order - _SLACK_UP, _where(path, counts, "normal data encoded"))
        if i:
            continue
        down = prepare_sampler(sampler, middle_segment(path), counts[-1] + 1)
        single = errors[-1] + pointwise_error(down, down.program.num_steps - 1)
        back = round_trip_error(up[-1], down)
        where = _where(path, counts, "normal data encoded, then decoded")
        expected = f"an error of the size of both ways' own, {single:.3g}"
        require(back < 10 * single + 1e-10, expected, f"{back:.3g}", where)


def _upwards(sampler: Sampler, path: NoisePath, steps: int) -> PreparedSampler:
    try:
        return prepare_encoder(sampler, middle_segment(path), steps + 1)
    except OptionError as error:
        raise NotApplicableError(f"it refuses to encode: {error}") from error
