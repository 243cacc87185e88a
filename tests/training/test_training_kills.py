"""Runs that are killed again and again end as the same run that nobody disturbed, whatever trains them.

The runs are rows of a covering array: every two values of (optimizer, groups of parameters, frozen parameters, hook,
save behind training, microbatch, processes) occur together in one of them. Each is killed at writes, of its saves for
the most part, and at moments that have nothing to do with them.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from attrs import frozen
from forks import Job, forked, forking
from lanes import in_lanes
from training_support import checkpoints, content, images, lines, train
from write_watch import Fault, Watch

import diffkit
from diffkit.training import Hook, HookFacts, HookResult, HookState

STEPS = 14
KILLS = 4


@frozen
class Count(Hook):
    """A hook with state and a metric."""

    def init(self) -> HookState:
        return {"updates": 0}

    def after_update(self, facts: HookFacts, state: HookState) -> HookResult:
        count = state["updates"] + 1
        return HookResult({"updates": count}, metrics={"updates": count} if facts.logs else {})


FACTORS: Mapping[str, tuple[Any, ...]] = {
    "optimizer": ("adamw", ("sgd", {"momentum": 0.9}), "muon", "adamax", ("rmsprop", {"momentum": 0.5})),
    "param_groups": ((), ({"pattern": "*.bias", "weight_decay": 0.0}, {"pattern": "out.*", "lr": 1e-3})),
    "freeze": ((), ("time_embed.*", "label_emb.*")),
    "hooks": ((), Count(), ("early_stopping", {"metric": "loss", "patience": 9}), "gradient_norms"),
    "async_save": (True, False),
    "microbatch": (None, 2),
    "strategy": ("one", "ddp", "fsdp"),
}


def covering(seed: int) -> list[dict[str, Any]]:
    """Rows of values such that every two values of two factors are in one of them; each row takes in the most new."""
    draw, names = random.Random(seed), list(FACTORS)
    sizes = {name: len(values) for name, values in FACTORS.items()}
    missing = {((a, i), (b, j)) for a, b in combinations(names, 2) for i in range(sizes[a]) for j in range(sizes[b])}
    rows = []
    while missing:
        tried = [{name: draw.randrange(size) for name, size in sizes.items()} for _ in range(500)]
        best = max(tried, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append({name: FACTORS[name][i] for name, i in best.items()})
    return rows


def pairs(row: Mapping[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return set(combinations(row.items(), 2))


ROWS = covering(0)


def run(out: Path, row: Mapping[str, Any], rank: int) -> None:
    options = dict(row) | {"strategy": "ddp" if row["strategy"] == "one" else row["strategy"]}
    train(out, seed=rank, data=images(24), batch_size=8, steps=STEPS, save_every=2, log_every=2, timeout=20, **options)


def size_of(row: Mapping[str, Any]) -> int:
    return 1 if row["strategy"] == "one" else 2


def kill(out: Path, row: Mapping[str, Any], draw: random.Random, at_write: bool) -> None:
    """Begin or continue a run, and kill all of its processes."""
    write, moment = draw.randint(1, 60), draw.uniform(0.05, 1.2)

    def job(rank: int) -> None:
        if at_write and rank == 0:
            sys.addaudithook(Watch(out, Fault("kill", write)))
        run(out, row, rank)

    killed, end = Job(size_of(row), job), time.monotonic() + (30 if at_write else moment)
    while time.monotonic() < end and all(process.runs() for process in killed.processes):
        time.sleep(0.005)
    killed.kill(signal.SIGKILL)


def test_every_two_values_occur_together():
    found = {(name, str(value)) for row in ROWS for name, value in row.items()}
    assert found == {(name, str(value)) for name, values in FACTORS.items() for value in values}
    for (a, first), (b, second) in combinations(FACTORS.items(), 2):
        together = {(str(row[a]), str(row[b])) for row in ROWS}
        assert together == {(str(x), str(y)) for x in first for y in second}, (a, b)
    assert len(ROWS) * KILLS >= 40


@forking
@in_lanes(slow=10, parts=3)
def test_a_run_that_is_killed_ends_as_if_it_was_not(chosen, tmp_path):
    for number in chosen(range(len(ROWS))):
        row, draw = ROWS[number], random.Random(number)
        whole, parts = tmp_path / f"whole-{number}", tmp_path / f"parts-{number}"
        forked(size_of(row), lambda rank, row=row, whole=whole: run(whole, row, rank))
        for i in range(KILLS):
            kill(parts, row, draw, at_write=i % 4 != 3)
            if (parts / "model.safetensors").exists():
                diffkit.load(parts)
        forked(size_of(row), lambda rank, row=row, parts=parts: run(parts, row, rank))
        assert checkpoints(parts) == checkpoints(whole), row
        assert lines(parts) == lines(whole), row
        assert content(parts) == content(whole), row
        assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes(), row
