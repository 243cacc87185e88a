"""Which networks are trained, and how: the grid of the study at each size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

import diffkit

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "simple": dict(loss="simple", var="fixed_large"),
    "hybrid": dict(loss="hybrid", var="learned_range"),
    "vlb": dict(loss="vlb", var="learned_range"),
    "vlb_is": dict(loss="vlb", var="learned_range", timesteps="loss_second_moment"),
}
CLIP = 1.0
"""Largest norm of a gradient.

The paper does not clip, and trains 100 times as long. The first gradients of L_vlb are a thousand times the later ones,
and Adam's second moment (beta_2 = 0.999) remembers them for thousands of updates.
"""


@frozen
class Network:
    """One network to train.

    Attributes:
        data: Name of the data.
        schedule, objective: As in the paper; objectives are those of `OBJECTIVES`.
        width: Base width of the network.
        seed: Decides its first weights, and everything that is drawn while it is trained.
    """

    data: str
    schedule: str
    objective: str
    width: int
    seed: int

    @property
    def name(self) -> str:
        """Such as crops8-cosine-hybrid-w16-seed0."""
        return f"{self.data}-{self.schedule}-{self.objective}-w{self.width}-seed{self.seed}"


@frozen
class Study:
    """The study at one size.

    Attributes:
        name: Of the size.
        likelihood_data, quality_data: What bits/dim and what sample quality are measured on.
        num_steps: T.
        width: Base width of the likelihood networks; `widths` are those of the power law.
        widths: Ascending.
        quality_width: Base width of the networks whose samples are measured.
        steps, batch, lr: Of training, the likelihood networks' first.
        samples: How many are drawn for each figure of quality.
        held_out: How many examples are scored.
        levels: How many levels of the bound each of them visits.
        gradients: How many batches the gradient noise is measured over.
    """

    name: str
    likelihood_data: str = "crops8"
    quality_data: str = "digits"
    num_steps: int = 1000
    width: int = 16
    widths: tuple[int, ...] = (8, 16, 24)
    quality_width: int = 256
    steps: tuple[int, int] = (1500, 2000)
    batch: tuple[int, int] = (64, 128)
    lr: tuple[float, float] = (2e-3, 1e-3)
    samples: int = 1000
    held_out: int = 512
    levels: int = 64
    gradients: int = 96

    def networks(self, seed: int) -> Iterator[Network]:
        """Every network of one seed, the most used first."""
        likelihood = [("cosine", "hybrid"), ("cosine", "simple"), ("cosine", "vlb_is"), ("cosine", "vlb")]
        for schedule, objective in [*likelihood, ("linear", "simple")]:
            yield Network(self.likelihood_data, schedule, objective, self.width, seed)
        for schedule, objective in (("cosine", "hybrid"), ("linear", "hybrid"), ("cosine", "simple")):
            yield Network(self.quality_data, schedule, objective, self.quality_width, seed)
        for width in self.widths:
            if width != self.width:
                yield Network(self.likelihood_data, "cosine", "hybrid", width, seed)

    def compose(self, network: Network, *, backbone: bool = True, **changes: Any) -> diffkit.System:
        """Return the untrained system of a network."""
        likelihood = network.data == self.likelihood_data
        shape = (3, size := int(network.data.removeprefix("crops")), size) if likelihood else (1, 8, 8)
        options = {
            "schedule": network.schedule,
            **OBJECTIVES[network.objective],
            "num_steps": self.num_steps,
            "data_shape": shape,
            "bins": 256 if likelihood else 17,
            "backbone": self.backbone(network) if backbone else None,
        }
        return diffkit.compose(**options | changes)

    def backbone(self, network: Network) -> tuple[str, dict[str, Any]]:
        """A U-Net for photographs, a perceptron for digits."""
        if network.data != self.likelihood_data:
            return "mlp", dict(hidden=network.width, depth=3)
        mult = (1, 2) if self.name != "large" else (1, 2, 2)
        blocks = 1 if self.name != "large" else 2
        return "unet", dict(channels=network.width, channel_mult=mult, num_res_blocks=blocks, num_heads=2, groups=8)

    def training(self, network: Network) -> dict[str, Any]:
        """Options of `diffkit.train`."""
        kind = 0 if network.data == self.likelihood_data else 1
        steps = self.steps[kind]
        return dict(
            steps=steps,
            batch_size=self.batch[kind],
            lr=self.lr[kind],
            grad_clip=CLIP,
            warmup=min(100, steps // 10),
            anneal=True,
            ema=(0.995,),
            seed=network.seed,
            log_every=max(steps // 20, 1),
            save_every=max(steps // 2, 1),
            keep=2,
        )


SMALL = Study("small")
SIZES: Mapping[str, Study] = {
    # To see that everything runs, in a minute: its table means nothing.
    "tiny": evolve(
        SMALL,
        name="tiny",
        num_steps=250,
        width=8,
        widths=(8, 16),
        quality_width=32,
        steps=(20, 60),
        batch=(8, 32),
        samples=100,
        held_out=16,
        levels=12,
        gradients=12,
    ),
    "small": SMALL,
    # For a GPU, hours; not run for the table in this repository.
    "large": evolve(
        SMALL,
        name="large",
        likelihood_data="crops32",
        num_steps=4000,
        width=64,
        widths=(32, 64, 96, 128),
        quality_width=1024,
        steps=(50_000, 20_000),
        batch=(128, 512),
        lr=(2e-4, 5e-4),
        samples=5000,
        held_out=1000,
        levels=200,
        gradients=400,
    ),
}
