"""Write the weights of a saved system or training run with the names that the published code gives them.

For backbones unet and dit, and for imported classifiers. A training run gives its averaged weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.cli._options import POSITIONAL
from diffkit.cli._paths import check_file
from diffkit.cli._takes import Given, Takes

if TYPE_CHECKING:
    from torch import nn


@frozen
class Options:
    """Options of ``diffkit export``.

    Attributes:
        run: A saved system, training run or imported classifier (a folder).
        to: File to write: .pt, .pth or .safetensors.
        overwrite: Replace that file if it is there.
    """

    run: Path = field(metadata=POSITIONAL)
    to: Path
    overwrite: bool = False


def takes() -> Takes:
    """Return the options."""
    return Takes({"Options": Options})


def run(given: Given) -> None:
    """Write the file."""
    from diffkit.weights import export

    options = given.make(Options)
    check_file("--to", options.to, (".pt", ".pth", ".safetensors"), overwrite=options.overwrite)
    print(f"wrote {export(_network(options.run), options.to)}")


def _network(folder: Path) -> nn.Module:
    import diffkit
    from diffkit.weights import is_classifier, load_classifier

    return load_classifier(folder) if is_classifier(folder) else diffkit.load(folder)
