"""A system from a model of another library: the schedule is read off it, and one step is compared with its own.

system = diffkit.adopt(denoiser, data_shape=(3, 32, 32))
system = diffkit.adopt(network, predicts="eps", alphas_cumprod=table, data_shape=(3, 32, 32))
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import ArrayLike
from torch import Tensor, nn

from diffkit.errors import OptionError, did_you_mean
from diffkit.registry.entry_points import canonical
from diffkit.registry.kinds import ADOPTER
from diffkit.registry.lookup import registry
from diffkit.runtime.eval_mode import eval_mode
from diffkit.system.compose import compose, recompose
from diffkit.system.module import System
from diffkit.table import F64
from diffkit.tensors import precision_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far one step may be from the home library's, relative to the scale of x; a coarser precision has the first."""
PREDICTIONS = ("eps", "x_start", "v", "score", "velocity")
_LEVELS = 1000
"""Levels of a schedule that is known as two functions of time."""


@frozen(eq=False)
class AdoptedModel:
    """A model of another library, in diffkit's terms.

    Attributes:
        network: ``network(x, time, **conditions)``; x is that of the path, not scaled.
        alpha, sigma: Signal and noise scale at levels 1..T, from almost clean to almost only noise.
        time: What the network is conditioned on at each.
        predicts: What the network returns: "eps", "x_start", "v", "score", or "velocity" on a straight path.
        library: Where it is from, for messages.
        null_conditions: Values that mean "none", by condition.
        var: Variance of its reverse step: "learned_range" if the network returns twice the channels of x.
        step: The home library's own first-order step ``step(x, t, s)`` between two times, without noise; None if it has
            none.
        example: Conditions of two rows that it is compared with, where the network needs some.
    """

    network: nn.Module
    alpha: F64 = field(converter=np.asarray)
    sigma: F64 = field(converter=np.asarray)
    time: F64 = field(converter=np.asarray)
    predicts: str
    library: str = "the model"
    null_conditions: Mapping[str, Any] | None = None
    var: str = "fixed_small"
    step: Callable[[Tensor, float, float], Tensor] | None = None
    example: Mapping[str, Any] = field(factory=dict)


class Adopter(Protocol):
    """A module that reads the models of one library; its entry point has the name of the library's package.

    Attributes:
        read: ``read(obj, **options)`` returns an object of the library in diffkit's terms; options are what the object
            does not say, by the library's own words. It raises `OptionError` if the object cannot be read.
    """

    read: Callable[..., AdoptedModel]


class ForeignNetwork(nn.Module):
    """Any callable as a network, ``function(x, time, **conditions)``.

    Attributes:
        function: The callable; a module's weights are the network's.
    """

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return what the callable returns."""
        out: Tensor = self.function(x, time, **conditions)
        return out


class StraightVelocity(nn.Module):
    """A velocity eps - x_start on the straight path as an estimate of clean data, ``x - sigma velocity``.

    Attributes:
        network: Returns the velocity, towards noise.
        scale, offset: sigma is ``scale time + offset``.
    """

    def __init__(self, network: nn.Module, scale: float, offset: float):
        super().__init__()
        self.network, self.scale, self.offset = network, scale, offset

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return the estimate of clean data."""
        sigma = (self.scale * time + self.offset).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        out: Tensor = x - sigma * self.network(x, time, **conditions)
        return out


def adopt(
    obj: Any,
    *,
    data_shape: Sequence[int],
    reader: str | None = None,
    predicts: str | None = None,
    alphas_cumprod: ArrayLike | None = None,
    betas: ArrayLike | None = None,
    sigmas: ArrayLike | None = None,
    alpha: Callable[[Tensor], Tensor] | None = None,
    sigma: Callable[[Tensor], Tensor] | None = None,
    times: ArrayLike | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    bins: int | None = None,
    **options: Any,
) -> System:
    """Return a system whose network is a model of another library, to sample and score with all of diffkit.

    An object of a library that has a reader says the rest itself. Any other callable, ``obj(x, time)``, needs
    ``predicts`` and one of alphas_cumprod, betas, sigmas, or alpha and sigma. Where the library has a step of its own,
    it is compared with diffkit's, at once.

    Args:
        obj: The model.
        data_shape: Shape of one example, (C, *S).
        reader: Name of the reader, where the type of obj does not tell: the library's package.
        predicts: What the callable returns: "eps", "x_start", "v", "score"; "velocity", eps - x_start, on a straight
            path.
        alphas_cumprod, betas: Of a variance-preserving chain, (T,), from clean data on.
        sigmas: Noise scales where alpha is 1, (T,), rising.
        alpha, sigma: Functions of time, elementwise on float64 tensors.
        times: Time of each level, (T,); k - 1 by default, the sigmas themselves with ``sigmas``. With alpha and sigma
            these times are the levels, from clean to noisy; 1,000 between 0.001 and 0.999 by default.
        null_conditions: As in `diffkit.compose`; those that the reader finds by default.
        bins: As in `diffkit.compose`; None is continuous data.
        options: Those of the reader.
    Raises:
        OptionError: The object cannot be read, or its step is another than its own library's: the error says which
            reading is in doubt.
    """
    given = dict(alphas_cumprod=alphas_cumprod, betas=betas, sigmas=sigmas, alpha=alpha)
    if any(value is not None for value in given.values()):
        model = _read_callable(obj, predicts, given, sigma, times)
    else:
        options |= {} if times is None else {"times": times}
        model = _find_reader(obj, reader, options).read(obj, **options)
        model = model if predicts is None else evolve(model, predicts=predicts)
    if null_conditions is not None:
        model = evolve(model, null_conditions=null_conditions)
    system = compose_adopted(model, data_shape, bins)
    check_step(system, model)
    return system


def compose_adopted(model: AdoptedModel, data_shape: Sequence[int], bins: int | None) -> System:
    """Return the system of a model; nothing is compared yet."""
    _check_levels(model)
    network, mean = model.network, model.predicts
    if mean == "velocity":
        network, mean = _straight(model), "x_start"
    numbers = {
        "alpha": tuple(model.alpha.tolist()),
        "sigma": tuple(model.sigma.tolist()),
        "times": tuple(model.time.tolist()),
    }
    return compose(
        schedule=("table", numbers),
        mean=mean,
        var=model.var,
        loss="simple" if model.var == "fixed_small" else "hybrid",
        sampler="ddim",
        backbone=network,
        data_shape=data_shape,
        num_steps=len(model.alpha),
        rescale_time=False,
        null_conditions=model.null_conditions,
        bins=bins,
    )


def _check_levels(model: AdoptedModel) -> None:
    if model.predicts not in PREDICTIONS:
        near, known = did_you_mean(model.predicts, PREDICTIONS), ", ".join(PREDICTIONS)
        raise OptionError(f"no prediction {model.predicts!r}{near} (known: {known})")
    ratio = model.sigma / np.maximum(model.alpha, 1e-300)
    if np.any(np.diff(ratio) <= 0):
        worst = int(np.argmin(np.diff(ratio))) + 1
        raise OptionError(f"level {worst + 1} has no more noise than level {worst}; order levels from clean to noisy")


def _straight(model: AdoptedModel) -> nn.Module:
    """Return the network's velocity as an estimate of clean data."""
    scale, offset = np.polyfit(model.time, model.sigma, 1)
    straight = np.allclose(model.alpha + model.sigma, 1, atol=1e-6)
    if not straight or not np.allclose(scale * model.time + offset, model.sigma, atol=1e-6):
        raise OptionError(
            "predicts='velocity' is read on a straight path only, alpha = 1 - sigma and sigma linear in time; "
            "use predicts='x_start' with a callable that converts"
        )
    return StraightVelocity(model.network, round(float(scale), 12), round(float(offset), 12))


def _read_callable(
    obj: Any, predicts: str | None, given: Mapping[str, Any], sigma: Any, times: ArrayLike | None
) -> AdoptedModel:
    named = [name for name, value in given.items() if value is not None]
    if not callable(obj):
        raise OptionError(f"{type(obj).__name__} is not callable; adopt a function or module ``obj(x, time)``")
    if predicts is None:
        raise OptionError("predicts is needed beside a schedule; use predicts='eps'")
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} are two schedules; give one")
    network = obj if isinstance(obj, nn.Module) else ForeignNetwork(obj)
    signal, noise, time = _levels(named[0], given[named[0]], sigma, times)
    return AdoptedModel(network, signal, noise, time, predicts)


def _levels(name: str, value: Any, sigma: Any, times: ArrayLike | None) -> tuple[F64, F64, F64]:
    """Return alpha, sigma and time at levels 1..T."""
    if name == "alpha":
        if sigma is None:
            raise OptionError("alpha is one of two functions; give sigma, too")
        at = torch.linspace(0.001, 0.999, _LEVELS, dtype=torch.float64) if times is None else torch.as_tensor(times)
        return value(at.double()).numpy(), sigma(at.double()).numpy(), at.double().numpy()
    values = _numbers(name, value, math.inf if name == "sigmas" else 1.0)
    given = None if times is None else _numbers("times", times)
    if name == "sigmas":
        return np.ones_like(values), values, values if given is None else given
    alpha_bar: F64 = np.cumprod(1 - values, dtype=np.float64) if name == "betas" else values
    return (
        np.sqrt(alpha_bar),
        np.sqrt(1 - alpha_bar),
        np.arange(len(values), dtype=np.float64) if given is None else given,
    )


def _numbers(name: str, value: Any, most: float | None = None) -> F64:
    """Return an argument as numbers of levels, (T,), between 0 and ``most`` if that is given."""
    found = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.array(value, dtype=np.float64)
    low, high = (-math.inf, math.inf) if most is None else (0, most)
    if found.ndim != 1 or not found.size or not np.all((found >= low) & (found <= high) & np.isfinite(found)):
        between = "" if most is None else " >= 0" if most == math.inf else " between 0 and 1"
        worst = found[~((found >= low) & (found <= high) & np.isfinite(found))]
        got = f"{worst[0]}" if found.ndim == 1 and worst.size else f"shape {found.shape}"
        raise OptionError(f"{name} must be finite numbers{between}, one for each level, (T,), got {got}")
    return found


def _find_reader(obj: Any, reader: str | None, options: Iterable[str]) -> Adopter:
    """Return the reader of an object's library, by the packages that its type and its parts' types are from."""
    readers = registry(ADOPTER.name)
    known, wanted = readers.names(), [reader] if reader is not None else [*_packages(obj)]
    for name in wanted:
        if canonical(name.rpartition(":")[2]) in known:
            return cast("Adopter", readers.get(name))
    listed = ", ".join(known) or "none"
    if reader is not None:
        raise OptionError(f"no reader {reader!r}{did_you_mean(reader, known)} (known: {listed})")
    for name in options:
        if meant := did_you_mean(name, inspect.signature(adopt).parameters):
            raise OptionError(f"adopt has no option {name!r}{meant}")
    raise OptionError(
        f"no reader for {type(obj).__name__} of {wanted[0]!r} (known: {listed}); "
        "use predicts='eps' with alphas_cumprod, betas, sigmas, or alpha and sigma"
    )


def _packages(obj: Any) -> Iterator[str]:
    for each in obj if isinstance(obj, tuple) else (obj,):
        for kind in type(each).__mro__:
            yield kind.__module__.partition(".")[0]


@torch.no_grad()
def check_step(system: System, model: AdoptedModel) -> None:
    """Compare one step with the home library's; the error names the reading that is in doubt."""
    if model.step is None:
        return
    home, error = model.step, _difference(system, model, model.step)
    tolerance = TOLERANCE.get(precision_of(system.network) or torch.float32, TOLERANCE[torch.float32])
    if error <= tolerance:
        return
    for other in ("eps", "x_start", "v", "score"):
        if _difference(recompose(system, mean=other), model, home) <= tolerance:
            doubt, fix = f"predicts={model.predicts!r} is in doubt", f"use predicts={other!r}"
            break
    else:
        doubt, fix = "the schedule or the time is in doubt", "give the levels by times="
    raise OptionError(f"one step differs from that of {model.library} by {error:.2g} of its size, so {doubt}; {fix}")


def _difference(system: System, model: AdoptedModel, home: Callable[[Tensor, float, float], Tensor]) -> float:
    """Return the largest difference of a step half-way down, relative to the scale of x."""
    t, s = (max(1, len(model.alpha) * share // 8) for share in (6, 5))
    dtype = torch.float64 if precision_of(system.network) == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *system.data_shape, generator=generator, dtype=torch.float64)
    scale = float(np.hypot(model.alpha[t - 1], model.sigma[t - 1]))
    x = (x * scale).to(dtype).to(system.device)
    here = system.trajectory(2, start=x, steps=[s, t], sampler="ddim", clip=False, **model.example)
    with eval_mode(model.network):
        there = home(x, float(model.time[t - 1]), float(model.time[s - 1]))
    return float((next(iter(here)).x - there).abs().max()) / max(scale, 1.0)
