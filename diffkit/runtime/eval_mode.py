"""Evaluation mode for as long as any thread asks a network, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_users: dict[int, int] = {}
"""How many ask each module that was in training mode; it is held by those who ask, so its id stays its own."""


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Switch dropout off meanwhile.

    The first of several threads to ask a module switches it off, and the last one back; what was in evaluation mode
    before is not touched.
    """
    with eval_mode_of(modules_of(*networks)):
        yield


def modules_of(*networks: nn.Module) -> list[nn.Module]:
    """Return all modules of networks."""
    return [module for network in networks for module in network.modules()]


@contextmanager
def eval_mode_of(modules: Sequence[nn.Module]) -> Iterator[None]:
    """As `eval_mode`, of modules found before."""
    asked = _off(modules)
    try:
        yield
    finally:
        _back(asked)


def _off(modules: Sequence[nn.Module]) -> list[nn.Module]:
    with _lock:
        asked = [module for module in modules if _trains(module) or id(module) in _users]
        for module in asked:
            _users[id(module)] = _users.get(id(module), 0) + 1
            module.training = False
        return asked


def _back(asked: list[nn.Module]) -> None:
    with _lock:
        for module in asked:
            _users[id(module)] -= 1
            if not _users[id(module)]:
                del _users[id(module)]
                module.training = True


def _trains(module: nn.Module) -> bool:
    """Whether a module is in training mode; a frozen TorchScript one has no modes any more."""
    return bool(getattr(module, "training", False))
