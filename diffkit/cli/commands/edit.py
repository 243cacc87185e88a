"""Draw variations of pictures: each is noised up to some level, and sampled from there.

Pictures are a file or a folder, resized and cropped as for training. The overview, OUT_grid.png, has a row for each:
the picture, then its variations.
"""

from __future__ import annotations

from attrs import frozen

from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.drawing import Drawing, sampling_spec


@frozen(kw_only=True)
class Options(Drawing):
    """Options of ``diffkit edit``.

    Attributes:
        strength: Share of the levels to noise to, above 0 (nothing changes) up to 1 (everything does); 0.5 by default.
        level: The level itself, in place of the strength.
    """

    strength: float | None = None
    level: int | None = None


SPEC = sampling_spec(Options, strength="0.5")


def run(parsed: ParsedOptions) -> None:
    """Draw the variations and write them."""
    from diffkit.cli.shared.tasks import PictureTask, read_pictures
    from diffkit.tasks import image_to_image

    options = parsed.make(Options)
    task = PictureTask.of(options, parsed)
    pictures = read_pictures(options.pictures, task.shape)
    strength = 0.5 if options.strength is options.level is None else options.strength
    task.draw(image_to_image, options, pictures, strength=strength, level=options.level)
