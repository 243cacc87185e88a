"""One level at a time: noising, posterior, p(x_{k-1} | x_k) and the decoder, against improved-diffusion."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from reference import MEANS, PROCESSES, VARS, assert_close, compose, fixed_model, golden, mean_is_clipped

from diffkit.gaussian import mean_flat, normal_kl
from diffkit.parts.decoders.binned import Binned
from diffkit.system.bound import BoundTerms, prior_bits


def inputs(stored):
    names = ("x_start", "noise", "t", "model_output", "x_t")
    return tuple(torch.from_numpy(stored[name]) for name in names)


def rows_of(column, t):
    return torch.tensor(column)[t + 1].float().view(-1, 1, 1, 1)


@pytest.mark.parametrize("process", PROCESSES)
def test_forward_process_and_posterior(process):
    stored = golden(f"process_{process}")
    x_start, noise, t, _, x_t = inputs(stored)
    system = compose(PROCESSES[process])
    table, posterior = system.table, system.table.posterior()
    ones = torch.ones_like(x_start)
    assert_close(rows_of(table.alpha, t) * x_start + rows_of(table.sigma, t) * noise, stored, "q_sample")
    assert_close(rows_of(table.alpha, t) * x_start, stored, "q_mean")
    assert_close(rows_of(table.one_minus_alpha_bar, t) * ones, stored, "q_variance")
    mean = rows_of(posterior.coef_x_start, t) * x_start + rows_of(posterior.coef_x_t, t) * x_t
    assert_close(mean, stored, "posterior_mean")
    assert_close(rows_of(posterior.variance, t) * ones, stored, "posterior_variance")
    assert_close(rows_of(table.posterior_log_variance, t) * ones, stored, "posterior_log_variance")
    assert_close(prior_bits(table, x_start), stored, "prior_bpd")


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("mean", "key"), [("EPSILON", "predict_xstart_from_eps"), ("PREVIOUS_X", "predict_xstart_from_xprev")]
)
def test_decoding_a_prediction(process, mean, key):
    stored = golden(f"process_{process}")
    _, _, t, output, x_t = inputs(stored)
    system = compose(PROCESSES[process], mean=mean)
    found = system.objective.columns.blocks["level"]
    got = rows_of(found["c_skip"], t) * x_t + rows_of(found["c_out"], t) * output[:, :3]
    assert_close(got, stored, key)


def stored_means():
    for process, mean, var, mode in product(PROCESSES, MEANS, VARS, ("clip", "noclip", "clip_denoisedfn")):
        if f"{mean}__{var}__{mode}__mean" in golden(f"p_mean_variance_{process}"):
            yield process, mean, var, mode


@pytest.mark.parametrize(("process", "mean", "var", "mode"), [*stored_means()])
def test_p_mean_variance(process, mean, var, mode):
    stored = golden(f"p_mean_variance_{process}")
    key = f"{mean}__{var}__{mode}__"
    _, _, t, output, x_t = inputs(stored)
    system = compose(PROCESSES[process], mean=mean, var=var)
    terms = BoundTerms.of(system.parts, system.table, system.decoder)
    rows = terms.columns.on(x_t.device)[t + 1]
    transition = terms.columns.transition(rows, x_t.ndim)
    change = (lambda x: 0.5 * x + 0.1) if mode == "clip_denoisedfn" else None
    level = terms.columns.level(rows, x_t.ndim)
    got = system.denoiser(fixed_model(output, var), clip=mode != "noclip", x_transform=change)(x_t, level)
    assert_close(got.x_start, stored, key + "pred_xstart")
    assert_close(got.log_variance.expand_as(x_t), stored, key + "log_variance")
    variance = got.log_variance.exp().expand_as(x_t)
    if var == "FIXED_SMALL":  # the reference's variance is 0 at the last step, which its log does not say
        assert (stored[key + "variance"][t == 0] == 0).all()
        variance = variance.where(t.view(-1, 1, 1, 1) > 0, 0)
    assert_close(variance, stored, key + "variance")
    if mode != "noclip" and not mean_is_clipped(mean, clip=True):
        got = system.denoiser(fixed_model(output, var), clip=False)(x_t, level)
    posterior_mean = transition.coef_x_start * got.x_start + transition.coef_x_t * x_t
    assert_close(posterior_mean, stored, key + "mean")


def test_primitives():
    stored = golden("primitives")
    m1, v1, m2, v2 = (torch.from_numpy(stored[f"kl_{n}"]) for n in ("mean1", "logvar1", "mean2", "logvar2"))
    zero = torch.zeros(())
    assert_close(normal_kl(m1, v1, m2, v2), stored, "normal_kl")
    assert_close(normal_kl(m1, v1, zero, zero), stored, "normal_kl_scalar2")
    assert_close(normal_kl(m1, zero - 1, m2, v2), stored, "normal_kl_scalar_logvar1")
    assert_close(mean_flat(normal_kl(m1, v1, m2, v2)), stored, "mean_flat_kl")


@pytest.mark.parametrize("suffix", ["", "_edges"])
def test_decoder_likelihood(suffix):
    """In float32 against the float64 numbers: there the reference itself is off by up to 10 nats."""
    stored = golden("primitives")
    key = f"discretized_gaussian_log_likelihood{suffix}"
    x, mean, log_std = (torch.from_numpy(stored[f"dgl_{n}{suffix}"]) for n in ("x", "means", "log_scales"))
    want = stored[f"{key}__f64"].copy()
    # float32 and float64 read the threshold 0.999 differently; the comparison is a float32 one.
    threshold = np.isclose(stored[f"dgl_x{suffix}"], 0.999, atol=1e-7)
    want[threshold] = stored[key][threshold]
    np.testing.assert_allclose(Binned(256).log_prob(x, mean, 2 * log_std), want, rtol=2e-5, atol=2e-5)


def test_without_a_floor_the_tails_go_on():
    stored = golden("primitives")
    x, mean, log_std = (torch.from_numpy(stored[f"dgl_{n}"]) for n in ("x", "means", "log_scales"))
    floored, free = (Binned(256, floor=f).log_prob(x, mean, 2 * log_std) for f in (1e-12, 0))
    at_floor = floored <= np.log(1e-12)
    assert at_floor.any() and torch.all(free[at_floor] < floored[at_floor]) and free.isfinite().all()
    torch.testing.assert_close(free[~at_floor], floored[~at_floor])
