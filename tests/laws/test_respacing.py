"""Laws of respacing and of spacings."""

from __future__ import annotations

import numpy as np
import pytest
from exact import posterior_from_betas, posterior_from_scales
from hypothesis import given
from hypothesis import strategies as st

from diffkit.errors import OptionError
from diffkit.registry import registry
from diffkit.spacing import levels
from diffkit.table import ProcessTable, respace
from diffkit.testing import strategies

TABLES = [registry("schedule").create("cosine").table(num_steps) for num_steps in (1, 2, 3, 20, 4000)]


@st.composite
def spaced(draw):
    table = draw(strategies.any_tables() | st.sampled_from(TABLES))
    size = min(table.num_steps, 60)
    keep = draw(strategies.respacings(size).map(lambda kept: [1 + (k - 1) * table.num_steps // size for k in kept]))
    return table, keep


@given(strategies.any_tables() | st.sampled_from(TABLES))
def test_selecting_every_level_is_the_identity(table):
    assert respace(table, range(1, table.num_steps + 1)) == table


@given(spaced())
def test_selected_levels_are_bitwise_equal(case):
    table, keep = case
    short = respace(table, keep)
    assert short.num_steps == len(keep)
    for name in ("alpha_bar", "one_minus_alpha_bar", "total_std", "time", "index", "alpha", "sigma", "log_snr"):
        assert np.array_equal(getattr(short, name), getattr(table, name)[[0, *keep]])


@given(spaced(), st.data())
def test_respacing_twice_is_respacing_once(case, data):
    table, keep = case
    short = respace(table, keep)
    again = data.draw(strategies.respacings(len(keep)))
    assert respace(short, again) == respace(table, [keep[k - 1] for k in again])


@given(spaced())
def test_betas_of_the_short_chain_lead_to_its_levels(case):
    short = respace(*case)
    np.testing.assert_allclose(np.cumprod(1 - short.beta), short.alpha_bar, rtol=1e-9, atol=1e-300)


@given(strategies.betas(3), st.data())
def test_posterior_of_the_short_chain_is_bayes_rule_between_selected_levels(betas, data):
    table = ProcessTable.from_betas(betas)
    keep = data.draw(strategies.respacings(len(betas)))
    if len(keep) < 2:
        return
    short = respace(table, keep)
    exact = np.array(posterior_from_scales(short.alpha[1:], short.sigma[1:]), dtype=np.float64)
    lost = 1e-15 / short.beta[2:] + 1e-15 / short.one_minus_alpha_bar[1:-1]
    for column, wanted in zip(short.posterior(), exact.T, strict=True):
        assert np.all(np.abs(column[2:] - wanted) <= (1e-12 + 40 * lost) * np.abs(wanted))


def test_the_exact_arithmetic_agrees_with_itself():
    betas = np.array([1e-4, 0.02, 0.3, 0.7])
    table = ProcessTable.from_betas(betas)
    one, other = posterior_from_betas(betas), posterior_from_scales(table.alpha[1:], table.sigma[1:])
    np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-11)


COUNTED = ["{}", "trailing{}", "leading{}", "linspace{}"]


@pytest.mark.parametrize("form", COUNTED)
@given(st.integers(1, 300), st.data())
def test_spacing_has_that_many_levels_in_order(form, num_steps, data):
    count = data.draw(st.integers(1 if form != "leading{}" else min(2, num_steps), num_steps))
    kept = levels(num_steps, form.format(count))
    assert len(kept) == count
    assert list(kept) == sorted(set(kept))
    assert kept[0] >= 1 and kept[-1] <= num_steps


@pytest.mark.parametrize("form", COUNTED)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 4000])
def test_as_many_as_there_are_is_all(form, num_steps):
    assert levels(num_steps, form.format(num_steps)) == tuple(range(1, num_steps + 1))


@given(st.integers(1, 4000), st.data())
def test_ends_of_spacings(num_steps, data):
    count = data.draw(st.integers(1, num_steps))
    assert levels(num_steps, count)[-1] == num_steps
    assert levels(num_steps, f"trailing{count}")[-1] == num_steps
    if count > 1 or num_steps == 1:
        assert levels(num_steps, f"leading{count}")[0] == 1
    if count > 1:
        assert levels(num_steps, count)[0] == levels(num_steps, f"linspace{count}")[0] == 1


@given(st.integers(1, 400), st.data())
def test_spacing_is_even(num_steps, data):
    count = data.draw(st.integers(min(2, num_steps), num_steps))
    for form in ("trailing{}", "leading{}", "linspace{}", "{}"):
        gaps = np.diff(levels(num_steps, form.format(count)))
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 2


@given(st.integers(1, 400), st.integers(1, 40))
def test_ddim_spacing_is_a_whole_stride_or_an_error(num_steps, count):
    try:
        kept = levels(num_steps, f"ddim{count}")
    except OptionError as error:
        assert count > num_steps or "leading" in str(error) or "is level 1 alone" in str(error)
        return
    assert len(kept) == count and kept[0] == 1
    assert len(set(np.diff(kept))) <= 1


@pytest.mark.parametrize("form", ["ddim1", "leading1"])
def test_the_cleanest_level_alone_is_no_chain(form):
    with pytest.raises(OptionError, match=f"spacing '{form}' is level 1 alone, where no chain can start; use 1 or"):
        levels(10, form)
    assert levels(1, form) == (1,)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(12, 200))
def test_sections_keep_their_counts(counts, size):
    num_steps = size * len(counts)
    kept = np.array(levels(num_steps, ",".join(map(str, counts))))
    if counts == [1]:
        return
    found = [int(((kept - 1) // size == i).sum()) for i in range(len(counts))]
    assert found == counts


@given(st.integers(1, 50), st.data())
def test_a_list_of_levels_is_itself(num_steps, data):
    keep = data.draw(strategies.respacings(num_steps))
    assert levels(num_steps, keep) == tuple(keep)
