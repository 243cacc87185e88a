"""Every stored loss, its terms and its gradient, against improved-diffusion."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from reference import MEANS, PROCESSES, VARS, assert_close, compose, fixed_model, golden, mean_is_clipped

from diffkit.system.bound import BoundTerms

LOSSES = {
    "MSE": ("hybrid", {"vb_weight": 1.0, "scale_by_steps": False}),
    "RESCALED_MSE": ("hybrid", {}),
    "KL": ("vlb", {"scale_by_steps": False}),
    "RESCALED_KL": ("vlb", {}),
}


def loss_of(name: str, var: str):
    learned = var.startswith("LEARNED")
    return "simple" if name.endswith("MSE") and not learned else LOSSES[name]


def stored_losses():
    for process, mean, var, loss in product(PROCESSES, MEANS, VARS, LOSSES):
        if f"loss__{mean}__{var}__{loss}__loss" in golden(f"losses_{process}"):
            yield process, mean, var, loss


@pytest.mark.parametrize(("process", "mean", "var", "loss"), [*stored_losses()])
@pytest.mark.parametrize("rows", ["all", "few"])
def test_training_losses(process, mean, var, loss, rows):
    stored = golden(f"losses_{process}")
    key = f"loss__{mean}__{var}__{loss}__"
    x_start, noise = (torch.from_numpy(stored[n]) for n in ("x_start", "noise"))
    t = torch.from_numpy(stored["t"])
    output = torch.from_numpy(stored["model_output"])
    leaf = fixed_model(output, var)(None, None).clone().requires_grad_()
    system = compose(PROCESSES[process], mean=mean, var=var, loss=loss_of(loss, var))
    decoder_rows = None if rows == "all" else int((t == 0).sum())
    terms = system.loss_terms(lambda x, time: leaf, x_start, t + 1, noise, decoder_rows=decoder_rows)
    assert_close(terms["loss"], stored, key + "loss")
    if key + "mse" in stored:
        assert_close(terms["mse"], stored, key + "mse")
    if key + "vb" in stored:
        weight = system.num_steps / 1000 if loss == "RESCALED_MSE" else 1.0
        assert_close(terms["vb"] * weight, stored, key + "vb")
    (gradient,) = torch.autograd.grad(terms["loss"].mean(), leaf)
    assert_close(gradient, stored, key + "grad")


def stored_bounds():
    for process, mean, var, clip in product(PROCESSES, MEANS, VARS, ("clip", "noclip")):
        if f"vb__{mean}__{var}__{clip}__output" in golden(f"losses_{process}"):
            yield process, mean, var, clip


@pytest.mark.parametrize(("process", "mean", "var", "clip"), [*stored_bounds()])
def test_bound_term_at_a_level(process, mean, var, clip):
    stored = golden(f"losses_{process}")
    key = f"vb__{mean}__{var}__{clip}__output"
    x_start, noise, t, output = (torch.from_numpy(stored[n]) for n in ("x_start", "noise", "t", "model_output"))
    system = compose(PROCESSES[process], mean=mean, var=var)
    terms = BoundTerms.of(system.parts, system.table, system.decoder)
    denoiser = system.denoiser(fixed_model(output, var), clip=mean_is_clipped(mean, clip == "clip"))
    got, _, _ = terms(denoiser, x_start, t + 1, noise, len(t))
    assert_close(got, stored, key)
