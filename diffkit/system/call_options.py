"""The options of a call of a system, declared once.

A call takes them as ``**options: Unpack[SampleOptions]``, next to the conditions of the network: every keyword that is
not one of its options. Where a system has a default for an option (`Settings.sampling`), None differs from leaving the
option out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, TypedDict, TypeVar, cast

from torch import Tensor

from diffkit.protocols import Model
from diffkit.registry.resolve import Slot
from diffkit.spacing import Spacing
from diffkit.system.compiling import Compile
from diffkit.system.guidance import GuidanceSlot
from diffkit.system.randomness import Seed

Transform = Callable[[Tensor], Tensor]
"""Estimates of x_start (B, C, *S) -> the same, changed, each row on its own."""

F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K")


class Conditions(TypedDict, total=False):
    """Conditions of the built-in networks. Others are passed alike; a type checker wants them as ``**conditions``.

    Attributes:
        y: Labels.
    """

    y: Any


class EstimateOptions(Conditions, total=False):
    """At which levels clean data is estimated, and how.

    Attributes:
        steps: Levels: a count, a spacing string or a list of levels (see `diffkit.spacing`); None or "all" is every
            level. By default the system's, else every level.
        guidance: Guidance, such as ``diffkit.guidance.ClassifierFree(2.0)``; of several, the first is nearest to the
            network. None is no guidance. By default the system's, else none.
        clip: Clip the estimate of x_start to [-1, 1]; None is as composed. By default the system's for sampling.
        x_transform: Applied to the estimate of x_start before clipping.
        model: Called in place of the system's own network.
    """

    steps: Spacing
    guidance: GuidanceSlot
    clip: bool | None
    x_transform: Transform | None
    model: Model | None


class EncodeOptions(EstimateOptions, total=False):
    """Options of a sampler's steps without noise.

    Attributes:
        sampler: Name, (name, options) or instance; None is the composed one.
        compile: True or "step" runs each step, network and guidance included, as one compiled graph, which is cached
            for later calls; "cuda_graph" replays it as a CUDA graph; a mapping holds arguments of `torch.compile`.
        final: Where sampling ends, and encoding begins: "zero" is clean data, "sigma_min" level 1, as sigmas without a
            0 at the end do in other libraries. By default the system's, else "zero".
    """

    sampler: Slot
    compile: Compile
    final: str


class JobOptions(EncodeOptions, total=False):
    """Options of a sampling job; see `System.prepare`.

    Attributes:
        seed: Makes sample i a function of (seed, i), independent of the batch size; a list has one seed for each
            sample. Unseeded by default.
    """

    seed: Seed


class SampleOptions(JobOptions, total=False):
    """Options of `System.sample`.

    Attributes:
        batch_size: Number of samples made at a time; all at once by default.
        start: Data at level T to start from, (n, C, *S); noise by default.
        progress: Show a bar with an ETA on standard error.
        resume: A file in which an interrupted call (Ctrl-C, an error) leaves its state; the same call then goes on
            from it, to the bit. Removed once all samples are made.
    """

    batch_size: int | None
    start: Tensor | None
    progress: bool
    resume: str | Path | None


_OPTIONS: dict[type, frozenset[str]] = {
    kind: frozenset(kind.__annotations__) - frozenset(Conditions.__annotations__)
    for kind in (EstimateOptions, EncodeOptions, JobOptions, SampleOptions)
}
_SINGLE = (
    "after",
    "decoder_rows",
    "generator",
    "grad",
    "level",
    "noise",
    "noise_fn",
    "rows_per_call",
    "table",
    "time_of",
)
_OF_TRAINING = ("encoded", "estimates", "level_to", "teacher", "timesteps_state")
OPTIONS = _OPTIONS[SampleOptions] | {*_SINGLE, *_OF_TRAINING}
"""Options of all calls of a system: none of them is a condition."""


def conditions_in(keywords: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the keywords of a call that are not options of a record."""
    return {name: value for name, value in keywords.items() if name not in _OPTIONS[kind]}


def options_in(keywords: Mapping[str, Any], kind: type[K]) -> K:
    """Return the keywords of a call that are options of a record."""
    return cast(K, {name: value for name, value in keywords.items() if name in _OPTIONS[kind]})


class _OfSystem:
    """Shown as the default of an option for which a system may have one."""

    def __repr__(self) -> str:
        return "<the system's>"


_DEFAULTS = dict.fromkeys(("steps", "guidance", "clip", "final"), _OfSystem()) | {"compile": False, "progress": True}
SCORED: EstimateOptions = {"steps": None, "guidance": None, "clip": None}
"""Options of scores where a call does not give them: every level, and no default of sampling."""


def shows_options(kind: type, **defaults: Any) -> Callable[[F], F]:
    """Write the options of a record into a function's signature and docstring, where ``help()`` reads them.

    In the docstring they replace the line that begins with ``options:``.

    Args:
        kind: The record that the function unpacks.
        defaults: Defaults of this function that differ from the record's.
    """
    defaults = _DEFAULTS | defaults

    def shown(function: F) -> F:
        own = inspect.signature(function)
        *parameters, rest = own.parameters.values()
        for name, annotation in kind.__annotations__.items():
            if name in _OPTIONS[kind]:
                option = rest.replace(name=name, kind=rest.KEYWORD_ONLY, annotation=annotation.__forward_arg__)
                parameters.append(option.replace(default=defaults.get(name)))
        parameters.append(rest.replace(name="conditions", annotation="Any"))
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        line = re.search(r"^( *)options: .*\n", function.__doc__ or "", re.MULTILINE)
        if line is not None and function.__doc__ is not None:
            function.__doc__ = function.__doc__.replace(line[0], indent(_described(kind), line[1]))
        return function

    return shown


def _described(kind: type) -> str:
    """The entries of the docstrings of a record and of those that it extends."""
    records = [record for record, names in _OPTIONS.items() if names <= _OPTIONS[kind]]
    listed = [inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")[2] for record in records]
    return "".join([f"{dedent(entries)}\n" for entries in listed])
