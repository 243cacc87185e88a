"""How likely data is under a system: the variational bound over any data, and exact likelihood by the flow ODE."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.likelihood.ode import OdeLikelihood as OdeLikelihood
    from diffkit.likelihood.ode import ode_likelihood as ode_likelihood
    from diffkit.likelihood.scores import Scores as Scores
    from diffkit.likelihood.scores import score as score

_HOME = {"OdeLikelihood": "ode", "ode_likelihood": "ode", "Scores": "scores", "score": "scores"}
__all__ = ["OdeLikelihood", "Scores", "ode_likelihood", "score"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit.likelihood' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffkit.likelihood.{_HOME[name]}"), name)
