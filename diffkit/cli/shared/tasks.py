"""Shared by the commands of `diffkit.tasks`: the system and its use, reading pictures, writing results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from diffkit.cli.parsing.spec import ParsedOptions, chosen
from diffkit.cli.shared.drawing import Drawing, PictureOptions
from diffkit.cli.shared.paths import check_new_folder, may_replace
from diffkit.errors import DataError, OptionError
from diffkit.evaluation.sampling import label_of, sized
from diffkit.registry import canonical
from diffkit.runtime.files import write_atomically, write_through
from diffkit.runtime.finite import check_finite
from diffkit.runtime.images import grid, pixels, png
from diffkit.runtime.output import log, note
from diffkit.runtime.publishing import new_folder, together

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.evaluation.saved import Saved

T = TypeVar("T")


@frozen(eq=False)
class Pictures:
    """The input pictures of a task.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1].
        names: Unique name of each.
    """

    images: Tensor
    names: tuple[str, ...]


@frozen(eq=False)
class PictureTask:
    """A system of pictures, and how a command line uses it.

    Attributes:
        saved: The system.
        options: Options of the command.
        sampling: Sampler, guidance and steps, as `System.sample` takes them.
    """

    saved: Saved
    options: PictureOptions
    sampling: Mapping[str, Any]

    @classmethod
    def of(cls, options: PictureOptions, parsed: ParsedOptions) -> PictureTask:
        """Load the system, which must make pictures of 8 bits and read no other ones, after checking the options."""
        from diffkit.cli.shared.device import device
        from diffkit.cli.shared.guidance import load_guidance, with_guidance
        from diffkit.evaluation.saved import load

        _check_out(options.out, options.overwrite)
        chosen_guidance = parsed.parts.get("guidance")
        if chosen_guidance is not None and canonical(chosen_guidance[0]) == "cfg" and not options.classes:
            raise OptionError("--guidance cfg has no effect without a class; name one with --classes")
        saved = load(options.run, device(options.device))
        _check_system(saved, options.run)
        guidance, saved = load_guidance(chosen_guidance, saved)
        sampling = {"sampler": parsed.parts.get("sampler"), **chosen(steps=options.steps)}
        sampling |= with_guidance(parsed, guidance)
        return cls(saved, options, sampling)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.saved.system.data_shape

    def call(self, task: Callable[..., T], *arguments: Any, count: int | None, each: int = 1, **more: Any) -> T:
        """Call a function of `diffkit.tasks` with the system, the sampling options and the classes.

        Args:
            task: The function.
            arguments: Its arguments after the system.
            count: How many pictures have a class; None if all of them have one.
            each: How many variants there are of every picture, which are consecutive.
            more: Its other options.
        """
        y = _labels(self.saved, self.options.classes, 1 if count is None else count)
        if y is not None:
            more[label_of(self.sampling.get("guidance"))] = (
                y[0] if count is None else [k for k in y for _ in range(each)]
            )
        return task(self.saved.system, *arguments, **self.sampling, **more)

    def draw(
        self,
        task: Callable[..., Tensor],
        options: Drawing,
        pictures: Pictures,
        *arguments: Any,
        shown: Tensor | None = None,
        beside: Tensor | None = None,
        **more: Any,
    ) -> None:
        """Draw variants of pictures, and write them.

        Args:
            task: Function of `diffkit.tasks`, called with every picture n times.
            options: Options of the command.
            pictures: The pictures.
            arguments: Further arguments of the function.
            shown: What the overview shows of the pictures, if not themselves, (N, C, H, W).
            beside: What it shows next to each, (C, H, W).
            more: Further options of the function.
        """
        import torch

        copies, count = pictures.images.repeat_interleave(options.n, 0), len(pictures.images)
        how = {"seed": options.seed, "batch_size": options.batch_size, **more}
        drawn = self.call(task, copies, *arguments, count=count, each=options.n, **how)
        variants = drawn.detach().cpu().reshape(-1, options.n, *self.shape)
        first = pictures.images if shown is None else shown
        second = [] if beside is None else [beside[None]]
        rows = [torch.cat([image[None], *second, row]) for image, row in zip(first, variants, strict=True)]
        for line in write(options.out, list(zip(pictures.names, variants, strict=True)), rows):
            note(line)


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder for results that cannot be written, or holds something already."""
    from diffkit.evaluation.sample_folder import check_overview, overview

    overwrite = may_replace([out, overview(out)], overwrite)
    check_new_folder("--out", out, overwrite=overwrite)
    check_overview(out, overwrite=overwrite)


def _check_system(saved: Saved, folder: Path) -> None:
    """Refuse a system of anything but pictures with 8 bits at most, or one that reads small pictures."""
    shape, bins = saved.system.data_shape, saved.bins
    if len(shape) != 3 or bins is None or bins > 256:
        kind = f"data of shape {shape}" if len(shape) != 3 else "continuous data" if bins is None else f"{bins} values"
        raise OptionError(f"{folder} makes {kind}, no 8-bit pictures; call diffkit.tasks in Python")
    if saved.low_res_channels:
        raise OptionError(f"{folder} enlarges small pictures, and does nothing else; use diffkit sample --low-res")


def _labels(saved: Saved, words: tuple[str, ...], count: int) -> list[int] | None:
    """Return a label for each of ``count`` pictures, from one class, one for each or none; None without classes."""
    if len(words) not in (0, 1, count):
        raise OptionError(f"--classes must name one class, or one for each of {count} pictures, got {len(words)}")
    if saved.num_classes is not None and not words and saved.null_class is None:
        known = ", ".join(saved.name(label) for label in range(saved.num_classes))
        raise OptionError(f"this system needs the class of every picture; name it with --classes ({known})")
    return saved.labels(words or ("none",) if saved.num_classes is not None else words, count)


def read_pictures(path: Path, shape: tuple[int, ...], *, resize: bool = True) -> Pictures:
    """Return a picture, or all those of a folder, resized and cropped to ``shape`` as for training, which is logged.

    Args:
        path: A file or folder.
        shape: (C, H, W).
        resize: False refuses pictures of any other size.
    Raises:
        DataError: It is not there, holds no picture, or one cannot be read.
        OptionError: The system's channels are not those of a picture, or a size is wrong.
    """
    import numpy as np
    import torch

    from diffkit.data.base import scale_images
    from diffkit.data.images import Form, read_image

    if shape[0] not in (1, 3, 4):
        raise OptionError(f"pictures have 1, 3 or 4 channels, this system {shape[0]}; call diffkit.tasks in Python")
    files = _files(path)
    size = (shape[1], shape[2])
    for file in () if resize else files:
        check_size(str(file), file, size)
    form = Form(size=size, channels=shape[0])
    images = torch.from_numpy(np.stack([read_image(file, form) for file in files]))
    _say_resized(files, size)
    stems = [file.stem for file in files]
    unique = len(set(stems)) == len(stems)
    return Pictures(
        scale_images(images, 256), tuple(stems if unique else [f"{i:06d}_{s}" for i, s in enumerate(stems)])
    )


def read_one(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return one picture, (C, H, W) float32 in [-1, 1]; see `read_pictures`."""
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name one picture")
    return read_pictures(path, shape).images[0]


def check_size(label: str, path: Path, size: tuple[int, int]) -> None:
    """Raise `OptionError` unless a picture has just that height and width."""
    found = _size(path)
    if found != size:
        raise OptionError(f"{label} is {sized(found)}, it has to be {sized(size)}")


def _say_resized(files: Sequence[Path], size: tuple[int, int]) -> None:
    """Log if pictures had another size than the system makes."""
    others = [(file.name, found) for file in files if (found := _size(file)) != size]
    if others:
        name, first = others[0]
        more = f" and {len(others) - 1} more" if others[1:] else ""
        log(f"resized and cropped to {sized(size)}: {name} ({sized(first)}){more}")


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, upright."""
    from diffkit.data.images import open_image_file, upright_size

    with open_image_file(path, str(path)) as image:
        return upright_size(image)


def _files(path: Path) -> tuple[Path, ...]:
    from diffkit.data.folder import list_images

    if not path.exists():
        raise DataError(f"{path} is not there; name a picture, or a folder of them")
    if not path.is_dir():
        return (path,)
    files = list_images(path).files
    if not files:
        raise DataError(f"{path} holds no picture")
    return files


def write(
    out: Path,
    rows: Sequence[tuple[str, Tensor]],
    shown: Sequence[Tensor],
    words: str = "a row for each picture",
    more: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Write results as PNG files, and an overview next to the folder; return a line for each.

    Args:
        out: The folder.
        rows: For every picture its name and its results, (n, C, H, W).
        shown: What to show of every picture in the overview, (k, C, H, W), a row for each.
        words: What the overview shows.
        more: Further files of the folder, name -> content.
    """
    import torch

    from diffkit.evaluation.sample_folder import overview

    check_finite(torch.cat([results for _, results in rows]))
    tiles = [tile for row in shown for tile in pixels(row, 256)]
    pictures = dict(_pictures(rows))
    with together([out, overview(out)]):
        with new_folder(out) as folder:
            for name, content in (pictures | dict(more or {})).items():
                write_through(folder / name, content)
        write_atomically(overview(out), png(grid(tiles, columns=len(shown[0]))))
    return [f"{out}/: {len(pictures)} PNG files", f"{overview(out)}: {words}"]


def _pictures(rows: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each PNG file."""
    for name, results in rows:
        for i, image in enumerate(pixels(results, 256)):
            suffix = f"_{i:02d}" if len(results) > 1 else ""
            yield f"{name}{suffix}.png", png(image)
