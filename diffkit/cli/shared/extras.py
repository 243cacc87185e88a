"""Extras that a command line needs, checked before any work: every missing one, and one pip command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from diffkit.cli.parsing.parts import names_of
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.data import source_of
from diffkit.errors import DiffkitError, MissingExtraError
from diffkit.runtime.run_layout import is_saved

MODULES: Mapping[str, tuple[str, ...]] = {
    "train": ("PIL",),
    "demo": ("PIL", "sklearn"),
    "lsun": ("PIL", "lmdb"),
    "hf": ("PIL", "datasets"),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboard", "PIL"),
    "wandb": ("wandb",),
    "ode": ("torchdiffeq",),
    "metrics": ("torchmetrics",),
    "inception": ("torchmetrics", "torch_fidelity"),
    "report": ("jinja2", "PIL"),
}
"""Extra -> modules that it brings, as in pyproject.toml; a test compares them."""

_SOURCES: Mapping[str, tuple[str, str]] = {
    "Digits": ("demo", "the digits data"),
    "Photographs": ("demo", "the photographs"),
    "Folder": ("train", "reading image files"),
    "Zip": ("train", "reading image files"),
    "WebDataset": ("train", "reading image files"),
    "Lsun": ("lsun", "reading an LMDB database"),
    "HuggingFace": ("hf", "a Hugging Face dataset"),
}
_TRACKERS = {"tensorboard": "tracking with TensorBoard", "wandb": "tracking with Weights & Biases"}
_PICTURES = ("edit", "inpaint", "interpolate", "invert", "upscale")
_BY_TORCHMETRICS = {"fid", "sfid", "kid"}


def check_extras(name: str, parsed: ParsedOptions) -> None:
    """Raise `MissingExtraError`, which names all of them, if a command needs extras that are not installed."""
    wanted = dict(_wanted(name, parsed))
    missing = {extra: purpose for extra, purpose in wanted.items() if not _is_there(extra)}
    if "inception" in missing:
        missing.pop("metrics", None)  # which it brings
    if missing:
        (extra, purpose), *more = missing.items()
        raise MissingExtraError(extra, purpose, *more)


def _is_there(extra: str) -> bool:
    return all(sys.modules.get(module) or find_spec(module) for module in MODULES[extra])


def _wanted(name: str, parsed: ParsedOptions) -> Iterator[tuple[str, str]]:
    """Extra and what it is needed for."""
    values = parsed.values
    yield from _of_data(parsed)
    if values.get("plot") is not None:
        yield "plot", "a plot"
    if name in _PICTURES or (name == "sample" and set(values.get("format", ("png",))) & {"png", "grid"}):
        yield "train", "writing PNG files"
    if name in ("train", "train-classifier"):
        yield from _of_training(parsed)
    if name == "evaluate":
        yield from _of_measuring(parsed)
    if name == "nll" and values.get("ode"):
        yield "ode", "the flow ODE"
    if name == "report":
        yield "report", "a report"
    if name == "demo":
        yield "demo", "the demo"


def _of_data(parsed: ParsedOptions) -> Iterator[tuple[str, str]]:
    for kind in ("data", "val"):
        if kind not in parsed.parts:
            continue
        try:
            source = source_of(parsed, kind)
        except DiffkitError:  # the command reports it when it opens the data
            continue
        if wanted := _SOURCES.get(type(source).__name__):
            yield wanted


def _of_training(parsed: ParsedOptions) -> Iterator[tuple[str, str]]:
    hooks = names_of("hook", parsed.parts["hook"][0]) if "hook" in parsed.parts else ()
    for tracker in (*parsed.values.get("track", ()), *hooks):
        if tracker in _TRACKERS:
            yield tracker, _TRACKERS[tracker]
    if parsed.values.get("preview_every") is not None:
        yield "train", "drawing previews"


def _of_measuring(parsed: ParsedOptions) -> Iterator[tuple[str, str]]:
    extractor = parsed.values.get("extractor", "inception")
    if extractor == "inception":
        yield "inception", "the Inception network"
    if extractor == "digits":
        yield "demo", "the digits data"
    samples: Path | None = parsed.values.get("samples")
    if samples is None:
        return
    if _BY_TORCHMETRICS & set(parsed.values.get("metrics") or _BY_TORCHMETRICS):
        yield "metrics", "FID and KID"
    if samples.is_dir() and not is_saved(samples):
        yield "train", "reading image files"
