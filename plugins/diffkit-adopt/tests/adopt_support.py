"""Tiny random models of each library, in float64, and the library's own solvers of them."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

SHAPE = (2, 4, 4)


class Tiny(nn.Module):
    """A network of any calling convention: x first, time second; a label moves its output."""

    def __init__(self, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE):
        super().__init__()
        torch.manual_seed(0)
        self.mix = (
            nn.Conv2d(shape[0], shape[0], 3, padding=1, dtype=dtype)
            if len(shape) > 1
            else nn.Linear(shape[0], shape[0], dtype=dtype)
        )

    def forward(self, x: Tensor, time: Tensor, *more: Any, y: Tensor | None = None, **_: Any) -> Tensor:
        shift = torch.tanh(torch.as_tensor(time, dtype=x.dtype).reshape(-1)) / 3
        shift = shift if y is None else shift + y.to(x.dtype) / 7
        return torch.tanh(self.mix(x) + shift.view(-1, *(1,) * (x.ndim - 1)))


def _k_diffusion() -> Any:
    layers = imported("k_diffusion.external")
    return layers.DiscreteEpsDDPMDenoiser(
        Tiny(), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0), False
    )


def _azula() -> Any:
    imported("azula")
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    return KarrasDenoiser(Tiny(), VPSchedule())


def _flow_matching() -> Any:
    imported("flow_matching")
    from flow_matching.utils import ModelWrapper

    return ModelWrapper(_NamedTime(Tiny()))


class _NamedTime(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = self.net(x, t, **conditions)
        return out


def _torchebm() -> Any:
    imported("torchebm")
    from torchebm.samplers import FlowSampler

    return FlowSampler(Tiny(), interpolant="linear", prediction="velocity", dtype=torch.float64, integrator="euler")


def _edm() -> Any:
    class Preconditioned(Tiny):
        sigma_data, sigma_min, sigma_max, label_dim = 0.5, 0.002, 80.0, 0

        def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
            at = sigma.view(-1, 1, 1, 1)
            total = (at**2 + self.sigma_data**2).sqrt()
            inner = super().forward(x / total, sigma.log() / 4, y=class_labels)
            return (self.sigma_data / total) ** 2 * x + at * self.sigma_data / total * inner

    return Preconditioned()


def _physicsnemo() -> Any:
    imported("physicsnemo.diffusion.samplers.euler")
    samplers = imported("physicsnemo.diffusion.noise_schedulers")
    return Tiny(), samplers.EDMNoiseScheduler()


def _sbi() -> Any:
    module = imported("sbi.neural_nets.estimators.score_estimator")
    estimator = module.VPScoreEstimator(_Conditional(), input_shape=torch.Size([3]), condition_shape=torch.Size([2]))
    return estimator.double(), torch.zeros(2, dtype=torch.float64)


class _Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny(shape=(3,))

    def forward(self, x: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.net(x, time) + condition.sum(-1, keepdim=True)
        return out


def _deepinv() -> Any:
    sampling = imported("deepinv.sampling")
    return sampling.VariancePreservingDiffusion(denoiser=Tiny(torch.float32), minus_one_one=False)


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], tuple[int, ...]]] = {
    "azula": (_azula, {"levels": 100}, SHAPE),
    "deepinv": (_deepinv, {"levels": 100}, SHAPE),
    "edm": (_edm, {"levels": 100, "reader": "edm"}, SHAPE),
    "flow_matching": (_flow_matching, {"levels": 100}, SHAPE),
    "k_diffusion": (_k_diffusion, {}, SHAPE),
    "physicsnemo": (_physicsnemo, {"levels": 100, "reader": "physicsnemo"}, SHAPE),
    "sbi": (_sbi, {"levels": 100}, (3,)),
    "torchebm": (_torchebm, {"levels": 100}, SHAPE),
}
"""Reader -> how a model is made, options of `diffkit.adopt`, shape of an example."""


Run = tuple[Callable[..., Tensor], Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]]


@frozen
class Home:
    """What a library's own solvers make of its model.

    Attributes:
        of: Of a model and one of the samplers: ``estimate(x, t, **labels)``, and ``run(estimate, x, times)``.
        samplers: Those of diffkit that the library has, too.
        tolerance: Relative to the largest value.
        label: Name of the labels.
    """

    of: Callable[[Any, str], Run]
    samplers: tuple[str, ...]
    tolerance: float = 1e-10
    label: str = "y"


def _k_diffusion_home(denoiser: Any, sampler: str) -> Run:
    solver = getattr(imported("k_diffusion.sampling"), f"sample_{sampler}")
    return denoiser, lambda estimate, x, times: solver(estimate, x, times, disable=True)


def _azula_home(denoiser: Any, sampler: str) -> Run:
    kind = getattr(imported("azula.sample"), {"ddim": "DDIM", "euler": "Euler", "heun": "Heun"}[sampler] + "Sampler")

    def run(estimate: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
        class Guided:
            schedule = denoiser.schedule

            def __call__(self, x: Tensor, t: Tensor) -> Any:
                return SimpleNamespace(mean=estimate(x, t))

        out: Tensor = type("OnTimes", (kind,), {"timesteps": property(lambda self: times)})(Guided(), silent=True)(x)
        return out

    return lambda x, t, **labels: denoiser(x, t, **labels).mean, run


def _flow_matching_home(velocity: Any, sampler: str) -> Run:
    solver = imported("flow_matching.solver").ODESolver

    def run(estimate: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
        each = lambda x, t: estimate(x, t.expand(len(x)))  # noqa: E731
        out: Tensor = solver(each).sample(x, step_size=None, method="euler", time_grid=times)
        return out

    return velocity, run


def _physicsnemo_home(obj: Any, sampler: str) -> Run:
    predictor, scheduler = obj
    module = imported(f"physicsnemo.diffusion.samplers.{sampler}")

    def run(estimate: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
        solver = getattr(module, f"{sampler.title()}Solver")(scheduler.get_denoiser(x0_predictor=estimate))
        for t, s in pairwise(times):
            x = solver.step(x, t.expand(len(x)), s.expand(len(x)))
        return x

    return predictor, run


def _torchebm_home(sampler: Any, of: str) -> Run:
    kind = type(sampler)

    def run(estimate: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
        class Model(nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return estimate(x, t)

        own = {"_check_interval": lambda self: (float(times[0]), float(times[-1]))}
        given = dict(interpolant="linear", prediction="velocity", dtype=torch.float64, integrator="euler")
        out: Tensor = type("OnInterval", (kind,), own)(Model(), **given).sample(x=x, n_steps=len(times) - 1)
        return out

    return sampler.model, run


def _deepinv_home(sde: Any, sampler: str) -> Run:
    solver = imported("deepinv.sampling.sde_solver").DDIMSolver

    def run(estimate: Callable[..., Tensor], x: Tensor, times: Tensor) -> Tensor:
        class Denoiser(nn.Module):
            def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
                return estimate(x, sigma)

        other = type(sde)(denoiser=Denoiser(), minus_one_one=False)
        out: Tensor = solver(timesteps=times).sample(other, x).sample
        return out

    return sde.denoiser, run


HOMES = {
    "azula": Home(_azula_home, ("ddim", "euler", "heun")),
    "deepinv": Home(_deepinv_home, ("ddim", "euler"), tolerance=1e-5),  # its denoiser is always called in float32
    "edm": Home(_k_diffusion_home, ("euler", "heun", "dpmpp_2m"), label="class_labels"),  # whose solvers are EDM's
    "flow_matching": Home(_flow_matching_home, ("ddim", "euler")),
    "k_diffusion": Home(_k_diffusion_home, ("euler", "heun", "dpmpp_2m")),
    "physicsnemo": Home(_physicsnemo_home, ("euler", "heun")),
    "torchebm": Home(_torchebm_home, ("ddim", "euler")),
}
"""Libraries that have a sampler of diffkit's under another name; sbi has none: its predictor is Euler's in time."""


UNUSED = frozenset(
    (
        *("clip", "accelerate", "wandb", "resize_right", "cleanfid", "jsonmerge", "kornia", "skimage", "torchvision"),
        *("nvtx", "omegaconf", "s3fs", "six", "timm", "warp", "tensorboard", "google", "arviz", "skorch", "tabpfn"),
    )
)
"""What the libraries import, if it is there, and none of their models needs."""


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        found = name.partition(".")[0] in UNUSED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        """A stand-in holds nothing."""


def imported(module: str) -> Any:
    """Import a module of a library; the test is skipped if the library is not there."""
    stand_ins = _StandIns()
    sys.meta_path.append(stand_ins)
    sys.modules.setdefault("torch.utils.tensorboard", mock.MagicMock())
    sys.modules.setdefault("torch.utils.tensorboard.writer", mock.MagicMock())
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(str(error))
    finally:
        sys.meta_path.remove(stand_ins)
