"""Data on equally spaced values in [-1, 1], such as 8-bit images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.options import choice, integer, number
from diffkit.protocols import Decoder
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor


@registry("decoder").register("binned")
@frozen
class Binned(Decoder):
    """Data on equally spaced values in [-1, 1]; the likelihood of a value is that of its bin, the end bins open.

    ``P = Phi((x + h - mean) / std) - Phi((x - h - mean) / std)``, h half the spacing. The difference is taken in log
    space, so that tails are exact in float32, where improved-diffusion is off by up to 10 nats.

    Attributes:
        bins: Number of values, >= 2: 256 for 8-bit images, 65536 for 16-bit, 17 for scikit-learn's digits.
        cdf: "tanh", the approximation of Phi in improved-diffusion (off by up to 1.8e-4), or "exact".
        floor: Smaller probabilities are replaced by it, without gradient; in [0, 1). improved-diffusion's 1e-12
            prevents a bad pixel from dominating early training; 0 gives the likelihood itself.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 13; tanh form: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """

    bins: int = integer(256, ge=2)
    cdf: str = choice("tanh", ("tanh", "exact"))
    floor: float = number(1e-12, ge=0, lt=1)

    @property
    def bounded(self) -> bool:
        """Data must lie in [-1, 1]."""
        return True

    def log_prob(self, x_start: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Log-probability of the bin of x_start, nats."""
        half = 1 / (self.bins - 1)
        inverse_std = (-0.5 * log_variance).exp()
        centre = (x_start - mean) * inverse_std
        width = half * inverse_std
        interval = _log_interval_tanh if self.cdf == "tanh" else _log_interval_exact
        below, above, between = interval(centre, width)
        # improved-diffusion opens the bins beyond +-0.999; finer grids need a threshold inside their last spacing.
        edge = 1 - min(1e-3, half / 2)
        found = below.where(x_start < -edge, above.where(x_start > edge, between))
        return found.clamp(min=math.log(self.floor)) if self.floor else found


def _log_interval_tanh(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log Phi(upper), log(1 - Phi(lower)), log(Phi(upper) - Phi(lower)) with Phi(z) = logistic(g(z)).

    The logistic's differences factor: ``f(b) - f(a) = f(b) f(-a) (1 - exp(a - b))``, and g is a cubic, so b - a is a
    product too: nothing cancels.
    """
    slope, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    upper, lower = centre + width, centre - width

    def g(z: Tensor) -> Tensor:
        return slope * (z + cubic * z**3)

    gap = 2 * slope * width * (1 + cubic * (3 * centre.square() + width.square()))
    below, above = -_softplus(-g(upper)), -_softplus(g(lower))
    return below, above, below + above + _log1mexp(gap)


def _log_interval_exact(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the true normal CDF, computed on the side of 0 where both ends are in the lower tail."""
    from torch.special import log_ndtr

    near, far = -centre.abs() + width, -centre.abs() - width
    log_near, log_far = log_ndtr(near), log_ndtr(far)
    between = log_near + _log1mexp(log_near - log_far)
    return log_ndtr(centre + width), log_ndtr(width - centre), between


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), exact in both tails."""
    return z.clamp(min=0) + (-z.abs()).exp().log1p()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0, by the form without cancellation (Maechler 2012)."""
    small = x < math.log(2)
    safe_small = x.where(small, x.new_ones(()))
    safe_large = x.where(~small, x.new_ones(()))
    tiny = 1e-38  # below float32's smallest normal number the log would be -inf
    return (-(-safe_small).expm1()).clamp(min=tiny).log().where(small, (-(-safe_large).exp()).log1p())
