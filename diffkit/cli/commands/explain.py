"""Explain a composition: its equations, levels, loss weights and sampling grid, as text and as a plot.

Choose parts and their options as for diffkit train, or name a saved system with --spec.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import STEPS, Steps
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.composition import SYSTEM, Composition, Sampling, keywords
from diffkit.cli.shared.paths import check_file
from diffkit.runtime.output import note, show

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


SPEC = CommandSpec(
    {"Options": Options, "Composition": Composition, "Sampling": Sampling},
    SYSTEM,
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
    if options.spec is None:
        return explain(keywords(parsed), steps=options.steps, network=options.network)
    own = {field.name for field in attrs.fields(Options)}  # of the parts, the sampler can be another
    others = [name for name in [*parsed.values, *parsed.chosen] if name not in own and name != "sampler"]
    parsed.refuse("--spec names a system that has its parts, so leave out {}", *others)
    return explain(options.spec, steps=options.steps, sampler=sampler, network=options.network)
