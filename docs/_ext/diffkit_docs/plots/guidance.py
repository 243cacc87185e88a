"""A guidance: what it does to samples of a mixture in the plane, whose denoiser and classifier are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffkit import tasks
from diffkit.registry import registry
from diffkit.testing import MixtureOracle
from diffkit_docs.figures import BLUE, FAINT, GREY, ORANGE, Panel
from diffkit_docs.plots._shared import level_of, system

_MEANS = torch.tensor([[0.0, 0.75], [-0.7, -0.45], [0.7, -0.45]])
"""Middles of the three classes."""
_STD = 0.42
_NONE = len(_MEANS)
"""The label that means "no class"."""
_STEPS = 50
_DRAWS = 350
_MEASURED = 0.6
"""First coordinate, as it is measured, for guidance towards measurements."""


def panels(name: str, part: Any) -> list[Panel]:
    """Return samples without the guidance, and with it; nothing for a guidance that is not known here."""
    if name not in EXAMPLES:
        return []
    options, conditions = EXAMPLES[name]
    guidance = registry("guidance").create(name, **options)
    shown = ", ".join(f"{key}={value:g}" for key, value in options.items() if isinstance(value, float))
    measured = "measurement" in conditions
    label = _NONE if measured or not conditions else 0
    without, with_it = draw(None, {"y": label}), draw(guidance, {"y": label, **conditions})

    def points(of: Tensor, marks: bool) -> Callable[[Axes], None]:
        def drawn(axes: Axes) -> None:
            _density(axes)
            axes.plot(*of.T.numpy(), ".", color=BLUE, markersize=3, alpha=0.6)
            if marks and measured:
                axes.axvline(_MEASURED, color=ORANGE, lw=1, label="measured")

        return drawn

    what = "All classes" if label == _NONE else "One class"
    return [
        Panel(f"{name}({shown})", "first value", "second value", points(with_it, True), "upper right"),
        Panel(f"{what}, without guidance", "first value", "second value", points(without, False)),
    ]


def draw(guidance: Any, conditions: Mapping[str, Any]) -> Tensor:
    """Return samples in the plane, (N, 2)."""
    how: dict[str, Any] = {"steps": _STEPS, "sampler": "ddim", "seed": 0, "model": denoiser(_STD), "progress": False}
    if "measurement" in conditions:
        given = {**how, "sampler": guidance.sampler, "y": conditions["y"]}
        return tasks.solve(system(2), conditions["measurement"], guidance, n=_DRAWS, **given)
    return system(2).sample(_DRAWS, guidance=guidance, **how, **conditions)


def denoiser(std: float) -> Callable[..., Tensor]:
    """The exact network for classes of this width, ``model(x, time, y=None)``."""

    def model(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        at = level_of(system(2), time)
        x_t, means = x / at["c_in"], _MEANS.to(x)
        gain = at["alpha"] * std**2 / (at["alpha"] ** 2 * std**2 + at["sigma"] ** 2)
        each = means + gain * (x_t[:, None] - at["alpha"] * means)
        share = _log_shares(x_t, at, std).softmax(1)
        if y is not None:
            share = torch.where((y == _NONE)[:, None], share, torch.nn.functional.one_hot(y % _NONE, _NONE).to(x))
        x_start = (share[..., None] * each).sum(1)
        return ((x_start - at["c_skip"] * x_t) / at["c_out"]).to(x.dtype)

    return model


def classifier(x: Tensor, time: Tensor) -> Tensor:
    """The exact classifier of noisy data: logits, (B, 3)."""
    return _log_shares(x, level_of(system(2), time), _STD)


def _log_shares(x_t: Tensor, at: Mapping[str, Tensor], std: float) -> Tensor:
    squared = (x_t[:, None] - at["alpha"] * _MEANS.to(x_t)).square().sum(2)
    return (-0.5 * squared / (at["alpha"] ** 2 * std**2 + at["sigma"] ** 2)).to(x_t.dtype)


def _density(axes: Axes) -> None:
    side = np.linspace(-2.1, 2.1, 120)
    grid = torch.from_numpy(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    value = MixtureOracle(torch.ones(_NONE), _MEANS, _STD).log_prob(grid).exp().numpy().reshape(len(side), -1)
    axes.contour(side, side, value, levels=6, colors=[FAINT, GREY], linewidths=0.8)
    axes.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), aspect="equal")


def _first(x: Tensor) -> Tensor:
    return x[:, :1]


def _is_first_class(x: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    return classifier(x, time).log_softmax(1)[:, 0]


_TOWARDS = {"measurement": torch.tensor([_MEASURED])}
EXAMPLES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "cfg": ({"scale": 3.0, "null": {"y": _NONE}}, {"y": 0}),
    "autoguidance": ({"model": denoiser(2 * _STD), "scale": 2.0}, {"y": 0}),
    "classifier": ({"classifier": classifier, "scale": 3.0}, {"y": 0}),
    "gradient": ({"log_prob": _is_first_class, "scale": 3.0}, {"y": 0}),
    "static_threshold": ({"limit": 0.8}, {}),
    "dynamic_threshold": ({"percentile": 0.9, "limit": 0.8}, {}),
    "mmps": ({"operator": _first, "noise_std": 0.1}, _TOWARDS),
    "pigdm": ({"operator": _first, "noise_std": 0.1}, _TOWARDS),
    "diffpir": ({"operator": _first, "noise_std": 0.1}, _TOWARDS),
    "dps": ({"operator": _first, "step": 0.3}, _TOWARDS),
}
"""Name of a guidance -> options that it is shown with, and the conditions of the call."""
