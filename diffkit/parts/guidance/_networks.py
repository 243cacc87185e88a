"""The networks that a guidance holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def networks_among(*models: Any) -> tuple[nn.Module, ...]:
    """Return those of some models that are networks, not functions."""
    from torch import nn

    return tuple(model for model in models if isinstance(model, nn.Module))
