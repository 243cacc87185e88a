"""Counting operations at dispatch: machine-independent, so that a gate on them never flickers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {
    "view",
    "unbind",
    "select",
    "slice",
    "expand",
    "narrow",
    "detach",
    "alias",
    "_unsafe_view",
    "split",
    "split_with_sizes",
    "unsqueeze",
}


class Operations(TorchDispatchMode):
    """Counts aten operations by name; views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))

    @property
    def work(self) -> int:
        """Operations that do work."""
        return sum(n for name, n in self.found.items() if name not in VIEWS)


def operations(run: Callable[[], object]) -> int:
    """How many operations a call makes, views not counted."""
    with Operations() as counter:
        run()
    return counter.work
