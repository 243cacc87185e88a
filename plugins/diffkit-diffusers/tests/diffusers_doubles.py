"""diffusers' schedulers in float64, and the same configuration through diffkit."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffkit_diffusers import from_scheduler_config
from diffusers_support import Answers
from torch import Tensor

SHAPE = (2, 4, 4)


@functools.cache
def doubled(name: str) -> Any:
    """The class of that name with float64 wherever its module says float32."""
    module = getattr(diffusers, name).__module__
    source = re.sub(r"float32|\.float\(\)", lambda m: {"float32": "float64"}.get(m[0], ".double()"), _source(module))
    found = types.ModuleType(f"{module}_double")
    found.__package__ = module.rpartition(".")[0]
    sys.modules[found.__name__] = found
    exec(compile(source, f"{module} in float64", "exec"), found.__dict__)
    return getattr(found, name)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def scheduler(name: str, **options: Any) -> Any:
    """One of these schedulers; its tables are float64, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return doubled(name)(**options)
    finally:
        torch.set_default_dtype(before)


def content(made: Any) -> dict[str, Any]:
    """What it writes into its scheduler_config.json."""
    found: dict[str, Any] = json.loads(made.to_json_string())
    return found


def start(batch: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def theirs(made: Any, steps: int, x: Tensor, model: Any = None, mu: float | None = None, **options: Any) -> Tensor:
    """What every pipeline of diffusers does, from unit noise x."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
        x, network = x * scale(made), Answers() if model is None else model
        scaled = getattr(made, "scale_model_input", lambda x, t: x)
        for t in made.timesteps:
            x = made.step(network(scaled(x, t), t), t, x, **options).prev_sample
        return x / float((1 + made.sigmas[-1] ** 2) ** 0.5) if is_scaled(made) else x
    finally:
        torch.set_default_dtype(before)


def is_scaled(made: Any) -> bool:
    """Whether states are x / alpha of the path that the network knows."""
    return type(made).__name__.startswith(("Euler", "Heun", "LMS", "KDPM2"))


def scale(made: Any) -> float:
    """The standard deviation of what a chain starts from."""
    if type(made).__name__.startswith("EDM"):
        return float(made.sigmas[0])
    return float((1 + made.sigmas[0] ** 2) ** 0.5) if is_scaled(made) else 1.0


def mine(reading: Any, steps: int, x: Tensor, model: Any = None) -> Tensor:
    """The same through diffkit, with noise drawn as diffusers draws it."""
    system = reading.compose(backbone=None, data_shape=tuple(x.shape[1:]), bins=None)
    network = Answers(system.parts.var.extra_outputs) if model is None else model
    if reading.scheduler.endswith("InverseScheduler"):
        return system.encode(x, steps=reading.steps(steps), model=network, **reading.encoding)
    generator = torch.Generator().manual_seed(0)
    table = system.table_for(reading.steps(steps))
    return system.sample_from(
        network,
        x * float(table.sigma[-1] if reading.scheduler.startswith("EDM") else 1),
        lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        table,
        guidance=reading.guidance,
    )


def gap(name: str, steps: int, options: dict[str, Any], model: Any = None, **calls: Any) -> float:
    """The largest difference of the samples, over the largest size of them."""
    made, x = scheduler(name, **options), start()
    if name.endswith("InverseScheduler"):  # data
        x = x.clamp(-1, 1)
    mu = {"exponential": 0.8, "linear": 2.0}[options.get("time_shift_type", "exponential")]
    mu = mu if options.get("use_dynamic_shifting") else None
    reading = from_scheduler_config(content(made), eta=calls.get("eta"), mu=mu)
    if reading.stochastic:
        calls = calls | {"generator": torch.Generator().manual_seed(0)}
    expected = theirs(made, steps, x, model, mu, **calls)
    found = mine(reading, steps, x, model)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
