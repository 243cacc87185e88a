"""Normal data of any covariance: the exact network, the exact posterior, what a deterministic walk makes of both."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

import diffkit
from diffkit.testing.oracles import MixtureOracle, network_of


@frozen(eq=False)
class FullGaussian:
    """Data is N(mean, covariance), flattened; all rows of a batch are at one level."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def x_start(self, x, alpha, sigma):
        """E[x_start | x_t]."""
        a, s = alpha.flatten()[0], sigma.flatten()[0]
        inverse = torch.linalg.inv(a**2 * self.covariance + s**2 * torch.eye(len(self.mean)).double())
        return (self.mean + (x.flatten(1) - a * self.mean) @ (a * inverse @ self.covariance)).view_as(x)


def some_gaussian(size: int, spread: float | None = None) -> FullGaussian:
    """Data with correlations; with ``spread``, every value on its own with that standard deviation."""
    rng = np.random.default_rng(0)
    mean = torch.from_numpy(rng.normal(size=size) * 0.3)
    root = torch.from_numpy(rng.normal(size=(size, size)) * 0.4)
    covariance = root @ root.T + 0.02 * torch.eye(size) if spread is None else spread**2 * torch.eye(size)
    return FullGaussian(mean, covariance.double())


def posterior(data: FullGaussian, matrix: torch.Tensor, y: torch.Tensor, noise_std: float):
    """Mean and covariance of data given y = matrix data + noise, in closed form."""
    cross = data.covariance @ matrix.T
    gain = cross @ torch.linalg.inv(matrix @ cross + noise_std**2 * torch.eye(len(matrix)).double())
    return data.mean + gain @ (y - matrix @ data.mean), data.covariance - gain @ cross.T


def system_for(shape: tuple[int, ...], **more) -> diffkit.System:
    parts = dict(schedule="cosine", clip_x_start=False, bins=None, num_steps=1000) | more
    return diffkit.compose(backbone=None, data_shape=shape, **parts)


def affine_law(system, data, measurement, guidance, *, steps, sampler):
    """Mean and covariance of what a deterministic sampler makes of noise: exact, since every step is affine in x."""
    size = len(data.mean)
    out = system.sample(
        size + 1,
        start=torch.cat([torch.zeros(1, size), torch.eye(size)]).view(-1, *system.data_shape),
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        model=network_of(data, system),
        measurement=measurement.float().expand(size + 1, *measurement.shape),
        progress=False,
    )
    flat = out.double().flatten(1)
    columns = (flat[1:] - flat[0]).T
    return flat[0], columns @ columns.T


def bimodal(shape: tuple[int, ...], std: float = 0.25) -> MixtureOracle:
    """Two modes, at -0.5 and 0.5 in every value."""
    mode = torch.full(shape, 0.5, dtype=torch.float64)
    return MixtureOracle([0.5, 0.5], torch.stack([mode, -mode]), std)


def bimodal_data(n: int, shape: tuple[int, ...], std: float = 0.25) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (n, *(1,) * len(shape)), generator=generator) * 2 - 1
    return 0.5 * sign + std * torch.randn(n, *shape, generator=generator)
