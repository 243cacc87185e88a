"""Optimizers without an import of torch's compiler, which takes longer than all else before a first update."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

_ATTRIBUTE = "__dynamo_disable"
_METHODS = ("add_param_group", "state_dict", "load_state_dict")


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Within the context, methods of optimizers do not import torch._dynamo, which is 1.3 s of CPU time.

    torch hides these methods from its compiler (`torch._disable_dynamo`): at the first call it imports the compiler,
    and stores the hidden function on the function itself. Nothing is compiled here, so the function is stored as it is,
    and removed again. If the compiler is imported already, or torch has other names, nothing is changed.
    """
    hidden = [getattr(getattr(Optimizer, name, None), "__wrapped__", None) for name in _METHODS]
    plain = [each for each in hidden if each is not None and not hasattr(each, _ATTRIBUTE)]
    if "torch._dynamo" in sys.modules:
        plain = []
    for each in plain:
        setattr(each, _ATTRIBUTE, each)
    try:
        yield
    finally:
        for each in plain:
            delattr(each, _ATTRIBUTE)


def take_step(optimizer: Optimizer) -> None:
    """Take a step, as ``optimizer.step()``, without what torch's own optimizers do for its compiler and profiler.

    That imports torch._dynamo as well, and is most of the time of a step of a small network. Optimizers of others are
    called as they are.
    """
    if not type(optimizer).__module__.startswith("torch.optim."):
        optimizer.step()
        return
    step = inspect.unwrap(type(optimizer).step)
    with torch.set_grad_enabled(optimizer.defaults.get("differentiable", False)):
        step(optimizer)
