"""Metrics of features: Frechet and kernel distances by torchmetrics, precision, recall and inception score.

All take tensors of features, so that they work with any feature network.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import DataError, needed
from diffkit.options import check_integer


@frozen(eq=False)
class FeatureStatistics:
    """Mean and covariance of features, float64.

    Attributes:
        mean: (D,).
        covariance: Unbiased, (D, D).
        count: Number of examples, >= 2.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Return the statistics of features (N, D)."""
        if len(features) < 2:
            raise DataError(f"statistics need at least 2 examples, got {len(features)}")
        x = features.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(mean, centred.T @ centred / (len(x) - 1), len(x))


class _PassThrough(nn.Module):
    """The feature network of a torchmetrics metric that is called with features: returns its argument."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: FeatureStatistics, fake: FeatureStatistics) -> float:
    """Return the Frechet distance ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``: FID, if features are Inception's.

    Source: Heusel et al. 2017, arXiv:1706.08500, section 3; by torchmetrics, which takes the square root's trace from
        the eigenvalues of the product.
    """
    if real.mean.shape != fake.mean.shape:
        raise DataError(f"features of {len(real.mean)} and {len(fake.mean)} dimensions cannot be compared")
    metric = _create_metric("fid", "FrechetInceptionDistance", feature=_PassThrough(len(real.mean)))
    metric = metric.set_dtype(torch.float64)
    metric.orig_dtype = torch.float64
    # The metric sums up features and their products; these sums follow from stored statistics, for any count.
    for kind, s in (("real", real), ("fake", fake)):
        setattr(metric, f"{kind}_features_sum", s.mean * s.count)
        cov_sum = s.covariance * (s.count - 1) + s.count * torch.outer(s.mean, s.mean)
        setattr(metric, f"{kind}_features_cov_sum", cov_sum)
        setattr(metric, f"{kind}_features_num_samples", torch.tensor(s.count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "compute before update": the sums were set, not added up
        return float(metric.compute())


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance KID, the mean squared MMD with a cubic kernel over subsets, and its standard error.

    Args:
        real, fake: Features, (N, D).
        subsets: Number of random subsets.
        subset_size: Examples in a subset, at most as many as there are.
        seed: Seed of the subsets.
    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4; by torchmetrics.
    """
    size = min(check_integer("subset_size", subset_size, ge=2), len(real), len(fake))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # the warning that it stores all features, as intended here
        torch.manual_seed(seed)
        metric = _create_metric(
            "kid", "KernelInceptionDistance", feature=_PassThrough(real.shape[1]), subsets=subsets, subset_size=size
        )
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation) / subsets**0.5


def inception_score(logits: Tensor, *, split_size: int = 5000) -> tuple[float, float]:
    """Return the inception score: over splits, the mean and spread of exp(mean KL of classes from the split's).

    Splits are consecutive runs of ``split_size`` examples; a shorter last one has the same weight, as in the published
    evaluations of guided-diffusion.

    Args:
        logits: (N, K).
        split_size: Examples of a split.
    Returns:
        Mean and standard deviation over the splits (0 for a single one).
    Source: Salimans et al. 2016, arXiv:1606.03498, section 4.
    Deviates: not torchmetrics', which shuffles by the global generator and takes a number of splits.
    """
    log_p = logits.double().log_softmax(1)
    scores = []
    for part in torch.split(log_p, check_integer("split_size", split_size, ge=1)):
        marginal = part.exp().mean(0)
        kl = (part.exp() * (part - marginal.clamp(min=1e-300).log())).sum(1)
        scores.append(kl.mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(unbiased=False))


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = 3, rows: int = 1024) -> tuple[float, float]:
    """Return precision and recall: the shares of samples in the manifold of the data, and of data in the samples'.

    A manifold is the union of balls around its examples, each with the distance to the k-th nearest other as radius.

    Args:
        real, fake: Features, (N, D).
        neighbours: k.
        rows: Number of rows of distances in memory at a time.
    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, section 3, with its k = 3.
    """
    check_integer("neighbours", neighbours, ge=1)
    if min(len(real), len(fake)) <= neighbours:
        raise DataError(f"{neighbours} neighbours need more than {neighbours} examples of each")
    real, fake = real.double(), fake.double()
    return _share_inside(fake, real, neighbours, rows), _share_inside(real, fake, neighbours, rows)


def _share_inside(points: Tensor, centres: Tensor, neighbours: int, rows: int) -> float:
    """Return the share of points in the manifold of the centres."""
    reach = torch.cat(
        [_squared_distances(part, centres).kthvalue(neighbours + 1, 1).values for part in torch.split(centres, rows)]
    )
    found = torch.cat([(_squared_distances(part, centres) <= reach).any(1) for part in torch.split(points, rows)])
    return float(found.double().mean())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances, (A, D), (B, D) -> (A, B)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def need_torchmetrics() -> None:
    """Raise `MissingExtraError` unless torchmetrics is installed."""
    with needed("metrics", "this metric"):
        import torchmetrics  # noqa: F401


def _create_metric(module: str, name: str, **options: Any) -> Any:
    need_torchmetrics()
    return getattr(importlib.import_module(f"torchmetrics.image.{module}"), name)(**options)
