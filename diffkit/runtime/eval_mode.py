"""Eval mode for networks, thread-safe: it ends when the last thread that uses a network leaves it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_users: dict[int, int] = {}
"""Number of users of each module that was in training mode, by id, which is unique while a user has a reference."""


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode inside the block.

    Thread-safe: the first of several threads to use a module switches it, and the last one switches it back. Modules
    that were in eval mode before are not changed.
    """
    with eval_mode_of(modules_of(*networks)):
        yield


def modules_of(*networks: nn.Module) -> list[nn.Module]:
    """Return all modules of networks, for `eval_mode_of`."""
    return [module for network in networks for module in network.modules()]


@contextmanager
def eval_mode_of(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules that `modules_of` found into eval mode inside the block; see `eval_mode`."""
    switched = _switch_to_eval(modules)
    try:
        yield
    finally:
        _switch_back(switched)


def _switch_to_eval(modules: Sequence[nn.Module]) -> list[nn.Module]:
    with _lock:
        switched = [module for module in modules if _trains(module) or id(module) in _users]
        for module in switched:
            _users[id(module)] = _users.get(id(module), 0) + 1
            module.training = False
        return switched


def _switch_back(switched: list[nn.Module]) -> None:
    with _lock:
        for module in switched:
            _users[id(module)] -= 1
            if not _users[id(module)]:
                del _users[id(module)]
                module.training = True


def _trains(module: nn.Module) -> bool:
    """Whether a module is in training mode; a frozen TorchScript module has no modes."""
    return bool(getattr(module, "training", False))
