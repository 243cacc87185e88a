"""Samplers on Karras' sigmas of a DDPM chain, against k-diffusion with its own wrapper of the network.

k-diffusion steps in the space of ``x / alpha``, from the same state and with the same noise. Stored numbers come from
k-diffusion 0.1.1.post1 by `theirs` below, in float64; with k-diffusion installed, they are compared live as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffkit

INSTALLED = importlib.util.find_spec("k_diffusion") is not None
PUBLISHED = {"lower_order_long": False}
NOISY = {"s_noise": 1.1}

CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "euler": ("euler", {}, "euler", {}),
    "euler, churn": (
        "churn",
        {"solver": "euler", "s_churn": 2.0, "s_tmax": 20.0, **NOISY},
        "euler",
        {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 20.0, **NOISY},
    ),
    "heun": ("heun", PUBLISHED, "heun", {}),
    "heun, churn": (
        "churn",
        {"s_churn": 2.0, "s_tmax": 20.0, **NOISY, **PUBLISHED},
        "heun",
        {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 20.0, **NOISY},
    ),
    "dpm_2": ("dpm2", PUBLISHED, "dpm_2", {}),
    "dpm_2, churn": (
        "churn",
        {"solver": "dpm2", "s_churn": 2.0, "s_tmax": 20.0, **PUBLISHED},
        "dpm_2",
        {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 20.0},
    ),
    "lms": ("lms", {"estimates": 4, "corrected_start": False, **PUBLISHED}, "lms", {}),
    "dpmpp_2m": ("dpmpp_2m", PUBLISHED, "dpmpp_2m", {}),
    "euler_ancestral": ("euler_ancestral", {"eta": 0.7, **NOISY}, "euler_ancestral", {"eta": 0.7, **NOISY}),
    "dpm_2_ancestral": ("dpm2_ancestral", {**NOISY, **PUBLISHED}, "dpm_2_ancestral", NOISY),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", NOISY, "dpmpp_2s_ancestral", NOISY),
    "dpmpp_2m_sde": ("sde_dpmpp_2m", {**NOISY, **PUBLISHED}, "dpmpp_2m_sde", NOISY),
    "dpmpp_2m_sde, heun": (
        "sde_dpmpp_2m",
        {"eta": 0.8, "solver": "heun", **PUBLISHED},
        "dpmpp_2m_sde",
        {"eta": 0.8, "solver_type": "heun"},
    ),
    "dpmpp_3m_sde": ("sde_dpmpp_3m", {"weights": "published", **NOISY, **PUBLISHED}, "dpmpp_3m_sde", NOISY),
}
"""Our sampler and its options, their function and its arguments."""


SAMPLES: dict[str, list[float]] = {
    "euler": [-4.855013914102515, -13.867633871165339, 6.247854605592408, -6.048693746243086],
    "euler, churn": [-4.953946861029119, -12.812394660212936, 5.578687411572885, 2.1719158610870557],
    "heun": [11.037406432286891, 4.570010959845365, 8.726143201668897, 11.088040671148407],
    "heun, churn": [4.896998759150256, 1.2447391898786746, 7.714498391873173, 17.199155011299325],
    "dpm_2": [9.33600568501909, 10.545844609569635, 11.180062735122533, 9.245265843698844],
    "dpm_2, churn": [2.1155627685588847, 3.5539848056583256, 9.69670292669851, 14.528708313815697],
    "lms": [0.003971391020054273, -6.0173059701264995, 6.709974457944071, -0.41078893715421105],
    "dpmpp_2m": [21.179182242608665, 26.071441623172102, 16.67232668188918, 21.13297830011909],
    "euler_ancestral": [-11.846453691442814, -31.80820770832328, 3.594296234302209, -3.89031339043126],
    "dpm_2_ancestral": [78.24709377919301, 20.517971716641462, 46.709675594500396, 88.52199513753231],
    "dpmpp_2s_ancestral": [1.2276601951687935, -0.6332823187231709, 4.160827024488933, 6.68498158118923],
    "dpmpp_2m_sde": [37.71680569787405, 5.141530220339358, 16.961192425256986, 45.70460904024477],
    "dpmpp_2m_sde, heun": [69.91855412753769, 57.7717629798419, 31.017532463277533, 101.9869695934857],
    "dpmpp_3m_sde": [-145.51334490202856, -77.39216377610408, -86.6562026342335, -93.54880677339445],
}
"""The first example's values after 6 of Karras' sigmas."""


class Network(nn.Module):
    """A smooth function of data and real-valued time, with all digits in float64."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = time.double().view(-1, 1, 1, 1) / 1000
        return 0.9 * torch.tanh(1.3 * x * (0.4 + t) + torch.sin(7 * t))


def system(schedule: str = "linear") -> diffkit.System:
    return diffkit.compose(schedule=schedule, backbone=Network(), data_shape=(1, 2, 2), rescale_time=False, bins=None)


def draws() -> Any:
    """The same standard normal noise for both, step after step, on NumPy's generator."""
    generator = np.random.default_rng(0)
    return lambda: torch.from_numpy(generator.standard_normal((2, 1, 2, 2)))


def ours(name: str, options: dict[str, Any], steps: str) -> Tensor:
    composed = system()
    table = composed.table_for(steps)
    return composed.sample_from(None, table.sigma[-1] * draws()(), draws(), table, sampler=(name, options))


def k_diffusion() -> tuple[ModuleType, ModuleType]:
    """Its modules `sampling` and `external` without the rest of the package, which needs more than they do."""
    found = importlib.util.find_spec("k_diffusion")
    assert found is not None and found.submodule_search_locations is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stand_ins = {name: ModuleType(name) for name in names if importlib.util.find_spec("torchvision") is None}
    if stand_ins:
        stand_ins[names[0]].transforms = stand_ins[names[1]]  # type: ignore[attr-defined]
        stand_ins[names[1]].functional = stand_ins[names[2]]  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in ("k_diffusion", *stand_ins)}
    sys.modules.update({"k_diffusion": package, **stand_ins})
    try:
        return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def theirs(name: str, options: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """k-diffusion's samples, on its own sigmas of its own wrapper of the network."""
    sampling, external = k_diffusion()
    alpha_bar = torch.from_numpy(system().table.alpha_bar[1:].copy())
    network = Network()
    wrapped = external.DiscreteEpsDDPMDenoiser(network, alpha_bar, quantize=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        sigmas = sampling.get_sigmas_karras(count, float(wrapped.sigma_min), float(wrapped.sigma_max))
        draw = draws()
        monkeypatch.setattr(torch, "randn_like", lambda x: draw())
        if name.endswith(("_ancestral", "_sde")):
            options = options | {"noise_sampler": lambda *ends: draw()}
        return getattr(sampling, f"sample_{name}")(wrapped, sigmas[0] * draws()(), sigmas, disable=True, **options)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="k-diffusion is not installed")
@pytest.mark.parametrize("count", [3, 10, 25])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_samples_are_those_of_k_diffusion(case: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, own, other, given = case
    wanted = theirs(other, given, count, monkeypatch)
    found = ours(mine, own, f"karras{count}:exact")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="k-diffusion is not installed")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", [{}, {"rtol": 0.01, "atol": 0.001}, {"pcoeff": 0.1, "icoeff": 0.8, "dcoeff": 0.05}])
def test_steps_of_controlled_error_are_those_of_k_diffusion(order: int, options: dict[str, float]) -> None:
    sampling, external = k_diffusion()
    composed = system()
    table = composed.table
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        alpha_bar = torch.from_numpy(table.alpha_bar[1:].copy())
        wrapped = external.DiscreteEpsDDPMDenoiser(Network(), alpha_bar, quantize=False)
        ends = float(wrapped.sigma_min), float(wrapped.sigma_max)
        x = ends[1] * draws()()
        how: dict[str, Any] = {"order": order, "return_info": True, "disable": True, **options}
        wanted, info = sampling.sample_dpm_adaptive(wrapped, x, *ends, **how)
    finally:
        torch.set_default_dtype(before)
    start, solver = table.sigma[-1] * draws()(), f"dpm_solver_{order - 1}{order}"
    found = diffkit.tasks.sample_adaptive(composed, 2, solver=solver, start=start, final="sigma_min", **options)
    torch.testing.assert_close(found.samples / table.alpha[1], wanted, rtol=1e-10, atol=1e-10)
    assert (len(found.log_snr) - 1, found.rejected) == (info["n_accept"], info["n_reject"])
    assert found.evaluations == info["nfe"]


@pytest.mark.parametrize("case", CASES)
def test_samples_are_the_stored_ones(case: str) -> None:
    mine, own, _, _ = CASES[case]
    found = ours(mine, own, "karras6:exact")[0].flatten()
    np.testing.assert_allclose(found.numpy(), SAMPLES[case], rtol=1e-10, atol=1e-10)
