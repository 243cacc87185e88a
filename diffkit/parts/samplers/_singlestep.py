"""Single-step solvers: further evaluations inside a step, or at its end, and no history.

Stages are written in estimates of x_start. Solvers that extend eps become so by ``eps - eps_t = (x_start(x_t) -
x_start) / rho``, which holds at a stage that was itself reached by holding eps_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffkit.parts.samplers._coefficients import (
    MIN_SPACING,
    finite_or_zero,
    moments,
    noise_ratio,
    position,
    step_size,
    straight,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from diffkit.protocols import Denoise, Level, StepRow
    from diffkit.table import F64, Coefs, Steps

MAX_UNBOUNDED_STEP = 4.0
"""From this step size on (in lambda) the weight of a difference of estimates no longer grows with the step.

That of Heun's method is above 26 there, where the exact integral is below 1.
"""


def straight_plan(steps: Steps) -> dict[str, F64]:
    """Columns of `straight_step`: coefficients of x_t and of x_start."""
    x, x_start = straight(*steps)
    return {"x": x, "x_start": x_start}


def straight_step(denoise: Denoise, x: Tensor, row: StepRow) -> Tensor:
    """The step that holds the estimate, of x_start or of eps alike: one evaluation, order 1."""
    c, x_start = row.coef, denoise(x, row.t).x_start
    return (c["x"] * x).addcmul_(c["x_start"], x_start)


def inverse_position(node: Coefs, steps: Steps) -> tuple[F64, F64]:
    """Position of a node between t and s in lambda, and its inverse; both 0 where it is too close to t for a slope."""
    r = position(node, steps)
    usable = r > MIN_SPACING
    return np.where(usable, r, 0.0), np.divide(1.0, r, out=np.zeros_like(r), where=usable)


def noise_to_data(steps: Steps, node: Coefs, weight: F64, lower_order_long: bool = True) -> F64:
    """``alpha_s (rho_t - rho_s) weight / rho_node``: what weight (eps_node - eps_t) adds, per difference of x_start.

    That grows with exp(h / 2); with ``lower_order_long``, from `MAX_UNBOUNDED_STEP` on, it is what
    weight (x_start_node - x_start_t) adds, which does not.
    """
    t, s = steps
    with np.errstate(invalid="ignore"):
        out = s.alpha * (noise_ratio(t) - noise_ratio(s)) * weight / noise_ratio(node)
    bounded = straight(t, s)[1] * weight
    short = (step_size(steps) < MAX_UNBOUNDED_STEP) | (not lower_order_long)
    return finite_or_zero(np.where(short, out, bounded))


def midpoint_plan(steps: Steps, change: F64) -> dict[str, F64]:
    """Columns of `midpoint_step`: the straight steps to s and to the node, and ``change`` for the difference there."""
    (x, x_start), (node_x, node_x_start) = straight(*steps), straight(steps.t, steps.nodes[0])
    return {"x": x, "x_start": x_start, "node_x": node_x, "node_x_start": node_x_start, "change": change}


def midpoint_plan_in_noise(steps: Steps, lower_order_long: bool = True) -> dict[str, F64]:
    """Columns of `midpoint_step` for a line through two estimates of eps."""
    node = steps.nodes[0]
    weight = inverse_position(node, steps)[1] / 2
    return midpoint_plan(steps, noise_to_data(steps, node, weight, lower_order_long))


def midpoint_step(denoise: Denoise, x: Tensor, row: StepRow, last: bool, estimate: Tensor | None = None) -> Tensor:
    """``x_s = straight + change (x_start(x_node) - x_start(x_t))``; the first stage alone on the step to level 0.

    Args:
        denoise, x, row, last: As in `Sampler.step`.
        estimate: Of x_start at t, if it is at hand.
    """
    c = row.coef
    if estimate is None:
        estimate = denoise(x, row.t).x_start
    y = (c["x"] * x).addcmul_(c["x_start"], estimate)
    if last:
        return y
    return y.addcmul(c["change"], second_stage(denoise, x, c, row.nodes[-1], estimate)[1])


def second_stage(
    denoise: Denoise, x: Tensor, c: Mapping[str, Tensor], node: Level, estimate: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x at the node of `midpoint_plan`, and how the estimate there differs from that at t."""
    at_node = (c["node_x"] * x).addcmul_(c["node_x_start"], estimate)
    return at_node, denoise(at_node, node).x_start - estimate


def trapezoid_plan(steps: Steps, lower_order_long: bool = True) -> dict[str, F64]:
    """Columns of `trapezoid_step`: Euler's step, and the difference of estimates at both ends.

    ``alpha_s (rho_s - rho_t) (eps_s - eps_t) / 2 = alpha_s (exp(h) - 1) / 2 (x_start_s - x_start_t)``, which grows
    without bound; with ``lower_order_long``, from `MAX_UNBOUNDED_STEP` on, the difference has the weight alpha_s m_1 of
    `moments` instead.
    """
    x, x_start = straight(*steps)
    h = step_size(steps)
    with np.errstate(over="ignore", invalid="ignore"):
        short = (h < MAX_UNBOUNDED_STEP) | (not lower_order_long)
        change = finite_or_zero(np.where(short, np.expm1(h) / 2, moments(h, 2)[:, 1]))
    return {"x": x, "x_start": x_start, "change": steps.s.alpha * change}


def trapezoid_step(denoise: Denoise, x: Tensor, t: Level, s: Level, c: Mapping[str, Tensor], last: bool) -> Tensor:
    """Heun's step from t to s; Euler's on the step to level 0, where the network is not defined."""
    estimate = denoise(x, t).x_start
    y = (c["x"] * x).addcmul_(c["x_start"], estimate)
    if last:
        return y
    difference = denoise(y, s).x_start - estimate
    return y.addcmul(c["change"], difference)
