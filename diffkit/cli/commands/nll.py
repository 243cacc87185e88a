"""Score data under a saved system: its negative log-likelihood in bits per dimension, by the bound or exactly.

The .npz of --out has, over the N examples, total, total_error, prior and index (N,), and over the T levels in ascending
order, which levels (T,) names, visits, terms, x_start_mse and eps_mse (T,), the latter three means over the examples
with their standard errors in terms_error and so on. The mean of total is the sum of terms plus the mean of prior; the
first of terms is the decoder's negative log-likelihood. The files of --published have level T first.
Processes share the work under torchrun: torchrun --nproc-per-node 8 -m -- diffkit nll ...; any number of them gives the
same figures. A stopped command resumes when it is called again; its results so far are stored next to --out.
"""

from __future__ import annotations

import math
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
from diffkit.cli.shared.paths import check_file, check_new_folder, in_run_folder, may_replace
from diffkit.errors import OptionError
from diffkit.options import integer, number
from diffkit.runtime.output import log, note, show
from diffkit.runtime.progress import duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.data.base import Data
    from diffkit.evaluation.saved import Saved
    from diffkit.likelihood.continuous import ContinuousBound
    from diffkit.likelihood.ode import OdeLikelihood
    from diffkit.likelihood.scores import Scores
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
        continuous: Estimate the bound in continuous time instead, the limit of many levels, with its error; needs a
            continuous schedule.
        times_per_example: Of that bound; 32 by default.
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
    num: int | Literal["all"] | None = None
    steps: int | str | tuple[int, ...] | None = None
    levels_per_example: int | None = integer(None, optional=True, ge=1)
    clip: bool | None = None
    continuous: bool = False
    times_per_example: int | None = integer(None, optional=True, ge=2)
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
    from diffkit.cli.shared.device import device_of_rank, warn_of_emulation
    from diffkit.data.matching import match_classes
    from diffkit.evaluation.saved import load
    from diffkit.evaluation.scoring import check_data_fits, choose_examples
    from diffkit.likelihood.continuous import check_continuous
    from diffkit.runtime.distributed import join_ranks
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.compiling import compile_network
    from diffkit.system.loading import read_spec
    from diffkit.training.precision import computing_in

    options = parsed.make(Options)
    if options.out is None:
        name = "ode.npz" if options.ode else "continuous.npz" if options.continuous else "nll.npz"
        options = attrs.evolve(options, out=in_run_folder(options.run, name))
    _check(options, parsed)
    read_spec(options.run / SPEC)  # a missing run is found before images are read
    data = opened(parsed)
    num = min(len(data), DEFAULT) if options.num is None else None if options.num == "all" else options.num
    index = choose_examples(len(data), num, options.seed)
    with join_ranks() as among:
        saved = load(options.run, device_of_rank(options.device))
        if saved.num_classes is not None:
            data = match_classes(data, saved.classes)
        check_data_fits(saved.system, data, classes=saved.num_classes)
        if options.continuous:
            check_continuous(saved.system)
        if options.dequantize == "uniform" and saved.bins is None:
            text, none = "is for data on bins; this system's is continuous", {"dequantize": "none"}
            raise OptionError(text, option="dequantize", value="uniform", fix=none)
        data = _paired(data, saved)
        for path in _outputs(options) if among.rank == 0 else []:
            note(f"writing {path}")
        if among.rank == 0:
            warn_of_emulation(options.precision, saved.system.device)
        if options.compile and (network := saved.system.network) is not None:
            compile_network(network)
            if among.rank == 0:
                log("compiling: the first batch takes minutes")
        with computing_in(options.precision, saved.system.device):
            _score(saved, data, index, options, among)


def _score(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, among: Ranks) -> None:
    """Compute the scores, print them and write the files."""
    from diffkit.evaluation.scoring import Scoring
    from diffkit.runtime.publishing import together

    labels, seed = saved.num_classes is not None, options.seed
    if not (options.ode or options.continuous):
        begun = options.out is not None and _parts(options.out).exists()
        among.rank_zero(lambda: _say_what_it_takes(saved, data, index, options, 0 if begun else among.size))
    with together(_outputs(options) if among.rank == 0 else []), _keeping(options.out, among) as keep:
        scoring = Scoring(saved.system, data, index, labels, options.batch_size, among, keep, progress=True)
        if options.ode:
            flow = scoring.flow(seed=seed, **_of_flow(options))
            among.rank_zero(lambda: _write_flow(flow, options, index))
            among.rank_zero(lambda: _show_nats(saved, flow.nats.detach().cpu().numpy()))
        elif options.continuous:
            bound = scoring.continuous(seed=seed, **_of_continuous(options))
            among.rank_zero(lambda: _write_continuous(bound, options))
            nats = bound.total * (math.prod(saved.system.data_shape) * math.log(2))
            among.rank_zero(lambda: _show_nats(saved, nats))
        else:
            scores = scoring.bound(seed=seed, **_of_bound(options))
            among.rank_zero(lambda: _write_bound(scores, options))
            among.rank_zero(lambda: _show_nats(saved, scores.nats))


def _of_bound(options: Options) -> dict[str, Any]:
    """Options of `diffkit.likelihood.score`."""
    return {name: getattr(options, name) for name in ("steps", "levels_per_example", "rows_per_call", "clip")}


def _of_flow(options: Options) -> dict[str, Any]:
    """Options of `diffkit.likelihood.ode_likelihood`."""
    return {
        "divergence": "hutchinson" if options.probes else "exact",
        "probes": max(options.probes, 1),
        "dequantize": options.dequantize,
        "rtol": options.tolerance,
        "atol": options.tolerance,
        "clip": bool(options.clip),
    }


def _of_continuous(options: Options) -> dict[str, Any]:
    """Options of `diffkit.likelihood.continuous_bound`."""
    named = {name: getattr(options, name) for name in ("times_per_example", "rows_per_call", "clip")}
    return {name: value for name, value in named.items() if value is not None}


def _write_continuous(bound: ContinuousBound, options: Options) -> None:
    show(bound)
    _warn_of_what_is_not_finite(bound.total)
    if options.out is not None:
        bound.save(options.out)


def _write_bound(scores: Scores, options: Options) -> None:
    show(scores)
    _warn_of_what_is_not_finite(scores.total)
    if options.out is not None:
        scores.save(options.out)
    if options.published is not None:
        scores.save_reference(options.published)
    if options.plot is not None:
        scores.plot(options.plot)


def _write_flow(flow: OdeLikelihood, options: Options, index: NDArray[np.int64]) -> None:
    from diffkit.runtime.publishing import save_npz

    show(flow)
    _warn_of_what_is_not_finite(flow.bits.cpu().numpy())
    if options.out is not None:
        arrays = {name: getattr(flow, name).cpu().numpy() for name in ("bits", "probe_error", "draw_error")}
        save_npz(options.out, **arrays, index=index, meaning=flow.meaning)


def _show_nats(saved: Saved, nats: NDArray[Any]) -> None:
    """Print the result in nats too, where data is continuous and has a density."""
    if saved.bins is None:
        error = f" +- {nats.std(ddof=1) / len(nats) ** 0.5:.4f}" if len(nats) > 1 else ""
        show(f"{nats.mean():.4f}{error} nats per example, minus the log-density in the units of the data")


def _warn_of_what_is_not_finite(bits: NDArray[Any]) -> None:
    import numpy as np

    bad = int((~np.isfinite(bits)).sum())
    if bad:
        log(f"warning: the bits/dim of {bad} of {len(bits)} examples are not finite")


def _say_what_it_takes(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, processes: int) -> None:
    """Print the number of network evaluations, on a CPU also their estimated time, and a faster way.

    The remaining time of a stopped command is unknown: then ``processes`` is 0.
    """
    from diffkit.likelihood.stratified_levels import Strata

    levels = saved.system.table_for(options.steps).num_steps
    each = len(Strata.of(levels, options.levels_per_example).first)
    text = f"scoring {len(index)} examples at {each} of {levels} levels each: {len(index) * each:,} network evaluations"
    if saved.system.device.type == "cpu" and not options.compile and processes:
        seconds = _seconds_of_one(saved, data, index[:1], attrs.evolve(options, levels_per_example=min(2, levels)))
        takes = seconds * len(index) * each / processes
        text += f", about {duration(takes)}"
        if takes > LONG and each > FEWER:
            text += f"; --levels-per-example {FEWER} estimates the same bound in about {duration(takes * FEWER / each)}"
    log(text)


def _seconds_of_one(saved: Saved, data: Data, index: NDArray[np.int64], options: Options) -> float:
    """Seconds of an evaluation of the network at one level of one example; the first call is slower."""
    from diffkit.evaluation.scoring import Scoring

    scoring = Scoring(saved.system, data, index, labels=saved.num_classes is not None)
    for _ in range(2):
        begun = time.monotonic()
        scoring.bound(**_of_bound(options))
    return (time.monotonic() - begun) / ((options.levels_per_example or 1) * len(index))


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


def _check(options: Options, parsed: ParsedOptions) -> None:
    """Check the options before anything is loaded."""
    overwrite = may_replace(_outputs(options), options.overwrite)
    check_file("--out", options.out, (".npz",), overwrite=overwrite or "out" not in parsed.values)
    check_file("--plot", options.plot, overwrite=overwrite)
    if options.plot is not None:
        from diffkit.runtime import plots

        plots.check_plot_path(options.plot)
    if options.published is not None:
        check_new_folder("--published", options.published, overwrite=overwrite)
    if options.continuous:
        text = "--continuous estimates a bound without levels; leave out {}"
        parsed.refuse(text, "steps", "levels_per_example", "published", "plot", "ode")
    else:
        parsed.refuse("{} is for the bound in continuous time; add --continuous, or leave it out", "times_per_example")
    if options.ode:
        levels = ("steps", "levels_per_example", "rows_per_call", "published", "plot")
        parsed.refuse("--ode solves the flow, which has no levels; leave out {}", *levels)
        parsed.refuse("--ode solves the flow to a tolerance, in float32; leave out {}", "precision", "compile")
    else:
        parsed.refuse("{} is for the flow; add --ode, or leave it out", "probes", "dequantize", "tolerance")


def _outputs(options: Options) -> list[Path]:
    return [path for path in (options.out, options.published, options.plot) if path is not None]


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
