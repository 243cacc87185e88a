"""Solvers against the schedulers of diffusers, both in float64, on one grid and one exact denoiser.

The schedulers are written for float32; the modules' own `torch` and `np` are swapped for ones whose float32 is float64,
so that what is left is the algorithm. Where the two differ, the test says how and why.
"""

from __future__ import annotations

import importlib
from inspect import signature
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from solver_support import MIXTURE, part, program_between, sampling_program, system_on

from diffkit.protocols import ContinuousSchedule, NoiseSchedule, Prediction
from diffkit.system.sampling import encoding_program
from diffkit.table import ProcessTable, Steps

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
pytest.importorskip("diffusers", reason="compares with diffusers")

T, STEPS = 1000, 12
TOLERANCE = dict(rtol=1e-9, atol=1e-10)
"""Schedulers interpolate their sigmas between timesteps and take logs back and forth."""


class InDouble(ModuleType):
    """A module that has float64 where another has float32."""

    def __init__(self, module: ModuleType):
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def scheduler(monkeypatch):
    """Make a scheduler by name whose arithmetic is float64, and whose noise is a list's."""

    def make(name: str, module: str, noise: list[torch.Tensor] | None = None, **options: Any) -> Any:
        code = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        monkeypatch.setattr(code, "torch", InDouble(torch))
        monkeypatch.setattr(code, "np", InDouble(np), raising=False)
        if noise is not None:
            fresh = iter(noise)
            monkeypatch.setattr(code, "randn_tensor", lambda *a, **k: next(fresh))
        plain = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
        options = {k: v for k, v in (plain | options).items() if k in signature(getattr(code, name)).parameters}
        return getattr(code, name)(num_train_timesteps=T, **options)

    return make


@frozen
class Grid(ContinuousSchedule):
    """A variance-preserving path given by sigma / alpha at each level, known in between as well."""

    rho: tuple[float, ...]

    def table(self, num_steps):
        rho = np.array(self.rho)
        alpha = 1 / np.sqrt(1 + rho**2)
        return ProcessTable.from_alpha_sigma(alpha, rho * alpha, np.arange(len(rho)))

    def level(self, log_snr):
        return torch.ones_like(log_snr), log_snr


def ours(sampler: Any, rho: np.ndarray, x: torch.Tensor, noise: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """Data after each step of our sampler from rho[0] down to 0; rho descends, x is variance-preserving."""
    system = system_on(Grid(tuple(rho[::-1])), len(rho))
    fresh = iter(noise or ())
    program = sampling_program(system.parts, part(sampler), system.table)
    return [moment.x for moment in program.run(MIXTURE, x, (lambda: next(fresh)) if noise else None)]


def eps_of(x: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
    return (x - alpha * MIXTURE.x_start(x, alpha, sigma)) / sigma


def start() -> torch.Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def noises(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(9, 1, dtype=torch.float64, generator=generator) for _ in range(count)]


def in_vp(found: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Data after each call of a scheduler that keeps x variance-preserving and its grid in `sigmas`."""
    out = []
    for i, t in enumerate(found.timesteps):
        rho = float(found.sigmas[i])
        alpha = 1 / (1 + rho**2) ** 0.5
        x = found.step(eps_of(x, alpha, rho * alpha), t, x).prev_sample
        out.append(x)
    return out


def in_ve(found: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The same of a scheduler that keeps x variance-exploding and tells where it is by how it scales the input."""
    out = []
    for t in found.timesteps:
        scaled = found.scale_model_input(x, t)
        rho = float(((x / scaled)[0] ** 2 - 1).sqrt())
        x = found.step(eps_of(x, 1.0, rho), t, x).prev_sample
        out.append(x)
    return out


def grid_of(found: Any) -> np.ndarray:
    """The distinct sigmas of a scheduler, descending, without the last 0."""
    return np.unique(found.sigmas.double().numpy())[::-1][:-1].copy()


def close(found: list[torch.Tensor], wanted: list[torch.Tensor], **tolerance: Any) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **(TOLERANCE | tolerance))


def set_steps(found: Any, count: int = STEPS) -> Any:
    found.set_timesteps(count)
    return found


# ---- variance-preserving schedulers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("dpmpp_2m", dict(solver_order=2, algorithm_type="dpmsolver++")),
        ("dpm_solver_1", dict(solver_order=1, algorithm_type="dpmsolver")),
        ("euler", dict(solver_order=1, algorithm_type="dpmsolver++")),
    ],
)
def test_dpm_solver_multistep(scheduler, sampler, options):
    end = "zero" if options["algorithm_type"] == "dpmsolver++" else "sigma_min"
    options |= dict(lower_order_final=False, final_sigmas_type=end)
    found = set_steps(scheduler("DPMSolverMultistepScheduler", "dpmsolver_multistep", **options))
    x = start()
    wanted = in_vp(found, x)
    close(ours(sampler, grid_of(found), x)[: STEPS - 1], wanted[:-1])
    if end == "zero":
        torch.testing.assert_close(ours(sampler, grid_of(found), x)[-1], wanted[-1], **TOLERANCE)


@pytest.mark.parametrize("options", [dict(solver_order=1), dict(solver_order=2)])
def test_sde_dpm_solver_multistep(scheduler, options):
    noise = noises(STEPS)
    options |= dict(algorithm_type="sde-dpmsolver++", lower_order_final=False, final_sigmas_type="zero")
    found = set_steps(scheduler("DPMSolverMultistepScheduler", "dpmsolver_multistep", noise, **options))
    x = start()
    sampler = "euler_ancestral" if options["solver_order"] == 1 else "sde_dpmpp_2m"
    close(in_vp(found, x), ours(sampler, grid_of(found), x, noise))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("estimates", [1, 2, 3])
def test_unipc(scheduler, estimates, variant):
    """All but the last step, which there extrapolates to infinite log-SNR unless the order is lowered on the way."""
    options = dict(solver_order=estimates, solver_type=variant, lower_order_final=False, final_sigmas_type="sigma_min")
    found = set_steps(scheduler("UniPCMultistepScheduler", "unipc_multistep", **options))
    x = start()
    wanted, mine = in_vp(found, x)[:-1], ours(("unipc", dict(estimates=estimates, variant=variant)), grid_of(found), x)
    close(mine[: len(wanted)], wanted)


@pytest.mark.parametrize("estimates", [1, 2, 3])
def test_deis(scheduler, estimates):
    """Its third-order coefficients are the same integrals; the first step is plain there."""
    options = dict(solver_order=estimates, lower_order_final=False)
    found = set_steps(scheduler("DEISMultistepScheduler", "deis_multistep", **options))
    x = start()
    wanted = in_vp(found, x)[:-1]
    mine = ours(("deis", dict(estimates=estimates, corrected_start=False)), grid_of(found), x)
    close(mine[: len(wanted)], wanted)


def test_the_third_order_there_is_of_second_order(scheduler):
    """It weighs the second difference of the estimates by half of its integral; ours is of third order.

    Both from the same plain start, which is why the errors are read far from it: data is a mixture, and the estimates
    hardly change where the grid begins.
    """

    def error(count: int) -> tuple[float, float]:
        rho = np.geomspace(50, 0.05, count + 1)
        options = dict(solver_order=3, algorithm_type="dpmsolver++", lower_order_final=False, final_sigmas_type="zero")
        found = scheduler("DPMSolverMultistepScheduler", "dpmsolver_multistep", **options)
        found.set_timesteps(count + 1)
        found.sigmas = torch.from_numpy(np.append(rho, 0.0))
        x = start() * 1.5
        theirs, mine = in_vp(found, x)[-2], ours("dpmpp_3m", rho, x)[-2]
        exact = ours("dpm_solver_3", np.geomspace(50, 0.05, 1281), x)[-2]
        return float((theirs - exact).abs().max()), float((mine - exact).abs().max())

    (coarse, own_coarse), (fine, own_fine) = error(80), error(320)
    assert np.log(coarse / fine) / np.log(4) < 2.3
    assert np.log(own_coarse / own_fine) / np.log(4) > 2.8
    assert own_fine < fine / 10


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("dpmpp_2s", dict(algorithm_type="dpmsolver++", solver_type="midpoint")),
        ("dpm_solver_2", dict(algorithm_type="dpmsolver", solver_type="midpoint")),
    ],
)
def test_dpm_solver_singlestep(scheduler, sampler, options):
    """There a step of order 2 spans two of its grid: the level between is our node."""
    options |= dict(solver_order=2, lower_order_final=False, final_sigmas_type="sigma_min")
    found = set_steps(scheduler("DPMSolverSinglestepScheduler", "dpmsolver_singlestep", **options))
    rho, x = grid_of(found)[:STEPS], start()
    assert found.order_list[:4] == [1, 2, 1, 2]
    wanted = in_vp(found, x)[1::2]
    system = system_on(Known(tuple(rho[::-1])), len(rho))
    table = system.table_for(list(range(STEPS, 0, -2))[::-1])
    program = sampling_program(system.parts, part(sampler), table)
    mine = [moment.x for moment in program.run(MIXTURE, x, None)]
    close(mine[:-1], wanted[: len(mine) - 1])


@frozen
class Known(NoiseSchedule):
    """As `Grid`, of which only the levels are known."""

    rho: tuple[float, ...]

    def table(self, num_steps):
        return Grid(self.rho).table(num_steps)


def test_ddim(scheduler):
    found = set_steps(scheduler("DDIMScheduler", "ddim", clip_sample=False, steps_offset=0))
    x = start()
    wanted = []
    y = x
    for t in found.timesteps:
        alpha_bar = float(found.alphas_cumprod[t])
        y = found.step(eps_of(y, alpha_bar**0.5, (1 - alpha_bar) ** 0.5), t, y).prev_sample
        wanted.append(y)
    alpha_bar = found.alphas_cumprod[found.timesteps].numpy()
    rho = np.sqrt((1 - alpha_bar) / alpha_bar)
    for sampler in ("ddim", "euler", "dpm_solver_1"):
        close(ours(sampler, rho, x), wanted)


def test_pndm_once_its_history_is_full(scheduler):
    """The first steps differ on purpose: there the first is taken twice. So both are given eps that is known."""
    found = scheduler("PNDMScheduler", "pndm", skip_prk_steps=True, set_alpha_to_one=True)
    found.set_timesteps(STEPS)
    known = noises(STEPS)
    found.ets, found.counter, y, wanted = known[:3], 3, start(), []
    timesteps = np.unique(found.timesteps.numpy())[::-1][3:]
    for i, t in enumerate(timesteps):
        y = found.step_plms(known[3 + i], int(t), y).prev_sample
        wanted.append(y)
    alpha_bar = found.alphas_cumprod[np.unique(found.timesteps.numpy())].numpy()
    table = Grid(tuple(np.sqrt((1 - alpha_bar) / alpha_bar))).table(len(alpha_bar))
    pndm, mine, y = part("pndm"), [], start()
    plan = pndm.plan(Steps(*table.steps()))
    state = (known[2], known[1], known[0])
    for i, t in enumerate(range(3, 3 + len(timesteps))):
        row = {name: torch.tensor(column[t]) for name, column in plan.items()}
        alpha, sigma = (float(a[table.num_steps - t]) for a in (table.alpha, table.sigma))
        estimate = (y - sigma * known[3 + i]) / alpha
        y, state = pndm.step(lambda x, level, e=estimate: Prediction(e, None), y, state, Row(row), None, False)
        mine.append(y)
    close(mine, wanted)


class Row:
    """A row of a plan at no level in particular."""

    t = None

    def __init__(self, coef: dict[str, torch.Tensor]):
        self.coef = coef


# ---- variance-exploding schedulers ----------------------------------------------------------------------------------


def vp_to_ve(states: list[torch.Tensor], rho: np.ndarray) -> list[torch.Tensor]:
    """Our states after each step, divided by alpha there."""
    alpha = 1 / np.sqrt(1 + np.append(rho[1:], 0.0) ** 2)
    return [x / a for x, a in zip(states, alpha, strict=True)]


@pytest.mark.parametrize(
    ("sampler", "name", "module"),
    [
        ("euler", "EulerDiscreteScheduler", "euler_discrete"),
        ("heun", "HeunDiscreteScheduler", "heun_discrete"),
        ("dpm2", "KDPM2DiscreteScheduler", "k_dpm_2_discrete"),
        (("lms", dict(estimates=4, corrected_start=False)), "LMSDiscreteScheduler", "lms_discrete"),
    ],
)
def test_variance_exploding(scheduler, sampler, name, module):
    found = set_steps(scheduler(name, module))
    rho = np.unique(found.sigmas.numpy())[::-1][:-1].copy()
    calls = 2 if name[0] in "HK" else 1
    x = start() * (1 + rho[0] ** 2) ** 0.5
    wanted = in_ve(found, x)
    wanted = [*wanted[calls - 1 : -1 : calls], wanted[-1]]
    tolerance = dict(rtol=1e-7, atol=1e-7) if name.startswith("LMS") else {}  # its integrals are numerical
    close(vp_to_ve(ours(sampler, rho, start()), rho), wanted, **tolerance)


@pytest.mark.parametrize(
    ("sampler", "name", "module"),
    [
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", "euler_ancestral_discrete"),
        ("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler", "k_dpm_2_ancestral_discrete"),
    ],
)
def test_variance_exploding_ancestral(scheduler, sampler, name, module):
    """Two evaluations: but for the last two steps, the first of which goes from 0.28 to 4e-4 before its noise is added.

    The published weight of the second evaluation grows with the root of that ratio, ours does not from 50 on.
    """
    noise = noises(STEPS)
    found = set_steps(scheduler(name, module, noise))
    two = name.startswith("KDPM2")
    rho = np.unique(found.sigmas.numpy())[::-1][:-1].copy()
    x = start() * (1 + rho[0] ** 2) ** 0.5
    wanted = in_ve(found, x)
    wanted = [*wanted[1:-1:2], wanted[-1]] if two else wanted
    alike = STEPS - 2 if two else STEPS
    close(vp_to_ve(ours(sampler, rho, start(), noise), rho)[:alike], wanted[:alike])


@pytest.mark.parametrize("steps", [2, 3])
def test_edm(scheduler, steps):
    """EDM's parameterization on its own grid, first and second order."""
    for name, module, sampler, options in (
        ("EDMEulerScheduler", "edm_euler", "euler", {}),
        ("EDMDPMSolverMultistepScheduler", "edm_dpmsolver_multistep", "dpmpp_2m", dict(lower_order_final=False)),
    ):
        found = set_steps(scheduler(name, module, **options), 4 * steps)
        rho = found.sigmas[:-1].double().numpy()
        x = start() * (1 + rho[0] ** 2) ** 0.5
        wanted, y = [], x
        for t, sigma in zip(found.timesteps, rho, strict=True):
            found.scale_model_input(y, t)
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
            y = found.step((MIXTURE.x_start(y, 1.0, sigma) - skip * y) / out, t, y).prev_sample
            wanted.append(y)
        close(vp_to_ve(ours(sampler, rho, start()), rho), wanted)


def test_edm_churn(scheduler):
    """There churn goes with Euler's method; ours is the paper's, with Heun's. Its last step is Euler's."""
    found = set_steps(scheduler("EDMEulerScheduler", "edm_euler", [noises(1)[0]]), 1)
    rho = np.array([0.5])
    found.sigmas, x = torch.tensor([0.5, 0.0], dtype=torch.float64), start() * 1.25**0.5
    found.scale_model_input(x, found.timesteps[0])
    up = 0.5 * 2**0.5
    noisy = x + noises(1)[0] * (up**2 - 0.25) ** 0.5
    estimate = MIXTURE.x_start(noisy, 1.0, up)
    wanted = found.step(x, found.timesteps[0], x, s_churn=40.0, pred_original_sample=estimate).prev_sample
    close(vp_to_ve(ours("churn", rho, start(), noises(1)), rho), [wanted])


# ---- with noise -----------------------------------------------------------------------------------------------------


def walked(found: Any, x: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    """Data after each call of a scheduler that keeps `alphas_cumprod` and asks for eps at integer timesteps."""
    out = []
    for t in found.timesteps:
        alpha_bar = float(found.alphas_cumprod[t])
        x = found.step(eps_of(x, alpha_bar**0.5, (1 - alpha_bar) ** 0.5), t, x, **more).prev_sample
        out.append(x)
    return out


def rho_of(found: Any) -> np.ndarray:
    """Sigma / alpha at the timesteps, descending."""
    alpha_bar = found.alphas_cumprod[found.timesteps].double().numpy()
    return np.sqrt((1 - alpha_bar) / alpha_bar)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(scheduler, variance):
    noise = noises(STEPS)
    found = set_steps(
        scheduler(
            "DDPMScheduler", "ddpm", noise, clip_sample=False, variance_type=variance, timestep_spacing="linspace"
        )
    )
    system = system_on(Grid(tuple(rho_of(found)[::-1])), STEPS, var=variance)
    fresh = iter(noise)
    program = sampling_program(system.parts, part("ancestral"), system.table)
    exact = lambda x, level: Prediction(MIXTURE(x, level).x_start, level.coefficients["log_variance"])  # noqa: E731
    mine = [moment.x for moment in program.run(exact, start(), lambda: next(fresh))]
    close(mine, walked(found, start()))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(scheduler, eta):
    noise = noises(STEPS)
    found = set_steps(scheduler("DDIMScheduler", "ddim", noise, clip_sample=False, steps_offset=0))
    close(ours(("ddim", {"eta": eta}), rho_of(found), start(), noise), walked(found, start(), eta=eta))


# ---- other grids -----------------------------------------------------------------------------------------------------


def test_improved_pndm(scheduler):
    """The same weights on eps from the first step on; its path is alpha = cos, sigma = sin.

    Not from its first level, which has no signal: of eps alone it makes the estimate 0 there, whatever there is.
    """
    found = set_steps(scheduler("IPNDMScheduler", "ipndm"))
    found.set_begin_index(1)
    alpha, sigma = found.alphas.double(), found.betas.double()
    x, wanted = start(), []
    for i, t in enumerate(found.timesteps[1:], 1):
        estimate = MIXTURE.x_start(x, alpha[i], sigma[i])
        eps = (x - alpha[i] * estimate) / sigma[i]
        x = found.step(alpha[i] * eps - sigma[i] * estimate, t, x).prev_sample  # v, of which it makes eps
        wanted.append(x)
    close(ours("pndm", (sigma / alpha)[1:-1].numpy(), start()), wanted, rtol=1e-6, atol=1e-6)  # its grid is float32


@frozen
class Straight(NoiseSchedule):
    """The path of rectified flow at given sigmas."""

    sigmas: tuple[float, ...]

    def table(self, num_steps):
        sigma = np.array(self.sigmas)
        return ProcessTable.from_alpha_sigma(1 - sigma, sigma, np.arange(len(sigma)))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpm_solver_1"])
def test_flow_matching(scheduler, sampler):
    """A straight line in data is DDIM's step, from a level without signal."""
    found = set_steps(scheduler("FlowMatchEulerDiscreteScheduler", "flow_match_euler_discrete", shift=3.0))
    sigma = found.sigmas.double()[:-1]
    x, wanted = start(), []
    for t, s in zip(found.timesteps, sigma, strict=True):
        estimate = MIXTURE.x_start(x, 1 - s, s)
        x = found.step((x - estimate) / s, t, x).prev_sample  # eps - x_start
        wanted.append(x)
    system = system_on(Straight(tuple(sigma.flip(0).tolist())), STEPS)
    program = sampling_program(system.parts, part(sampler), system.table)
    close([moment.x for moment in program.run(MIXTURE, start(), None)], wanted)


def test_ddim_inverse(scheduler):
    """The way up; there the step to level 1 counts level 1's noise as none, here it has none to count."""
    found = set_steps(scheduler("DDIMInverseScheduler", "ddim_inverse", clip_sample=False, steps_offset=0))
    levels = found.timesteps
    alpha_bar = found.alphas_cumprod[levels].double().numpy()
    rho = np.sqrt((1 - alpha_bar) / alpha_bar)
    x, wanted = start() / 2, []
    y = x
    for i, t in enumerate(levels[1:]):
        alpha, sigma = float(alpha_bar[i]) ** 0.5, (1 - float(alpha_bar[i])) ** 0.5
        y = found.step(eps_of(y, alpha, sigma), t, y).prev_sample
        wanted.append(y)
    system = system_on(Grid(tuple(rho)), STEPS)
    program = encoding_program(system.parts, part("ddim"), system.table, past_end=False)
    close([moment.x for moment in program.run(MIXTURE, x, None)], wanted)


def test_dpm_solver_singlestep_of_order_3(scheduler):
    """Given three estimates of eps the step is the same; there the second stage takes another midpoint rule."""
    found = scheduler(
        "DPMSolverSinglestepScheduler",
        "dpmsolver_singlestep",
        solver_order=3,
        algorithm_type="dpmsolver",
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    set_steps(found, 3)
    rho, known, x = np.geomspace(8.0, 1.0, 4), noises(3), start()
    found.sigmas, found._step_index, y = torch.from_numpy(rho), 0, x
    for i in range(3):
        y = found.step(known[i], found.timesteps[i], y).prev_sample
    system = system_on(Grid((1.0, 8.0)), 2)
    program = program_between(system, "dpm_solver_3")
    given = iter(known)

    def denoise(x, level):
        return Prediction((x - level.sigma * next(given)) / level.alpha, None)

    (moment,) = program.run(denoise, x, None)
    close([moment.x], [y])
