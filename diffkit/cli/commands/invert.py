"""Find the noise from which a deterministic sampler makes pictures, sample from it, and print the round-trip error.

Pictures are a file or a folder, resized and cropped as for training. The overview, OUT_grid.png, has a row for each:
the picture, and its reconstruction. latents.npz holds the noise: latents float32 (N, C, H, W), errors (N,), names (N,).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import OF_INVERSION, PictureOptions
from diffkit.runtime.output import note, show


@frozen(kw_only=True)
class Options(PictureOptions):
    """Options of ``diffkit invert``.

    Attributes:
        pictures: A picture, or a folder of them.
        time_of: Which level's time the network gets in a step up, that where it starts or that which it goes to (as
            other libraries do, with --sampler ddim).
    """

    pictures: Path = field(metadata=POSITIONAL)
    time_of: Literal["start", "end"] = "start"
    out: Path = Path("inverted")


SPEC = CommandSpec(
    {"Options": Options},
    {"sampler": "heun", "guidance": None},
    config=True,
    composed=("guidance",),
    defaults=OF_INVERSION,
)


def run(parsed: ParsedOptions) -> None:
    """Invert, go back, and write both."""
    import numpy as np
    import torch

    from diffkit.cli.shared.tasks import PictureTask, read_pictures, write
    from diffkit.tasks import invert

    options = parsed.make(Options)
    task = PictureTask.of(options, parsed)
    pictures = read_pictures(options.pictures, task.shape)
    found = task.call(invert, pictures.images, count=len(pictures.images), time_of=options.time_of)
    back, errors = found.reconstruction.cpu(), found.error.cpu()
    shown = [torch.stack(pair) for pair in zip(pictures.images, back, strict=True)]
    latents, content = options.out / "latents.npz", io.BytesIO()
    np.savez(content, latents=found.latent.cpu().numpy(), errors=errors.numpy(), names=np.array(pictures.names))
    rows = list(zip(pictures.names, back[:, None], strict=True))
    lines = write(options.out, rows, shown, more={latents.name: content.getvalue()})
    for name, error in zip(pictures.names, errors.tolist(), strict=True):
        show(f"{name}: {error:.2e}")
    for line in (str(found), *lines, f"{latents}: latents {tuple(found.latent.shape)}, errors, names"):
        note(line)
