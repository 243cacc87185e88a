"""Sampling: the samples of one batch as a function of their indices, in any process and order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.base import Data, scale_images
from diffkit.errors import DataError, OptionError
from diffkit.evaluation.samples import image_kinds, one_size
from diffkit.evaluation.saved import Saved
from diffkit.runtime.files import weights_digest
from diffkit.runtime.finite import check_finite
from diffkit.runtime.images import pixels
from diffkit.system.module import System
from diffkit.system.randomness import noise_for
from diffkit.tasks.adaptive import sample_adaptive

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.system.cascade import CascadeJob
    from diffkit.system.prepared import SamplingJob

_ATOL = 0.156
"""Absolute tolerance over the relative one, as the defaults of `sample_adaptive` have it."""


@frozen(eq=False)
class Sampling:
    """A set of samples to be drawn.

    Attributes:
        saved: The system.
        count: How many.
        batch_size: How many are made at a time: a batch is the unit of work, since sums depend on its size by rounding.
        seed: Sample i depends on the seed and i only.
        labels: Class of each, (N,) int64, or None.
        low_res: Small images to enlarge, or None.
        each: How many samples there are for each small image; they are consecutive.
        options: Of `System.sample`: steps, sampler, guidance, clip, compile.
        conditions: Further conditions by name, with one row for all samples, or one for each.
        adaptive: Relative tolerance of steps of controlled error, which those of a batch share; see
            `diffkit.tasks.sample_adaptive`. None takes the steps of the sampler.
    """

    saved: Saved
    count: int
    batch_size: int = 64
    seed: int = 0
    labels: NDArray[np.int64] | None = None
    low_res: Data | None = None
    each: int = 1
    options: Mapping[str, Any] = field(factory=dict)
    conditions: Mapping[str, NDArray[Any]] = field(factory=dict)
    adaptive: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.adaptive is not None and self.saved.cascade is not None:
            raise OptionError("is for one system, not for a cascade", option="adaptive", value=self.adaptive)

    @property
    def batches(self) -> list[range]:
        """Indices of the samples of each batch."""
        return [range(i, min(i + self.batch_size, self.count)) for i in range(0, self.count, self.batch_size)]

    def job(self, rows: range) -> SamplingJob:
        """Return the prepared sampling job of some samples, of the base of a cascade.

        It raises before any work if something is wrong.
        """
        if (cascade := self.cascade_job(rows)) is not None:
            return cascade.base()
        return self.saved.system.prepare(len(rows), **self.options, **self._conditions(rows))

    def cascade_job(self, rows: range) -> CascadeJob | None:
        """Return the prepared job of some samples of a cascade; None for a system.

        The sampler and the number of steps are for every stage, and all other options for the base.
        """
        cascade = self.saved.cascade
        if cascade is None:
            return None
        for_all = {name: value for name, value in self.options.items() if name in ("sampler", "steps", "compile")}
        stages = [dict(self.options), *[for_all] * (len(cascade.systems) - 1)]
        return cascade.prepare(len(rows), seed=self.seed, stages=stages, **self._conditions(rows))

    def count_steps(self, rows: range) -> int:
        """Return the number of steps of some samples; 1 if they are chosen on the way."""
        if self.adaptive is not None:
            return 1
        cascade = self.cascade_job(rows)
        return self.job(rows).program().num_steps if cascade is None else cascade.num_steps

    def draw(self, rows: range, advance: Callable[[int], None]) -> NDArray[Any]:
        """Return some samples as pixels, (n, C, *S).

        Args:
            rows: Their indices.
            advance: Called with 1 after each step.
        """
        with torch.no_grad():
            x = self._drawn(rows, advance)
        check_finite(x, rows.start)
        return pixels(x, self.saved.bins)

    def _drawn(self, rows: range, advance: Callable[[int], None]) -> Tensor:
        cascade = self.cascade_job(rows)
        if cascade is not None:
            *_, last = cascade.run(advance, rows.start)
            return last
        job, here = self.job(rows), range(len(rows))
        noise_fn = noise_for(self.seed, rows, job.parts.data_shape, job.device)
        if self.adaptive is not None:
            how: dict[str, Any] = {
                "rtol": self.adaptive,
                "atol": _ATOL * self.adaptive,
                "start": job.begin(here, noise_fn),
            }
            found = sample_adaptive(self.saved.system, len(rows), **how, **self.options, **self._conditions(rows))
            advance(1)
            return found.samples
        z = job.finish(job.program(), here, job.begin(here, noise_fn), noise_fn, advance)
        return job.from_latents(z)

    def _conditions(self, rows: range) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.labels is not None:
            found[label_of(self.options.get("guidance"))] = self.labels[rows.start : rows.stop].tolist()
        if self.low_res is not None:
            small = self.low_res.batch([i // self.each for i in rows]).images
            found["low_res"] = scale_images(small, self.low_res.bins)
        for name, values in self.conditions.items():
            found[name] = torch.from_numpy(values if len(values) == 1 else values[rows.start : rows.stop])
        return found


def label_of(guidance: object) -> str:
    """Return the name of the condition that holds the classes: a classifier's own, if the network has none."""
    from diffkit.guidance import ClassifierGuidance

    return guidance.label if isinstance(guidance, ClassifierGuidance) else "y"


def in_turn(chosen: Sequence[int], count: int) -> NDArray[np.int64]:
    """Return a label for each of ``count`` samples, the chosen ones in turn, so that each has as many."""
    return np.resize(np.array(chosen, np.int64), count)


def at_random(chosen: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    """Return a label for each of ``count`` samples, drawn from the chosen ones; label i depends on seed and i only."""
    uniform = np.random.default_rng((seed, len(chosen))).random(count)
    return np.array(chosen, np.int64)[(uniform * len(chosen)).astype(np.int64)]


def pictures(path: Path, channels: int) -> Data:
    """Return the pictures to enlarge: one, those of a folder, or of a .npz or .npy file with its labels if any.

    Args:
        path: The file, folder or picture.
        channels: How many the network reads of them; a folder is read so.
    Raises:
        DataError: There is nothing to read, or the pictures of a folder have several sizes.
    """
    from diffkit.data.folder import SUFFIXES
    from diffkit.data.loading import source_for

    if path.is_dir():
        size = one_size(path, image_kinds(path), "enlarge those of each size alone")
        return source_for(path, size=size, channels=channels).open()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _one(path, channels)
    return (source_for(path, labels=True) if has_labels(path) else source_for(path)).open()


def _one(path: Path, channels: int) -> Data:
    """One picture, as it is."""
    from diffkit.data.arrays import from_array
    from diffkit.data.images import Form, open_image_file, read_image, upright_size

    if channels not in (1, 3, 4):
        raise DataError(f"pictures have 1, 3 or 4 channels, the network reads {channels}; give a .npz file")
    with open_image_file(path, str(path)) as image:
        size = upright_size(image)
    return from_array(read_image(path, Form(size, channels))[None])


def read_conditions(path: Path, count: int) -> dict[str, NDArray[Any]]:
    """Return conditions for samples from a .npz file: arrays by name, with one row for all of them, or one for each.

    Raises:
        DataError: The file cannot be read, or an array has another number of rows.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}
    except Exception as error:  # NumPy raises whatever its parsers meet
        raise DataError(f"{str(path)!r} cannot be read as a .npz file of conditions: {error}") from error
    for name, values in found.items():
        if not values.ndim or len(values) not in (1, count):
            raise DataError(f"condition {name!r} in {str(path)!r} must have 1 row, or {count}, got {values.shape}")
    return found


def has_labels(path: Path) -> bool:
    """Return whether a path is that of a .npz file with labels, arr_1."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return "arr_1" in arrays
    except Exception:  # NumPy may raise any error at a damaged file; opening it reports the fault
        return False


def check_low_res(saved: Saved, path: Path | None) -> None:
    """Raise `OptionError` unless small images are named exactly if the network reads them."""
    if path is None and saved.low_res_channels:
        raise OptionError("this system enlarges small images; name them with --low-res FOLDER or --low-res FILE.npz")
    if path is not None and not saved.low_res_channels:
        raise OptionError("this system reads no small images, so there is nothing to do with --low-res; leave it out")


def check_fit(saved: Saved, data: Data) -> None:
    """Raise `DataError` unless small images have the channels and size that the network was trained with."""
    wanted, large = saved.low_res_channels, saved.system.data_shape
    shape, size = tuple(data.shape), tuple(data.shape[1:])
    if len(shape) != len(large) or shape[0] != wanted:
        axes = len(large) - 1
        raise DataError(
            f"the small images have shape {shape}; the network reads {wanted} channels of images with {axes} axes"
        )
    if saved.low_res is not None and size != saved.low_res:
        raise DataError(
            f"the small images are {sized(size)}, the network was trained to enlarge {sized(saved.low_res)}"
        )
    if data.bins is None and saved.bins is not None:
        images = data.batch(range(min(len(data), 64))).images
        low, high = float(images.min()), float(images.max())
        if not (low >= -1 and high <= 1):
            raise DataError(
                f"the small images are floating-point values from {low:g} to {high:g}, the network reads [-1, 1]; "
                "scale them, or store them as 8-bit integers"
            )
    if any(small > side for small, side in zip(size, large[1:], strict=True)):
        raise DataError(
            f"the small images are {sized(size)}, larger than what they are enlarged to, {sized(large[1:])}"
        )


def digest(saved: Saved) -> str:
    """Return 16 digits that stand for a system, its parts, options and weights, or for all stages of a cascade."""
    if saved.cascade is None:
        return _digest(saved.system)
    stages = "".join(map(_digest, saved.cascade.systems))
    return hashlib.sha256(f"{stages} {saved.cascade.noise}".encode()).hexdigest()[:16]


def _digest(system: System) -> str:
    assert system.trained is not None
    spec = json.dumps(system.spec(), sort_keys=True).encode()
    return weights_digest({**system.trained.state_dict(), **system.frozen.state_dict()}, spec)[:16]


def fingerprint(data: Data) -> str:
    """Return 16 digits that stand for all small pictures that are sampled from."""
    found = hashlib.sha256(str((len(data), *data.shape)).encode())
    for start in range(0, len(data), 256):
        images = data.batch(range(start, min(start + 256, len(data)))).images
        found.update(images.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def sized(size: Sequence[int]) -> str:
    """Return a size as text: 64x64."""
    return "x".join(map(str, size))
