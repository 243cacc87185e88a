"""Score data under a saved system: its negative log-likelihood in bits per dimension, by the bound or exactly.

The .npz of --out has, over the N examples, total, total_error, prior and index (N,), and over the T levels in ascending
order, which levels (T,) names, visits, terms, x_start_mse and eps_mse (T,), the latter three means over the examples
with their standard errors in terms_error and so on. The mean of total is the sum of terms plus the mean of prior; the
first of terms is the decoder's negative log-likelihood. The files of --published have level T first.
Processes share the work under torchrun: torchrun --nproc-per-node 8 -m -- diffkit nll ...; any number of them gives the
same figures. A stopped command resumes when it is called again; its results so far are stored next to --out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.data import opened
from diffkit.cli.shared.device import Precision
from diffkit.cli.shared.paths import check_file, check_new_folder, in_run_folder
from diffkit.errors import OptionError
from diffkit.options import integer, number
from diffkit.runtime.output import log, note, show
from diffkit.runtime.progress import duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.data.base import Data
    from diffkit.evaluation.saved import Saved
    from diffkit.runtime.distributed import Ranks

DEFAULT = 100
"""Examples that are scored by default."""
LONG, FEWER = 60.0, 10
"""Seconds from which a faster estimate is suggested, and the number of levels per example that it visits."""


@frozen
class Options:
    """Options of ``diffkit nll``.

    Attributes:
        run: A saved system or training run (a folder).
        num: How many examples, drawn from the data without replacement, or all; 100 by default, or all if there are
            fewer.
        steps: How many levels the chain has, or "10,15,20", "ddim50", ...; all levels by default, which is the bound
            that was trained.
        levels_per_example: Visit only so many of them for each example: an unbiased estimate, with its error. All by
            default.
        clip: Clip estimates of clean data to [-1, 1]; as composed by default, and not for the flow ODE.
        ode: Solve the flow ODE instead: exact likelihood, for data on bins under uniform dequantization.
        probes: Of the flow ODE's divergence; 0 computes it exactly, with a backward pass for each dimension.
        dequantize: How the flow ODE treats data on bins; by default uniform, or none where data is continuous.
        tolerance: Of the flow ODE, relative and absolute.
        out: Write every number into this .npz file; by default nll.npz, or ode.npz, in the folder of the system.
        published: Write the three files of improved-diffusion's script into this folder.
        plot: Draw the terms into this file too, such as terms.png.
        overwrite: Replace existing files; nll.npz and ode.npz in the folder of the system are always replaced.
        seed: Seed of the choice of examples, levels and noise.
        batch_size: How many examples are on the device at a time. Results are stored for that many at a time, or more.
        rows_per_call: How many pairs of an example and a level go into one network call; 16 on a CPU, else 256.
        precision: Precision of the network, and of nothing else.
        compile: Compile the network; the first batch takes minutes.
        device: Such as cpu or cuda; a GPU if there is one.
    """

    run: Path = field(metadata=POSITIONAL)
    num: int | str | None = None
    steps: int | str | tuple[int, ...] | None = None
    levels_per_example: int | None = integer(None, optional=True, ge=1)
    clip: bool | None = None
    ode: bool = False
    probes: int = integer(1, ge=0)
    dequantize: Literal["uniform", "decoder", "none"] | None = None
    tolerance: float = number(1e-5, gt=0)
    out: Path | None = None
    published: Path | None = None
    plot: Path | None = None
    overwrite: bool = False
    seed: int = integer(0, ge=0)
    batch_size: int = integer(16, ge=1)
    rows_per_call: int | None = integer(None, optional=True, ge=1)
    precision: Precision = "fp32"
    compile: bool = False
    device: str | None = None


SPEC = CommandSpec({"Options": Options}, {"data": None}, required=frozenset({"data"}), config=True)


def run(parsed: ParsedOptions) -> None:
    """Score the data."""
    from diffkit.cli.shared.device import computing_in
    from diffkit.cli.shared.torch_errors import say_compiling
    from diffkit.data.matching import match_classes
    from diffkit.evaluation.scoring import check_data_fits
    from diffkit.runtime.distributed import join_ranks
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.compiling import compile_network
    from diffkit.system.loading import read_spec

    options = parsed.make(Options)
    _check(options, parsed)
    read_spec(options.run / SPEC)  # a missing run is found before images are read
    options = attrs.evolve(options, out=_out(options))
    data = opened(parsed)
    index = chosen(len(data), options.num, options.seed)
    with join_ranks() as among:
        saved = _load(options)
        if saved.num_classes is not None:
            data = match_classes(data, saved.classes)
        check_data_fits(saved.system, data, classes=saved.num_classes)
        if options.dequantize == "uniform" and saved.bins is None:
            raise OptionError("--dequantize uniform is for data on bins; this system's is continuous, take none")
        data = _paired(data, saved)
        if among.rank == 0:
            for path in (options.out, options.published, options.plot):
                if path is not None:
                    note(f"writing {path}")
        if options.compile and (network := saved.system.network) is not None:
            compile_network(network)
            if among.rank == 0:
                say_compiling("the first batch")
        with computing_in(options.precision, saved.system.device):
            (_flow if options.ode else _bound)(saved, data, index, options, among)


def _bound(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, among: Ranks) -> None:
    from diffkit.evaluation.scoring import score_data
    from diffkit.runtime.publishing import together

    begun = options.out is not None and _parts(options.out).exists()
    among.rank_zero(lambda: _say_what_it_takes(saved, data, index, options, 0 if begun else among.size))
    with together(_outputs(options) if among.rank == 0 else []), _keeping(options.out, among) as keep:
        scores = score_data(
            saved.system,
            data,
            index=index,
            labels=saved.num_classes is not None,
            batch_size=options.batch_size,
            ranks=among,
            seed=options.seed,
            keep=keep,
            progress=True,
            steps=options.steps,
            levels_per_example=options.levels_per_example,
            rows_per_call=options.rows_per_call,
            clip=options.clip,
        )
        if among.rank:
            return
        show(scores)
        _warn_of_what_is_not_finite(scores.total)
        if options.out is not None:
            scores.save(options.out)
        if options.published is not None:
            scores.save_reference(options.published)
        if options.plot is not None:
            scores.plot(options.plot)


def _say_what_it_takes(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, processes: int) -> None:
    """Print the number of network evaluations, on a CPU also their estimated time, and a faster way.

    The remaining time of a stopped command is unknown: then ``processes`` is 0.
    """
    from diffkit.likelihood.stratified_levels import Strata

    levels = saved.system.table_for(options.steps).num_steps
    each = len(Strata.of(levels, options.levels_per_example).first)
    text = f"scoring {len(index)} examples at {each} of {levels} levels each: {len(index) * each:,} network evaluations"
    if saved.system.device.type == "cpu" and not options.compile and processes:
        seconds = _seconds_of_one(saved, data, index[:1], min(2, levels), options)
        takes = seconds * len(index) * each / processes
        text += f", about {duration(takes)}"
        if takes > LONG and each > FEWER:
            text += f"; --levels-per-example {FEWER} estimates the same bound in about {duration(takes * FEWER / each)}"
    log(text)


def _seconds_of_one(saved: Saved, data: Data, index: NDArray[np.int64], levels: int, options: Options) -> float:
    """Seconds of an evaluation of the network, of so many levels of some examples."""
    from diffkit.evaluation.scoring import score_data

    seconds = 0.0
    for _ in range(2):  # the first is slower
        begun = time.monotonic()
        score_data(
            saved.system,
            data,
            index=index,
            labels=saved.num_classes is not None,
            steps=options.steps,
            levels_per_example=levels,
            clip=options.clip,
        )
        seconds = (time.monotonic() - begun) / (levels * len(index))
    return seconds


def _flow(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, among: Ranks) -> None:
    from diffkit.evaluation.scoring import ode_data
    from diffkit.runtime.publishing import save_npz, together

    exact = options.probes == 0
    with together(_outputs(options) if among.rank == 0 else []), _keeping(options.out, among) as keep:
        found = ode_data(
            saved.system,
            data,
            index=index,
            labels=saved.num_classes is not None,
            batch_size=options.batch_size,
            ranks=among,
            keep=keep,
            progress=True,
            seed=options.seed,
            divergence="exact" if exact else "hutchinson",
            probes=max(options.probes, 1),
            dequantize=options.dequantize,
            rtol=options.tolerance,
            atol=options.tolerance,
            clip=bool(options.clip),
        )
        if among.rank:
            return
        show(found)
        _warn_of_what_is_not_finite(found.bits.cpu().numpy())
        if options.out is not None:
            arrays = {name: getattr(found, name).cpu().numpy() for name in ("bits", "probe_error", "draw_error")}
            save_npz(options.out, **arrays, index=index, meaning=found.meaning)


def _warn_of_what_is_not_finite(bits: NDArray[Any]) -> None:
    import numpy as np

    bad = int((~np.isfinite(bits)).sum())
    if bad:
        log(f"warning: the bits/dim of {bad} of {len(bits)} examples are not finite")


@contextmanager
def _keeping(out: Path | None, among: Ranks) -> Iterator[Path | None]:
    """Yield the folder for results of batches, next to the file; it is removed once all is written."""
    from diffkit.evaluation import _result_cache

    folder = None if out is None else _parts(out)
    if folder is not None and among.rank == 0 and (count := _result_cache.count_results(folder)):
        note(f"{folder} has {count} results of a command that was stopped; what fits is taken from there")
    yield folder
    if folder is not None and among.rank == 0:
        _result_cache.remove_results(folder)


def _parts(out: Path) -> Path:
    return out.with_suffix(".parts")


def chosen(size: int, num: int | str | None, seed: int) -> NDArray[np.int64]:
    """Indices of the examples to score, ascending.

    Raises:
        OptionError: There are fewer, or num is a word other than "all".
    """
    from diffkit.evaluation import scoring

    if isinstance(num, str) and num != "all":
        raise OptionError(f"--num must be a number or all, got {num!r}")
    try:
        return scoring.choose_examples(
            size, None if num == "all" else min(size, DEFAULT) if num is None else int(num), seed
        )
    except OptionError as error:
        raise OptionError(f"--{error}") from error


def _check(options: Options, parsed: ParsedOptions) -> None:
    """Check the options before anything is loaded."""
    overwrite = options.overwrite or _was_stopped(options)
    check_file("--out", options.out, (".npz",), overwrite=overwrite)
    check_file("--plot", options.plot, overwrite=overwrite)
    if options.plot is not None:
        from diffkit.runtime import plots

        plots.check_plot_path(options.plot)
    if options.published is not None:
        check_new_folder("--published", options.published, overwrite=overwrite)
    bound_only = ("steps", "levels_per_example", "rows_per_call", "published", "plot")
    clashes = [f"--{name.replace('_', '-')}" for name in bound_only if name in parsed.values]
    if options.ode and clashes:
        raise OptionError(f"--ode solves the flow, which has no levels; leave out {', '.join(clashes)}")
    inexact = [f"--{name}" for name in ("precision", "compile") if name in parsed.values]
    if options.ode and inexact:
        raise OptionError(f"--ode solves the flow to a tolerance, in float32; leave out {', '.join(inexact)}")
    flow_only = [f"--{name}" for name in ("probes", "dequantize", "tolerance") if name in parsed.values]
    if not options.ode and flow_only:
        raise OptionError(f"{', '.join(flow_only)} is for the flow; add --ode, or leave it out")


def _out(options: Options) -> Path | None:
    return in_run_folder(options.run, "ode.npz" if options.ode else "nll.npz") if options.out is None else options.out


def _outputs(options: Options) -> list[Path]:
    return [path for path in (_out(options), options.published, options.plot) if path is not None]


def _was_stopped(options: Options) -> bool:
    """Whether this command was stopped before, once it had begun; its files may be overwritten."""
    outputs = _outputs(options)
    if not any(path.exists() for path in outputs):
        return False
    from diffkit.runtime.publishing import unfinished  # which needs torch

    return unfinished(outputs)


def _load(options: Options) -> Saved:
    from diffkit.cli.shared.device import device_of_rank
    from diffkit.evaluation.saved import load

    return load(options.run, device_of_rank(options.device))


def _paired(data: Data, saved: Saved) -> Data:
    """Data for a system that enlarges small images comes with them, shrunk as in training."""
    from diffkit.data.low_res import LowRes

    if saved.low_res_channels == 0:
        return data
    if saved.low_res is None:
        raise OptionError(
            "this system enlarges small images, but of what size was not saved with it; score it in Python, on "
            "diffkit.data.LowRes(data, size)"
        )
    return LowRes(data, saved.low_res)
