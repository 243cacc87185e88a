"""Write the weights of a saved system or training run with the names of the public checkpoints, or a graph of it.

The weights: .pt, .pth or .safetensors, for backbones unet and dit, and for classifiers. A training run gives its
averaged weights. The file also carries the spec of the system, which other programs ignore, so that diffkit import
restores the same system.

The graph: .pt2 for PyTorch or .onnx, which run where diffkit is not installed. With --loop it samples: all steps of the
sampler, with the guidance, in a loop around the network; without, it is the network alone. diffkit check-export
compares such a file with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, STEPS, Steps
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.drawing import sampling_spec
from diffkit.cli.shared.paths import check_file
from diffkit.errors import OptionError, within
from diffkit.runtime.output import note

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = (".pt", ".pth", ".safetensors")
GRAPHS = (".pt2", ".onnx")


@frozen
class Options:
    """Options of ``diffkit export``.

    Attributes:
        run: A saved system, training run or imported classifier (a folder).
        to: File to write: weights .pt, .pth or .safetensors, or a graph .pt2 or .onnx.
        loop: Graph: all steps of sampling, not the network alone.
        steps: Graph with --loop: which levels are visited.
        clip: Graph with --loop: clip estimates of clean data to [-1, 1]; as composed by default.
        aot: Graph .pt2: compile it for machines like this one, which needs a C++ compiler and minutes.
        draw_noise: Graph with --loop: draw the noise of a stochastic sampler's steps in the file, not an input.
        device: Graph: where the file will run, such as cpu or cuda.
        overwrite: Replace that file if it exists.
    """

    run: Path = field(metadata=POSITIONAL)
    to: Path
    loop: bool = False
    steps: Steps = field(default=None, metadata=STEPS)
    clip: bool | None = None
    aot: bool = False
    draw_noise: bool = False
    device: str = "cpu"
    overwrite: bool = False


SPEC = sampling_spec(Options)


def run(parsed: ParsedOptions) -> None:
    """Write the file."""
    options = parsed.make(Options)
    check_file("--to", options.to, (*WEIGHTS, *GRAPHS), overwrite=options.overwrite)
    note(f"wrote {_graph(options, parsed) if options.to.suffix in GRAPHS else _weights(options, parsed)}")


def _weights(options: Options, parsed: ParsedOptions) -> Path:
    from diffkit.weights import export

    of_graphs: dict[str, Any] = {"--loop": options.loop, "--aot": options.aot, "--draw-noise": options.draw_noise}
    of_graphs |= {f"--{kind}": parsed.parts.get(kind) for kind in ("sampler", "guidance")}
    for name, given in of_graphs.items():
        if given:
            raise OptionError(f"{name} is for graphs, and {options.to.name} is a file of weights; use --to NAME.pt2")
    network, spec = _network(options.run)
    return export(network, options.to, spec=spec)


def _graph(options: Options, parsed: ParsedOptions) -> Path:
    from diffkit.cli.shared.device import device_of_rank
    from diffkit.cli.shared.guidance import load_guidance, with_guidance
    from diffkit.evaluation.saved import load_samplable
    from diffkit.tasks.exporting import export

    saved = load_samplable(options.run, device_of_rank(options.device))
    guidance, saved = load_guidance(parsed.parts.get("guidance"), saved)
    chosen: dict[str, Any] = {"sampler": parsed.parts.get("sampler"), "steps": options.steps, "clip": options.clip}
    given = {name: value for name, value in chosen.items() if value is not None} | with_guidance(parsed, guidance)
    if given and not options.loop:
        raise OptionError(f"--{next(iter(given))} is of sampling, and the graph is the network alone; add --loop")
    how: dict[str, Any] = {"loop": options.loop, "compiled": options.aot, "draw_noise": options.draw_noise}
    with within(compiled="aot"):
        return export(saved.system, options.to, **how, **given)


def _network(folder: Path) -> tuple[nn.Module, Mapping[str, Any] | None]:
    """The network to export, and the spec to store; None to store the system's own."""
    import diffkit
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.loading import read_spec
    from diffkit.weights import is_classifier, load_classifier

    if not is_classifier(folder):
        return diffkit.load(folder), None
    return load_classifier(folder), read_spec(folder / SPEC)
