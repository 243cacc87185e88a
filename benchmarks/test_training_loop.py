"""CPU time of an update of `diffkit.train` for a tiny perceptron, against a loop written by hand.

The hand-written loop has the same loss (``system(x)``), AdamW with the same flags and one running mean. Blocks of
updates of both take turns in one process, from update 250 on, so that start, saves and other load do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import field, frozen
from measuring import median, ratio

import diffkit
from diffkit.training import Hook, HookFacts, HookState

BATCH, BLOCK = 16, 250


def perceptron() -> diffkit.System:
    torch.manual_seed(0)
    net = ("mlp", {"hidden": 16, "depth": 1})
    return diffkit.compose(schedule="cosine", backbone=net, num_steps=100, data_shape=(2,), bins=None)


def by_hand(data: torch.Tensor) -> Callable[[], None]:
    """An update as one writes it."""
    system = perceptron()
    weights = list(system.parameters())
    mean, optimizer = [weight.detach().clone() for weight in weights], torch.optim.AdamW(weights, fused=True)

    def update() -> None:
        optimizer.zero_grad()
        system(data[torch.randint(len(data), (BATCH,))])["loss"].mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(mean, weights, 0.01)

    return update


@frozen(eq=False)
class TakingTurns(Hook):
    """After each block of updates, times it and a block of the other loop."""

    update: Callable[[], None]
    ours: list[float] = field(factory=list)
    theirs: list[float] = field(factory=list)
    begun: list[float] = field(factory=list)

    def after_line(self, facts: HookFacts, state: HookState) -> None:
        """Called every `BLOCK` updates."""
        now = time.process_time()
        if self.begun:
            self.ours.append((now - self.begun[-1]) / BLOCK)
        for _ in range(BLOCK):
            self.update()
        end = time.process_time()
        self.theirs.append((end - now) / BLOCK)
        self.begun.append(time.process_time())


def test_training_loop(full, record, tmp_path: Path):
    data = torch.randn(512, 2)
    turns = TakingTurns(by_hand(data))
    steps = BLOCK * (24 if full else 12)
    often = dict(batch_size=BATCH, ema=0.99, log_every=BLOCK, progress=False)
    diffkit.train(perceptron(), data, out=tmp_path / "run", steps=steps, hooks=turns, **often)
    theirs = turns.theirs[1:]
    rows = [
        {"loop": "by hand", "us": median(theirs, 1e-6)},
        {"loop": "diffkit.train", "us": median(turns.ours, 1e-6), "times_by_hand": ratio(turns.ours, theirs)},
    ]
    about = "CPU time of an update of a tiny perceptron, batch 16, one running mean, no saves"
    record("training_loop", about, rows, dtype="float32", shape=[BATCH, 2])
