"""What the gates count: operations, uploads and host reads, as they are dispatched.

Torch's meta device stands in for a GPU: its tensors have shapes and no values, so that reading one raises, and whatever
brings a host tensor to it is seen as an upload. No gate needs a GPU or a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
VIEWS = {
    "view",
    "unbind",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "expand",
    "narrow",
    "detach",
    "alias",
    "_unsafe_view",
    "unsqueeze",
    "permute",
    "t",
    "transpose",
}


class Operations(TorchDispatchMode):
    """Counts what is dispatched.

    Attributes:
        by_name: Operations that do work, by name; views are free.
        uploads: Operations that bring a host tensor to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.uploads = 0
        self.paused = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if self.paused:
            return out
        name = function._schema.name.split("::")[1]
        if name not in VIEWS:
            self.by_name[name] += 1
        self.uploads += _is_on(DEVICE.type, out) and _is_on("cpu", (args, kwargs))
        return out

    @property
    def count(self) -> int:
        """Operations that do work."""
        return self.by_name.total()


def counted(run: Callable[[], object]) -> Operations:
    """Return what a call dispatched."""
    with Operations() as counter:
        run()
    return counter


def _is_on(kind: str, tree: object) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.device.type == kind for leaf in tree_leaves(tree))
