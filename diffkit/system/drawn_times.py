"""Times that training draws, turned into levels by a schedule with weights, which the loss then trains."""

from __future__ import annotations

from torch import Tensor, nn

from diffkit.protocols import LearnedSchedule


class DrawnTimes:
    """Levels at times, with gradients that lower the second moment of each example's loss.

    The mean of an `InvariantLoss` over times is the same for any weights of the schedule, so the second moment is
    lowered with the variance. Its gradient is ``d loss^2 / d log_snr = 2 loss d loss / d log_snr``: what arrives here
    in the backward pass of the loss, times twice the loss, so that the network is passed through once.

    Args:
        schedule: The schedule.
        module: Its module.
        time: The times, (B,).
    Attributes:
        log_snr: At each time, (B,) float64.
        rate: How fast it falls there, (B,) float64.
    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.2.
    """

    def __init__(self, schedule: LearnedSchedule, module: nn.Module, time: Tensor):
        self.log_snr, self.rate = schedule.log_snr_at(module, time.double())
        self._loss: Tensor | None = None
        for tensor in (self.log_snr, self.rate):
            if tensor.requires_grad:
                tensor.register_hook(self._of_square)  # type: ignore[no-untyped-call]

    def trained_by(self, loss: Tensor) -> None:
        """Take the loss of each example, (B,), before the backward pass."""
        self._loss = loss.detach()

    def _of_square(self, gradient: Tensor) -> Tensor:
        assert self._loss is not None, "the loss was computed before its gradient"
        return 2 * self._loss.to(gradient.dtype) * gradient
