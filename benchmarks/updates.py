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
from diffkit.training.engines import SingleProcess
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
    trainer = Trainer(system, system.backbone, config, SingleProcess(system.device), None)

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
    classes = getattr(system.recipe, "num_classes", None)
    conditions = {"y": torch.randint(0, classes, (batch,), generator=generator)} if classes else {}
    if DEVICE.type == "cuda":
        images, conditions = images.pin_memory(), {name: value.pin_memory() for name, value in conditions.items()}
    return Batch(torch.arange(batch), images, conditions)


def plain_update(
    system: diffkit.System, network: torch.nn.Module, batch: int, *, published: bool = False
) -> Callable[[], None]:
    """Return the published scripts' update of a network, in float32.

    Args:
        system: Says the betas and the shape of the data.
        network: Called as ``network(x, time)``.
        batch: Examples per update.
        published: Take the loss of a checkout of improved-diffusion, which has to be there.
    """
    data = a_batch(system, batch).images
    x = data / 127.5 - 1 if data.dtype == torch.uint8 else data
    diffusion = (PublishedLoss if published else PlainDiffusion)(system.table.beta[1:])
    training = PlainTraining(diffusion, network.train())
    return lambda: training.update(x.to(DEVICE))
