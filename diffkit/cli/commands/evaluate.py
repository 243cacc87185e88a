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

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions, chosen
from diffkit.cli.shared.data import opened
from diffkit.cli.shared.paths import check_file, in_run_folder
from diffkit.errors import OptionError
from diffkit.options import choice, integer
from diffkit.runtime.output import note, show
from diffkit.runtime.run_layout import SPEC as SPEC_FILE

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.evaluation import Extractor, Reference
    from diffkit.evaluation.saved import Saved

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
    size: tuple[int, ...] | None = None
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
    {"sampler": None, "data": None},
    config=True,
    defaults={"sampler": "as it was composed", "num": "all, or 1000 of a system"},
)


def run(parsed: ParsedOptions) -> None:
    """Measure, and print and write the results."""
    options = parsed.make(Options)
    system = options.samples is not None and (options.samples / SPEC_FILE).is_file()
    out = in_run_folder(options.samples, RESULT) if system and options.samples and options.out is None else options.out
    _check(options, parsed, out, system)
    from diffkit.cli.shared.device import device
    from diffkit.evaluation import extractor_for
    from diffkit.runtime.publishing import together

    where = device(options.device)
    _search_here(options.extractor)
    network = extractor_for(options.extractor, device=where, weights=options.weights)
    for path in (options.save_reference, out):
        if path is not None:
            note(f"writing {path}")
    stored = _stored(options, network)
    data = None if stored is not None else opened(parsed)
    samples = None if options.samples is None else _samples(options, parsed, system, network, stored, data)
    reference = stored or _built(options, data, network, where)
    with together(_outputs(options, out)):
        if options.save_reference is not None:
            reference.save(options.save_reference)
        if samples is None:
            note(f"statistics of {reference.meta['data']['count']} examples by {network.name}")
        else:
            _measure(samples, reference, network, options, out, where)


def _samples(
    options: Options,
    parsed: ParsedOptions,
    system: bool,
    network: Extractor,
    stored: Reference | None,
    real: Data | None,
) -> Data:
    """The samples, read or drawn, after checking that they can be measured."""
    from diffkit.cli.shared.device import device
    from diffkit.data.matching import match_classes
    from diffkit.evaluation import samples
    from diffkit.evaluation.compare import check_metrics
    from diffkit.evaluation.saved import load

    assert options.samples is not None
    metrics, where = options.metrics or None, device(options.device)
    shape = None if real is None else real.shape
    if system:
        saved = load(options.samples, where)
        if saved.low_res_channels:
            raise OptionError(
                "this system enlarges small images; draw samples with diffkit sample --low-res and evaluate that folder"
            )
        check_metrics(metrics, network, saved.system.data_shape, stored, where, shape)
        if real is not None and saved.num_classes is not None:
            match_classes(real, saved.classes)  # which it draws all of
        _check_count(options, DRAWN if options.num is None else options.num, stored)
        return _drawn(options, parsed, saved)
    size = None if options.size is None else (options.size[0], options.size[-1])
    data = samples.read_samples(options.samples, size=size, on_error=options.on_error, layout=options.layout)
    check_metrics(metrics, network, data.shape, stored, where, shape)
    if options.num is not None and options.num > len(data):
        raise OptionError(f"--num {options.num} is more than the {len(data)} samples of {options.samples}")
    _check_count(options, len(data) if options.num is None else options.num, stored)
    return data


def _check_count(options: Options, count: int, stored: Reference | None) -> None:
    """Refuse fewer samples than precision and recall need."""
    if options.metrics and "precision_recall" not in options.metrics:
        return
    if not options.metrics and stored is not None and stored.features is None:
        return  # then they are left out
    if count <= options.neighbours:
        raise OptionError(
            f"precision and recall by --neighbours {options.neighbours} need more samples than {options.neighbours}, "
            f"got {count}; take more, or name the other metrics with --metrics"
        )


def _search_here(extractor: str) -> None:
    """Make modules in the working directory importable, which an installed command does not do by itself."""
    here = str(Path.cwd())
    if ":" in extractor and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _outputs(options: Options, out: Path | None) -> list[Path]:
    return [path for path in (options.save_reference, out) if path is not None]


def _was_stopped(options: Options, out: Path | None) -> bool:
    """Whether this command was stopped before, while it wrote; its files may be overwritten."""
    outputs = _outputs(options, out)
    if not any(path.exists() for path in outputs):
        return False
    from diffkit.runtime.publishing import unfinished  # which needs torch

    return unfinished(outputs)


def _measure(
    samples: Data, reference: Reference, network: Extractor, options: Options, out: Path | None, where: Any
) -> None:
    from diffkit.evaluation import evaluate

    found = evaluate(
        samples,
        reference,
        extractor=network,
        metrics=options.metrics or None,
        count=options.num,
        batch_size=options.batch_size,
        device=where,
        neighbours=options.neighbours,
        kid_subsets=options.kid_subsets,
        kid_subset_size=options.kid_subset_size,
        split_size=options.split_size,
        seed=options.seed,
        progress=True,
    )
    show(found)
    if out is not None:
        found.save(out)


def _stored(options: Options, network: Extractor) -> Reference | None:
    from diffkit.evaluation import load_reference

    if options.reference is None:
        return None
    found = load_reference(options.reference)
    found.check_extractor(network)
    return found


def _built(options: Options, data: Data | None, network: Extractor, where: Any) -> Reference:
    from diffkit.evaluation import Reference

    assert data is not None
    return Reference.build(data, network, batch_size=options.batch_size, device=where, progress=True)


def _drawn(options: Options, parsed: ParsedOptions, saved: Saved) -> Data:
    from diffkit.evaluation import samples

    count = DRAWN if options.num is None else options.num
    labels = saved.labels((), count)
    conditions: dict[str, Any] = {} if labels is None else {"y": labels}
    return samples.draw_samples(
        saved.system,
        count,
        source=f"samples of {options.samples}",
        batch_size=options.batch_size,
        seed=options.seed,
        **chosen(steps=options.steps, sampler=parsed.parts.get("sampler")),
        **conditions,
    )


def _check(options: Options, parsed: ParsedOptions, out: Path | None, system: bool) -> None:
    """Check the options before anything is loaded."""
    from diffkit.evaluation.compare import check_metric_names

    check_metric_names(options.metrics or None)
    named = ("data" in parsed.parts) + (options.reference is not None)
    if named != 1:
        raise OptionError("name the data to compare with: either --data or --reference")
    if options.save_reference is not None and options.reference is not None:
        raise OptionError("--save-reference writes the statistics of --data, not of --reference")
    if options.samples is None and options.save_reference is None:
        raise OptionError("name the samples to measure, or --save-reference FILE to make a reference only")
    overwrite = options.overwrite or _was_stopped(options, out)
    check_file("--save-reference", options.save_reference, (".npz",), overwrite=overwrite)
    check_file("--out", out, (".json",), overwrite=overwrite or options.out is None)
    if options.samples is not None and not options.samples.exists():
        raise OptionError(f"{options.samples} is not there; name a folder of images, a .npz file or a saved system")
    if options.size is not None and len(options.size) not in (1, 2):
        raise OptionError(f"--size must be one number or two, got {options.size!r}")
    measuring = ("num", "metrics", "neighbours", "kid_subsets", "kid_subset_size", "split_size", "out", "seed")
    reading = ("size", "on_error", "layout")
    idle = [f"--{name.replace('_', '-')}" for name in (*measuring, *reading) if name in parsed.values]
    if options.samples is None and idle:
        raise OptionError(
            f"without samples nothing is measured, only --save-reference written; leave out {', '.join(idle)}"
        )
    drawing = [f"--{name}" for name in ("steps", "sampler") if name in parsed.values or name in parsed.chosen]
    if drawing and not system:
        other = "and none is named" if options.samples is None else f"which {options.samples} is not"
        raise OptionError(f"{', '.join(drawing)} is for a saved system, {other}")
    if system and options.num is not None and options.num > MOST:
        raise OptionError(f"--num must be <= {MOST} where samples are drawn from a system, got {options.num}")
    if system and options.size is not None:
        raise OptionError("--size is for images of a folder; a system draws them in its own")
