"""Write the weights of a saved system or training run with the names of the public checkpoints.

For backbones unet and dit, and for classifiers. A training run gives its averaged weights. The file also carries the
spec of the system, which other programs ignore, so that diffkit import restores the same system.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_file
from diffkit.runtime.output import note

if TYPE_CHECKING:
    from torch import nn


@frozen
class Options:
    """Options of ``diffkit export``.

    Attributes:
        run: A saved system, training run or imported classifier (a folder).
        to: File to write: .pt, .pth or .safetensors.
        overwrite: Replace that file if it exists.
    """

    run: Path = field(metadata=POSITIONAL)
    to: Path
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the file."""
    from diffkit.weights import export

    options = parsed.make(Options)
    check_file("--to", options.to, (".pt", ".pth", ".safetensors"), overwrite=options.overwrite)
    network, spec = _network(options.run)
    note(f"wrote {export(network, options.to, spec=spec)}")


def _network(folder: Path) -> tuple[nn.Module, Mapping[str, Any] | None]:
    """The network to export, and the spec to store; None to store the system's own."""
    import diffkit
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.loading import read_spec
    from diffkit.weights import is_classifier, load_classifier

    if not is_classifier(folder):
        return diffkit.load(folder), None
    return load_classifier(folder), read_spec(folder / SPEC)
