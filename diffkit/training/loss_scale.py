"""Loss scaling for float16: a factor on the loss, without which gradients below 6e-8 would become 0."""

from __future__ import annotations

import torch
from torch import Tensor

START, LARGEST, SMALLEST = 2.0**16, 2.0**24, 2.0**-24
PATIENCE = 2000


class LossScale:
    """The loss scale: it doubles after `PATIENCE` finite updates and halves after one that is not finite.

    It stays on the device, without host synchronization, and between `SMALLEST` and `LARGEST`. Without float16 it does
    nothing.

    Attributes:
        active: Whether the network computes in float16.
        value: The factor, 0-d float32.
        streak: Finite updates since the factor changed, 0-d int64.
    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """

    def __init__(self, active: bool, device: torch.device):
        self.active = active
        self.value = torch.full((), START if active else 1.0, device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss times the loss scale."""
        return loss * self.value if self.active else loss

    @torch.no_grad()
    def unscale_(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the loss scale, in place."""
        if self.active:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, finite: Tensor) -> None:
        """Adapt the loss scale to whether the last update was finite (0-d bool)."""
        if not self.active:
            return
        self.streak = (self.streak + 1) * finite
        due = self.streak >= PATIENCE
        factor = torch.where(finite, torch.where(due, 2.0, 1.0), 0.5)
        self.value = (self.value * factor).clamp(SMALLEST, LARGEST)
        self.streak = self.streak * ~due

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the loss scale, for a checkpoint."""
        return {"scale": self.value, "scale_streak": self.streak} if self.active else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        if self.active:
            self.value, self.streak = tensors["scale"], tensors["scale_streak"]
