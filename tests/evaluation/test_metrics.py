"""Metrics of features against the published evaluator's numbers, other formulas and laws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffkit.errors import DataError, MissingExtraError, OptionError
from diffkit.evaluation.metrics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

pytest.importorskip("torchmetrics")
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("case", ["full_rank", "rank_deficient"])
def test_fid_is_the_published_evaluators(case):
    """Which takes its means in float32; rank-deficient, its matrix root is off by 4e-6 from 0 for equal sets."""
    x, y = (FeatureStatistics.of(golden(f"{case}__{name}")) for name in "xy")
    np.testing.assert_allclose(x.mean, GOLDEN[f"{case}__mu_x"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(x.covariance, GOLDEN[f"{case}__sigma_x"], rtol=1e-9, atol=1e-9)
    assert frechet_distance(x, y) == pytest.approx(float(GOLDEN[f"{case}__fid"]), rel=1e-7)
    assert abs(frechet_distance(x, x)) < 1e-5


def test_fid_of_gaussians_in_closed_form():
    """For commuting covariances: |m1 - m2|^2 + sum (sqrt(l1) - sqrt(l2))^2."""
    basis, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    l1, l2 = torch.rand(5).double() + 0.1, torch.rand(5).double() + 0.1
    m1, m2 = torch.randn(5).double(), torch.randn(5).double()
    a = FeatureStatistics(m1, basis @ l1.diag() @ basis.T, 7)
    b = FeatureStatistics(m2, basis @ l2.diag() @ basis.T, 100)
    expected = (m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-9)


def test_fid_does_not_lose_digits_far_from_the_origin():
    x, y = torch.randn(200, 4).double(), torch.randn(300, 4).double() * 2
    near = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    far = frechet_distance(FeatureStatistics.of(x + 1e4), FeatureStatistics.of(y + 1e4))
    assert far == pytest.approx(near, rel=1e-5)


def test_precision_and_recall_are_the_published_evaluators():
    real, fake = golden("pr_ref"), golden("pr_sample")
    for rows in (7, 1024):
        precision, recall = precision_recall(real, fake, rows=rows)
        assert (precision, recall) == (float(GOLDEN["precision"]), float(GOLDEN["recall"]))


def test_precision_and_recall_by_brute_force():
    real, fake = torch.randn(40, 3).double(), torch.randn(30, 3).double() * 0.7 + 0.3

    def inside(points, centres, k):
        reach = [sorted((c - o).norm() for o in centres)[k] for c in centres]
        return np.mean([any((p - c).norm() <= r for c, r in zip(centres, reach, strict=True)) for p in points])

    for k in (1, 3, 5):
        found = precision_recall(real, fake, neighbours=k)
        assert found == (inside(fake, real, k), inside(real, fake, k))


def test_precision_and_recall_see_a_missing_half():
    real = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 50])
    precision, recall = precision_recall(real, torch.randn(200, 2))
    assert precision > 0.9 and 0.4 < recall < 0.6


def test_inception_score_is_the_published_evaluators():
    logits = golden("is_probs").log()
    assert inception_score(logits)[0] == pytest.approx(float(GOLDEN["inception_score_split5000"]), rel=1e-6)
    score, spread = inception_score(logits, split_size=50)  # 130 rows: the last split has 30
    assert score == pytest.approx(float(GOLDEN["inception_score_split50"]), rel=1e-6) and spread > 0


def test_inception_score_at_its_ends():
    same = torch.zeros(12, 6)
    assert inception_score(same)[0] == pytest.approx(1)
    sure = torch.eye(6).repeat(2, 1) * 1e3
    assert inception_score(sure)[0] == pytest.approx(6)


def test_inception_score_agrees_with_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    from diffkit.evaluation.metrics import _PassThrough

    logits = torch.randn(60, 9)
    with pytest.warns(UserWarning, match="InceptionScore"):
        theirs = InceptionScore(feature=_PassThrough(9), splits=1)
    theirs.update(logits)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        expected = float(theirs.compute()[0])
    assert inception_score(logits)[0] == pytest.approx(expected, rel=1e-5)


def test_kid_by_its_formula():
    real, fake = torch.randn(50, 4).double(), torch.randn(60, 4).double() + 0.5

    def kernel(a, b):
        return (a @ b.T / 4 + 1) ** 3

    m = 50
    subset = fake[:50]
    off = 1 - torch.eye(m)
    expected = (
        (kernel(real, real) * off).sum() / (m * (m - 1))
        + (kernel(subset, subset) * off).sum() / (m * (m - 1))
        - 2 * kernel(real, subset).mean()
    )
    value, error = kernel_distance(real, subset, subsets=3)
    assert value == pytest.approx(float(expected), rel=1e-9) and error == pytest.approx(0, abs=1e-9)
    part, spread = kernel_distance(real, fake, subsets=50, subset_size=30)
    assert abs(part - value) < 1 and spread > 0


def test_kid_leaves_the_global_generator_alone_and_follows_its_seed():
    real, fake = torch.randn(40, 3), torch.randn(40, 3)
    before = torch.random.get_rng_state()
    a, b, c = (kernel_distance(real, fake, subsets=5, subset_size=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state()) and a == b != c


def test_too_little_data():
    with pytest.raises(DataError, match="statistics need at least 2 examples, got 1"):
        FeatureStatistics.of(torch.zeros(1, 3))
    with pytest.raises(DataError, match="3 neighbours need more than 3 examples of each"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(DataError, match="features of 2 and 3 dimensions cannot be compared"):
        frechet_distance(FeatureStatistics.of(torch.rand(4, 2)), FeatureStatistics.of(torch.rand(4, 3)))
    with pytest.raises(OptionError, match="split_size must be >= 1, got 0"):
        inception_score(torch.zeros(3, 2), split_size=0)
    assert not math.isnan(
        frechet_distance(FeatureStatistics.of(torch.rand(2, 2)), FeatureStatistics.of(torch.rand(2, 2)))
    )


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    x = FeatureStatistics.of(torch.rand(4, 2))
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[metrics\]"'):
        frechet_distance(x, x)
