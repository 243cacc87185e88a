"""Dynamic and static thresholds."""

from __future__ import annotations

import pytest
import torch
from guidance_support import level_at, system_of
from hypothesis import given
from hypothesis import strategies as st

from diffkit.errors import OptionError
from diffkit.guidance import DynamicThreshold, StaticThreshold
from diffkit.protocols import Estimate

Y = torch.tensor([0, 1])


def apply(guidance, x_start):
    return guidance.guide(lambda x, level, conditions: Estimate(x_start), x_start, None, {}).x_start


@given(
    share=st.one_of(st.sampled_from([0.5, 0.995, 1.0]), st.floats(0.01, 1.0)),
    size=st.integers(1, 40),
    scale=st.floats(0.1, 20),
    limit=st.floats(0.1, 3),
)
def test_dynamic_threshold_is_the_papers(share, size, scale, limit):
    x_start = torch.randn(3, 1, size, generator=torch.Generator().manual_seed(size)) * scale
    got = apply(DynamicThreshold(share, limit), x_start)
    s = torch.quantile(x_start.flatten(1).abs(), share, dim=1).clamp_min(limit).view(3, 1, 1)
    torch.testing.assert_close(got, x_start.clamp(-s, s) * limit / s, rtol=1e-4, atol=1e-5)
    assert got.abs().max() <= limit * (1 + 1e-6)


def test_a_dynamic_threshold_may_have_a_bound():
    x_start = torch.randn(2, 3, 4, 4) * 5
    torch.testing.assert_close(apply(DynamicThreshold(0.9, 1.0, 2.0), x_start), x_start.clamp(-2, 2) / 2)
    assert torch.equal(apply(DynamicThreshold(0.9, 2.0, 2.0), x_start), apply(StaticThreshold(2.0), x_start))
    with pytest.raises(OptionError, match=r"largest must be >= limit=1, got 0\.5"):
        DynamicThreshold(largest=0.5)


def test_what_lies_within_the_limit_is_left_alone():
    x_start = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.equal(apply(DynamicThreshold(0.9), x_start), x_start)
    assert torch.equal(apply(StaticThreshold(), x_start), x_start)


def test_static_threshold_is_clipping():
    x_start = torch.randn(2, 3, 4, 4) * 5
    assert torch.equal(apply(StaticThreshold(2.0), x_start), x_start.clamp(-2, 2))


def test_the_systems_own_clipping_then_changes_nothing():
    system = system_of()
    x, level = torch.randn(2, 3, 4, 4), level_at(system, 19)
    free, clipped = (
        system.denoiser(guidance=DynamicThreshold(0.9), clip=clip, y=Y)(x, level).x_start for clip in (False, True)
    )
    torch.testing.assert_close(free, clipped, rtol=0, atol=1e-6)
    plain = system.denoiser(clip=True, y=Y)(x, level).x_start
    assert not torch.allclose(plain, clipped, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DynamicThreshold(0.0), "percentile must be > 0 and <= 1, got 0.0"),
        (lambda: DynamicThreshold(0.9, limit=0), "limit must be > 0, got 0"),
        (lambda: StaticThreshold(-1), "limit must be > 0, got -1"),
    ],
)
def test_wrong_options(make, text):
    with pytest.raises(OptionError, match=text):
        make()
