"""The installed kernel of group norms, found by its entry point."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from diffkit.registry.entry_points import Point
from diffkit.registry.kinds import KERNEL
from diffkit.registry.lookup import installed
from diffkit.runtime.output import log

if TYPE_CHECKING:
    import torch

    from diffkit.protocols import GroupNormKernel


def group_norm_kernel() -> GroupNormKernel | None:
    """Return the kernel that is installed and that DIFFKIT_PLUGINS allows; None if there is none that loads."""
    return _find(os.environ.get("DIFFKIT_PLUGINS"))[1]


def kernel_name(device: torch.device) -> str | None:
    """Return distribution and version of the kernel that is used on a device; None if there is none."""
    point, kernel = _find(os.environ.get("DIFFKIT_PLUGINS"))
    if point is None or kernel is None or not kernel.available(device):
        return None
    return f"{point.distribution} {point.version}"


@lru_cache(maxsize=8)
def _find(allowed: str | None) -> tuple[Point | None, GroupNormKernel | None]:
    """The first kernel that loads, by the value of DIFFKIT_PLUGINS."""
    for point in () if allowed == "" else installed(KERNEL.name):
        try:
            return point, cast("GroupNormKernel", point.load(module=True))
        except Exception as error:  # foreign code may raise anything, and networks run without it
            log(f"note: the kernel of {point.distribution} cannot be used: {point.describe(error)}")
    return None, None
