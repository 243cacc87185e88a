"""Systems whose networks compute a row alike in any batch, and random schedules of requests for a loop."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

import diffkit
from diffkit.registry import registry
from diffkit.serving import Loop, Request

SAMPLERS = registry("sampler").built_in_names()


class RowWise(nn.Module):
    """A network of elementwise operations: the same for a row, to the bit, in any batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.calls: list[int] = []

    def forward(self, x, time, y=None):
        self.calls.append(len(x))
        time = time.view(-1, *(1,) * (x.ndim - 1)) / 1000
        shift = 0 if y is None else 0.1 * y.view_as(time).to(x)
        out = (self.scale * x * (1 + time) + shift).clamp(-1, 1)
        return torch.cat([out, out * 0.5], 1)


def row_wise_system(**options: Any) -> diffkit.System:
    return diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        mean="x_start",
        backbone=RowWise(),
        data_shape=(1, 2, 3),
        num_steps=60,
        null_conditions={"y": 0},
        **options,
    ).eval()


def random_request(draw: random.Random, rows: int) -> dict[str, Any]:
    """Arguments of a request: any sampler, steps, labels, guidance, clipping and seed."""
    given: dict[str, Any] = {
        "n": draw.randint(1, rows),
        "sampler": draw.choice(SAMPLERS),
        "steps": draw.randint(1, 5),
        "seed": draw.randrange(5),
        "y": draw.randrange(4),
        "clip": draw.random() < 0.5,
    }
    kind = draw.choice(["none", "none", "joint", "in turn", "interval", "several"])
    scale = draw.uniform(0.5, 4)
    if kind == "joint":
        given["guidance"] = ("cfg", {"scale": scale})
    elif kind == "in turn":
        given["guidance"] = ("cfg", {"scale": scale, "joint": False})
    elif kind == "interval":
        given["guidance"] = ("cfg", {"scale": scale, "interval": (0.2, 2.0)})
    elif kind == "several":
        given["guidance"] = [("cfg", {"scale": scale}), "dynamic_threshold"]
    return given


def run_schedule(system: diffkit.System, seed: int, requests: int = 4) -> tuple[Loop, int]:
    """Serve requests that arrive and are cancelled at random ticks; return the loop and the number of wrong samples."""
    draw = random.Random(seed)
    rows = draw.randint(1, 6)
    loop = Loop(system, rows_per_call=rows, patience=draw.randint(1, 8), batch_invariant=draw.random() < 0.2)
    todo = [(draw.randrange(12), random_request(draw, rows), draw.randrange(3)) for _ in range(requests)]
    cancelled = {i: draw.randrange(12) for i in range(requests) if draw.random() < 0.2}
    served: dict[int, Request] = {}
    tick = 0
    while tick < 12 or loop.waiting:
        for i, (arrival, given, priority) in enumerate(todo):
            if arrival == tick:
                served[i] = loop.submit(**given, priority=priority)
            if cancelled.get(i) == tick and i in served:
                served[i].cancel()
        loop.tick()
        tick += 1
    wrong = 0
    for i, request in served.items():
        if not request.cancelled():
            given = dict(todo[i][1])
            expected = system.sample(given.pop("n"), progress=False, **given)
            wrong += not torch.equal(request.result(0), expected)
    assert loop.peak_rows <= rows
    return loop, wrong
