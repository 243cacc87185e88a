"""Which noise of a batch goes to which example: the assignment of least cost, or a plan near it to draw from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffkit.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def within_classes(
    assign: Callable[[Tensor], Tensor], cost: Tensor, conditions: Mapping[str, Any], by_class: bool
) -> Tensor:
    """Return the column of each row, (B,) int64; with ``by_class`` a column whose example has the same class ``y``.

    ``assign`` returns the columns for costs (B, B).
    Noise then stays independent of the class: else a class whose examples lie to one side would only be trained on the
    noise at that side, and sampling, which draws all noise for every class, would meet noise it never saw.
    """
    import torch

    y = conditions.get("y") if by_class else None
    if y is None or y.ndim != 1:
        return assign(cost)
    columns = torch.arange(len(cost), device=cost.device)
    for label in y.unique():
        rows = (y == label).nonzero().flatten()
        columns[rows] = rows[assign(cost[rows][:, rows])]
    return columns


def least_cost(cost: Tensor) -> Tensor:
    """Return the permutation of least total cost, by SciPy's solver, on the CPU.

    Raises:
        MissingExtraError: SciPy is not installed.
        OptionError: A cost is not finite.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError("ot", "the assignment of noise to examples") from error
    try:
        _, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    except ValueError as error:
        raise OptionError("data or noise to pair has values that are not finite") from error
    import torch

    return torch.as_tensor(columns, device=cost.device)


def sinkhorn(cost: Tensor, entropy: float, iterations: int, generator: torch.Generator) -> Tensor:
    """Return a column of each row, drawn from its row of the entropic plan with uniform margins.

    Args:
        cost: (B, B).
        entropy: Weight of the plan's entropy, in units of the mean cost over its range.
        iterations: Of Sinkhorn's algorithm, each of which scales rows and columns once.
        generator: Source of the draws, on the CPU.
    Source: Cuturi 2013, arXiv:1306.0895, algorithm 1, with logarithms.
    """
    import torch

    cost = cost.double()
    scale = entropy * (cost - cost.min()).mean().clamp(min=1e-300)
    log_plan = -cost / scale
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    draws = torch.rand(len(cost), 1, generator=generator, dtype=torch.float64).to(cost.device)
    below = log_plan.exp().cumsum(1) < draws
    return below.sum(1).clamp(max=len(cost) - 1)
