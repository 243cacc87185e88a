"""Laws of losses that call the network again, with small networks and a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import Loss, NetworkLoss
from diffkit.system.loss_network import NetworkCall
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require
from diffkit.testing._paths import LINEAR, VP, LevelPairs, compose_on_path

_MEANS = ("v", "eps", "x_start")
_LEVELS = (20, 13, 8, 5, 2)


@frozen(eq=False)
class NetworkLossCase:
    """Case of the checks: a loss with a network of random weights, a teacher that counts its calls, and a batch."""

    system: Any
    where: Where
    level: Tensor
    level_to: Tensor | None
    calls: list[Any]

    def terms(self, **changes: Any) -> dict[str, Tensor]:
        """Return the loss's terms."""
        generator = torch.Generator().manual_seed(0)
        x, noise = (torch.randn(len(self.level), 2, generator=generator, dtype=torch.float64) for _ in range(2))
        system, teacher = self.system, _network(self.system, seed=7)

        def teach(*given: Any, **named: Any) -> Tensor:
            self.calls.append(None)
            out: Tensor = teacher(*given, **named)
            return out

        asked = NetworkCall(teach, system.parts, system.objective.scales_input, {})
        given = {"level": self.level, "level_to": self.level_to, "teacher": asked} | changes
        found: dict[str, Tensor] = system.loss_terms(None, x, given.pop("level"), noise, **given)
        return found


def _network(system: Any, seed: int) -> Any:
    """Return a copy of a system's network with random weights."""
    import copy

    network, generator = copy.deepcopy(system.network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def _cases(loss: Loss) -> Iterator[NetworkLossCase]:
    """Yield the loss with every mean it goes with, on two paths."""
    if not isinstance(loss, NetworkLoss):
        raise NotApplicableError("it reads one output of the network")
    recipe = ("mlp", {"hidden": 8, "depth": 1, "times": 2 if loss.needs_two_times else 1})
    pairs = {"timesteps": LevelPairs()} if loss.needs_pairs else {}
    accepted = 0
    for path in (VP, LINEAR):
        for mean in _MEANS:
            where = record_where(Where(path.label, 20, detail=f"mean {mean!r}"))
            try:
                system = compose_on_path(path, 20, loss=loss, mean=mean, backbone=recipe, **pairs)
            except (CompositionError, OptionError):
                continue
            accepted += 1
            system = system.with_network(_network(system.double(), seed=3))
            level = torch.tensor(_LEVELS)
            yield NetworkLossCase(system, where, level, level // 2 if pairs else None, [])
    require(accepted > 0, "a mean that it goes with", "all built-in ones are refused")


@check("loss")
def trains_the_network(loss: Loss) -> None:
    """A loss that calls the network again trains it: at every level a finite gradient that is not zero.

    Usually: both sides of the comparison detached, or from the teacher; or a call of the network under no_grad.
    """
    for case in _cases(loss):
        weights = [p for p in case.system.network.parameters() if p.requires_grad]
        for i, term in enumerate(case.terms()["loss"]):
            where = evolve(case.where, level=int(case.level[i]))
            require(term.requires_grad, "a gradient into the network", "none", where)
            found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            size = sum(float(g.abs().sum()) for g in found if g is not None)
            require(0 < size < float("inf"), "a finite gradient into the network", f"one of size {size}", where)


@check("loss")
def calls_the_teacher_it_declares(loss: Loss) -> None:
    """A loss calls a teacher if its `teacher` says which, and only then: training provides none otherwise.

    Usually: `teacher` left at None, where the "teacher" then is the network itself.
    """
    for case in _cases(loss):
        case.terms()
        declared = getattr(loss, "teacher", None)
        expected = f"calls of the teacher, as teacher = {declared!r}" if declared else "no call of a teacher"
        require(bool(case.calls) == (declared is not None), expected, f"{len(case.calls)} calls", case.where)


@check("loss")
def reads_the_levels_it_declares(loss: Loss) -> None:
    """A loss that needs pairs of levels depends on the second ones, and one that needs two times on a network's second.

    Usually: `at.to` read and not used, or the network called without it.
    """
    for case in _cases(loss):
        assert isinstance(loss, NetworkLoss)
        if case.level_to is not None:
            one, other = (case.terms(level_to=to)["loss"] for to in (case.level_to, case.level_to - 1))
            require(bool((one != other).any()), "a loss that depends on the second levels", "the same", case.where)
        if loss.needs_two_times:
            second = case.system.network.time_to_embed
            require(second is not None, "a network of two times", "one", case.where)
            found = torch.autograd.grad(case.terms()["loss"].sum(), [*second.parameters()], allow_unused=True)
            reads = any(g is not None and bool((g != 0).any()) for g in found)
            require(reads, "a gradient into the embedding of the second time", "none", case.where)
