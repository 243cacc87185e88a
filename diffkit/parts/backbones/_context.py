"""Cross-attention of a network to a context: a sequence of vectors for each example, such as an encoded text.

A masked vector is as if it were not there. The null condition is one vector of zeros: keys and values then are the
biases of their projection, which are trained. An example whose vectors are all masked has that, too.
Source: Rombach et al. 2022, arXiv:2112.10752, section 3.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.parts.backbones._attention import attention


class Context(NamedTuple):
    """A context as layers read it.

    Attributes:
        tokens: (B, L, width), zeros where masked, in the dtype of the weights.
        mask: What each example attends to, (B, 1, 1, L) bool; None for everything.
    """

    tokens: Tensor
    mask: Tensor | None

    def rows(self, piece: slice) -> Self:
        """Return the context of some examples."""
        return self._replace(tokens=self.tokens[piece], mask=None if self.mask is None else self.mask[piece])


def read_context(context: Tensor | float | None, mask: Tensor | None, width: int, x: Tensor) -> Context | None:
    """Return the context of data x, or None if the network reads none.

    Args:
        context: (B, L, width); a number, or one for each example (B,), stands for one vector filled with it.
        mask: (B, L), bool or numbers: zero where there is padding.
        width: Width of a vector; 0 for a network that reads none.
        x: The data, (B, ...).
    Raises:
        OptionError: It is missing, not read, or of another shape.
    """
    if not width:
        if context is not None or mask is not None:
            name = "context" if context is not None else "context_mask"
            raise OptionError(f"{name} was given, but the network reads none; leave it out, or build with context")
        return None
    batch = x.shape[0]
    if context is None:
        raise OptionError(
            f"context is missing, but the network reads vectors of width {width}; pass context, ({batch}, L, {width}), "
            "or context=0 for none"
        )
    if not isinstance(context, Tensor) or context.ndim < 2:
        filled = torch.as_tensor(context, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
        return Context(filled.expand(batch, 1, width), None)
    tokens = context.to(x.dtype)
    if tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != width or not tokens.shape[1]:
        raise OptionError(f"context must have shape ({batch}, L, {width}), got {tuple(tokens.shape)}")
    if mask is None:
        return Context(tokens, None)
    if mask.shape != tokens.shape[:2]:
        raise OptionError(
            f"context_mask must have shape {tuple(tokens.shape[:2])}, as the context has, got {tuple(mask.shape)}; a "
            "context of another length, such as a negative prompt, needs a mask of its own"
        )
    there = mask.to(x.device) != 0
    tokens = tokens.masked_fill(~there[..., None], 0)
    return Context(tokens, (there | ~there.any(1, keepdim=True))[:, None, None])


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context.

    Its last layer starts at zero, and weights of a network without it are loaded as if they had that: the network then
    computes what that one did.
    """

    fills_in_weights = True

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context, 2 * width)
        self.proj = nn.Linear(width, width)
        for parameter in self.proj.parameters():
            nn.init.zeros_(parameter)
        self.register_load_state_dict_pre_hook(_add_missing)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        k, v = (self._split(each) for each in self.kv(context.tokens).chunk(2, dim=2))
        out: Tensor = self.proj(attention(self._split(self.q(self.norm(x))), k, v, context.mask))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, heads, N, width / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _add_missing(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {f"{prefix}{name}": tensor for name, tensor in layer.state_dict().items()}
    if not state.keys() & own.keys():
        state.update({name: torch.zeros_like(t) if f"{prefix}proj." in name else t for name, t in own.items()})
