"""Make the missing part of pictures: where the mask is white the picture is kept, where it is black it is generated.

Pictures are a file or a folder, resized and cropped as for training; the mask is one picture of just the size the
system makes. The overview, OUT_grid.png, has a row for each: the picture, the mask, then the results.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import Drawing, chosen, sampling_options
from diffkit.errors import OptionError
from diffkit.runtime.output import note

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class Options:
    """Options of ``diffkit inpaint``.

    Attributes:
        run: A saved system or training run (a folder).
        pictures: A picture, or a folder of them.
        mask: A picture in black (to generate) and white (known), for all pictures.
        resample: How often each stretch is sampled (RePaint); 1 only replaces the known part.
        jump: Length of a stretch, in levels.
    """

    run: Path = field(metadata=POSITIONAL)
    pictures: Path = field(metadata=POSITIONAL)
    mask: Path
    resample: int = 10
    jump: int = 10


SPEC = CommandSpec(
    {"Options": Options, "Drawing": Drawing},
    {"sampler": None, "guidance": None},
    config=True,
    defaults={"sampler": "as it was composed"},
)


def run(parsed: ParsedOptions) -> None:
    """Make what is missing, and write the pictures."""
    import torch

    from diffkit.cli.shared import tasks
    from diffkit.tasks import inpaint

    options, drawing = parsed.make(Options), parsed.make(Drawing)
    drawing.check()
    how = sampling_options(parsed)
    saved = tasks.load(options.run, drawing.device, parsed.parts.get("guidance"))
    pictures = tasks.read_pictures(options.pictures, saved.system.data_shape)
    known = _read_mask(options.mask, saved.system.data_shape)
    found = inpaint(
        saved.system,
        pictures.images.repeat_interleave(drawing.n, 0),
        known,
        resample=options.resample,
        jump=options.jump,
        seed=drawing.seed,
        batch_size=drawing.batch_size,
        **chosen(steps=drawing.steps),
        **how,
        **tasks.conditions_for(saved, drawing.classes, len(pictures.images), each=drawing.n),
    )
    made = found.cpu().reshape(-1, drawing.n, *saved.system.data_shape)
    mask = (known.float() * 2 - 1).expand(1, *saved.system.data_shape)
    shown = [torch.cat([image[None], mask, row]) for image, row in zip(pictures.images, made, strict=True)]
    for line in tasks.write(drawing.out, list(zip(pictures.names, made, strict=True)), shown):
        note(line)


def _read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return a mask, bool (H, W), True where it is white."""
    import torch

    from diffkit.cli.shared.tasks import check_size
    from diffkit.data.images import Form, read_image

    if not path.is_file():
        raise OptionError(f"--mask {path} is not a file; name a picture in black and white")
    size = (shape[1], shape[2])
    check_size(f"--mask {path}", path, size)
    values = torch.tensor(read_image(path, Form(size=size, channels=1)))[0]
    between = (values > 0) & (values < 255)
    if between.any():
        raise OptionError(f"--mask {path} has grey pixels, such as {int(values[between][0])}; use 0 and 255 only")
    if not (values == 0).any():
        raise OptionError(f"--mask {path} is white all over, so there is nothing to make; paint it black there")
    return values == 255
