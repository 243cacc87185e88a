"""sbi: Diffuser's predictor, Euler-Maruyama, with the drift and diffusion of its score estimators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.court.entry import Entry, import_alone
from diffkit.testing import ExactModel, TimePath

DISTRIBUTION = "sbi"
UNUSED = ("torch.utils.tensorboard", "tensorboard", "google", "arviz", "skorch", "tabpfn", "pymc", "torchvision")
ESTIMATORS = ("VPScoreEstimator", "SubVPScoreEstimator", "VEScoreEstimator")


def _estimator(name: str) -> Any:
    module = import_alone("sbi.neural_nets.estimators.score_estimator", UNUSED)
    shape = torch.Size([2])
    return getattr(module, name)(net=nn.Identity(), input_shape=shape, condition_shape=shape)


def path_of(name: str) -> TimePath:
    """Return the path of an estimator, by its own functions."""
    estimator = _estimator(name)

    def of(function: Any) -> Any:
        return lambda t: function(t.reshape(-1)).flatten().reshape(t.shape).double()

    return TimePath(f"sbi {name}", of(estimator.mean_t_fn), of(estimator.std_fn), 1e-9, 1.0)


def solver(name: str, eta: float) -> Any:
    """Return ``solve(model, x, times)`` of the predictor."""
    predictors = import_alone("sbi.samplers.score.predictors", UNUSED)
    estimator = _estimator(name)

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        def gradient(x: Tensor, t: Tensor) -> Tensor:
            return model.score(x, t)

        potential = SimpleNamespace(device="cpu", vector_field_estimator=estimator, gradient=gradient)
        predict = predictors.get_predictor("euler_maruyama", potential, eta=eta)
        for t, s in pairwise(times):
            x = predict(x, torch.tensor([t], dtype=torch.float64), torch.tensor([s], dtype=torch.float64))
        return x

    return solve


def entries() -> Iterator[Entry]:
    """Yield the predictor on each estimator's path."""
    for name in ESTIMATORS:
        path = path_of(name)
        ends = path.time_at(torch.tensor([-4.0, 8.0], dtype=torch.float64)).tolist()
        for eta in (1.0, 0.5):
            yield Entry(
                f"EulerMaruyama(eta={eta:g})",
                solver(name, eta),
                path,
                1,
                to_clean=lambda n, ends=ends: torch.linspace(*ends, n + 1, dtype=torch.float64).tolist(),
                precision="float32",
            )
