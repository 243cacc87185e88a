"""Low-rank additions to the weights of some layers (LoRA)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.errors import OptionError, did_you_mean
from diffkit.options import integer, number, words
from diffkit.protocols import Adapter
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import nn

ATTENTION = ("qkv", "proj_out", "proj", "q", "kv", "to_q", "to_k", "to_v", "to_out.0")
"""Names that projections of attention have, in our networks and in those of diffusers."""


@registry("adapter").register("lora")
@frozen
class LoRA(Adapter):
    """Low-rank adaptation: each chosen weight W is used as W + (alpha / r) B A, and only A and B are trained.

    A is (r, in), B (out, r) and at first zero, so that training begins with what the network does. Convolutions have it
    too, A with their kernel.

    Attributes:
        r: Rank, >= 1.
        alpha: The sum is scaled by alpha / r; r by default.
        targets: Names of layers, linear or convolutions: "qkv" is every layer with that name, "blocks.0.attn.qkv" one.
            All projections of attention by default.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; names of tensors and their shapes are those of peft.
    """

    r: int = integer(8, ge=1)
    alpha: float | None = number(None, optional=True, gt=0)
    targets: tuple[str, ...] = words()

    def attach(self, network: nn.Module) -> None:
        """Give every target its two matrices, drawn from torch's generator of the CPU.

        Raises:
            OptionError: A target is the name of no layer, or of one that is neither linear nor a convolution.
        """
        from torch.nn.utils import parametrize

        from diffkit.parts.adapters._low_rank import LowRank

        for layer in self._layers(network):
            if parametrize.is_parametrized(layer):
                raise OptionError("lora needs layers without parametrizations; remove those first")
            low_rank = LowRank(layer.get_parameter("weight").detach(), self.r, (self.alpha or self.r) / self.r)
            parametrize.register_parametrization(layer, "weight", low_rank)

    def merge(self, network: nn.Module) -> None:
        """Put the sums in place of the weights."""
        from torch.nn.utils import parametrize

        from diffkit.parts.adapters._low_rank import LowRank

        for layer in list(network.modules()):
            if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], LowRank):  # type: ignore[union-attr,index]
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    def _layers(self, network: nn.Module) -> Iterator[nn.Module]:
        from diffkit.parts.adapters._low_rank import LAYERS

        named = dict(network.named_modules())
        layers = {name: module for name, module in named.items() if isinstance(module, LAYERS)}
        known = sorted({name.rpartition(".")[2] for name in layers})
        for target in self.targets:
            if not any(_is_called(name, target) for name in layers):
                kind = next((type(m).__name__ for name, m in named.items() if _is_called(name, target)), None)
                text = f"is a {kind}" if kind else f"is the name of no layer{did_you_mean(target, known)}"
                raise OptionError(
                    f"targets {target!r} {text}; choose linear layers or convolutions (known: {', '.join(known)})"
                )
        chosen = self.targets or ATTENTION
        found = [module for name, module in layers.items() if any(_is_called(name, target) for target in chosen)]
        if not found:
            raise OptionError(f"the network has no attention, so lora needs targets (known: {', '.join(known)})")
        yield from found


def _is_called(name: str, target: str) -> bool:
    """Whether a layer has a name, or a path that ends with it."""
    return name == target or name.endswith(f".{target}")
