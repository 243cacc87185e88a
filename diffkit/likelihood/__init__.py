"""Likelihood of data under a system: the variational bound over any data, and exact likelihood by the flow ODE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.likelihood.continuous import ContinuousBound as ContinuousBound
    from diffkit.likelihood.continuous import continuous_bound as continuous_bound
    from diffkit.likelihood.ode import OdeLikelihood as OdeLikelihood
    from diffkit.likelihood.ode import ode_likelihood as ode_likelihood
    from diffkit.likelihood.scores import Scores as Scores
    from diffkit.likelihood.scores import score as score

__all__, __getattr__, __dir__ = on_first_use(__name__)
