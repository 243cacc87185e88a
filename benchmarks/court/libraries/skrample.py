"""skrample: its samplers on its Linear and Scaled schedules, in a Python of its own, as it needs 3.12.

`SKRAMPLE_PYTHON` names an interpreter that has skrample; it needs no torch. The worker below runs there, and asks back
for the model's estimates.
"""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.court.entry import Entry
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "skrample"
WORKER = """
import pickle, sys
from importlib import metadata
from skrample import scheduling
from skrample.sampling import functional, interface, models, structured

pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer

def send(value):
    pickle.dump(value, pipe_out); pipe_out.flush()

def model(x, timestep, sigma, alpha):
    send(("call", x, float(sigma), float(alpha)))
    return pickle.load(pipe_in)

while True:
    try:
        what, *given = pickle.load(pipe_in)
    except EOFError:
        break
    if what == "version":
        send(("end", metadata.version("skrample")))
    elif what == "points":
        schedule = getattr(scheduling, given[0])()
        send(("end", [(p.sigma, p.alpha) for p in schedule.ipoints(given[1])]))
    else:
        name, options, transform, schedule, steps, begin, end, x = given
        kind = getattr(functional, name, None) or getattr(structured, name)
        sampler = kind(**options)
        if isinstance(sampler, structured.StructuredSampler):
            sampler = interface.StructuredFunctionalAdapter(sampler)
        on = getattr(scheduling, schedule)()
        send(("end", sampler.sample_model(x, model, getattr(models, transform)(), on, steps, slice(begin, end))))
"""
STAGES = {1: 1, 2: 2, 3: 2, 4: 2, 5: 4, 7: 6}
"""Stages of a default tableau -> its order, which the name of its class in skrample says."""
SOLVERS: list[tuple[str, dict[str, Any], int]] = [
    ("Euler", {}, 1),
    *(("DPM", {"order": order}, order) for order in (1, 2)),
    ("Adams", {"order": 2}, 2),
    *(("UniP", {"order": order}, order) for order in (1, 2)),
    *(("UniPC", {"order": order}, order) for order in (1, 2)),
    *(("RKUltra", {"order": stages}, order) for stages, order in STAGES.items()),
    *(("DynasauRK", {"order": order}, 2) for order in (2, 3, 4)),
]
"""Of methods with a history those up to order 2, which a first step of order 1 leaves."""


@functools.cache
def _worker() -> subprocess.Popen[bytes]:
    python = os.environ.get("SKRAMPLE_PYTHON")
    if python is None:
        raise ImportError("skrample needs Python 3.12: set SKRAMPLE_PYTHON to an interpreter that has it")
    return subprocess.Popen([python, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(*what: Any, model: Any = None) -> Any:
    worker = _worker()
    answer: Any = what
    while True:
        pickle.dump(answer, worker.stdin)  # type: ignore[arg-type]
        worker.stdin.flush()  # type: ignore[union-attr]
        kind, *found = pickle.load(worker.stdout)  # type: ignore[arg-type]  # of a process that this one started
        if kind == "end":
            return found[0]
        answer = model(*found)


def version() -> str:
    """Return the version in the other Python."""
    return str(_ask("version"))


def path_of(schedule: str) -> TimePath:
    """Return the path of a schedule; time is the share of its steps, 0 at noise."""

    @functools.cache
    def point(t: float) -> tuple[float, float]:
        sigma, alpha = _ask("points", schedule, [t])[0]
        return float(sigma), float(alpha)

    def of(which: int) -> Any:
        def scale(t: Tensor) -> Tensor:
            values = [point(float(each))[which] for each in t.reshape(-1)]
            return torch.tensor(values, dtype=torch.float64).reshape(t.shape)

        return scale

    return TimePath(f"skrample {schedule}", of(1), of(0), clean=1.0, noisy=0.0)


def solver(name: str, options: dict[str, Any], schedule: str) -> Any:
    """Return ``solve(model, x, times)`` of a sampler, whose times are shares of its steps."""

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        steps = round(1 / (times[1] - times[0]))
        begin = round(times[0] * steps)

        def estimate(x: Any, sigma: float, alpha: float) -> Any:
            at = torch.tensor([alpha, sigma], dtype=torch.float64)
            given = torch.from_numpy(x)
            model.watch(given, *at)
            return model.oracle.x_start(given, *at).numpy()

        end = begin + len(times) - 1
        found = _ask("run", name, options, "DataModel", schedule, steps, begin, end, x.double().numpy(), model=estimate)
        return torch.from_numpy(found)

    return solve


def entries() -> Iterator[Entry]:
    """Yield its samplers on a straight and on a curved schedule."""
    for schedule in ("Linear", "Scaled"):
        path = path_of(schedule)
        top, bottom = path.time_at(torch.tensor([-4.0, 4.0], dtype=torch.float64)).tolist()

        def middle(n: int, top: float = top, bottom: float = bottom) -> list[float]:
            return [i / n for i in range(round(top * n), round(bottom * n) + 1)]

        for name, options, order in SOLVERS:
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            whole = lambda n: [i / n for i in range(n + 1)]  # noqa: E731
            yield Entry(f"{name}({shown})", solver(name, options, schedule), path, order, middle, whole)
