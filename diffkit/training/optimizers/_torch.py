"""Optimizers that torch has: their options are arguments of a class of `torch.optim`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from diffkit.options import numbers
from diffkit.protocols import Optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer as TorchOptimizer


class OfTorch(Optimizer):
    """A class of `torch.optim`, made with the part's options.

    Attributes:
        torch_name: Name of that class.
        fused: Whether torch updates all parameters in one kernel, which also skips an update that is not finite without
            a wait for the device.
    """

    torch_name: ClassVar[str]
    fused: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def build(self, groups: list[dict[str, Any]], network: nn.Module) -> TorchOptimizer:
        """Return torch's optimizer."""
        import torch

        options = attrs.asdict(self) | ({"fused": True} if self.fused else {})
        if "betas" in options:
            options["betas"] = (float(options["betas"][0]), float(options["betas"][1]))
        made: TorchOptimizer = getattr(torch.optim, self.torch_name)(groups, **options)
        return made


def moment_rates() -> Any:
    """Field holding the decay rates of the two running moments of Adam and its like."""
    return numbers((0.9, 0.999), ge=0, lt=1, count=2)
