"""Draw samples from a saved system: PNG files, a grid next to their folder, and the .npz of improved-diffusion.

Samples are written as they are made, so any number of them takes the same memory. After an interruption the same
command resumes, and the files are the same as without it. Processes share the work under torchrun, with the same
files again: torchrun --nproc-per-node 8 -m -- diffkit sample RUN -n 50000

A system trained with --low-res enlarges the pictures of --low-res, in their order. Of a cascade (diffkit cascade) every
stage takes --sampler and --steps, the base alone the other options of sampling; by default each has its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, STEPS, Steps, short
from diffkit.cli.parsing.spec import ParsedOptions, chosen
from diffkit.cli.shared.device import Precision
from diffkit.cli.shared.drawing import sampling_spec
from diffkit.cli.shared.paths import check_folder
from diffkit.errors import OptionError
from diffkit.options import check_integer, integer, number
from diffkit.runtime.output import log, note

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.data.base import Data
    from diffkit.evaluation.sampling import Sampling
    from diffkit.evaluation.saved import Saved

DEFAULT = 16
"""Samples that are drawn by default."""
MOST = 10_000_000
"""Samples that a folder takes: each is a file, and the list of what is to be done lies in memory."""


@frozen
class Options:
    """Options of ``diffkit sample``.

    Attributes:
        run: A saved system or training run (a folder).
        n: How many samples.
        out: Folder for the samples; created if needed. An interrupted run of the same command is resumed.
        format: What to write: png (a file each), grid (up to 256 in OUT_grid.png, next to the folder), npz (arr_0 uint8
            (N, H, W, C), arr_1 labels).
        classes: Names or indices of classes; all classes by default. "none" means no class.
        class_order: Take the classes in turn, as many samples of each, or at random by the seed.
        low_res: Pictures to enlarge, for a system trained to: one, a folder, or a .npz or .npy file, whose labels
            (arr_1) are the classes unless others are chosen.
        each: Samples for each of these pictures; they are consecutive.
        conditions: A .npz file of further conditions, such as an array context with the vectors of a text: arrays with
            one row for all samples, or one for each.
        steps: Which levels are visited.
        clip: Clip estimates of clean data to [-1, 1]; as composed by default.
        final: Where sampling ends: zero is clean data, sigma_min level 1; as composed by default.
        adaptive: Choose the steps by their error: a tolerance, such as 0.05, in place of --sampler; --steps gives the
            ends. Samples of a batch share their steps, so that each depends on --batch-size, too.
        seed: Sample i depends on the seed and i only, whatever the batch size.
        batch_size: How many are made at a time; those of one batch appear together.
        precision: Precision of the network, and of nothing else.
        compile: Compile a step, with the network and all guidance in it; cuda_graph replays that on a GPU without
            Python, as small batches need. The first step takes minutes.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Start again: samples in the folder are removed.
    """

    run: Path = field(metadata=POSITIONAL)
    n: int | None = integer(None, optional=True, ge=1, le=MOST, metadata=short("-n"))
    out: Path = field(default=Path("samples"))
    format: tuple[str, ...] = ("png", "grid")
    classes: tuple[str, ...] = ()
    class_order: Literal["turn", "random"] = "turn"
    low_res: Path | None = None
    each: int = integer(1, ge=1)
    conditions: Path | None = None
    steps: Steps = field(default=None, metadata=STEPS)
    clip: bool | None = None
    final: Literal["zero", "sigma_min"] | None = None
    adaptive: float | None = number(None, optional=True, gt=0)
    seed: int = integer(0, ge=0)
    batch_size: int = integer(64, ge=1)
    precision: Precision = "fp32"
    compile: Literal["step", "cuda_graph"] | None = None
    device: str | None = None
    overwrite: bool = False


SPEC = sampling_spec(Options, n=f"{DEFAULT}, or one for each picture of --low-res")


def run(parsed: ParsedOptions) -> None:
    """Draw the samples and write them."""
    from diffkit.cli.shared.device import device_of_rank, warn_of_emulation
    from diffkit.evaluation.folder_sampling import check_formats, draw_into, sample_folder
    from diffkit.evaluation.saved import load_samplable
    from diffkit.runtime.distributed import join_ranks
    from diffkit.spacing import SEEN, remark_on_karras, remark_on_start

    options = parsed.make(Options)
    check_formats(options.format)
    if options.low_res is None and options.each > 1:
        raise OptionError("--each is for the pictures of --low-res; say how many samples with -n")
    check_folder("--out", options.out)
    with join_ranks() as among:
        saved = load_samplable(options.run, device_of_rank(options.device))
        sampling = planned(saved, options, parsed)
        last = int(sampling.job(sampling.batches[0]).table.index[-1])
        how: dict[str, Any] = {"overwrite": options.overwrite, "precision": options.precision, "ranks": among}
        folder = sample_folder(sampling, options.out, options.format, **how)
        if among.rank == 0:
            note(f"writing to {options.out}/")
            warn_of_emulation(options.precision, saved.system.device)
            training = saved.system.table
            for remark in remark_on_start(training, last, SEEN), remark_on_karras(training, options.steps):
                if remark:
                    log(f"note: {remark}")
        for line in draw_into(folder, sampling, **how):
            if among.rank == 0:
                note(line)


def planned(saved: Saved, options: Options, parsed: ParsedOptions) -> Sampling:
    """Return the sampling job, with the sampler and guidance that were chosen, if any."""
    from diffkit.cli.shared.guidance import load_guidance, with_guidance
    from diffkit.data.matching import match_classes
    from diffkit.evaluation.sampling import Sampling, check_fit, check_low_res, pictures, read_conditions

    if options.adaptive is not None:
        parsed.refuse("--adaptive has a solver of its own; leave {} out", "sampler", "compile")
    check_low_res(saved, options.low_res)
    small = None if options.low_res is None else pictures(options.low_res, saved.low_res_channels)
    if small is not None:
        check_fit(saved, small)
    count = _count(options, small)
    guidance, saved = load_guidance(parsed.parts.get("guidance"), saved)
    sampling_options = {
        **({} if options.adaptive else {"sampler": parsed.parts.get("sampler"), "compile": options.compile or False}),
        **chosen(steps=options.steps, clip=options.clip, final=options.final),
        **with_guidance(parsed, guidance),
    }
    if small is not None and saved.num_classes is not None and not options.classes:
        small = match_classes(small, saved.classes, what="--low-res")
    labels = _labels(saved, options, count, small)
    given = {} if options.conditions is None else read_conditions(options.conditions, count)
    how = sampling_options, given, options.adaptive
    return Sampling(saved, count, options.batch_size, options.seed, labels, small, options.each, *how)


def _count(options: Options, small: Data | None) -> int:
    if small is None:
        return DEFAULT if options.n is None else options.n
    largest = len(small) * options.each
    check_integer("n", largest, le=MOST)
    if options.n is not None and options.n > largest:
        raise OptionError(
            f"-n {options.n} is more than --low-res has pictures for, {largest}; ask for several of each with --each"
        )
    return largest if options.n is None else options.n


def _labels(saved: Saved, options: Options, count: int, small: Data | None) -> NDArray[np.int64] | None:
    from diffkit.evaluation.sampling import at_random, in_turn

    chosen = saved.labels(options.classes, len(options.classes) or saved.num_classes or 0)
    if chosen is None:
        return None
    if small is not None and small.classes is not None and not options.classes:
        return _labels_of(small, count, options.each, saved)
    return in_turn(chosen, count) if options.class_order == "turn" else at_random(chosen, count, options.seed)


def _labels_of(small: Data, count: int, each: int, saved: Saved) -> NDArray[np.int64]:
    """Classes to sample: those that the pictures of ``--low-res`` came with."""
    import numpy as np

    own = np.array([int(small[i][1]["y"]) for i in range(len(small))], np.int64)
    if saved.num_classes is not None and own.max() >= saved.num_classes:
        raise OptionError(
            f"--low-res has a picture of class {own.max()}, the system has {saved.num_classes} classes, "
            f"0..{saved.num_classes - 1}"
        )
    return own.repeat(each)[:count]
