"""Laws of the posterior, of KL and of the learned range, on tables of every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact import posterior_from_betas, posterior_from_scales
from hypothesis import example, given
from hypothesis import strategies as st

from diffkit.gaussian import normal_kl, posterior_kl_bits, trained_kl_bits
from diffkit.registry import registry
from diffkit.table import ProcessTable
from diffkit.testing import strategies

EDGES = [(name, num_steps) for name in ("cosine", "linear") for num_steps in (1, 2, 3, 20, 4000)]
TABLES = [
    registry("schedule").create(name).table(num_steps)
    for name, num_steps in EDGES
    if name == "cosine" or num_steps >= 20
]


def each_edge(law):
    """Also run a law on the published schedules at T = 1, 2, 3, 20 and 4000, where they exist."""
    for table in TABLES:
        law = example(table)(law)
    return law


def assert_close(found, wanted, tolerance, size=None):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.all(np.abs(found - wanted) <= tolerance * (np.abs(wanted) if size is None else size))


@given(strategies.betas(2))
def test_bayes_rule_on_a_variance_preserving_path(betas):
    posterior = ProcessTable.from_betas(betas).posterior()
    exact = np.array(posterior_from_betas(betas), dtype=np.float64)
    # 1 - alpha_bar is a float64 difference in from_betas, as in the reference: exact to 1e-16 absolute.
    slack = 1e-15 / ProcessTable.from_betas(betas).one_minus_alpha_bar[1:-1]
    for column, wanted in zip(posterior, exact.T, strict=True):
        assert_close(column[2:], wanted, 1e-12 + 4 * slack)


@pytest.mark.parametrize("path", ["ve", "linear"])
@given(data=st.data())
def test_bayes_rule_on_other_paths(path, data):
    table = data.draw(strategies.tables(path, 2))
    exact = np.array(posterior_from_scales(table.alpha[1:], table.sigma[1:]), dtype=np.float64)
    lost = 1e-15 / table.beta[2:] + 1e-15 / np.maximum(table.alpha_bar[2:], 1e-15)
    for column, wanted in zip(table.posterior(), exact.T, strict=True):
        assert_close(column[2:], wanted, 1e-12 + 40 * lost)


@given(strategies.any_tables())
@each_edge
def test_posterior_averaged_over_x_t_is_the_marginal(table):
    alpha, sigma, posterior = table.alpha, table.sigma, table.posterior()
    x_start, x_t, variance = (column[1:] for column in posterior)
    size = np.maximum(table.total_std[:-1], 1e-3)
    assert_close(x_start + x_t * alpha[1:], alpha[:-1], 1e-10, size)
    assert_close((x_t * sigma[1:]) ** 2 + variance, sigma[:-1] ** 2, 1e-10, size**2)


@given(strategies.any_tables())
@each_edge
def test_steps_have_the_tables_posterior(table):
    stepwise = table.steps().posterior()
    for name in ("coef_x_start", "coef_x_t", "variance"):
        ours, theirs = getattr(stepwise, name)[::-1], getattr(table.posterior(), name)[1:]
        assert_close(ours, theirs, 1e-9, np.maximum(np.abs(theirs), 1e-3 * table.total_std[:-1]))


@given(strategies.tables("vp"))
@each_edge
def test_posterior_variance_lies_between_nothing_and_beta(table):
    variance = table.posterior().variance[1:]
    assert np.all(variance >= 0)
    assert np.all(variance <= table.upper_variance[1:] * (1 + 1e-12))
    assert np.all(table.posterior_log_variance <= table.upper_log_variance + 1e-12)


@given(strategies.any_tables(2))
def test_upper_variance_is_the_posteriors_for_unit_normal_data(table):
    """Var[x_s | x_t] for data of variance 1: posterior variance, and what not knowing x_start adds."""
    posterior, k = table.posterior(), slice(2, None)
    unknown = table.sigma[k] ** 2 / table.total_std[k] ** 2
    exact = posterior.variance[k] + posterior.coef_x_start[k] ** 2 * unknown
    assert_close(table.upper_variance[k], exact, 1e-9, table.upper_variance[k] + 1e-9 * table.total_std[k] ** 2)


@given(strategies.any_tables())
@each_edge
def test_clipped_log_variances_are_finite_and_only_level_1_is_clipped(table):
    log_variance, variance = table.posterior_log_variance, table.posterior().variance
    assert np.all(np.isfinite(log_variance)) and np.all(np.isfinite(table.upper_log_variance))
    assert_close(log_variance[2:], np.log(np.maximum(variance[2:], 1e-20)), 1e-12, 1.0)
    stands_in = variance[2] if table.num_steps > 1 else table.upper_variance[1]
    assert_close(log_variance[1], np.log(max(stands_in, 1e-20)), 1e-12, 1.0)


numbers = st.floats(-4, 4)


@given(numbers, numbers, numbers, numbers)
def test_kl_is_not_negative_and_zero_at_equality(mean1, log1, mean2, log2):
    a, b, c, d = (torch.tensor(v, dtype=torch.float64) for v in (mean1, log1, mean2, log2))
    assert normal_kl(a, b, c, d) >= 0
    assert normal_kl(a, b, a, b) == 0


@given(numbers, st.floats(-2, 2), numbers, st.floats(-2, 2))
def test_kl_is_the_integral_of_its_definition(mean1, log1, mean2, log2):
    x = torch.linspace(mean1 - 14 * np.exp(log1 / 2), mean1 + 14 * np.exp(log1 / 2), 4001, dtype=torch.float64)
    p, q = (
        torch.distributions.Normal(torch.tensor(m, dtype=torch.float64), np.exp(v / 2))
        for m, v in ((mean1, log1), (mean2, log2))
    )
    integral = torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x)
    found = normal_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean1, log1, mean2, log2)))
    assert abs(float(found - integral)) <= 1e-9 * (1 + float(integral))


@given(strategies.images((2, 1, 2, 2)), strategies.images((2, 1, 2, 2)), st.floats(-8, 2), st.floats(-1, 1))
def test_bound_term_is_a_kl(x_start, estimate, log_variance, difference):
    """posterior_kl_bits from a squared error is normal_kl of the two means."""
    weight = torch.tensor(0.7, dtype=torch.float64).exp()
    posterior = torch.tensor(log_variance, dtype=torch.float64)
    error = (x_start - estimate).double()
    found = posterior_kl_bits(error.square(), weight, posterior + difference, posterior)
    shift = (weight * error.square() * posterior.exp()).sqrt()
    wanted = normal_kl(shift, posterior, torch.zeros(()), posterior + difference).flatten(1).mean(1) / np.log(2)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert (found >= 0).all()


@given(
    strategies.images((2, 1, 2, 2)),
    st.floats(-6, 6),
    st.floats(-16, 2),
    st.lists(st.floats(-6, 4), min_size=1, max_size=9),
)
def test_the_kl_that_trains_is_the_same_in_value_and_gradient(error, log_weight, posterior, differences):
    """With one exponential instead of two, in float32, against the other in float64."""

    def value_and_gradients(kl_bits, dtype, same_shape=False):
        squared = error.to(dtype).square()[:, :, :, :1, None].requires_grad_()
        log_variance = (posterior + torch.tensor(differences, dtype=torch.float64)).to(dtype).requires_grad_()
        weight = torch.tensor(log_weight, dtype=dtype).exp()
        given = torch.broadcast_tensors(squared, log_variance) if same_shape else (squared, log_variance)
        value = kl_bits(given[0], weight, given[1], torch.tensor(posterior, dtype=torch.float64).to(dtype))
        return value, *torch.autograd.grad(value.sum(), (squared, log_variance))

    wanted = value_and_gradients(posterior_kl_bits, torch.float64)
    for same_shape in (False, True):
        for found, expected in zip(
            value_and_gradients(trained_kl_bits, torch.float32, same_shape), wanted, strict=True
        ):
            # log-variances of 16 are kept to 1e-6, and so are their exponentials
            torch.testing.assert_close(found, expected.float(), rtol=3e-6, atol=3e-6)
        exact = value_and_gradients(trained_kl_bits, torch.float64, same_shape)
        for found, expected in zip(exact, wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_kl_that_trains_has_second_derivatives():
    torch.manual_seed(0)
    log_variance, squared = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    weight, posterior = torch.rand(2, 2, 1, 1, dtype=torch.float64)
    given = (squared.square().requires_grad_(), log_variance.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda e, v: trained_kl_bits(e, weight, v, posterior), given)


@given(strategies.tables("vp"), st.lists(st.floats(-1, 1), min_size=1, max_size=5))
@example(TABLES[0], [-1.0, 1.0])
def test_learned_range_stays_between_its_ends(table, outputs):
    var = registry("var").create("learned_range")
    raw = torch.tensor(outputs, dtype=torch.float64)[:, None]
    columns = {name: torch.from_numpy(column[1:]) for name, column in var.columns(table).items()}
    found = var.log_variance(raw, columns).numpy()
    low, high = table.posterior_log_variance[1:], table.upper_log_variance[1:]
    assert np.all(found >= low - 1e-9) and np.all(found <= high + 1e-9)
    ends = var.log_variance(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), columns).numpy()
    assert_close(ends, np.stack([low, high]), 1e-9, 1.0)
