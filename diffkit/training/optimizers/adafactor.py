"""Adam without the first moment, whose second moment has a row and a column per matrix."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.registry import registry
from diffkit.training.optimizers._torch import OfTorch


@registry("optimizer").register("adafactor")
@frozen
class Adafactor(OfTorch):
    """Adam without the first moment, whose second moment has a row and a column per matrix.

    V = R C / mean(R), with R and C running means of g^2 over columns and over rows,
    w <- w - lr weight_decay w - rho max(rms(w), 1e-3) U / max(1, rms(U) / d)
    U = g / sqrt(V),  rho = min(lr, 1 / sqrt(n))

    Attributes:
        beta2_decay: Power p < 0 of the decay rate ``1 - n^p`` of the running means.
        d: Largest root mean square of an update, >= 1.
    Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5, as in torch.
    """

    torch_name: ClassVar[str] = "Adafactor"
    elementwise: ClassVar[bool] = False

    beta2_decay: float = number(-0.8, lt=0)
    d: float = number(1.0, ge=1)
