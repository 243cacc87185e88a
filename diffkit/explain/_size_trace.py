"""Trace a network on the meta device: the memory that a step allocates, and its number of operations.

Every block of memory is tracked from the operation that allocates it until nothing refers to it. The batch size is a
large prime, so that blocks that grow with the batch can be recognized, and one run gives the peak at any batch size.
Attention is counted as a fused kernel, which saves its inputs and outputs but not the scores.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import OptionError
from diffkit.protocols import ConditionalBackbone

_BATCH = 10_007  # a prime that divides the size of no weight
_CONTEXT_LENGTH = 77  # vectors of a context: CLIP's texts
_LOWERED = frozenset(
    {"conv1d", "conv2d", "conv3d", "linear", "matmul", "__matmul__", "bmm", "addmm", "baddbmm", "mm"}
    | {"scaled_dot_product_attention"}
)
_RAISED = frozenset({"group_norm", "layer_norm", "softmax"})
"""Functions that torch.autocast runs in bfloat16 and in float32 on a GPU, as far as networks here use them."""


@frozen(eq=False)
class MemoryTimeline:
    """Memory over a step: bytes alive after each allocation, ``fixed + slope B`` for a batch of B.

    Attributes:
        fixed, slope: (events,), float64.
        mark: Index of the last event of the forward pass.
    """

    fixed: np.ndarray
    slope: np.ndarray
    mark: int

    def peak(self, batch: int) -> int:
        """Return the peak of the bytes alive."""
        return int(np.max(self.fixed + self.slope * batch))

    def at_end_of_forward(self, batch: int) -> int:
        """Return the bytes alive at the end of the forward pass."""
        return int(self.fixed[self.mark] + self.slope[self.mark] * batch)

    def largest_batch(self, budget: float) -> int:
        """Return the largest batch whose peak memory is within a budget, 0 if there is none."""
        if np.any(self.fixed > budget):
            return 0
        growing = self.slope > 0
        return int(np.min((budget - self.fixed[growing]) // self.slope[growing]))


class Trace:
    """A network on the meta device, and the memory and operations of running it.

    Attributes:
        network: The network.
        flops: Operations of a forward pass, and of a forward and backward pass, per example; see `training`.

    Args:
        recipe: A backbone part.
        data_shape: Shape of one example.
        out_channels: Channels the network returns.
        precision: "fp32" or "bf16".
    """

    def __init__(self, recipe: Any, data_shape: tuple[int, ...], out_channels: int, precision: str):
        with torch.device("meta"):
            self.network: nn.Module = recipe.build(data_shape, out_channels)
        self.data_shape = data_shape
        self.precision = precision
        self.flops = (0.0, 0.0)
        read = recipe.channels_in(data_shape) if isinstance(recipe, ConditionalBackbone) else data_shape[0]
        self._low_res = (max(read - data_shape[0], 1), *data_shape[1:])
        self._context = recipe.context_width() if isinstance(recipe, ConditionalBackbone) else 0
        self._conditions = self._find_conditions()

    def training(self, *, count: bool = False) -> MemoryTimeline:
        """Return the memory of a forward and backward pass, with gradients, without weights.

        Args:
            count: Compute `flops` too; not for blocks that are recomputed, as counting keeps their results in memory.
        """
        live, counter = _MemoryTracker(self.network), FlopCounterMode(display=False)
        with _imitate_gpu(self.network, self.precision) as kernels, counter if count else nullcontext(), live:
            out = self._forward(_BATCH, self._conditions)
            live.mark()
            forward = counter.get_total_flops() + kernels.flops
            torch.autograd.backward(out.sum())
            both = counter.get_total_flops() + 3 * kernels.flops  # a product has two gradients of the same cost
        self.flops = (forward / _BATCH, both / _BATCH)
        self.network.zero_grad()
        return live.timeline()

    def sampling(self) -> MemoryTimeline:
        """Return the memory of a forward pass without gradients, without weights."""
        live = _MemoryTracker(self.network)
        with _imitate_gpu(self.network, self.precision), torch.no_grad(), live:
            out = self._forward(_BATCH, self._conditions)
            live.mark()
            del out
        return live.timeline()

    def _forward(self, batch: int, conditions: Sequence[str]) -> Tensor:
        """Call the network on the meta device, with some of the usual conditions."""
        forms = {"y": ((batch,), torch.long), "low_res": ((batch, *self._low_res), torch.float32)}
        forms["context"] = (batch, _CONTEXT_LENGTH, self._context), torch.float32
        x, time = torch.empty(batch, *self.data_shape, device="meta"), torch.empty(batch, device="meta")
        given = {name: torch.zeros(forms[name][0], dtype=forms[name][1], device="meta") for name in conditions}
        out: Tensor = self.network(x, time, **given)
        return out

    def _find_conditions(self) -> Sequence[str]:
        """Find which of the usual conditions the network takes."""
        failures = []
        for conditions in ((), ("y",), ("low_res",), ("y", "low_res")):
            if self._context:
                conditions = (*conditions, "context")
            try:
                with torch.no_grad():
                    self._forward(2, conditions)
            except Exception as error:  # any error means that it cannot be called this way
                failures.append(error)
            else:
                return conditions
        raise OptionError(f"the network cannot be run on the meta device: {failures[0]}") from failures[0]


class _MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks every block of memory from the operation that allocates it until nothing refers to it."""

    def __init__(self, network: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[tuple[int, int]] = [(0, 0)]
        self.at_end_of_forward = 0
        self._fixed, self._slope = 0, 0
        self._known = {value.untyped_storage()._cdata for value in network.state_dict().values()}

    def timeline(self) -> MemoryTimeline:
        """Return what was followed."""
        fixed, slope = np.array(self.events, dtype=np.float64).T
        return MemoryTimeline(fixed, slope, self.at_end_of_forward)

    def mark(self) -> None:
        """Mark the end of the forward pass."""
        self.events.append((self._fixed, self._slope))
        self.at_end_of_forward = len(self.events) - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        fixed, slope = (0, size // _BATCH) if size % _BATCH == 0 else (size, 0)
        self._add(fixed, slope)
        self.events.append((self._fixed, self._slope))
        weakref.finalize(storage, self._forget, key, fixed, slope).atexit = False

    def _forget(self, key: int, fixed: int, slope: int) -> None:
        self._known.discard(key)
        self._add(-fixed, -slope)

    def _add(self, fixed: int, slope: int) -> None:
        self._fixed += fixed
        self._slope += slope


@contextmanager
def _imitate_gpu(network: nn.Module, precision: str) -> Iterator[_GpuKernels]:
    """Run a network's modules under `_GpuKernels`, also when the backward pass, which ends such modes, recomputes."""
    mode, depth = _GpuKernels(precision), 0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth
        if not depth:
            mode.__enter__()  # type: ignore[no-untyped-call]
        depth += 1

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal depth
        depth -= 1
        if not depth:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    handles = [module.register_forward_pre_hook(enter) for module in network.modules()]
    # Recomputation ends in the middle of a block, by an exception, once it has all it needs.
    handles += [module.register_forward_hook(leave, always_call=True) for module in network.modules()]
    try:
        yield mode
    finally:
        for handle in handles:
            handle.remove()


class _GpuKernels(TorchFunctionMode):
    """Imitates a GPU on the meta device: attention is one kernel, and bf16 is cast as torch.autocast would.

    Attributes:
        flops: Operations of attention in forward passes.
    """

    def __init__(self, precision: str):
        super().__init__()
        self.flops = 0
        self._casts = precision == "bf16"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = str(getattr(func, "__name__", "")), dict(kwargs or {})
        if self._casts and name in _LOWERED | _RAISED:
            dtype = torch.bfloat16 if name in _LOWERED else torch.float32
            args = tuple(_cast(arg, dtype) for arg in args)
            kwargs = {key: _cast(value, dtype) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            self.flops += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (key.shape[-1] + value.shape[-1])
            return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what a fused kernel saves: queries, keys, values, result, and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return a tensor of attention's shape, laid out token by token, so that joining heads needs no copy."""
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Return tensors of the gradients' shapes."""
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])
