"""Tables, spacings and respaced tables against improved-diffusion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reference import GOLDEN, golden

from diffkit import ProcessTable, respace
from diffkit.registry import registry
from diffkit.spacing import levels

SIZES = {"linear": (1, 20, 100, 1000, 4000), "cosine": (1, 2, 10, 20, 100, 1000, 4000)}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def named_columns(table: ProcessTable) -> dict[str, np.ndarray]:
    posterior = table.posterior()
    a, noise = table.alpha_bar, table.one_minus_alpha_bar
    with np.errstate(divide="ignore"):  # a level without signal, as in the reference
        return {
            "betas": table.beta[1:],
            "alphas_cumprod": a[1:],
            "alphas_cumprod_prev": a[:-1],
            "alphas_cumprod_next": np.append(a[2:], 0.0),
            "sqrt_alphas_cumprod": table.alpha[1:],
            "sqrt_one_minus_alphas_cumprod": table.sigma[1:],
            "log_one_minus_alphas_cumprod": np.log(noise[1:]),
            "sqrt_recip_alphas_cumprod": 1 / table.alpha[1:],
            "sqrt_recipm1_alphas_cumprod": table.sigma[1:] / table.alpha[1:],
            "posterior_variance": posterior.variance[1:],
            "posterior_log_variance_clipped": table.posterior_log_variance[1:],
            "posterior_mean_coef1": posterior.coef_x_start[1:],
            "posterior_mean_coef2": posterior.coef_x_t[1:],
        }


@pytest.mark.parametrize(("name", "size"), CASES)
def test_schedule_is_the_references(name, size):
    table = registry("schedule").create(name).table(size)
    np.testing.assert_allclose(table.beta[1:], golden("schedules")[f"betas_{name}_{size}"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("cap", [0.5, 0.999])
def test_the_square_root_s_betas_are_the_references(size, cap):
    table = registry("schedule").create("sqrt", max_beta=cap).table(size)
    want = golden("schedules")[f"betas_for_alpha_bar_sqrt_{size}_max{cap}"]
    np.testing.assert_allclose(table.beta[1:], want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("name", "size"), [c for c in CASES if f"{c[0]}_{c[1]}__betas" in golden("tables")])
def test_every_table_is_the_references(name, size):
    stored = golden("tables")
    for column, got in named_columns(registry("schedule").create(name).table(size)).items():
        want = stored[f"{name}_{size}__{column}"]
        rtol = 1e-9 if column.startswith(("sqrt_recipm1", "log_", "posterior_log")) else 1e-12
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-15, err_msg=column)


@pytest.mark.parametrize(("name", "size"), [c for c in CASES if f"{c[0]}_{c[1]}__betas" in golden("tables")])
@pytest.mark.parametrize("var", ["fixed_small", "fixed_large"])
def test_fixed_log_variances_are_the_references(name, size, var):
    table = registry("schedule").create(name).table(size)
    got = registry("var").create(var).columns(table)["log_variance"][1:]
    stored, key = golden("tables"), f"{name}_{size}__{var.upper()}"
    np.testing.assert_allclose(got, stored[f"{key}_log_variance_f32"], rtol=1e-6)
    # a variance of 0 at level 1 has no log, for which both take the posterior's at level 2
    first = 1 if var == "fixed_small" else 0
    np.testing.assert_allclose(np.exp(got)[first:], stored[f"{key}_variance_f32"][first:], rtol=1e-6)


STORED_SPACINGS = json.loads((GOLDEN / "space_timesteps.json").read_text())
# Where diffkit differs on purpose: one level alone is the noisiest (the reference keeps the cleanest, from which its
# own sampler fails), a count below 1 is an error instead of nothing, an empty text is every level.
DEVIATIONS = {(7, "1"), (10, "0,5"), (10, "0"), (10, "-3"), (10, ""), (1000, ""), (1, "ddim1")}


def as_text(counts):
    return counts if isinstance(counts, str) else ",".join(map(str, counts if isinstance(counts, list) else [counts]))


@pytest.mark.parametrize("case", STORED_SPACINGS, ids=lambda c: f"{c['num_timesteps']}-{c['section_counts']}"[:40])
def test_spacing_is_the_references(case):
    counts, total = case["section_counts"], case["num_timesteps"]
    if (total, as_text(counts)) in DEVIATIONS or isinstance(counts, int):
        pytest.skip("differs on purpose")
    if "steps" in case:
        assert [k - 1 for k in levels(total, as_text(counts))] == case["steps"]
    else:
        with pytest.raises(ValueError, match=r"steps must|spacing|no whole stride|alone"):
            levels(total, as_text(counts))


@pytest.mark.parametrize(
    ("key", "schedule", "size", "spacing"),
    [
        ("cosine_4000_100", "cosine", 4000, "100"),
        ("linear_1000_ddim50", "linear", 1000, "ddim50"),
        ("cosine_1000_10-15-20", "cosine", 1000, "10,15,20"),
        ("linear_4000_25", "linear", 4000, "25"),
        ("cosine_100_100", "cosine", 100, [*range(1, 101)]),
    ],
)
def test_respaced_tables_are_the_references(key, schedule, size, spacing):
    stored = golden("spaced_diffusion")
    table = registry("schedule").create(schedule).table(size)
    spaced = respace(table, levels(size, spacing))
    np.testing.assert_array_equal(spaced.index[1:] - 1, stored[f"{key}__timestep_map"])
    for column, got in named_columns(spaced).items():
        # The reference rebuilds alpha_bar from products of ratios; here it is selected. Hence 1e-9.
        np.testing.assert_allclose(got, stored[f"{key}__{column}"], rtol=1e-9, atol=1e-15, err_msg=column)
    np.testing.assert_array_equal(spaced.time[1:], stored[f"{key}__model_t_rescale_off"])
    rescaled = respace(table.with_time(table.time * (1000 / size)), levels(size, spacing))
    np.testing.assert_allclose(rescaled.time[1:], stored[f"{key}__model_t_rescale_on_f32"], rtol=1e-6)
