"""What is measured of each network. A cell is a function of a network whose result is kept as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import diffkit
from benchmarks.paper.data import data
from benchmarks.paper.study import Network, Study
from diffkit.data.base import scale_images
from diffkit.evaluation.extractors.digits import DigitsExtractor
from diffkit.evaluation.metrics import FeatureStatistics, frechet_distance
from diffkit.likelihood import score
from diffkit.training import checkpoint

VERSION = 2
"""Counts changes that make kept cells wrong."""
SKIPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Shares of the chain that are left out at its noisy end."""
SKIP_CHAIN = 100
"""Levels of the chain that is cut, evenly spaced: sampling all of them 7 times over would take most of the time."""
FEW = (10, 25, 50, 100, 250)
"""Numbers of sampling steps."""


class Bench:
    """Trains networks and keeps cells in a folder.

    Args:
        study: The study.
        work: The folder; runs/ has the networks, cells/ the results.
        device: Where to compute.
    """

    def __init__(self, study: Study, work: Path, device: str):
        self.study, self.work, self.device = study, work, device

    def kept(self, kind: str, network: Network) -> dict[str, Any] | None:
        """Return the result of a cell, or None if it is not there."""
        path = self._path(kind, network)
        return json.loads(path.read_text()) if path.exists() else None

    def cell(self, kind: str, network: Network) -> dict[str, Any]:
        """Return the result of a cell, computed if it is not there."""
        found = self.kept(kind, network)
        if found is None:
            path = self._path(kind, network)
            found = json.loads(json.dumps(CELLS[kind](self, network)))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(found))
            temporary.replace(path)
        return found

    def trained(self, network: Network) -> diffkit.System:
        """Return the trained system; an interrupted training goes on where it was."""
        torch.manual_seed(network.seed)
        system = self.study.compose(network).to(self.device)
        split = data(network.data, "train")
        return diffkit.train(system, split, out=self.run(network), progress=False, **self.study.training(network))

    def run(self, network: Network) -> Path:
        """Folder of a network."""
        return self.work / "runs" / f"{network.name}-{self._digest(network)}"

    def _digest(self, network: Network) -> str:
        what = [VERSION, attrs.asdict(self.study), attrs.asdict(network)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def _path(self, kind: str, network: Network) -> Path:
        return self.work / "cells" / f"{network.name}-{kind}-{self._digest(network)}.json"

    def held_out(self, network: Network) -> Tensor:
        """Clean data the network was not trained on."""
        held = data(network.data, "held_out")
        batch = held.batch(np.arange(min(self.study.held_out, len(held))))
        return scale_images(batch.images, held.bins).to(self.device)


def bits(bench: Bench, network: Network) -> dict[str, Any]:
    """The bound on held-out data, from some levels of each example, and what the levels contribute."""
    system, x = bench.trained(network), bench.held_out(network)
    found = score(system, x, seed=0, levels_per_example=bench.study.levels, rows_per_call=512)
    seen = found.visits > 0
    return {
        "bits": found.mean,
        "error": found.std_error,
        "prior": float(found.prior.mean()),
        "levels": found.levels[seen].tolist(),
        "terms": found.terms[seen].tolist(),
        "parameters": sum(p.numel() for p in system.parameters()),
        "eps_mse": _simple_loss(system, x),
    }


def _simple_loss(system: diffkit.System, x: Tensor, rounds: int = 20) -> float:
    """Mean squared error of the noise over uniform levels: L_simple on held-out data."""
    generator, found = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for _ in range(rounds):
            level = torch.randint(1, system.num_steps + 1, (len(x),), generator=generator)
            noise = torch.randn(x.shape, generator=generator)
            found.append(system.loss_terms(None, x, level.to(x.device), noise.to(x.device))["mse"].mean().item())
    return sum(found) / rounds


def gradient_noise(bench: Bench, network: Network) -> dict[str, Any]:
    """Gradient noise scale of three objectives at the network as it was halfway through training.

    ``tr(covariance of an example's gradient) / |mean gradient|^2``, both without bias from batches.
    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
    """
    bench.trained(network)
    half = list(checkpoint.newest_first(bench.run(network) / "checkpoints"))[-1]
    files = checkpoint.read(half).files
    found: dict[str, Any] = {"step": checkpoint.read(half).step}
    for objective in ("hybrid", "vlb", "vlb_is"):
        system = bench.study.compose(attrs.evolve(network, objective=objective)).to(bench.device)
        system.network.load_state_dict(dict(files["model"]))
        state = system.parts.timesteps.init(system.table)
        if objective == "vlb_is":
            leaves, structure = pytree.tree_flatten(state)
            own = [files["trainer"][f"timesteps.{i}"] for i in range(len(leaves))]
            state = pytree.tree_unflatten(own, structure)
        found[objective] = _noise_scale(bench, network, system, state)
    return found


def _noise_scale(bench: Bench, network: Network, system: diffkit.System, state: Any) -> dict[str, float]:
    train = data(network.data, "train")
    size, count = bench.study.batch[0], bench.study.gradients
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    parameters = [p for p in system.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    squares = 0.0
    for _ in range(count):
        x = scale_images(train.batch(rng.integers(0, len(train), size)).images, train.bins).to(bench.device)
        loss = system(x, generator=generator, timesteps_state=state)["loss"].mean()
        gradient = [g.double() for g in torch.autograd.grad(loss, parameters)]
        squares += float(sum(g.square().sum() for g in gradient))
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += g
    mean_squared = float(sum((s / count).square().sum() for s in total))
    spread = (squares / count - mean_squared) * count / (count - 1)  # of a batch's gradient, around the mean
    signal = mean_squared - spread / count
    return {"noise": spread * size, "signal": signal, "scale": spread * size / signal}


# ---- sample quality --------------------------------------------------------------------------------------------------


def few_steps(bench: Bench, network: Network) -> dict[str, Any]:
    """Distance of samples from data against the number of sampling steps, for each way of sampling."""
    system = bench.trained(network)
    learned = network.objective != "simple"
    ways: dict[str, diffkit.System] = {"learned" if learned else "fixed_large": system}
    if not learned:
        small = bench.study.compose(network, var="fixed_small").to(bench.device)
        small.load_state_dict(system.state_dict())
        ways["fixed_small"] = small.eval()
    found = {name: {str(n): _distance(bench, way, steps=n) for n in FEW} for name, way in ways.items()}
    found["ddim"] = {str(n): _distance(bench, system, steps=n, sampler="ddim") for n in FEW}
    return found


def skips(bench: Bench, network: Network) -> dict[str, Any]:
    """Distance of samples from data against the share of the chain that is left out at its noisy end."""
    system = bench.trained(network)
    count = min(SKIP_CHAIN, system.num_steps)
    chain = system.table_for(f"trailing{count}").index[1:].tolist()
    return {str(share): _distance(bench, system, steps=chain[: round(count * (1 - share))]) for share in SKIPS}


def _distance(bench: Bench, system: diffkit.System, **how: Any) -> float:
    """Frechet distance of digit features, to all the digits."""
    x = system.sample(bench.study.samples, seed=0, batch_size=1000, progress=False, **how).cpu()
    pixels = ((x + 1) * 8).round().clamp(0, 16) / 8 - 1
    extractor = DigitsExtractor()
    return frechet_distance(_digits(extractor), FeatureStatistics.of(extractor(pixels).pool))


def _digits(extractor: DigitsExtractor) -> FeatureStatistics:
    parts = [data("digits", split) for split in ("train", "held_out")]
    pools = [extractor(scale_images(d.batch(np.arange(len(d))).images, d.bins)).pool for d in parts]
    return FeatureStatistics.of(torch.cat(pools))


def floor() -> float:
    """Distance of the held-out digits from all of them: what good samples would have, at fewer examples."""
    extractor, held = DigitsExtractor(), data("digits", "held_out")
    features = extractor(scale_images(held.batch(np.arange(len(held))).images, held.bins))
    return frechet_distance(_digits(extractor), FeatureStatistics.of(features.pool))


Cell = Callable[[Bench, Network], dict[str, Any]]
CELLS: Mapping[str, Cell] = {"bits": bits, "gradient_noise": gradient_noise, "few_steps": few_steps, "skips": skips}


def kinds(study: Study, network: Network) -> list[str]:
    """The cells of a network."""
    if network.data == study.likelihood_data:
        return ["bits", "gradient_noise"] if network.objective == "vlb_is" else ["bits"]
    return ["few_steps", "skips"] if network.objective == "hybrid" else ["few_steps"]
