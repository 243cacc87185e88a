"""The demo: train on handwritten digits, draw some of each class, and measure how good they and the model are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit.errors import MissingExtraError, OptionError
from diffkit.options import check_integer

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.data import Batch, Data
    from diffkit.system.module import System

STEPS = 1200
"""Updates of the weights: two to five minutes on one core."""
CLASSES, LEVELS = 10, 100
PER_CLASS = 30
GUIDANCE = 1.5
"""Weight of classifier-free guidance: a little, which took samples read as the intended class from 99.2 to 99.9 %."""
SHOWN = 12
HEADLINE = "Improved DDPM (cosine schedule, learned_range variance, hybrid loss) on handwritten digits"
COMPOSITION: Mapping[str, Any] = {
    "schedule": "cosine",
    "var": "learned_range",
    "loss": "hybrid",
    "backbone": (
        "unet",
        {
            "channels": 16,
            "num_res_blocks": 1,
            "channel_mult": (1, 2),
            "attention_resolutions": (4,),
            "num_heads": 2,
            "groups": 8,
            "num_classes": CLASSES,
            "null_class": True,
        },
    ),
    "data_shape": (1, 8, 8),
    "bins": 17,
    # With 17 grey levels, noise finer than a tenth of their spacing says nothing that 1,000 levels could refine: the
    # bound is 1.9 bits/dim with 100 levels and above 3 with 1,000, for which so small a network is too coarse.
    "num_steps": LEVELS,
}
TRAINING: Mapping[str, Any] = {
    "batch_size": 128,
    "lr": 6e-3,
    "warmup": 50,
    "anneal": True,
    "grad_clip": 1.0,
    "ema": (0.995,),
    "label_dropout": 0.1,
    "log_every": 10,
    "save_every": 200,
}


@frozen
class Report:
    """Results of the demo.

    Attributes:
        steps: Updates of the weights.
        parameters: Numbers in the network.
        recognised: Share of samples that a classifier trained on real digits reads as the intended class.
        recognised_real: The same of real digits it was not trained on.
        bits_per_dim: Bound on held-out digits, bits per pixel.
        bits_uniform: Bits per pixel of uniform grey levels.
        bits_gaussian: Bits per pixel of a Gaussian fitted to each pixel.
        seconds: Wall time of this call, by stage.
        files: Files written, by content.
    """

    steps: int
    parameters: int
    recognised: float
    recognised_real: float
    bits_per_dim: float
    bits_uniform: float
    bits_gaussian: float
    seconds: Mapping[str, float]
    files: Mapping[str, str]

    def __str__(self) -> str:
        rows = [
            (
                "samples read as the intended class",
                f"{self.recognised:.1%}",
                f"real digits {self.recognised_real:.1%}",
            ),
            (
                "bits/dim on held-out digits",
                f"{self.bits_per_dim:.2f}",
                f"a Gaussian per pixel {self.bits_gaussian:.2f}, uniform {self.bits_uniform:.2f}",
            ),
        ]
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        lines = [HEADLINE, f"{self.parameters:,} parameters, {self.steps} steps; {spent}", ""]
        lines += [f"  {name:<38}{value:>7}   ({note})" for name, value, note in rows]
        return "\n".join([*lines, "", *(f"  {name:<12}{path}" for name, path in self.files.items())])


def run(out: str | Path = "demo", *, steps: int = STEPS, seed: int = 0, progress: bool = True) -> Report:
    """Train, sample and score; a second call with the same folder resumes where the first was stopped.

    Args:
        out: Folder for everything that is written.
        steps: Updates of the weights.
        seed: Seed of everything random.
        progress: Log where files are written and show bars.
    Returns:
        The figures; ``str(report)`` is a short table of them.
    Raises:
        MissingExtraError: scikit-learn, Pillow or matplotlib is not installed.
        OptionError: The folder cannot be written or holds another run, or an option is wrong.
    """
    steps = check_integer("steps", steps, ge=1)
    _need_extras()
    import diffkit.data

    train_set = diffkit.data.loading.load("digits", split="train")
    real, held_out = _all(train_set), _all(diffkit.data.loading.load("digits", split="held_out"))
    folder, seconds = Path(out), dict[str, float]()
    with _one_thread(), _timed(seconds, "training"):
        system = _trained(folder / "run", train_set, steps, seed, progress)
    with _one_thread(), _timed(seconds, "sampling"):
        labels, samples = _samples(system, seed, progress)
    with _one_thread(), _timed(seconds, "scoring"):
        bits = _bits_per_dim(system, held_out, seed, progress)
    read = _classifier(real)
    files = {
        "samples": folder / "samples.png",
        "loss curve": folder / "loss.png",
        "report": folder / "report.json",
        "run": folder / "run",
    }
    report = Report(
        steps=steps,
        parameters=sum(p.numel() for p in system.parameters()),
        recognised=read(_grey_levels(samples), labels),
        recognised_real=read(held_out.images, held_out.conditions["y"]),
        bits_per_dim=bits,
        bits_uniform=math.log2(17),
        bits_gaussian=gaussian_bits(real, held_out),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        files={name: str(path) for name, path in files.items()},
    )
    try:
        _draw_samples(samples, files["samples"])
        _draw_curve(files["run"], files["loss curve"])
        files["report"].write_text(json.dumps(attrs.asdict(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"out {str(folder)!r} cannot be written: {error}; choose another folder") from error
    return report


def gaussian_bits(real: Batch, held_out: Batch) -> float:
    """Return the bits per pixel of held-out digits under one Gaussian per pixel, integrated over the grey level's bin.

    Its deviations are no smaller than half a bin, as a pixel constant in training would give infinity.
    """
    from diffkit.parts.decoders.binned import Binned

    x, y = _in_range(real), _in_range(held_out)
    log_variance = x.var(0).clamp(min=(1 / 16) ** 2).log()
    nats = Binned(17, cdf="exact", floor=0.0).log_prob(y, x.mean(0), log_variance)
    return float(-nats.mean() / math.log(2))


def _trained(folder: Path, data: Data, steps: int, seed: int, progress: bool) -> System:
    import torch

    import diffkit

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        system = diffkit.compose(**COMPOSITION)
    return diffkit.train(system, data, out=folder, steps=steps, seed=seed, progress=progress, **TRAINING)


def _samples(system: System, seed: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Labels (N,), class by class, and samples (N, 1, 8, 8)."""
    import torch

    from diffkit.guidance import ClassifierFree

    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    guided = ClassifierFree(GUIDANCE)
    return labels, system.sample(len(labels), seed=seed, y=labels, guidance=guided, progress=progress)


def _bits_per_dim(system: System, held_out: Batch, seed: int, progress: bool) -> float:
    x = _in_range(held_out).float()
    labels = held_out.conditions["y"]
    bound = system.bits_per_dim(x, y=labels, seed=seed, progress=progress, rows_per_call=256)
    return float(bound.total.mean())


def _classifier(real: Batch) -> Callable[[Tensor, Tensor], float]:
    """A support vector machine trained on real digits: grey levels (N, 1, 8, 8) and labels in, accuracy out."""
    from sklearn.svm import SVC  # type: ignore[import-untyped]

    machine = SVC(gamma=1e-3, C=10).fit(real.images.flatten(1).numpy(), real.conditions["y"].numpy())
    return lambda images, labels: float(machine.score(images.flatten(1).numpy(), labels.numpy()))


def _all(data: Data) -> Batch:
    return data.batch(range(len(data)))


def _in_range(digits: Batch) -> Tensor:
    """Images in [-1, 1], float64."""
    return digits.images.double() / 8 - 1


def _grey_levels(samples: Tensor) -> Tensor:
    return ((samples.clamp(-1, 1) + 1) * 8).round()


def _draw_samples(samples: Tensor, path: Path) -> None:
    """One row per class, dark on light, enlarged smoothly, the class at the left."""
    import numpy as np
    from PIL import Image, ImageDraw

    zoom, gap, margin = 6, 12, 34
    tile = 8 * zoom + gap
    ink = 255 - np.rint(_grey_levels(samples).numpy().reshape(CLASSES, PER_CLASS, 8, 8) * (255 / 16)).astype(np.uint8)
    sheet = Image.new("L", (margin + SHOWN * tile + gap, CLASSES * tile + gap), 205)
    draw = ImageDraw.Draw(sheet)
    for row in range(CLASSES):
        top = gap + row * tile
        draw.text((margin / 2, top + 4 * zoom), str(row), fill=60, anchor="mm", font_size=22)
        for column in range(SHOWN):
            digit = Image.fromarray(ink[row, column]).resize((8 * zoom, 8 * zoom), Image.Resampling.BICUBIC)
            sheet.paste(digit, (margin + gap + column * tile, top))
    sheet.save(path)


def _draw_curve(run_folder: Path, path: Path) -> None:
    from matplotlib.figure import Figure

    from diffkit.training import read_metrics

    lines = read_metrics(run_folder)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "hybrid loss"), ("mse", "its squared-error part")):
        kept = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axes.plot(*zip(*kept, strict=True), label=label, linewidth=1.2)
    axes.set(xlabel="step", ylabel="mean since the last point", yscale="log", title="Training")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _need_extras() -> None:
    for module in ("sklearn", "PIL", "matplotlib"):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingExtraError("demo", "the demo") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: 8x8 images keep no more busy, and on a loaded machine two wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun
