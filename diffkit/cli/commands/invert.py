"""Find the noise from which a deterministic sampler makes pictures, sample from it, and print the round-trip error.

Pictures are a file or a folder, resized and cropped as for training. The overview, OUT_grid.png, has a row for each:
the picture, and its reconstruction. latents.npz holds the noise: latents float32 (N, C, H, W), errors (N,), names (N,).
"""

from __future__ import annotations

import io
from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, Steps, steps_help
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import STEPS, sampling_options
from diffkit.errors import OptionError
from diffkit.runtime.output import note, show


@frozen
class Options:
    """Options of ``diffkit invert``.

    Attributes:
        run: A saved system or training run (a folder).
        pictures: A picture, or a folder of them.
        classes: Name or index of a class, for all pictures or one for each; "none", which means no class, by default.
        steps: Which levels are visited.
        out: Folder for the results; created if needed.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Write into a folder that holds something already.
    """

    run: Path = field(metadata=POSITIONAL)
    pictures: Path = field(metadata=POSITIONAL)
    classes: tuple[str, ...] = ()
    steps: Steps = field(default=None, metadata=steps_help())
    out: Path = Path("inverted")
    device: str | None = None
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options}, {"sampler": "heun", "guidance": None}, config=True, defaults=STEPS)


def run(parsed: ParsedOptions) -> None:
    """Invert, go back, and write both."""
    import numpy as np
    import torch

    from diffkit.cli.shared import tasks
    from diffkit.tasks import invert

    options = parsed.make(Options)
    tasks.check_out(options.out, options.overwrite)
    how = sampling_options(parsed)
    check_deterministic(how["sampler"])
    saved = tasks.load(options.run, options.device, parsed.parts.get("guidance"))
    pictures = tasks.read_pictures(options.pictures, saved.system.data_shape)
    conditions = tasks.conditions_for(saved, options.classes, len(pictures.images))
    found = invert(saved.system, pictures.images, steps=options.steps, **how, **conditions)
    back, errors = found.reconstruction.cpu(), found.error.cpu()
    shown = [torch.stack(pair) for pair in zip(pictures.images, back, strict=True)]
    latents, content = options.out / "latents.npz", io.BytesIO()
    np.savez(content, latents=found.latent.cpu().numpy(), errors=errors.numpy(), names=np.array(pictures.names))
    rows = list(zip(pictures.names, back[:, None], strict=True))
    lines = tasks.write(options.out, rows, shown, more={latents.name: content.getvalue()})
    for name, error in zip(pictures.names, errors.tolist(), strict=True):
        show(f"{name}: {error:.2e}")
    for line in (str(found), *lines, f"{latents}: latents {tuple(found.latent.shape)}, errors, names"):
        note(line)


def check_deterministic(sampler: object) -> None:
    """Refuse a sampler that adds noise, which cannot be inverted."""
    from diffkit.registry.resolve import resolve

    part, name = resolve("sampler", sampler)
    if part.stochastic:
        raise OptionError(
            f"sampler {name!r} adds noise, so there is no way back; use a deterministic one, such as 'heun' or 'ddim'"
        )
