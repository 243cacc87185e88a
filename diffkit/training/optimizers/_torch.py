"""Optimizers that torch has: their options are arguments of a class of `torch.optim`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

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
        fused_shards: Whether that kernel takes sharded parameters.
    """

    torch_name: ClassVar[str]
    fused: ClassVar[bool] = False
    fused_shards: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def build(self, groups: list[dict[str, Any]], network: nn.Module) -> TorchOptimizer:
        """Return torch's optimizer."""
        import torch

        fused = self.fused and not _on_meta(groups) and (self.fused_shards or not _sharded(groups))
        options = attrs.asdict(cast("Any", self)) | ({"fused": True} if fused else {})
        if "betas" in options:
            options["betas"] = (float(options["betas"][0]), float(options["betas"][1]))
        made: TorchOptimizer = getattr(torch.optim, self.torch_name)(groups, **options)
        return made


def _sharded(groups: list[dict[str, Any]]) -> bool:
    from torch.distributed.tensor import DTensor

    return True in {isinstance(parameter, DTensor) for group in groups for parameter in group["params"]}


def _on_meta(groups: list[dict[str, Any]]) -> bool:
    """Whether parameters have no values, as where a network is sized; no fused kernel takes them."""
    return "meta" in {parameter.device.type for group in groups for parameter in group["params"]}


def moment_rates() -> Any:
    """Field holding the decay rates of the two running moments of Adam and its like."""
    return numbers((0.9, 0.999), ge=0, lt=1, count=2)
