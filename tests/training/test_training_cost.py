"""What an update costs beside network, loss and optimizer, in Python calls and torch operations, not in seconds."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_support import point_system

from diffkit.data.arrays import from_array
from diffkit.training.batches import batches
from diffkit.training.config import TrainConfig
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine
from diffkit.training.preflight import AcceptedLabels
from diffkit.training.trainer import Trainer

MOST_CALLS, MOST_OPERATIONS = 1.5, 1.5
"""Those of an update, its batch included, over those of a hand-written one with the same loss and optimizer."""


class Operations(TorchDispatchMode):
    """Counts torch operations."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **kwargs or {})


def counted(update: Any) -> tuple[int, int]:
    """Python calls and torch operations of an update."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    update()
    sys.setprofile(count)
    update()
    sys.setprofile(None)
    with Operations() as operations:
        update()
    return calls, operations.count


def test_an_update_is_about_as_cheap_as_a_hand_written_one():
    data = from_array(torch.randn(64, 2).numpy())
    system = point_system(backbone=("mlp", {"hidden": 16, "depth": 1}))
    trainer = Trainer(
        system, system.network, TrainConfig(steps=9, batch_size=16, ema=0.99), Engine(torch.device("cpu"))
    )
    order, classes = DataOrder(64, 16, 0), AcceptedLabels.of(system.parts)
    loader = batches(data, order, 0, 9, classes=classes, workers=0, locks=[], pin=False)

    other = point_system(backbone=("mlp", {"hidden": 16, "depth": 1}))
    weights = list(other.network.parameters())
    mean, optimizer = [w.detach().clone() for w in weights], torch.optim.AdamW(weights, fused=True)
    images = torch.from_numpy(data.images)

    def by_hand() -> None:
        optimizer.zero_grad()
        other(images[torch.randint(64, (16,))])["loss"].mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(mean, weights, 0.01)

    (calls, operations), (own_calls, own_operations) = counted(lambda: trainer.update(next(loader))), counted(by_hand)
    assert calls <= MOST_CALLS * own_calls, (calls, own_calls)
    assert operations <= MOST_OPERATIONS * own_operations, (operations, own_operations)
