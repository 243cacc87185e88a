"""Enlarge pictures with any system: draw large ones whose averages over blocks are the small ones.

Pictures are a file or a folder, each of just the size that the system makes divided by the factor. The overview,
OUT_grid.png, has a row for each: the picture, then the large ones. A system that was trained to enlarge does so
by diffkit sample --low-res.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import Drawing, chosen, sampling_options
from diffkit.errors import OptionError
from diffkit.runtime.output import note

if TYPE_CHECKING:
    from diffkit.cli.shared.tasks import Pictures
    from diffkit.parts.guidance._linear import Measured


@frozen
class Options:
    """Options of ``diffkit upscale``.

    Attributes:
        run: A saved system or training run (a folder).
        pictures: A small picture, or a folder of them.
        factor: How much larger each side becomes, >= 2; divides the system's.
        method: mmps (the best, some backward passes a step), pigdm (one) or diffpir (none).
        noise_std: Standard deviation of the noise in the small pictures, whose range is -1 to 1.
    """

    run: Path = field(metadata=POSITIONAL)
    pictures: Path = field(metadata=POSITIONAL)
    factor: int = 2
    method: Literal["mmps", "pigdm", "diffpir"] = "mmps"
    noise_std: float = 0.05


SPEC = CommandSpec(
    {"Options": Options, "Drawing": Drawing},
    {"sampler": None, "guidance": None},
    config=True,
    defaults={"sampler": "ddim"},
)


def run(parsed: ParsedOptions) -> None:
    """Draw the large pictures and write them."""
    import torch
    from torch.nn.functional import interpolate

    from diffkit.cli.shared import tasks
    from diffkit.tasks import solve

    options, drawing = parsed.make(Options), parsed.make(Drawing)
    drawing.check()
    method = _method(options)
    how = sampling_options(parsed)
    saved = tasks.load(options.run, drawing.device, parsed.parts.get("guidance"))
    pictures = _small(options, saved.system.data_shape)
    found = solve(
        saved.system,
        pictures.images.repeat_interleave(drawing.n, 0),
        method,
        seed=drawing.seed,
        batch_size=drawing.batch_size,
        **chosen(steps=drawing.steps),
        **how,
        **tasks.conditions_for(saved, drawing.classes, len(pictures.images), each=drawing.n),
    )
    large = found.detach().cpu().reshape(-1, drawing.n, *saved.system.data_shape)
    blocks = interpolate(pictures.images, scale_factor=options.factor, mode="nearest")
    shown = [torch.cat([image[None], row]) for image, row in zip(blocks, large, strict=True)]
    for line in tasks.write(drawing.out, list(zip(pictures.names, large, strict=True)), shown):
        note(line)


def _method(options: Options) -> Measured:
    from diffkit.guidance import MMPS, DiffPIR, PiGDM
    from diffkit.tasks import average_pool

    methods: dict[str, type[MMPS | PiGDM | DiffPIR]] = {"mmps": MMPS, "pigdm": PiGDM, "diffpir": DiffPIR}
    return methods[options.method](average_pool(options.factor), noise_std=options.noise_std)


def _small(options: Options, shape: tuple[int, ...]) -> Pictures:
    """The pictures, which are not resized: that would change the averages that they are."""
    from diffkit.cli.shared import tasks

    if any(side % options.factor for side in shape[1:]):
        raise OptionError(f"--factor {options.factor} does not divide the sides {shape[1:]} of what the system makes")
    return tasks.read_pictures(
        options.pictures, (shape[0], *(side // options.factor for side in shape[1:])), resize=False
    )
