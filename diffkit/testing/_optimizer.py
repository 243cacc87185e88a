"""Laws of optimizers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.protocols import Optimizer
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.training.optimizer_state import OptimizerState

_LR, _WEIGHT_DECAY = 0.01, 0.1
_STEPS = 4


def _network() -> nn.Sequential:
    """Layers with matrices, a convolution and vectors; some parameters are frozen."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv1d(2, 4, 3), nn.Linear(6, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(3, 2)]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    network[4].requires_grad_(False)
    return network


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _build(part: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a network, with two groups."""
    first, *others = _trained(network)
    groups = [
        {"params": [first], "lr": _LR / 2, "weight_decay": 0.0},
        {"params": others, "lr": _LR, "weight_decay": _WEIGHT_DECAY},
    ]
    made = part.build(groups, network)
    require(isinstance(made, torch.optim.Optimizer), "a torch.optim.Optimizer", type(made).__name__)
    return made


def _gradients(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in _trained(network):
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _steps(made: torch.optim.Optimizer, network: nn.Module, steps: range, lr: float | None = None) -> None:
    """Take steps as the trainer does, which sets the learning rate of every group before each."""
    first = [group["lr"] for group in made.param_groups]
    for step in steps:
        record_where(Where(detail=f"update {step}"))
        _gradients(network, step)
        for group, own in zip(made.param_groups, first, strict=True):
            group["lr"] = own if lr is None else lr
        made.step()
        made.zero_grad(set_to_none=True)
    for group, own in zip(made.param_groups, first, strict=True):
        group["lr"] = own


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


@check("optimizer")
def every_parameter_once(part: Optimizer) -> None:
    """Its torch optimizer holds each of the given parameters once, and no other.

    Usually: parameters of a shape that is left out, or all of the network's, frozen ones too.
    """
    network = _network()
    made = _build(part, network)
    held = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    wanted = [id(parameter) for parameter in _trained(network)]
    require(sorted(held) == sorted(wanted), f"each of {len(wanted)} parameters once", f"{len(held)} parameters, others")


@check("optimizer")
def needs_no_closure(part: Optimizer) -> None:
    """A step is taken without a closure, from the gradients that are there.

    Usually: a line search, which has to compute the loss again.
    """
    closure = inspect.signature(_build(part, _network()).step).parameters.get("closure")
    needed = closure is not None and closure.default is inspect.Parameter.empty
    require(not needed, "step() without arguments", "step(closure)")


@check("optimizer")
def trains_every_parameter(part: Optimizer) -> None:
    """A few updates change every parameter that has a gradient, by finite values, and lower a convex loss.

    Usually: a step uphill, or a kind of parameter that no branch handles.
    """
    network = _network()
    before, made = _weights(network), _build(part, network)
    goals = {name: torch.zeros_like(value) for name, value in before.items()}
    losses = []
    for step in range(10 * _STEPS):
        record_where(Where(detail=f"update {step}"))
        loss = sum(((p - goals[name]) ** 2).sum() for name, p in network.named_parameters() if p.requires_grad)
        losses.append(float(loss.detach()))  # type: ignore[union-attr]
        loss.backward()  # type: ignore[union-attr]
        made.step()
        made.zero_grad(set_to_none=True)
    for name, parameter in network.named_parameters():
        where = Where(detail=name)
        require(bool(parameter.isfinite().all()), "finite weights", "inf or nan", where)
        changed = not torch.equal(parameter.detach(), before[name])
        require(changed == parameter.requires_grad, "weights that change", "the same weights", where)
    require(losses[-1] < losses[0], f"a loss below {losses[0]:.4g}", f"{losses[-1]:.4g}")


@check("optimizer")
def reads_the_learning_rate(part: Optimizer) -> None:
    """The learning rate of each group counts at every step; with 0 a step changes no weight.

    Usually: a rate that is read once, when the optimizer is made, or weight decay that does not depend on it.
    """
    network = _network()
    made = _build(part, network)
    _steps(made, network, range(2))
    before = _weights(network)
    _steps(made, network, range(2, 4), lr=0.0)
    require_same(_weights(network), before, "the same weights")


@check("optimizer")
def no_gradient_no_change(part: Optimizer) -> None:
    """A parameter without a gradient stays as it is, and the others change as if it were not there.

    Usually: weight decay or momentum that is applied to every parameter of a group.
    """
    network = _network()
    made = _build(part, network)
    _steps(made, network, range(2))
    before = _weights(network)
    _gradients(network, 2)
    network[1].weight.grad = None
    made.step()
    after = _weights(network)
    require_same(after["1.weight"], before["1.weight"], "the same weights of the layer without a gradient")
    require(not torch.equal(after["2.weight"], before["2.weight"]), "other weights elsewhere", "the same")


@check("optimizer")
def same_twice(part: Optimizer) -> None:
    """Two optimizers that are made alike give the same weights to the bit.

    Usually: a draw of its own, or state that two optimizers share.
    """
    networks = [_network(), _network()]
    made = [_build(part, network) for network in networks]
    for step in range(_STEPS):
        for optimizer, network in zip(made, networks, strict=True):
            _steps(optimizer, network, range(step, step + 1))
    require_same(_weights(networks[1]), _weights(networks[0]), "the same weights to the bit")


@check("optimizer")
def resumes_to_the_bit(part: Optimizer) -> None:
    """What a checkpoint holds of it, tensors and numbers by parameter, is all that its next steps depend on.

    Usually: state on the optimizer itself, outside of `state` and `param_groups`.
    """
    network = _network()
    made = _build(part, network)
    stored = OptimizerState(made, network)
    _steps(made, network, range(_STEPS))
    tensors = {name: value.clone() for name, value in stored.tensors().items()}
    other = _network()
    other.load_state_dict(network.state_dict())
    again = _build(part, other)
    OptimizerState(again, other).restore(tensors, lambda whole, like: whole)
    for optimizer, trained in ((made, network), (again, other)):
        _steps(optimizer, trained, range(_STEPS, 2 * _STEPS))
    require_same(_weights(other), _weights(network), "the same weights to the bit")


@check("optimizer")
def elementwise_as_declared(part: Optimizer) -> None:
    """With elementwise = True, the parts of a parameter are trained as the whole of it.

    Usually: a norm of the whole parameter, by which its update is scaled.
    """
    if not part.elementwise:
        raise NotApplicableError("it declares that it is not elementwise")
    whole, halves = nn.Linear(6, 8), nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 6, generator=generator)
    pieces: list[Any] = [[whole.weight], [half.weight for half in halves]]
    for network, params in zip((whole, halves), pieces, strict=True):
        for parameter, value in zip(params, start.chunk(len(params)), strict=True):
            parameter.data = value.clone()
        made = part.build([{"params": params, "lr": _LR, "weight_decay": _WEIGHT_DECAY}], network)
        for step in range(_STEPS):
            gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            for parameter, value in zip(params, gradient.chunk(len(params)), strict=True):
                parameter.grad = value.clone()
            made.step()
    # vectorized kernels round the ends of a tensor otherwise
    require_close(torch.cat(pieces[1]), pieces[0][0], 1e-6, "weight")


@check("optimizer")
def builds_anew(part: Optimizer) -> None:
    """Building changes nothing: neither the weights, nor the groups that it was given.

    Usually: a first step at once, or options that are written into the caller's groups.
    """
    network = _network()
    before = _weights(network)
    params = _trained(network)
    groups: list[dict[str, Any]] = [{"params": [*params], "lr": _LR, "weight_decay": _WEIGHT_DECAY}]
    part.build(groups, network)
    require_same(_weights(network), before, "the same weights")
    if [id(p) for p in groups[0]["params"]] != [id(p) for p in params]:
        raise LawError("the same parameters in the group", "others")
