"""Reading the reference numbers, and the reference's names for diffkit's parts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

import diffkit

GOLDEN = Path(__file__).parents[1] / "golden"

PROCESSES = {
    "cosine100": dict(schedule="cosine", num_steps=100),
    "linear1000": dict(schedule="linear", num_steps=1000),
    "cosine4000_spaced20": dict(schedule="cosine", num_steps=4000, train_spacing="20"),
}
LOOPS = {
    "cosine12": dict(schedule="cosine", num_steps=12),
    "cosine100_spaced10": dict(schedule="cosine", num_steps=100, train_spacing="10"),
    "linear1000_ddim8": dict(schedule="linear", num_steps=1000, train_spacing="ddim8"),
}
MEANS = {"EPSILON": "eps", "START_X": "x_start", "PREVIOUS_X": "x_prev"}
VARS = {
    "FIXED_SMALL": "fixed_small",
    "FIXED_LARGE": "fixed_large",
    "LEARNED": "learned",
    "LEARNED_RANGE": "learned_range",
}


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return dict(stored)


def compose(process: dict, *, mean: str = "EPSILON", var: str = "FIXED_LARGE", loss="vlb", **more) -> diffkit.System:
    """A system without a network, of the reference's names."""
    settings = dict(rescale_time=False, data_shape=(3, 4, 4), backbone=None) | process | more
    return diffkit.compose(mean=MEANS[mean], var=VARS[var], loss=loss, **settings)


def assert_close(got, stored: dict, key: str, tolerance: float = 2e-5, transform=lambda a: a) -> None:
    """Elementwise, relative to the largest magnitude expected; looser where float32 itself is known to be off."""
    got = got.detach().double().numpy() if isinstance(got, torch.Tensor) else np.asarray(got, dtype=np.float64)
    want = transform(stored[key]).astype(np.float64)
    allowed = tolerance * np.abs(want[np.isfinite(want)]).max(initial=0)
    if f"{key}__f64" in stored:
        exact = transform(stored[f"{key}__f64"])
        slack = np.where(np.isfinite(want), 4 * np.abs(want - exact), 0.0)
        allowed = tolerance * np.abs(exact).max() + slack
        want = exact
    worst = np.max(np.abs(got - want) - allowed)
    assert got.shape == want.shape
    assert worst <= 0, f"{key}: over by {worst:.3g} (allowed {np.max(allowed):.3g})"


def closed_form_model(learned: str | None):
    """The networks of the stored steps and loops: tanh(0.8 x + 0.3 s), variance head sin(1.5 x - 0.7 s)."""

    def model(x, time, y=None):
        s = (time / 1000).view(-1, *(1,) * (x.ndim - 1))
        out = torch.tanh(0.8 * x + 0.3 * s)
        if y is not None:
            out = out + 0.05 * y.float().view(-1, *(1,) * (x.ndim - 1))
        if learned is None:
            return out
        head = torch.sin(1.5 * x - 0.7 * s)
        return torch.cat([out, head - 3 if learned == "LEARNED" else head], 1)

    return model


def mean_is_clipped(mean: str, clip: bool) -> bool:
    """Whether the published code's mean follows from the clipped estimate, as ours always does.

    Of PREVIOUS_X it clips the estimate that DDIM and the errors are of, and takes the raw output for the mean: its
    ancestral steps and its bound are ours without clipping.
    """
    return clip and mean != "PREVIOUS_X"


def model_of(var: str):
    return closed_form_model(var if var.startswith("LEARNED") else None)


def fixed_model(output: torch.Tensor, var: str):
    """A network that ignores its arguments and returns what is stored."""
    channels = output.shape[1] // 2

    def model(x, time):
        if var == "LEARNED_RANGE":
            return output
        if var == "LEARNED":
            return torch.cat([output[:, :channels], output[:, channels:] - 3], 1)
        return output[:, :channels]

    return model
