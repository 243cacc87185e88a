"""The network predicts the mean of x one level down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from attrs import frozen

from diffkit.errors import problem
from diffkit.protocols import Composition, MeanParameterization, Scalings
from diffkit.registry import registry
from diffkit.table import Coefs, Steps


@registry("mean").register("x_prev")
@frozen
class XPrev(MeanParameterization):
    """Prediction of the posterior mean: F estimates ``coef_x_start x_start + coef_x_t x_t``.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 8 (the first of the parameterizations it compares).
    Deviates: improved-diffusion uses the raw output as the mean even where x_start is clipped; here the mean always
    follows from the processed x_start, and ``clip=False`` gives its ancestral steps and its bound. On a
    respaced table improved-diffusion reads the output as the mean one level down in that table, which the network has
    not learned; here it is the mean one level down in the training table.
    """

    continuous_time: ClassVar[bool] = False

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (-coef_x_t/coef_x_start, 1/coef_x_start, 1) of the posterior one level down."""
        assert prev is not None, "called between levels, although continuous_time is False"
        posterior = Steps(at, prev).posterior()
        c_out = 1 / posterior.coef_x_start
        return Scalings(-posterior.coef_x_t * c_out, c_out, at.sigma**0)

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report continuous levels, which have no level below to predict."""
        if composition.continuous_time:
            yield problem(
                f"{composition.label('mean')} needs discrete levels, but {composition.label('timesteps')} draws "
                "continuous ones",
                fix=[{"mean": "eps"}, {"timesteps": "uniform"}],
            )
