"""Laws of parts with weights: the system owns them, so that they are trained, averaged, saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import DiffkitError
from diffkit.protocols import LearnedPart, LearnedSchedule
from diffkit.registry import KINDS
from diffkit.system.learned import Trained
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._parts import DATA_SHAPES, system_with

_ROWS = 8


def _needs_weights(part: Any) -> None:
    if not isinstance(part, LearnedPart):
        raise NotApplicableError("it has no weights")


def _system(kind: str, part: Any) -> Any:
    """Return a system around the part, with weights that no module has at first, and a frozen network."""
    system = system_with(kind, part)
    if system is None:
        raise NotApplicableError("no composition of the kit takes it")
    system.network.requires_grad_(False)
    with torch.no_grad():
        for parameter in _module(system, kind).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return system


def _module(system: Any, kind: str) -> nn.Module:
    module: nn.Module = (system.learned if kind in system.learned else system.frozen)[kind]
    return module


def _loss(system: Any) -> Tensor:
    """Return the loss of a batch, always of the same one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(_ROWS, *system.data_shape, generator=generator) - 0.5
    loss: Tensor = system(x, generator=generator)["loss"]
    return loss


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield every tensor that a backward pass of the loss adds a gradient to."""
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        nodes += [following for following, _ in node.next_functions]


def _of_each_kind_with_weights(law: Any) -> Any:
    for kind in (kind.name for kind in KINDS.values() if kind.weights):

        def run(part: Any, kind: str = kind) -> None:
            _needs_weights(part)
            law(part, kind)

        run.__name__, run.__doc__ = law.__name__, law.__doc__
        check(kind)(run)
    return law


@_of_each_kind_with_weights
def builds_a_module(part: Any, kind: str) -> None:
    """A part with weights builds a new module each time, whose parameters have an axis, for any shape of data.

    Usually: a module that is built once and kept, so that two systems share its weights; or a parameter that is a
    single number, which cannot be sharded.
    """
    for shape in DATA_SHAPES:
        where = record_where(Where(detail=f"data {shape}"))
        try:
            first, second = (part.build(shape) for _ in range(2))
        except DiffkitError:  # the part is not for this shape
            continue
        if first is None:
            raise NotApplicableError("its module has to be given")
        require(isinstance(first, nn.Module), "a torch.nn.Module", type(first).__name__, where)
        tensors = {id(tensor) for tensor in (*first.parameters(), *first.buffers())}
        shared = [tensor for tensor in (*second.parameters(), *second.buffers()) if id(tensor) in tensors]
        require(not shared and first is not second, "another module each time", "the same one, or its tensors", where)
        single = [name for name, parameter in first.named_parameters() if not parameter.ndim]
        require(not single, "parameters with an axis", f"{single[:1]} of none", where)


@_of_each_kind_with_weights
def weights_are_trained(part: Any, kind: str) -> None:
    """Each weight of a part gets a finite gradient from the loss, and nothing that the system does not own gets one.

    Usually: weights in a list, or outside of the module, where no optimizer sees them; or a detach too many.
    """
    system = _system(kind, part)
    if not part.trained:
        raise NotApplicableError("its module is frozen")
    loss = _loss(system)
    own = dict(system.trained.named_parameters()) if isinstance(system.trained, Trained) else {}
    known = {id(parameter) for parameter in own.values()}
    strangers = [tuple(leaf.shape) for leaf in _leaves(loss) if id(leaf) not in known]
    require(not strangers, "gradients of parameters of the module only", f"one of a tensor {strangers[:1]} elsewhere")
    require(loss.requires_grad, "a gradient of the part's weights", "none")
    loss.mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in own.items():
        if name.startswith("learned."):
            found = parameter.grad
            good = found is not None and bool(found.isfinite().all()) and bool((found != 0).any())
            require(good, f"a finite gradient of {name} that is not zero", "none, or zero, or not finite")


@_of_each_kind_with_weights
def weights_are_restored(part: Any, kind: str) -> None:
    """The state of a system has all of a part's weights: with it, one built anew has the same loss.

    Usually: a tensor that is neither a parameter nor a buffer, such as random frequencies.
    """
    system = _system(kind, part).eval()
    expected = _loss(system).detach()
    torch.manual_seed(2)
    again = _system(kind, part).eval()
    again.load_state_dict(system.state_dict())
    require_same(_loss(again).detach(), expected, "the loss of a system with this state")


@check("schedule")
def falls_for_any_weights(part: Any) -> None:
    """The log_snr of a learned schedule falls with time for any weights, between the ends of its table, at its rate.

    Usually: a weight that can be negative, ends that move with the weights, or a rate that is another one's.
    """
    if not isinstance(part, LearnedSchedule):
        raise NotApplicableError("it has no weights")
    table = part.table(1000)
    ends = torch.from_numpy(table.log_snr[[1, -1]].copy())
    time = torch.linspace(0, 1, 257, dtype=torch.float64).requires_grad_()
    for seed, size in enumerate((0.0, 0.3, 3.0, 30.0)):
        where = record_where(Where(detail=f"weights moved by {size:g}"))
        module = part.build((1, 4, 4))
        require(isinstance(module, nn.Module), "a torch.nn.Module", type(module).__name__)
        assert module is not None
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        log_snr, rate = part.log_snr_at(module, time)
        rises = (log_snr.diff() >= 0).nonzero().flatten().tolist()
        require(
            not rises, "a log_snr that falls with time", f"none at time {rises[0] / 256 if rises else 0:.3g}", where
        )
        require_close(log_snr[[0, -1]].detach(), ends, 1e-9, "the ends of the table", where)
        (slope,) = torch.autograd.grad(log_snr.sum(), time)
        require_close(rate.detach(), -slope, 1e-9, "the rate at which log_snr falls", where)
        require(bool((rate > 0).all()), "a positive rate", "another", where)
