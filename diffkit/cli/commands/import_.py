"""Turn a public checkpoint into a saved system: improved-diffusion, guided-diffusion, its classifiers, DiT.

Most options of the network follow from shapes; a preset or options give the others. Without either, the missing ones
are listed with the published values. A file of diffkit export carries all of them. Without --to the file is only
described. Nothing in it is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, undecided
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.composition import Composition
from diffkit.cli.shared.paths import check_new_folder
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.unet import UNet
from diffkit.runtime.output import note, show


@frozen
class Options:
    """Options of ``diffkit import``.

    Attributes:
        file: A file of weights, PyTorch's or safetensors.
        to: Folder for the saved system; created if needed.
        preset: Published configuration it belongs to, such as iddpm/cifar10-uncond; diffkit list presets shows all.
        entry: Which set of weights, if the file holds several; "ema" if it has one.
        overwrite: Write into a folder that holds something already.
    """

    file: Path = field(metadata=POSITIONAL)
    to: Path | None = None
    preset: str | None = None
    entry: str | None = None
    overwrite: bool = False


UNSEEN = (
    *undecided(
        UNet,
        *("attention_order", "num_heads", "num_head_channels", "num_heads_upsample", "groups", "num_res_blocks"),
        *("num_classes", "null_class", "dropout"),
    ),
    *undecided(DiT, "heads"),
    *undecided(Composition, "data_shape", "num_steps", "rescale_time", "bins", "clip_x_start"),
)
"""Options of networks and systems that shapes do not show; each overrides the preset."""
_SLOTS: dict[str, str | None] = dict.fromkeys(("schedule", "mean", "var", "loss", "timesteps", "sampler"))


SPEC = CommandSpec({"Options": Options, "What shapes do not show": UNSEEN}, _SLOTS, config=True)


def run(parsed: ParsedOptions) -> None:
    """Save the system, and describe the file."""
    from diffkit.weights import identify, import_classifier, load_checkpoint

    options, chosen = parsed.make(Options), _load_options(parsed)
    if options.to is not None:
        check_new_folder("--to", options.to, overwrite=options.overwrite)
    found = identify(options.file, entry=options.entry)
    if options.to is not None:
        if found.family == "classifier":
            import_classifier(options.file, options.to, preset=options.preset, entry=options.entry, **chosen)
        else:
            system = load_checkpoint(options.file, preset=options.preset, entry=options.entry, **chosen)
            system.save(options.to)
    show(found)
    if options.to is not None and found.complete and options.preset is None and chosen:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        note(f"the options given override those in the file: {flags}")
    if options.to is not None:
        note(f"saved in {options.to}")


def _load_options(parsed: ParsedOptions) -> dict[str, Any]:
    """Keywords for loading: only what was set, parts as (name, options)."""
    chosen = {option.key: parsed.values[option.key] for option in UNSEEN if option.key in parsed.values}
    return chosen | {kind: (name, dict(options)) for kind, (name, options) in parsed.parts.items()}
