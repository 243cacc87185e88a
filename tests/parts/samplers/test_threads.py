"""Threads that share a system, a table and a plan find what each would find alone: steps keep nothing to themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from solver_support import GAUSSIAN, NOISY, SOLVERS, part, points, sampling_program, system_on

from diffkit.protocols import Prediction

THREADS = 8


def denoise(x, level):
    return Prediction(GAUSSIAN(x, level).x_start, level.coefficients["log_variance"] if level.coefficients else None)


@pytest.mark.parametrize("sampler", SOLVERS + NOISY, ids=str)
def test_eight_threads_share_a_program(sampler):
    system = system_on("cosine", 12)
    program = sampling_program(system.parts, part(sampler), system.table)
    x = points(system.table)

    def walk(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return program.finish(denoise, x + seed, lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator))

    alone = [walk(seed) for seed in range(THREADS)]
    program = sampling_program(system.parts, part(sampler), system.table)  # whose coefficients are not uploaded yet
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(walk, range(THREADS)))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
