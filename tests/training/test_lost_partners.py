"""A process of a job whose partner is gone, hangs or never came ends in time, with one line."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forks import Job, forking
from lanes import in_lanes

from diffkit.__main__ import main

TIMEOUT, SLACK = 4.0, 6.0
"""Seconds: that processes wait for each other, and that a busy machine needs to save and end."""
WORDS = ("train", "--data", "points", "--data.examples", "50", "--batch-size", "4", "--out")
TINY = ("--schedule", "cosine", "--backbone", "mlp", "--backbone.hidden", "4", "--backbone.depth", "1")
OPTIONS = (*TINY, "--num-steps", "20", "--save-every", "5", "--timeout", str(TIMEOUT))


def command(out: Path, *more: str, steps: int = 100_000) -> tuple[int, str]:
    """Return how the command ends, and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([*WORDS, str(out), *OPTIONS, "--steps", str(steps), *more])
    return code, said.getvalue()


def outcome_of(process: Any) -> tuple[int, str, float]:
    """Return what a process of a job returned, and the seconds that it took."""
    begun = time.monotonic()
    while process.runs():
        assert time.monotonic() - begun < 60, "it does not end"
        time.sleep(0.02)
    text, value = process.outcome()
    assert not text, text
    return *value, time.monotonic() - begun


def assert_one_line(said: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said


@forking
@in_lanes(slow=3)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_partner_that_is_gone(tmp_path, chosen, number, strategy):
    command(tmp_path / "warm", steps=1)
    for trial in chosen(range(20)):
        run = tmp_path / str(trial)
        job = Job(2, lambda rank, run=run: command(run, "--strategy", strategy))
        end = time.monotonic() + 60
        while not list((run / "checkpoints").glob("step_*")):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(random.Random(trial).uniform(0, 0.3))
        os.kill(job.processes[1].id, number)
        try:
            code, said, seconds = outcome_of(job.processes[0])
        finally:
            os.kill(job.processes[1].id, signal.SIGKILL)
            job.processes[1].end()
        assert code == 2 and seconds < TIMEOUT + SLACK, (trial, seconds, said)
        assert_one_line(said)
        assert "another process of this job ended" in said


@forking
@in_lanes(slow=3)
def test_a_rendezvous_that_is_missing(tmp_path, chosen):
    command(tmp_path / "warm", steps=1)
    for trial in chosen(range(20)):
        run = tmp_path / str(trial)

        def second(rank, run=run):
            if rank == 0:
                return 0, ""  # never opens the store
            return command(run)

        job = Job(2, second)
        code, said, seconds = outcome_of(job.processes[1])
        job.processes[0].end()
        assert code == 2 and seconds < 2 * TIMEOUT + SLACK, (trial, seconds, said)
        assert_one_line(said)
