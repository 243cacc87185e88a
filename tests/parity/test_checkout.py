"""Random systems against OpenAI's own code, where the variable IMPROVED_DIFFUSION names a checkout of it.

Both sides work in float64 here: the published tables are float32, which hides small differences behind large rounding
errors. The stored numbers, which need no checkout, cover its float32.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from unittest import mock

import pytest
import torch
from reference import MEANS, VARS, closed_form_model, mean_is_clipped

import diffkit
from diffkit.system.bound import BoundTerms, prior_bits

CHECKOUT = os.environ.get("IMPROVED_DIFFUSION")
if not CHECKOUT:
    pytest.skip("IMPROVED_DIFFUSION names no checkout", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

CASES = 150
LOSSES = {
    "MSE": ("hybrid", {"vb_weight": 1.0, "scale_by_steps": False}),
    "RESCALED_MSE": "hybrid",
    "KL": ("vlb", {"scale_by_steps": False}),
    "RESCALED_KL": "vlb",
}
SHAPE = (3, 4, 4)


def in_float64(table, steps, shape):
    """The published look-up, without its cast to float32."""
    return torch.from_numpy(table)[steps].view(-1, *(1,) * (len(shape) - 1)).expand(shape)


@pytest.fixture(scope="module")
def published():
    """The checkout's modules gaussian_diffusion and respace."""
    with mock.patch.object(sys, "path", [CHECKOUT, *sys.path]):
        process = importlib.import_module("improved_diffusion.gaussian_diffusion")
        respace = importlib.import_module("improved_diffusion.respace")
    with mock.patch.object(process, "_extract_into_tensor", in_float64):
        yield process, respace


class Case:
    """One random system on both sides."""

    def __init__(self, number, process, respace):
        rng = random.Random(number)
        self.schedule, self.steps = rng.choice(["linear", "cosine"]), rng.choice([25, 40, 100, 1000, 4000])
        sections = ",".join(str(rng.randint(1, 6)) for _ in range(3))
        self.spacing = rng.choice([str(rng.randint(2, 25)), sections, f"ddim{rng.choice([2, 5])}"])
        self.mean, self.var, self.loss = (rng.choice([*names]) for names in (MEANS, VARS, LOSSES))
        self.clip, self.rescale = rng.random() < 0.5, rng.random() < 0.5
        self.theirs = respace.SpacedDiffusion(
            use_timesteps=respace.space_timesteps(self.steps, self.spacing),
            betas=process.get_named_beta_schedule(self.schedule, self.steps),
            model_mean_type=process.ModelMeanType[self.mean],
            model_var_type=process.ModelVarType[self.var],
            loss_type=process.LossType[self.loss],
            rescale_timesteps=self.rescale,
        )
        learned = self.var.startswith("LEARNED")
        self.ours = diffkit.compose(
            schedule=self.schedule,
            num_steps=self.steps,
            train_spacing=self.spacing,
            mean=MEANS[self.mean],
            var=VARS[self.var],
            loss="simple" if self.loss.endswith("MSE") and not learned else LOSSES[self.loss],
            rescale_time=self.rescale,
            backbone=None,
            data_shape=SHAPE,
        )
        model = closed_form_model(self.var if learned else None)
        self.model = lambda x, time: model(x, time.float().double())  # theirs is rounded so
        generator = torch.Generator().manual_seed(number)
        draw = lambda *shape: torch.randn(*shape, *SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
        self.start, self.noise = draw(2), draw(self.theirs.num_timesteps + 1, 2)
        self.data = draw(2).clamp(-1, 1)

    def draws(self):
        """The same noise, one after another."""
        stored = iter(self.noise)
        return lambda *_, **__: next(stored)

    @property
    def clips_mean(self):
        """What our ancestral steps and bound have to be told."""
        return mean_is_clipped(self.mean, self.clip)


@pytest.fixture(params=range(CASES))
def case(request, published):
    return Case(request.param, *published)


def assert_same(got, want, tolerance=1e-6):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


def test_sampling(case):
    model, clip = case.model, case.clip
    for eta in (None, 0.0, 0.5):
        with mock.patch.object(torch, "randn_like", case.draws()):
            how = dict(noise=case.start, clip_denoised=clip, device="cpu")
            if eta is None:
                want = case.theirs.p_sample_loop(model, case.start.shape, **how)
            else:
                want = case.theirs.ddim_sample_loop(model, case.start.shape, eta=eta, **how)
        sampler, ours = ("ancestral", case.clips_mean) if eta is None else (("ddim", {"eta": eta}), clip)
        assert_same(case.ours.sample_from(model, case.start, case.draws(), sampler=sampler, clip=ours), want)


def test_bound(case):
    with mock.patch.object(torch, "randn_like", case.draws()):
        want = case.theirs.calc_bpd_loop(case.model, case.data, clip_denoised=case.clip)
    terms = BoundTerms.of(case.ours.parts, case.ours.table, case.ours.decoder)

    def every(clip):
        denoiser, levels = case.ours.denoiser(case.model, clip=clip), range(case.ours.num_steps, 0, -1)
        found = [
            terms(denoiser, case.data, torch.full((2,), level), case.noise[i], decoder_rows=2)
            for i, level in enumerate(levels)
        ]
        return [torch.stack(values, 1) for values in zip(*found, strict=True)]

    bits, _, _ = every(case.clips_mean)
    _, x_start_mse, eps_mse = every(case.clip)
    for name, values in {"vb": bits, "xstart_mse": x_start_mse, "mse": eps_mse}.items():
        assert_same(values, want[name])
    assert_same(prior_bits(case.ours.table, case.data), want["prior_bpd"])


def test_losses_and_their_gradients(case):
    noise, level = case.noise[0], torch.tensor([1, case.ours.num_steps])
    found = []
    for one in (
        lambda x, model: case.theirs.training_losses(model, x, level - 1, noise=noise),
        lambda x, model: case.ours.loss_terms(model, x, level, noise),
    ):
        shift = torch.zeros(2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
        terms = one(case.data, lambda x, time, shift=shift: case.model(x, time) + shift)
        (gradient,) = torch.autograd.grad(terms["loss"].sum(), shift)
        found.append((terms, gradient))
    (want, their_gradient), (got, our_gradient) = found
    assert_same(got["loss"], want["loss"])
    assert_same(our_gradient, their_gradient, tolerance=2e-5)  # theirs divides by a difference of two like numbers
    if "mse" in want:
        assert_same(got["mse"], want["mse"])
