"""Size of a network without allocating it: parameters, operations, memory, and the batch that fits.

    recipe = diffkit.preset("iddpm/cifar10-uncond").compose(device="meta").parts.backbone
    print(size_report(recipe, (3, 32, 32), 6, batch_size=128, memory_gb=24, precision="bf16"))

The network is run on torch's meta device, where tensors have shapes and no values; see `_size_trace.py`. A reserve
covers the memory that a trace does not show: workspace and code of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import attrs
from torch import nn

from diffkit.errors import OptionError
from diffkit.explain._size_trace import Trace
from diffkit.options import check_integer, check_number
from diffkit.protocols import Backbone
from diffkit.system.learned import Trained
from diffkit.training.config import TrainConfig
from diffkit.training.optimizer_building import optimizer_state_bytes

RESERVE = 0.1
"""Share of the memory that is left free: for workspace, fragmentation and the device's own code."""
_STATE_BYTES = 4  # weights, gradients, the optimizer's state and EMA are float32 at either precision


@attrs.frozen(kw_only=True)
class SizeReport:
    """Size of a network; ``print`` shows it. Memory is in bytes, a GB is 10^9 bytes.

    Attributes:
        num_parameters: Trained values.
        forward_flops: Floating-point operations of one forward pass, per example; a product and its sum are two.
        training_flops: Of a forward and backward pass without recomputation, per example.
        batch_size: Examples that the memory below is for.
        precision: "fp32", "bf16" or "fp16".
        optimizer: Name of the optimizer.
        weight_bytes, gradient_bytes, optimizer_bytes, ema_bytes: Memory of training that does not depend on the batch.
        activation_bytes: Tensors saved in the forward pass for the backward pass.
        training_bytes: Peak of a training step, with all of the above.
        recomputed_bytes: The same with checkpoint=True; None if the recipe has no such option.
        sampling_bytes: Peak of a forward pass without gradients, with the weights.
        memory_gb: Memory of the device; None if it was not given.
        training_batch: Largest batch that trains in that memory; 0 if none does, None without memory_gb.
        recomputed_batch: The same with checkpoint=True.
        sampling_batch: Largest batch that can be sampled at a time.
    """

    num_parameters: int
    forward_flops: float
    training_flops: float
    batch_size: int
    precision: str
    optimizer: str
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    training_bytes: int
    recomputed_bytes: int | None
    sampling_bytes: int
    memory_gb: float | None = None
    training_batch: int | None = None
    recomputed_batch: int | None = None
    sampling_batch: int | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"parameters  {self.num_parameters:,}"
        yield (
            f"per example {_giga(self.forward_flops)} GFLOP forward, {_giga(self.training_flops)} GFLOP forward and "
            "backward"
        )
        yield (
            f"state       weights {_memory(self.weight_bytes)}, gradients {_memory(self.gradient_bytes)}, "
            f"{self.optimizer} {_memory(self.optimizer_bytes)}, EMA {_memory(self.ema_bytes)}"
        )
        recomputed = "" if self.recomputed_bytes is None else f"; with checkpoint {_memory(self.recomputed_bytes)}"
        yield (
            f"training    batch {self.batch_size} in {self.precision}: activations {_memory(self.activation_bytes)}, "
            f"peak {_memory(self.training_bytes)} with the state{recomputed}"
        )
        yield f"sampling    batch {self.batch_size} in {self.precision}: peak {_memory(self.sampling_bytes)}"
        if self.memory_gb is not None:
            also = "" if self.recomputed_batch is None else f", with checkpoint {_fit(self.recomputed_batch)}"
            yield (
                f"in {self.memory_gb:g} GB  training batch {_fit(self.training_batch)}{also}; sampling batch "
                f"{_fit(self.sampling_batch)} ({RESERVE:.0%} left free)"
            )


def size_report(
    recipe: Backbone,
    data_shape: tuple[int, ...],
    out_channels: int,
    *,
    batch_size: int = 1,
    memory_gb: float | None = None,
    precision: str = "fp32",
    ema: int = 1,
    optimizer: Any = "adamw",
    learned: Mapping[str, nn.Module] | None = None,
    frozen: Mapping[str, nn.Module] | None = None,
) -> SizeReport:
    """Return the size of the network of a recipe, without allocating it.

    Args:
        recipe: A backbone part.
        data_shape: Shape of one example, (C, *S).
        out_channels: Channels the network returns; twice C with a learned variance.
        batch_size: Examples per step and device, >= 1.
        memory_gb: Memory of the device in units of 10^9 bytes, > 0.
        precision: "fp32", or "bf16" or "fp16" for `torch.autocast` on a GPU, which take the same memory.
        ema: Number of running means of the weights, >= 0.
        optimizer: As ``optimizer`` of `diffkit.train`.
        learned: Modules of parts that are trained with the network, such as ``system.learned``; their operations and
            activations are not counted.
        frozen: Modules of parts that are not trained, such as ``system.frozen``: weights in memory, nothing else.
    Raises:
        OptionError: An argument is wrong, or the network or the optimizer cannot be run on the meta device.
    """
    check_integer("batch_size", batch_size, ge=1)
    check_integer("ema", ema, ge=0)
    if memory_gb is not None:
        check_number("memory_gb", memory_gb, gt=0)
    if precision not in ("fp32", "bf16", "fp16"):
        raise OptionError("must be 'fp32', 'bf16' or 'fp16'", option="precision", value=precision)
    traced = "fp32" if precision == "fp32" else "bf16"
    config = TrainConfig(steps=1, optimizer=optimizer)
    plain, recomputing = _checkpoint_variants(recipe)
    trace = Trace(plain, tuple(data_shape), out_channels, traced)
    training, sampling, flops = trace.training(count=True), trace.sampling(), trace.flops
    again = Trace(recomputing, tuple(data_shape), out_channels, traced).training() if recomputing else None
    trained = Trained(trace.network, {kind: deepcopy(module).to("meta") for kind, module in (learned or {}).items()})
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    gradients_of_parts = _STATE_BYTES * sum(parameter.numel() for parameter in trained.learned.parameters())
    optimizer_bytes = optimizer_state_bytes(trained, config)
    weight_bytes = sum(map(_weight_bytes, (trained, *(frozen or {}).values())))
    state_bytes = weight_bytes + optimizer_bytes + _STATE_BYTES * parameters * ema + gradients_of_parts
    report = SizeReport(
        num_parameters=parameters,
        forward_flops=flops[0],
        training_flops=flops[1],
        batch_size=batch_size,
        precision=precision,
        optimizer=config.optimizer_name,
        weight_bytes=weight_bytes,
        gradient_bytes=_STATE_BYTES * parameters,
        optimizer_bytes=optimizer_bytes,
        ema_bytes=_STATE_BYTES * parameters * ema,
        activation_bytes=training.at_end_of_forward(batch_size),
        training_bytes=state_bytes + training.peak(batch_size),
        recomputed_bytes=None if again is None else state_bytes + again.peak(batch_size),
        sampling_bytes=weight_bytes + sampling.peak(batch_size),
    )
    if memory_gb is None:
        return report
    budget = memory_gb * 1e9 * (1 - RESERVE)
    return attrs.evolve(
        report,
        memory_gb=memory_gb,
        training_batch=training.largest_batch(budget - state_bytes),
        recomputed_batch=None if again is None else again.largest_batch(budget - state_bytes),
        sampling_batch=sampling.largest_batch(budget - weight_bytes),
    )


def _weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(value.untyped_storage().nbytes() for value in module.state_dict().values())


def _checkpoint_variants(recipe: Any) -> tuple[Any, Any]:
    """Return the recipe without recomputation (checkpoint), and with it if it has that option."""
    options = {field.name for field in attrs.fields(type(recipe))} if attrs.has(type(recipe)) else set()
    if "checkpoint" not in options:
        return recipe, None
    return attrs.evolve(recipe, checkpoint=False), attrs.evolve(recipe, checkpoint=True)


def _giga(value: float) -> str:
    return f"{value / 1e9:,.{_decimals(value / 1e9)}f}"


def _decimals(value: float) -> int:
    """Enough for three digits."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


def _memory(value: float) -> str:
    unit, name = (1e9, "GB") if value >= 1e9 else (1e6, "MB")
    return f"{value / unit:,.{_decimals(value / unit)}f} {name}"


def _fit(batch: int | None) -> str:
    return f"up to {batch:,}" if batch else "of any size does not fit"
