"""Composing, making tables and respacing them, at the published 4,000 levels and at 100,000."""

from __future__ import annotations

import pytest
from measuring import interleaved, median, ratio
from plain import PlainDiffusion

import diffkit
from diffkit.system.sampling import sampling_program


@pytest.mark.parametrize("levels", [4000, 100_000])
def test_tables(levels, record):
    options = dict(schedule="cosine", var="learned_range", loss="hybrid", backbone=None)

    def make(num_steps=levels):
        return diffkit.compose(num_steps=num_steps, **options)

    system = make()
    table, betas = system.table_for(50), system.table.beta[1:].copy()
    cases = {
        "compose": make,
        "compose at 4 levels": lambda: make(4),
        "respace to 50": lambda: system.table_for(50),
        "respace to 1000": lambda: system.table_for(1000),
        "program of 50 steps": lambda: sampling_program(system.parts, system.parts.sampler, table),
        "plain tables": lambda: PlainDiffusion(betas),
    }
    seconds = interleaved(cases, rounds=15)
    rows = [{"case": name, "ms": median(taken, 1e-3)} for name, taken in seconds.items()]
    rows[0]["times_faster_than_plain tables"] = ratio(seconds["plain tables"], seconds["compose"])
    record(f"tables_{levels}", f"Tables of {levels:,} levels, no network", rows, dtype="float64", levels=levels)
