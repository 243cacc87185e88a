"""Enlarge pictures with any system: draw large ones whose averages over blocks are the small ones.

Pictures are a file or a folder, each of just the size that the system makes divided by the factor. The overview,
OUT_grid.png, has a row for each: the picture, then the large ones. A system that was trained to enlarge does so
by diffkit sample --low-res.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import AS_COMPOSED, Drawing
from diffkit.errors import OptionError

if TYPE_CHECKING:
    from diffkit.protocols import Guidance


@frozen(kw_only=True)
class Options(Drawing):
    """Options of ``diffkit upscale``.

    Attributes:
        pictures: A small picture, or a folder of them.
        factor: How much larger each side becomes, >= 2; divides the system's.
        method: mmps (the best, some backward passes a step), pigdm (one), diffpir (none), or dps (one; for any system,
            those of an autoencoder's latents included).
        noise_std: Standard deviation of the noise in the small pictures, whose range is -1 to 1.
    """

    factor: int = 2
    method: Literal["mmps", "pigdm", "diffpir", "dps"] = "mmps"
    noise_std: float = 0.05


SPEC = CommandSpec(
    {"Options": Options},
    {"sampler": None, "guidance": None},
    config=True,
    composed=("guidance",),
    defaults={**AS_COMPOSED, "sampler": "ddim"},
)


def run(parsed: ParsedOptions) -> None:
    """Draw the large pictures and write them."""
    from torch.nn.functional import interpolate

    from diffkit import guidance
    from diffkit.cli.shared.tasks import PictureTask, read_pictures
    from diffkit.tasks import average_pool, solve

    options = parsed.make(Options)
    methods = {"mmps": guidance.MMPS, "pigdm": guidance.PiGDM, "diffpir": guidance.DiffPIR}
    pool = average_pool(options.factor)
    if options.method == "dps":
        parsed.refuse("{} is for the other methods; leave it out", "noise_std")
        method: Guidance = guidance.DPS(pool)
    else:
        method = methods[options.method](pool, noise_std=options.noise_std)
    task = PictureTask.of(options, parsed)
    channels, *sides = task.shape
    if any(side % options.factor for side in sides):
        raise OptionError(
            f"--factor {options.factor} does not divide the sides {tuple(sides)} of what the system makes"
        )
    # resizing them would change the averages that they are
    small = read_pictures(options.pictures, (channels, *(side // options.factor for side in sides)), resize=False)
    blocks = interpolate(small.images, scale_factor=options.factor, mode="nearest")
    task.draw(solve, options, small, method, shown=blocks)
