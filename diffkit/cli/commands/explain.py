"""Explain a composition: its equations, levels, loss weights and sampling grid, as text and as a plot.

Choose parts and their options as for diffkit train, those of training too, or name a saved system with --spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import STEPS, Steps
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions, chosen
from diffkit.cli.shared.composition import OF_TRAINING, SYSTEM, Composition, Sampling, keywords
from diffkit.cli.shared.paths import check_file
from diffkit.cli.shared.training import hooks_of
from diffkit.options import words
from diffkit.runtime.output import note, show
from diffkit.training.parameter_groups import as_groups

if TYPE_CHECKING:
    from diffkit.explain.explanation import Explanation


@frozen
class Options:
    """Options of ``diffkit explain``.

    Attributes:
        spec: Explain this saved system (a folder) in place of a composition.
        steps: Which levels sampling visits.
        plot: Draw it into this file too, such as explain.png.
        overwrite: Replace that file if it exists.
        network: Build the network, without memory for its weights, and count its parameters.
    """

    spec: Path | None = None
    steps: Steps = field(default=None, metadata=STEPS)
    plot: Path | None = None
    overwrite: bool = False
    network: bool = False


@frozen
class Training:
    """What of training is explained too, besides its parts.

    Attributes:
        param_groups: Groups of parameters, as in train; --network counts them.
        freeze: Patterns of names of parameters that are not trained.
    """

    param_groups: tuple[str | Mapping[str, Any], ...] = field(default=(), converter=as_groups)
    freeze: tuple[str, ...] = words()


SPEC = CommandSpec(
    {"Options": Options, "Composition": Composition, "Sampling": Sampling, "Training": Training},
    {**SYSTEM, **OF_TRAINING},
    config=True,
    preset=("composition", "sampling"),
    defaults={"steps": "those of the system", "sampling_steps": "all levels"},
)


def run(parsed: ParsedOptions) -> None:
    """Print the explanation."""
    options = parsed.make(Options)
    check_file("--plot", options.plot, overwrite=options.overwrite)
    if options.plot is not None:
        from diffkit.runtime import plots

        plots.check_plot_path(options.plot)
        note(f"writing {options.plot}")
    explanation = _explained(parsed, options)
    show(explanation)
    if options.plot is not None:
        explanation.plot(options.plot)


def _explained(parsed: ParsedOptions, options: Options) -> Explanation:
    from diffkit.explain import explain

    sampler = parsed.parts["sampler"] if "sampler" in parsed.chosen else None
    training = _of_training(parsed)
    if options.spec is None:
        composition = {name: value for name, value in keywords(parsed).items() if name not in OF_TRAINING}
        return explain(composition, steps=options.steps, network=options.network, training=training)
    known = {field.name for kind in (Options, Training) for field in attrs.fields(kind)}
    known |= {"sampler", *OF_TRAINING}  # of the system's parts, the sampler can be another
    others = [name for name in [*parsed.values, *parsed.chosen] if name not in known]
    parsed.refuse("--spec names a system that has its parts, so leave out {}", *others)
    return explain(options.spec, steps=options.steps, sampler=sampler, network=options.network, training=training)


def _of_training(parsed: ParsedOptions) -> dict[str, Any] | None:
    """Return what was chosen of training, as keywords of `diffkit.train`; None if nothing was."""
    found = {name: parsed.values[name] for name in ("param_groups", "freeze") if name in parsed.values}
    found |= {kind: parsed.parts[kind] for kind in ("optimizer", "lr_schedule") if kind in parsed.parts}
    return found | chosen(hooks=hooks_of(parsed) or None) or None
