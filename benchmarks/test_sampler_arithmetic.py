"""What a sampling step costs beside the network: a network that returns a stored tensor, 3x64x64, 50 steps."""

from __future__ import annotations

import pytest
import torch
from conftest import interleaved, ratio
from counting import operations
from plain import PlainDiffusion

import diffkit

STEPS, SHAPE = 50, (3, 64, 64)


@pytest.mark.parametrize("batch", [1, 16])
def test_sampler_arithmetic(batch, record):
    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid", backbone=None, data_shape=SHAPE)
    plain = PlainDiffusion(system.table_for(STEPS).beta[1:])
    out = torch.randn(batch, 6, *SHAPE[1:])
    start = torch.randn(batch, *SHAPE)

    def model(x, time):
        return out

    def ours(sampler):
        return lambda: system.sample(batch, steps=STEPS, sampler=sampler, model=model, start=start, progress=False)

    def theirs(step):
        return lambda: plain.loop(step, model, start)

    rows = []
    for name, plain_step in (("ancestral", plain.ancestral), ("ddim", plain.ddim)):
        cases = {"diffkit": ours(name), "plain": theirs(plain_step)}
        seconds = interleaved(cases)
        rows.append(
            {
                "sampler": name,
                "batch": batch,
                "us_per_step": round(sorted(seconds["diffkit"])[len(seconds["diffkit"]) // 2] / STEPS * 1e6),
                "plain_us_per_step": round(sorted(seconds["plain"])[len(seconds["plain"]) // 2] / STEPS * 1e6),
                "times_faster": ratio(seconds["plain"], seconds["diffkit"]),
                "ops_per_step": round(operations(cases["diffkit"]) / STEPS, 1),
                "plain_ops_per_step": round(operations(cases["plain"]) / STEPS, 1),
            }
        )
    record(f"sampler_arithmetic_b{batch}", rows)
