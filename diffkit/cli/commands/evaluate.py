"""Measure samples against data: FID, KID, precision and recall, inception score, by any feature network.

Samples are a folder of images, the .npz of diffkit sample or of improved-diffusion, or a saved system, from which
they are drawn first. They are compared with --data, or with stored statistics (--reference), which --save-reference
writes; without samples it does nothing else. Every number is printed with the settings that it depends on.
The network of published figures is --extractor inception: its weights are fetched at first use. Offline, put
the file that the error names in its place, or give its path as --weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions, chosen
from diffkit.cli.parsing.values import shown
from diffkit.cli.shared.data import opened
from diffkit.cli.shared.paths import check_file, in_run_folder, may_replace
from diffkit.data.sources._images import image_size
from diffkit.errors import OptionError, within
from diffkit.options import choice, integer
from diffkit.runtime.output import note, show
from diffkit.runtime.run_layout import is_saved

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.evaluation import Extractor, Reference

RESULT = "evaluation.json"
"""File of a run's own folder that the result is written to by default."""


@frozen
class Options:
    """Options of ``diffkit evaluate``.

    Attributes:
        samples: A folder of images, a .npz file, or a saved system or training run; none to make a reference only.
        reference: Stored statistics in place of --data: a file of --save-reference, or a published one with mu, sigma.
        save_reference: Write the statistics of --data into this .npz file.
        extractor: Feature network: inception, digits, an installed one by name, or package.module:attribute,
            searched for in this folder too.
        weights: File of the weights of inception, where they cannot be fetched.
        metrics: Some of fid, sfid, kid, inception_score, precision_recall; by default all that are available.
        num: How many samples: the first ones of files, or as many as are drawn from a system.
        size: Height and width to resize sample images to; by default they have to be of one size, and stay as they are.
        on_error: At sample images that cannot be read: "stop", naming them all, or "skip" them.
        layout: Of a .npz or .npy file of samples, "channels_last" or "channels_first"; by default the shape decides.
        steps: How many levels sampling visits, where samples are drawn.
        seed: Seed of the samples, and of the subsets of KID.
        batch_size: How many images are drawn or measured at a time.
        neighbours: Of precision and recall.
        kid_subsets: How many random subsets KID is the mean of.
        kid_subset_size: Examples of each, at most those there are.
        split_size: Examples of each split of the inception score.
        out: Write numbers and settings into this .json file; by default evaluation.json in the folder of the system.
        overwrite: Replace existing files; evaluation.json in the folder of the system is always replaced.
        device: Such as cpu or cuda; a GPU if there is one.
    """

    samples: Path | None = field(default=None, metadata=POSITIONAL)
    reference: Path | None = None
    save_reference: Path | None = None
    extractor: str = "inception"
    weights: Path | None = None
    metrics: tuple[str, ...] = ()
    num: int | None = integer(None, optional=True, ge=1)
    size: tuple[int, ...] | None = image_size(optional=True)
    on_error: str = choice("stop", ("stop", "skip"))
    layout: str | None = choice(None, ("channels_last", "channels_first"), optional=True)
    steps: int | str | tuple[int, ...] | None = None
    seed: int = integer(0, ge=0)
    batch_size: int = integer(64, ge=1)
    neighbours: int = integer(3, ge=1)
    kid_subsets: int = integer(100, ge=1)
    kid_subset_size: int = integer(1000, ge=2)
    split_size: int = integer(5000, ge=1)
    out: Path | None = None
    overwrite: bool = False
    device: str | None = None


DRAWN = 1000
"""Samples that are drawn from a system by default."""

MOST = 1_000_000
"""Samples that are drawn from a system at most: they are all in memory."""


SPEC = CommandSpec(
    {"Options": Options},
    {"sampler": None, "guidance": None, "data": None},
    config=True,
    composed=("sampler", "guidance"),
    defaults={"sampler": "as it was composed", "num": "all, or 1000 of a system"},
)


def run(parsed: ParsedOptions) -> None:
    """Measure, and print and write the results."""
    from diffkit.cli.shared.device import device
    from diffkit.evaluation import Reference, evaluate, extractor_for, load_reference
    from diffkit.runtime.publishing import together

    options = parsed.make(Options)
    system = options.samples is not None and is_saved(options.samples)
    if options.samples is not None and system and options.out is None:
        options = attrs.evolve(options, out=in_run_folder(options.samples, RESULT))
    _check(options, parsed, system)
    where = device(options.device)
    _search_here(options.extractor)
    network = extractor_for(options.extractor, device=where, weights=options.weights)
    for path in _outputs(options):
        note(f"writing {path}")
    stored = None if options.reference is None else load_reference(options.reference)
    if stored is not None:
        stored.check_extractor(network)
    data = None if stored is not None else opened(parsed)
    samples = _samples(options, parsed, system, network, stored, data)
    each: dict[str, Any] = {"batch_size": options.batch_size, "device": where, "progress": True}
    reference = Reference.build(data, network, **each) if data is not None else stored
    assert reference is not None
    with together(_outputs(options)):
        if options.save_reference is not None:
            reference.save(options.save_reference)
        if samples is None:
            note(f"statistics of {reference.meta['data']['count']} examples by {network.name}")
            return
        how = {name: getattr(options, name) for name in _MEASURING}
        metrics = options.metrics or None
        found = evaluate(samples, reference, extractor=network, metrics=metrics, count=options.num, **each, **how)
        show(found)
        if options.out is not None:
            found.save(options.out)


def _source(path: Path, options: Options, parsed: ParsedOptions) -> str:
    """Return the system that samples are drawn from, and how they are, where that is not as it was composed."""
    how = [] if options.steps is None else [f"steps {shown(options.steps)}"]
    for kind in ("sampler", "guidance"):
        if kind in parsed.chosen:
            name, of_part = parsed.parts.get(kind, ("none", {}))
            how.append(" ".join([kind, name, *(f"{option}={shown(value)}" for option, value in of_part.items())]))
    return f"samples of {path}" + (f" ({', '.join(how)})" if how else "")


def _samples(
    options: Options,
    parsed: ParsedOptions,
    system: bool,
    network: Extractor,
    stored: Reference | None,
    real: Data | None,
) -> Data | None:
    """The samples, if there are any: read, or drawn from a saved system once it is clear that they can be measured."""
    from diffkit.cli.shared.device import device
    from diffkit.cli.shared.guidance import load_guidance, with_guidance
    from diffkit.data.matching import match_classes
    from diffkit.evaluation.compare import check_count, check_metrics
    from diffkit.evaluation.samples import draw_samples, read_samples
    from diffkit.evaluation.sampling import label_of
    from diffkit.evaluation.saved import load

    if options.samples is None:
        return None
    where, metrics = device(options.device), options.metrics or None
    saved = load(options.samples, where) if system else None
    if saved is None:
        found = read_samples(options.samples, size=options.size, on_error=options.on_error, layout=options.layout)
        shape, count = found.shape, len(found)
    elif saved.low_res_channels:
        raise OptionError(
            "this system enlarges small images; draw samples with diffkit sample --low-res and evaluate that folder"
        )
    else:
        shape, count = saved.system.data_shape, DRAWN if options.num is None else options.num
    check_metrics(metrics, network, shape, stored, where, None if real is None else real.shape)
    with within(count="num"):
        check_count(options.num, count, metrics, stored, options.neighbours)
    if saved is None:
        return found
    guidance, saved = load_guidance(parsed.parts.get("guidance"), saved)
    if real is not None and saved.num_classes is not None:
        match_classes(real, saved.classes)  # which it draws all of
    return draw_samples(
        saved.system,
        count,
        source=_source(options.samples, options, parsed),
        batch_size=options.batch_size,
        seed=options.seed,
        **with_guidance(parsed, guidance),
        **chosen(steps=options.steps, sampler=parsed.parts.get("sampler")),
        **chosen(**{label_of(guidance): saved.labels((), count)}),
    )


def _search_here(extractor: str) -> None:
    """Make modules in the working directory importable, which an installed command does not do by itself."""
    here = str(Path.cwd())
    if ":" in extractor and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _outputs(options: Options) -> list[Path]:
    return [path for path in (options.save_reference, options.out) if path is not None]


_MEASURING = ("neighbours", "kid_subsets", "kid_subset_size", "split_size", "seed")
_READING = ("size", "on_error", "layout")


def _check(options: Options, parsed: ParsedOptions, system: bool) -> None:
    """Check the options before anything is loaded."""
    from diffkit.evaluation.compare import check_metric_names

    check_metric_names(options.metrics or None)
    if ("data" in parsed.parts) == (options.reference is not None):
        raise OptionError("name the data to compare with: either --data or --reference")
    if options.save_reference is not None and options.reference is not None:
        raise OptionError("--save-reference writes the statistics of --data, not of --reference")
    overwrite = may_replace(_outputs(options), options.overwrite)
    check_file("--save-reference", options.save_reference, (".npz",), overwrite=overwrite)
    check_file("--out", options.out, (".json",), overwrite=overwrite or "out" not in parsed.values)
    if options.samples is None:
        if options.save_reference is None:
            raise OptionError("name the samples to measure, or --save-reference FILE to make a reference only")
        only = "without samples nothing is measured, only --save-reference written; leave out {}"
        parsed.refuse(only, "num", "metrics", *_MEASURING, "out", *_READING)
    elif not options.samples.exists():
        raise OptionError(f"{options.samples} is not there; name a folder of images, a .npz file or a saved system")
    if not system:
        other = "and none is named" if options.samples is None else f"which {options.samples} is not"
        parsed.refuse(f"{{}} is for a saved system, {other}", "steps", "sampler", "guidance")
        return
    if options.num is not None and options.num > MOST:
        raise OptionError(f"--num must be <= {MOST} where samples are drawn from a system, got {options.num}")
    parsed.refuse("{} is for images of a folder; a system draws them in its own", "size")
