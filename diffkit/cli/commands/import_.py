"""Turn a public checkpoint into a saved system: improved-diffusion, guided-diffusion, its classifiers, DiT.

Most options of the network follow from shapes; a preset or options give the others. Without either, the missing ones
are listed with the published values. A file of diffkit export carries all of them. Without --to the file is only
described. Nothing in it is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_new_folder
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


@frozen
class Unseen:
    """Options that shapes do not show; each overrides the preset.

    Attributes:
        data_shape: Shape of one example, channels first.
        attention_order: How a U-Net's heads are laid out: "legacy" or "new".
        num_heads: Attention heads of a U-Net or classifier.
        num_head_channels: Channels per head, in place of num_heads.
        num_heads_upsample: Attention heads on the way up.
        heads: Attention heads of a DiT of unpublished size.
        groups: Groups of every group norm; 32 in all published networks.
        num_res_blocks: Blocks per level, where shapes allow several.
        num_classes: How many classes there are: all labels of the file, or with null_class all but one.
        null_class: The last label means "no class".
        dropout: For training on; weights do not depend on it.
        num_steps: T it was trained with.
        rescale_time: Times were scaled to 0..1000.
        bins: Values that data takes: 256 is 8-bit, none is continuous data.
        clip_x_start: Clip estimates of clean data in sampling and scoring.
    """

    data_shape: tuple[int, ...] | None = None
    attention_order: str | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    num_heads_upsample: int | None = None
    heads: int | None = None
    groups: int | None = None
    num_res_blocks: int | None = None
    num_classes: int | None = None
    null_class: bool | None = None
    dropout: float | None = None
    num_steps: int | None = None
    rescale_time: bool | None = None
    bins: int | None = None
    clip_x_start: bool | None = None


_SLOTS: dict[str, str | None] = dict.fromkeys(("schedule", "mean", "var", "loss", "timesteps", "sampler"))


SPEC = CommandSpec({"Options": Options, "What shapes do not show": Unseen}, _SLOTS, config=True)


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
    names = [attribute.name for attribute in attrs.fields(Unseen)]
    chosen = {name: parsed.values[name] for name in names if name in parsed.values}
    return chosen | {kind: (name, dict(options)) for kind, (name, options) in parsed.parts.items()}
