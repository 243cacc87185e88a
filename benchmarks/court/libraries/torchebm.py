"""torchebm: FlowSampler with its integrators, on its three interpolants; its time runs to the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.court.entry import Entry, even_in_time
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "torchebm"
INTEGRATORS = {"euler": 1, "euler_maruyama": 1, "heun": 2, "midpoint": 2, "rk4": 4}
FORMS = ("SBDM", "sigma", "linear", "constant")


class Exact(nn.Module):
    """An exact model with the signature of a network, time (B,)."""

    def __init__(self, model: ExactModel, prediction: str):
        super().__init__()
        self.model, self.prediction = model, prediction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        method = {"velocity": "velocity", "noise": "eps", "score": "score"}[self.prediction]
        return getattr(self.model, method)(x, t)


def path_of(name: str) -> TimePath:
    """Return the path of an interpolant, by its own tables."""
    from torchebm.interpolants.interpolant_utils import resolve_interpolant

    interpolant = resolve_interpolant(name, default="linear", owner="court")
    label = f"torchebm {name}"
    alpha, sigma = (lambda t, f=f: f(t)[0] for f in (interpolant.compute_alpha_t, interpolant.compute_sigma_t))
    return TimePath(label, alpha, sigma, clean=1.0, noisy=0.0)


def solver(name: str, prediction: str, **options: Any) -> Any:
    """Return ``solve(model, x, times)``; the times are those of its interval, which it divides evenly."""
    from torchebm.samplers import FlowSampler

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        class OnInterval(FlowSampler):
            def _check_interval(self) -> tuple[float, float]:
                return times[0], times[-1]

        sampler = OnInterval(
            Exact(model, prediction), interpolant=name, prediction=prediction, dtype=torch.float64, **options
        )
        return sampler.sample(x=x, n_steps=len(times) - 1)

    return solve


def entries() -> Iterator[Entry]:
    """Yield its fixed-step integrators, and the forms of its diffusion."""
    for name, prediction in (("linear", "velocity"), ("vp", "score"), ("cosine", "score")):
        path = path_of(name)
        even = even_in_time(path)
        given = {"path": path, "grid": even, "to_clean": even}
        for integrator, order in INTEGRATORS.items():
            solve = solver(name, prediction, integrator=integrator)
            yield Entry(f"FlowSampler({name}, {integrator})", solve, order=order, **given)
        for form in FORMS:
            options = dict(mode="sde", diffusion_form=form, last_step=None, integrator="euler_maruyama")
            solve = solver(name, prediction, **options)
            yield Entry(f"FlowSampler({name}, sde, {form})", solve, order=1, **given)
