"""EDM2's learned weight of the loss: each noise level is divided by what is left of its error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat, squared_error
from diffkit.options import integer
from diffkit.parts.losses._space import in_space, space_option
from diffkit.protocols import LearnedPart, Loss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor, nn


@registry("loss").register("uncertainty")
@frozen
class Uncertainty(LearnedPart, Loss):
    """``L = mse / exp(u(log_snr)) + u(log_snr)``, u linear in Fourier features of log_snr, trained with the network.

    At the best u, exp(u) is the mean squared error that the network has at that level, so that every level adds a
    gradient of the same size; its learning rate may be another one, by ``param_groups`` with the pattern "learned.*".

    Attributes:
        space: Whose squared error it is, as in 'simple'.
        channels: Number of Fourier features, >= 1.
    Source: Karras et al. 2024, arXiv:2312.02696, eqs. 14 and 15; 128 channels as in its code.
    Deviates: u is 0 at first, so that training begins with the plain loss, and its weights are not normalized.
    """

    space: str = space_option()
    channels: int = integer(128, ge=1, le=65536)

    def build(self, data_shape: tuple[int, ...]) -> nn.Module:
        """Return u."""
        from diffkit.parts.losses._log_error import LogError

        return LogError(self.channels)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss", "mse" (of the network's output, not weighted) and "log_error" (u), each (B,)."""
        assert at.learned is not None, "the module that build returned"
        mse = mean_flat(squared_error(at.out, at.target))
        log_error = at.learned(at.level.log_snr.flatten()).to(mse.dtype)
        loss = in_space(self.space, at.level, mse) / log_error.exp() + log_error
        return {"loss": loss, "mse": mse, "log_error": log_error}
