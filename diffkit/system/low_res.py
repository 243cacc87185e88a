"""Noise on the small image of a super-resolution network: conditioning augmentation.

In training each small image gets noise of a random level. The network then relies less on its details, which in a
cascade are those of the stage before and not of real images, and at sampling some of the same noise hides their faults.
"""

from __future__ import annotations

import math

from torch import Tensor

LOW_RES, LOW_RES_LEVEL = "low_res", "low_res_level"
"""Conditions of a network: the small image, and the level of its noise, for a network that reads that."""


def with_noise(low_res: Tensor, level: Tensor | float, noise: Tensor) -> Tensor:
    """Return ``cos(pi level / 2) low_res + sin(pi level / 2) noise``, which keeps a variance of 1.

    Args:
        low_res: Small images, (B, c, *s).
        level: 0 (no noise) to 1 (nothing else), one number or (B,).
        noise: Standard normal, like low_res.
    Source: Ho et al. 2021, arXiv:2106.15282, section 4.2: the forward process, here of the schedule `cosine`.
    """
    if not isinstance(level, Tensor):
        return math.cos(level * math.pi / 2) * low_res + math.sin(level * math.pi / 2) * noise
    angle = (level * (math.pi / 2)).to(low_res.dtype).view(-1, *(1,) * (low_res.ndim - 1))
    return angle.cos() * low_res + angle.sin() * noise
