"""Make the missing part of pictures: where the mask is white the picture is kept, where it is black it is generated.

Where the mask is grey the picture is changed, the more the darker it is: a share s of black is --strength s of diffkit
edit there.

Pictures are a file or a folder, resized and cropped as for training; the mask is one picture of just the size the
system makes. The overview, OUT_grid.png, has a row for each: the picture, the mask, then the results.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.drawing import Drawing, sampling_spec
from diffkit.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Options(Drawing):
    """Options of ``diffkit inpaint``.

    Attributes:
        mask: A picture in black (to generate) and white (known), or grey (to change), for all pictures.
        resample: How often each stretch is sampled (RePaint); 1 only replaces the known part.
        jump: Length of a stretch, in levels.
    """

    mask: Path
    resample: int = 10
    jump: int = 10


SPEC = sampling_spec(Options)


def run(parsed: ParsedOptions) -> None:
    """Make what is missing, and write the pictures."""
    from diffkit.cli.shared.tasks import PictureTask, read_pictures
    from diffkit.tasks import inpaint

    options = parsed.make(Options)
    task = PictureTask.of(options, parsed)
    pictures = read_pictures(options.pictures, task.shape)
    known = _read_mask(options.mask, task.shape)
    beside = (known * 2 - 1).expand(task.shape)
    task.draw(inpaint, options, pictures, known, beside=beside, resample=options.resample, jump=options.jump)


def _read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return a mask, (H, W), from 0 where it is black to 1 where it is white."""
    import torch

    from diffkit.cli.shared.tasks import check_size
    from diffkit.data.images import Form, read_image

    if not path.is_file():
        raise OptionError(f"--mask {path} is not a file; name a picture in black and white")
    size = (shape[1], shape[2])
    check_size(f"--mask {path}", path, size)
    values = torch.tensor(read_image(path, Form(size=size, channels=1)))[0]
    if (values == 255).all():
        raise OptionError(f"--mask {path} is white all over, so there is nothing to make; paint it black there")
    return values / 255
