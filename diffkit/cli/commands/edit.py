"""Draw variations of pictures: each is noised up to some level, and sampled from there.

Pictures are a file or a folder, resized and cropped as for training. The overview, OUT_grid.png, has a row for each:
the picture, then its variations.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import Drawing, chosen, sampling_options
from diffkit.errors import OptionError
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit edit``.

    Attributes:
        run: A saved system or training run (a folder).
        pictures: A picture, or a folder of them.
        strength: Share of the levels to noise to, above 0 (nothing changes) up to 1 (everything does); 0.5 by default.
        level: The level itself, in place of the strength.
    """

    run: Path = field(metadata=POSITIONAL)
    pictures: Path = field(metadata=POSITIONAL)
    strength: float | None = None
    level: int | None = None


SPEC = CommandSpec(
    {"Options": Options, "Drawing": Drawing},
    {"sampler": None, "guidance": None},
    config=True,
    defaults={"sampler": "as it was composed", "strength": "0.5"},
)


def run(parsed: ParsedOptions) -> None:
    """Draw the variations and write them."""
    import torch

    from diffkit.cli.shared import tasks
    from diffkit.tasks import image_to_image

    options, drawing = parsed.make(Options), parsed.make(Drawing)
    drawing.check()
    if options.strength is not None and options.level is not None:
        raise OptionError("--strength and --level say the same in two ways; leave one of them out")
    how = sampling_options(parsed)
    saved = tasks.load(options.run, drawing.device, parsed.parts.get("guidance"))
    pictures = tasks.read_pictures(options.pictures, saved.system.data_shape)
    found = image_to_image(
        saved.system,
        pictures.images.repeat_interleave(drawing.n, 0),
        strength=0.5 if options.strength is options.level is None else options.strength,
        level=options.level,
        seed=drawing.seed,
        batch_size=drawing.batch_size,
        **chosen(steps=drawing.steps),
        **how,
        **tasks.conditions_for(saved, drawing.classes, len(pictures.images), each=drawing.n),
    )
    variants = found.cpu().reshape(-1, drawing.n, *saved.system.data_shape)
    shown = [torch.cat([image[None], row]) for image, row in zip(pictures.images, variants, strict=True)]
    for line in tasks.write(drawing.out, list(zip(pictures.names, variants, strict=True)), shown):
        note(line)
