"""One training update as a function of nothing: diffkit's, and the published scripts' on the same network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import DEVICE
from plain import PlainDiffusion, PlainTraining
from published import PublishedLoss

import diffkit
from diffkit.data.base import Batch
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer


def our_update(system: diffkit.System, batch: int, precision: str, compile: bool = False) -> Callable[[], None]:
    """Return an update of a system with one batch of random 8-bit images.

    Args:
        system: What is trained.
        batch: Examples per update.
        precision: As in `TrainConfig`.
        compile: As in `TrainConfig`.
    """
    config = TrainConfig(steps=10**9, batch_size=batch, precision=precision, compile=compile)
    data, system = a_batch(system, batch), system.train()
    trainer = Trainer(system, system.network, config, Engine(system.device))

    def run() -> None:
        trainer.update(data)
        trainer.window.rows.clear()

    return run


def a_batch(system: diffkit.System, batch: int) -> Batch:
    """Random data of the system's shape, and random classes if its network has some."""
    generator = torch.Generator().manual_seed(0)
    if system.settings.bins is None:
        images = torch.randn(batch, *system.data_shape, generator=generator)
    else:
        images = torch.randint(0, 256, (batch, *system.data_shape), dtype=torch.uint8, generator=generator)
    classes = system.parts.classes
    conditions = {"y": torch.randint(0, classes, (batch,), generator=generator)} if classes else {}
    if DEVICE.type == "cuda":
        images, conditions = images.pin_memory(), {name: value.pin_memory() for name, value in conditions.items()}
    return Batch(torch.arange(batch), images, conditions)


def plain_update(
    system: diffkit.System, network: torch.nn.Module, batch: int, *, published: bool = False, half: bool = False
) -> Callable[[], None]:
    """Return the published scripts' update of a network.

    Args:
        system: Says the betas and the shape of the data.
        network: Called as ``network(x, time)``.
        batch: Examples per update.
        published: Take the loss of a checkout of improved-diffusion, which has to be there.
        half: In float16 with a loss scale, else in float32.
    """
    x = as_data(a_batch(system, batch))
    diffusion = (PublishedLoss if published else PlainDiffusion)(system.table.beta[1:])
    training = PlainTraining(diffusion, network.train(), half=half)
    return lambda: training.update(x.to(DEVICE))


def as_data(batch: Batch) -> torch.Tensor:
    """Its images in [-1, 1], on the host."""
    return batch.images / 127.5 - 1 if batch.images.dtype == torch.uint8 else batch.images


def diffusers_update(network: torch.nn.Module, x: torch.Tensor, *, compiled: bool) -> Callable[[], None]:
    """Return an update as diffusers' guides write it: noise by its scheduler, a clipped norm, its running mean.

    With what its pages on speed ask for: bfloat16 by autocast, channels-last, fused AdamW, running means at once.

    Args:
        network: One of diffusers.
        x: Data in [-1, 1], (B, C, *S), on the host.
        compiled: Compile the network.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = network.to(DEVICE, memory_format=torch.channels_last).train()
    model = torch.compile(network) if compiled else network
    scheduler, mean = DDPMScheduler(), EMAModel(network.parameters(), decay=0.9999, foreach=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        data = x.to(DEVICE, non_blocking=True)
        noise = torch.randn_like(data)
        time = torch.randint(0, 1000, (len(data),), device=DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = model(scheduler.add_noise(data, noise, time), time, return_dict=False)[0]
        torch.nn.functional.mse_loss(out.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean.step(network.parameters())

    return run
