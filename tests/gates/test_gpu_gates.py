"""The same under torch's own watch for host reads, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import diffkit
from diffkit.data.base import Batch
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import sampling_program
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer

pytestmark = pytest.mark.gpu
SHAPE = (3, 16, 16)


def system_of() -> diffkit.System:
    network = ("unet", {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1})
    parts = dict(schedule="cosine", var="learned_range", loss="hybrid")
    return diffkit.compose(backbone=network, data_shape=SHAPE, device="cuda", **parts)


@contextmanager
def no_host_reads() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m"])
def test_a_walk_reads_nothing(sampler):
    system = system_of().eval()
    parts = parts_for(system.parts, sampler)
    program, x = sampling_program(parts, parts.sampler, system.table_for(4)), torch.randn(2, *SHAPE, device="cuda")
    denoiser = system.denoiser()
    program.finish(denoiser, x, lambda: torch.randn_like(x))  # uploads its table
    with no_host_reads():
        program.finish(denoiser, x, lambda: torch.randn_like(x))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_reads_nothing(precision):
    system = system_of().train()
    config = TrainConfig(steps=9, batch_size=4, precision=precision)
    trainer = Trainer(system, system.network, config, Engine(system.device))
    images = torch.zeros(4, *SHAPE, dtype=torch.uint8).pin_memory()
    batch = Batch(torch.arange(4), images, {})
    trainer.update(batch)
    with no_host_reads():
        trainer.update(batch)


def test_a_read_is_caught():
    with no_host_reads(), pytest.raises(RuntimeError, match="synchroniz"):
        float(torch.zeros((), device="cuda"))
