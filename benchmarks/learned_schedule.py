"""Measure what a learned schedule does to the bound's estimate, on digits: `benchmarks/results/learned_schedule.json`.

python -m benchmarks.learned_schedule    # about two minutes on one core

One network is trained with the schedule `monotone`. Its bound is then estimated from one time of an example, by that
schedule and by others: they have the same mean, and the variance is compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffkit
from diffkit.gaussian import NATS_PER_BIT, mean_flat, mixed
from diffkit.likelihood import continuous_bound

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the benchmarks import each other by their file names

from measuring import machine  # noqa: E402

TIMES = 64
"""Times of each example."""
TRAINING: dict[str, Any] = dict(
    steps=4000,
    batch_size=128,
    lr=1e-3,
    ema=(0.999,),
    param_groups=("learned.schedule.*:lr=0.01",),
    log_every=1000,
    progress=False,
)
Levels = Callable[[Tensor], tuple[Tensor, Tensor]]


def data(split: str) -> Any:
    """Return the digits, 8x8 of 17 values, without labels."""
    return diffkit.data.loading.load("digits", split=split, labels=False)


def trained(out: str) -> diffkit.System:
    """Return a small network, trained with a learned schedule."""
    torch.manual_seed(0)
    digits = data("train")
    system = diffkit.compose(
        schedule=("monotone", {"log_snr_max": 9.2}),  # where the linear schedule begins
        timesteps="uniform_time",
        loss="continuous_vlb",
        backbone=("mlp", {"hidden": 256, "depth": 3}),
        data_shape=digits.shape,
        bins=digits.bins,
        clip_x_start=False,
    )
    return diffkit.train(system, digits, out=out, **TRAINING)


def by_table(name: str, system: diffkit.System) -> Levels:
    """Uniform levels of a schedule of 1,000, where they lie between the ends."""
    other = diffkit.recompose(system, schedule=name, loss="simple", timesteps="uniform", backbone=None)
    high, low = system.table.log_snr[1], system.table.log_snr[-1]
    log_snr = other.table.log_snr[1:].clip(low, high)
    time = np.linspace(0, 1, len(log_snr))

    def levels(u: Tensor) -> tuple[Tensor, Tensor]:
        place = np.clip(np.searchsorted(time, u.numpy(), side="right") - 1, 0, len(time) - 2)
        slope = (log_snr[place] - log_snr[place + 1]) / (time[place + 1] - time[place])
        found = log_snr[place] - slope * (u.numpy() - time[place])
        return torch.from_numpy(found), torch.from_numpy(slope)

    return levels


@torch.no_grad()
def estimates(system: diffkit.System, x: Tensor, levels: Levels) -> Tensor:
    """Return the diffusion part from one time, in bits per dimension, of TIMES independent times of each example."""
    generator = torch.Generator().manual_seed(0)
    x = x.repeat_interleave(TIMES, 0)
    noise = torch.randn(x.shape, generator=generator)
    log_snr, rate = levels(torch.rand(len(x), generator=generator, dtype=torch.float64))
    at = system.objective.at_log_snr(log_snr, x)
    found = system.denoiser()(mixed(at.alpha, x, at.sigma, noise), at).x_start
    terms = mean_flat((found - x).square()).double() * log_snr.exp() * rate / (2 * NATS_PER_BIT)
    return terms.view(-1, TIMES)


def main() -> None:
    """Train, measure, and write the results."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        system = trained(f"{out}/run")
    held_out = data("held_out")
    x = diffkit.data.scale_images(held_out.batch(np.arange(len(held_out))).images, held_out.bins)
    schedule, module = system.parts.schedule, system.learned["schedule"]
    high, low = float(system.table.log_snr[1]), float(system.table.log_snr[-1])
    cases: dict[str, Levels] = {
        "monotone, learned": lambda u: schedule.log_snr_at(module, u),
        "log_linear, uniform": lambda u: (high - (high - low) * u, torch.full_like(u, high - low)),
        "cosine, uniform": by_table("cosine", system),
        "linear, uniform": by_table("linear", system),
    }
    rows, least = [], None
    for name, levels in cases.items():
        found = estimates(system, x, levels)
        variance = float(found.var())
        least = variance if least is None else least
        row = {
            "case": name,
            "diffusion, bits/dim": round(float(found.mean()), 4),
            "its standard error": round(float(found.mean(1).std() / len(found) ** 0.5), 4),
            "variance of one estimate": round(variance, 4),
            "times that of the learned": round(variance / least, 2),
        }
        rows.append(row)
        print(row)
    whole = continuous_bound(system, x, times_per_example=TIMES)
    print(whole)
    setup = {"network": "mlp 256x3", "updates": TRAINING["steps"], "batch": 128, "bound": str(whole)}
    about = "estimates of the bound's diffusion part of held-out digits, from one time of one example"
    found = {"benchmark": "learned_schedule", "about": about, "setup": setup, "machine": machine(), "rows": rows}
    (HERE / "results" / "learned_schedule.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
