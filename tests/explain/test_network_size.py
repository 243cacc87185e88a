"""Sizes against independent counts, against real tensors, and against themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs
import pytest
import torch
from attrs import frozen
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import diffkit
from diffkit.errors import OptionError
from diffkit.explain._size_trace import Trace
from diffkit.explain.network_size import RESERVE, size_report
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.mlp import MLP
from diffkit.parts.backbones.unet import UNet
from diffkit.protocols import Backbone
from diffkit.registry import registry
from diffkit.training.config import TrainConfig
from diffkit.training.optimizer_building import build_optimizer

SHAPE = (3, 16, 16)
SMALL: dict[str, Any] = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
RECIPES = {
    "unet": UNet(**SMALL, low_res_channels=2, num_classes=4),
    "adm": UNet(**SMALL, resblock_updown=True, num_head_channels=8, attention_order="new"),
    "dit": DiT(depth=2, hidden=64, heads=4, num_classes=4, null_class=True),
}

# Counted with torch's FLOP counter on the reference implementations' networks (improved-diffusion 1bc7bbb,
# guided-diffusion 22e0df8, DiT ed81ce2) on meta tensors, 2 FLOP to a multiply-add; GFLOP per image. Millions of
# parameters come first, without DiT's fixed positions.
COUNTED = {
    "dit/s2-256": (32.9, 12.1, 36.3),
}
COUNTED_SLOW = {
    "iddpm/cifar10-uncond": (52.5, 16.77, 50.3),
    "iddpm/imagenet64-uncond": (121.1, 79.5, 238.4),
    "adm/imagenet64": (295.9, 219.4, 658.0),
    "dit/xl2-256": (674.8, 237.2, 711.7),
    "iddpm/imagenet64-cond": (273.1, 178.2, 534.5),
    "iddpm/lsun-bedroom256": (113.7, 497.5, 1492),
    "adm/imagenet256": (553.8, 2240, 6718),
    "dit/b2-256": (130.3, 46.0, 138.0),
}


QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "adm" else name for name in RECIPES]
"""The largest takes seconds to trace, and differs from "unet" by resampling blocks and conditions."""


@cache
def report_of(name):
    system = diffkit.preset(name).compose(device="meta")
    return size_report(system.parts.backbone, system.data_shape, 2 * system.data_shape[0], batch_size=128, memory_gb=24)


@cache
def small_report(name, precision="fp32"):
    return size_report(RECIPES[name], SHAPE, 6, batch_size=64, precision=precision)


@cache
def timeline(name):
    return Trace(RECIPES[name], SHAPE, 6, "fp32").training()


def check_counts(name, counted):
    report = report_of(name)
    millions, forward, training = counted
    assert report.num_parameters / 1e6 == pytest.approx(millions, rel=3e-3)
    assert report.forward_flops / 1e9 == pytest.approx(forward, rel=3e-3)  # as many digits as are stored
    assert report.training_flops / 1e9 == pytest.approx(training, rel=3e-3)


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_the_references(name):
    check_counts(name, COUNTED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED_SLOW)
def test_counts_of_more_networks_are_those_of_the_references(name):
    check_counts(name, COUNTED_SLOW[name])


def real(recipe, batch):
    """A network with memory, and inputs."""
    network = recipe.build(SHAPE, 6)
    inputs: dict[str, Any] = {"x": torch.randn(batch, *SHAPE), "time": torch.rand(batch)}
    options = attrs.asdict(recipe)
    if options.get("num_classes"):
        inputs["y"] = torch.zeros(batch, dtype=torch.long)
    if options.get("low_res_channels"):
        inputs["low_res"] = torch.randn(batch, options["low_res_channels"], *SHAPE[1:])
    return network, inputs


@pytest.mark.parametrize("name", QUICK)
def test_operations_are_those_that_real_tensors_take(name):
    network, inputs = real(RECIPES[name], 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = network(**inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    report = small_report(name)
    assert report.forward_flops * 3 == forward
    assert report.training_flops * 3 == counter.get_total_flops()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", RECIPES)
def test_activations_are_those_that_real_tensors_keep(name, batch):
    network, inputs = real(RECIPES[name], batch)
    weights = {value.untyped_storage()._cdata for value in network.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = network(**inputs)
    real_bytes = sum(storage.nbytes() for storage in kept.values()) + out.nbytes
    # The trace counts the random state of attention's kernel and its scratch, a few bytes, as none.
    assert timeline(name).at_end_of_forward(batch) == pytest.approx(real_bytes, rel=2e-3)


@pytest.mark.parametrize("name", QUICK)
def test_any_batch_is_exact_from_one_run(name, monkeypatch):
    """A run with another prime gives the same lines."""
    monkeypatch.setattr("diffkit.explain._size_trace._BATCH", 101)
    second = Trace(RECIPES[name], SHAPE, 6, "fp32").training()
    assert timeline(name).peak(64) == second.peak(64)
    assert timeline(name).at_end_of_forward(64) == second.at_end_of_forward(64)


def test_state_is_counted_in_float32():
    report = size_report(RECIPES["dit"], SHAPE, 6, ema=2, precision="bf16")
    assert report.gradient_bytes == 4 * report.num_parameters
    assert report.weight_bytes == report.gradient_bytes + 4 * 64 * 64  # and the fixed positions
    assert report.optimizer_bytes == report.ema_bytes == 8 * report.num_parameters
    state = report.weight_bytes + report.optimizer_bytes + report.ema_bytes
    assert report.training_bytes > state + report.gradient_bytes
    assert size_report(RECIPES["dit"], SHAPE, 6, ema=0).ema_bytes == 0


def test_modules_of_parts_are_state_too():
    plain, part = small_report("dit"), nn.Linear(3, 1)
    both = size_report(
        RECIPES["dit"], SHAPE, 6, batch_size=64, learned={"loss": part}, frozen={"codec": nn.Linear(4, 1)}
    )
    assert both.num_parameters == plain.num_parameters + 4
    assert both.weight_bytes == plain.weight_bytes + 4 * (4 + 5)
    assert both.optimizer_bytes == plain.optimizer_bytes + 8 * 4
    assert both.sampling_bytes == plain.sampling_bytes + 4 * (4 + 5)
    assert both.training_bytes == plain.training_bytes + 4 * (4 + 5) + (4 + 4 + 8) * 4  # gradients, EMA, moments
    assert part.weight.device.type == "cpu" and part.weight.grad is None


@pytest.mark.parametrize("optimizer", registry("optimizer").built_in_names())
def test_the_state_is_that_of_the_chosen_optimizer(optimizer):
    """As large as after an update of a network with values, but for counts of updates."""
    recipe = MLP(hidden=32, depth=2)
    network, config = recipe.build((4,), 4), TrainConfig(steps=1, optimizer=optimizer)
    made = build_optimizer(network, config)
    network(torch.ones(2, 4), torch.ones(2)).sum().backward()
    made.step()
    values = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    report = size_report(recipe, (4,), 4, optimizer=optimizer)
    assert report.optimizer_bytes == sum(value.nbytes for value in values if value.dim())
    assert report.optimizer == optimizer
    assert size_report(recipe, (4,), 4, optimizer=("sgd", {"momentum": 0.0})).optimizer_bytes == 0


@pytest.mark.parametrize("name", QUICK)
def test_what_saves_memory_saves_memory(name):
    plain, half = small_report(name), small_report(name, "bf16")
    assert plain.recomputed_bytes < 0.7 * plain.training_bytes
    assert plain.sampling_bytes < plain.recomputed_bytes
    assert 0.5 * plain.activation_bytes < half.activation_bytes < 0.95 * plain.activation_bytes


def test_recomputation_is_reported_for_any_recipe():
    recomputing = attrs.evolve(RECIPES["dit"], checkpoint=True)
    assert size_report(recomputing, SHAPE, 6, batch_size=64) == small_report("dit")


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("budget", [3e7, 1e9])
def test_the_batch_that_fits_fits_and_the_next_does_not(name, budget):
    batch = timeline(name).largest_batch(budget)
    assert batch > 0
    assert timeline(name).peak(batch) <= budget < timeline(name).peak(batch + 1)
    assert timeline(name).largest_batch(timeline(name).peak(0) - 1) == 0


def test_memory_is_shared_by_state_and_batch():
    report = size_report(RECIPES["dit"], SHAPE, 6, memory_gb=0.2)
    state = report.weight_bytes + report.optimizer_bytes + report.ema_bytes
    assert report.training_batch == timeline("dit").largest_batch(0.2e9 * (1 - RESERVE) - state)
    assert report.training_batch < report.recomputed_batch < report.sampling_batch


def test_what_cannot_fit_is_reported():
    report = size_report(RECIPES["dit"], SHAPE, 6, memory_gb=1e-4)
    assert (report.training_batch, report.sampling_batch) == (0, 0)
    assert "training batch of any size does not fit" in str(report)


def test_reads_well():
    text = str(report_of("iddpm/cifar10-uncond"))
    for part in (
        "parameters  52,546,438",
        "16.8 GFLOP forward, 50.3 GFLOP forward and backward",
        "weights 210 MB, gradients 210 MB, adamw 420 MB, EMA 210 MB",
        "batch 128 in fp32: activations ",
        "in 24 GB  training batch up to ",
        "(10% left free)",
    ):
        assert part in text
    assert len(text.splitlines()) == 6
    assert len(str(small_report("dit")).splitlines()) == 5


def test_recipes_without_recomputation():
    report = size_report(MLP(hidden=16, depth=1), (2,), 4, memory_gb=1)
    assert report.recomputed_bytes is None
    assert report.recomputed_batch is None
    assert "checkpoint" not in str(report)
    assert report.training_batch > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"ema": -1}, "ema must be >= 0, got -1"),
        ({"memory_gb": 0}, "memory_gb must be > 0, got 0"),
        ({"precision": "fp64"}, "precision must be 'fp32', 'bf16' or 'fp16', got 'fp64'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(OptionError, match=message):
        size_report(RECIPES["dit"], SHAPE, 6, **options)


class Reading(nn.Module):
    """Looks at values, which meta tensors do not have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, time):
        return x * self.weight if x.sum().item() > 0 else x


@frozen
class Reader(Backbone):
    """Recipe of the above."""

    def build(self, data_shape, out_channels):
        return Reading()


def test_networks_that_read_values_are_named():
    with pytest.raises(OptionError, match=r"the network cannot be run on the meta device: .*item"):
        size_report(Reader(), SHAPE, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peak_is_that_of_a_gpu(precision):
    """Within the reserve: kernels take workspace that no trace sees."""
    recipe, shape, batch = UNet(channels=64, num_res_blocks=2), (3, 64, 64), 32
    network = recipe.build(shape, 6).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x, time = torch.randn(batch, *shape, device="cuda"), torch.rand(batch, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            network(x, time).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    report = size_report(recipe, shape, 6, batch_size=batch, precision=precision, ema=0)
    assert report.training_bytes == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
