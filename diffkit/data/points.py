"""Toy data: points in the plane, of zero mean and unit variance, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def moons(count: int, rng: np.random.Generator) -> tuple[F64, NDArray[np.int64]]:
    """Draw points of two interleaved half circles of radius 1, blurred by 0.05; the class is the half circle."""
    label = rng.integers(0, 2, count)
    angle = rng.uniform(0, np.pi, count)
    x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], 1) + 0.05 * rng.standard_normal((count, 2)), label


def gaussians(count: int, rng: np.random.Generator) -> tuple[F64, NDArray[np.int64]]:
    """Draw points of eight Gaussians of width 0.1 on a circle of radius 1; the class is the Gaussian."""
    label = rng.integers(0, 8, count)
    angle = label * (np.pi / 4)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((count, 2)), label


def rings(count: int, rng: np.random.Generator) -> tuple[F64, NDArray[np.int64]]:
    """Draw points of two circles of radius 0.5 and 1, blurred by 0.03; the class is the circle."""
    label = rng.integers(0, 2, count)
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.where(label == 0, 0.5, 1.0)
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return circle + 0.03 * rng.standard_normal((count, 2)), label


KINDS = {"moons": moons, "gaussians": gaussians, "rings": rings}


def standardize_points(points: F64) -> NDArray[np.float32]:
    """Return points with zero mean and unit variance along each axis."""
    scaled: NDArray[np.float32] = ((points - points.mean(0)) / points.std(0)).astype(np.float32)
    return scaled
