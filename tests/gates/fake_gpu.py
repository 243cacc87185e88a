"""A GPU that is not there: torch's fake tensors say that they are on one, have no values, and refuse to meet others.

Every operation is looked at as it is dispatched. One that mixes devices raises, a generator on another device too, and
so does whatever makes the host wait: a value that is read, a shape that depends on values, a copy to the host. Values
of tensors on the host are free to read; all of them are 1.

What is not seen: what kernels compute and refuse, autocast's casts, pinned memory, and which stream work is on.
`tests/gates/test_gpu_gates.py` is for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves

from diffkit.system.coefficients import CoefficientTable

GPU = torch.device("cuda:0")
META = torch.device("meta")
CPU = torch.device("cpu")
DEVICE = torch.ops.prim.device.default
ITEM, EQUAL = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class HostReadError(Exception):
    """The host would wait for the device."""


READS = (HostReadError, DataDependentOutputException, DynamicOutputShapeException)


class Generator(torch.Generator):
    """A generator that says where it is; its numbers are never drawn."""

    places: ClassVar[dict[int, torch.device]] = {}

    def __new__(cls, device: Any = "cpu"):
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu"):
        self.places[self._cdata] = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.places[self._cdata]


class FakeGPU(FakeTensorMode):
    """Makes tensors on `GPU` whose operations are checked.

    torch's C++ part is told that they are on the meta device: a CPU build has no guards, streams and autograd threads
    for a GPU. Python, and the checks of devices, see the GPU.

    Attributes:
        read: What the host finds on the GPU where it is meant to look, 0 or 1; None where it must not.
        waits: Copies to the GPU for which the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: int | None = None
        self.waits = 0

    @contextmanager
    def reading(self, value: int = 1) -> Iterator[None]:
        """Let the host read for a while; every value is this one."""
        self.read = value
        try:
            yield
        finally:
            self.read = None

    def dispatch(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is DEVICE and args[0].fake_device.type == "cuda":
            return META
        if func in (ITEM, EQUAL):
            self._refuse(func, args)
            value = self.read if self.read is not None and _on_gpu(args) else 1
            return bool(value) if func is EQUAL else _as(args[0].dtype)(value)
        if kwargs.get("device") == META:  # C++ had it from a tensor on the GPU
            kwargs["device"] = GPU
        if func in INDEXING and not _on_gpu(args[0]) and _on_gpu(args[1]):  # torch's fake tensors let this pass
            raise RuntimeError(f"{func}: a tensor on another device than its indices")
        out = super().dispatch(func, types, args, kwargs)
        if func in COPIES and not _on_gpu(out) and _on_gpu((args, kwargs)):
            self._refuse(func, (args, kwargs))
        self.waits += func in COPIES and _on_gpu(out) and _waits(func, args, kwargs)
        drawn = kwargs.get("generator")
        if drawn is not None and Generator.places.get(drawn._cdata, CPU).type != out.device.type:
            raise RuntimeError(f"{func}: numbers on another device than their generator")
        return out

    def _refuse(self, func: Any, tree: Any) -> None:
        if _on_gpu(tree) and self.read is None:
            raise HostReadError(str(func))


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a tensor comes from the host, and is waited for."""
    source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
    positional = args[2] if func is not torch.ops.aten._to_copy.default and len(args) > 2 else False
    return not _on_gpu(source) and not kwargs.get("non_blocking", positional)


def _as(dtype: torch.dtype) -> type:
    return bool if dtype == torch.bool else float if dtype.is_floating_point else int


def _on_gpu(tree: Any) -> bool:
    return any(isinstance(leaf, FakeTensor) and leaf.fake_device.type == "cuda" for leaf in tree_leaves(tree))


def _numpy(tensor: Tensor) -> Any:
    """Ones, as torch would refuse to give for a tensor on a GPU."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    """Be on a machine with a GPU, as far as `diffkit` asks."""
    on = CoefficientTable.on

    def kept(self, device, dtype=torch.float32):
        """Tables are uploaded once, as real ones are."""
        if (device, dtype) not in self._on:
            self._on[device, dtype] = on(self, device, dtype)
        return self._on[device, dtype]

    swap_tensors, composed = torch.utils.swap_tensors, []

    def table_by_weights(schedule, module, settings):
        """The weights are read where a system is composed, and not again; fake ones have no values."""
        if module in composed:
            raise HostReadError(f"the table of schedule {type(schedule).__name__}")
        composed.append(module)
        return schedule.table(settings.num_steps)

    def swap(first, second):
        """A module that is moved swaps its parameters, which no weak reference may hold: the memo is one."""
        memo = mode.fake_tensor_converter.meta_converter.tensor_memo
        for key in [key for key, found in memo.items() if found is first or found is second]:
            del memo[key]
        swap_tensors(first, second)

    with monkeypatch.context() as patch, FakeGPU() as mode:
        patch.setattr(torch.utils, "swap_tensors", swap)
        patch.setattr("diffkit.system.training_table._learned_table", table_by_weights)
        patch.setattr(CoefficientTable, "on", kept)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(FakeTensor, "numpy", _numpy, raising=False)
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        yield mode
        Generator.places.clear()
