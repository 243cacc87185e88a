"""Score data under a saved system: its negative log-likelihood in bits per dimension, by the bound or exactly.

The .npz of --out has, over the N examples, total, total_error, prior and index (N,), and over the T levels in ascending
order, which levels (T,) names, visits, terms, x_start_mse and eps_mse (T,), the latter three means over the examples
with their standard errors in terms_error and so on. The mean of total is the sum of terms plus the mean of prior; the
first of terms is the decoder's negative log-likelihood. The files of --published have level T first.
Processes share the work under torchrun: torchrun --nproc-per-node 8 -m -- diffkit nll ...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit._errors import OptionError
from diffkit.cli._options import POSITIONAL
from diffkit.cli._paths import beside, check_file, check_folder
from diffkit.cli._takes import Given, Takes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.cli._saved import Saved
    from diffkit.data.base import Data
    from diffkit.likelihood.ode import OdeLikelihood
    from diffkit.ranks import Ranks

DEFAULT = 100
"""Examples that are scored by default."""


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
        ode: Solve the flow ODE instead: exact likelihood, for data on bins under uniform dequantization.
        probes: Of the flow ODE's divergence; 0 computes it exactly, with a backward pass for each dimension.
        out: Write every number into this .npz file; by default nll.npz, or ode.npz, in the folder of the system.
        published: Write the three files of the published script into this folder.
        plot: Draw the terms into this file too, such as terms.png.
        seed: Decides which examples are drawn, levels and noise.
        batch_size: How many examples are in memory at a time.
        rows_per_call: How many pairs of an example and a level the network is given at a time; 16 on a CPU, else 256.
        device: Such as cpu or cuda; a GPU if there is one.
    """

    run: Path = field(metadata=POSITIONAL)
    num: int | str | None = None
    steps: int | str | tuple[int, ...] | None = None
    levels_per_example: int | None = None
    ode: bool = False
    probes: int = 1
    out: Path | None = None
    published: Path | None = None
    plot: Path | None = None
    seed: int = 0
    batch_size: int = 64
    rows_per_call: int | None = None
    device: str | None = None


def takes() -> Takes:
    """Return the options."""
    return Takes({"Options": Options}, {"data": None}, required=frozenset({"data"}), config=True)


def run(given: Given) -> None:
    """Score the data."""
    from diffkit.evaluation.scoring import check_fit
    from diffkit.ranks import ranks

    options = given.make(Options)
    _check(options, given)
    if options.out is None:
        options = attrs.evolve(options, out=beside(options.run, "ode.npz" if options.ode else "nll.npz"))
    data = _open(*given.parts["data"])
    index = chosen(len(data), options.num, options.seed)
    with ranks() as among:
        saved = _load(options, among)
        check_fit(saved.system, data, classes=saved.num_classes)
        if among.rank == 0:
            for path in (options.out, options.published, options.plot):
                if path is not None:
                    print(f"writing {path}", flush=True)
        (_flow if options.ode else _bound)(saved, data, index, options, among)


def _bound(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, among: Ranks) -> None:
    from diffkit.evaluation.scoring import score_data

    scores = score_data(
        saved.system,
        data,
        index=index,
        labels=saved.num_classes is not None,
        batch_size=options.batch_size,
        among=among,
        seed=options.seed,
        progress=True,
        steps=options.steps,
        levels_per_example=options.levels_per_example,
        rows_per_call=options.rows_per_call,
    )
    if among.rank:
        return
    print(scores)
    if options.out is not None:
        scores.save(options.out)
    if options.published is not None:
        scores.save_reference(options.published)
    if options.plot is not None:
        scores.plot(options.plot)


def _flow(saved: Saved, data: Data, index: NDArray[np.int64], options: Options, among: Ranks) -> None:
    import numpy as np

    from diffkit.evaluation.scoring import ode_data
    from diffkit.progress import progress

    exact = options.probes == 0
    with progress(len(index), "flow ODE", among.rank == 0) as advance:
        found: OdeLikelihood = ode_data(
            saved.system,
            data,
            index=index,
            labels=saved.num_classes is not None,
            batch_size=options.batch_size,
            advance=advance,
            seed=options.seed,
            divergence="exact" if exact else "hutchinson",
            probes=max(options.probes, 1),
        )
    print(found)
    if options.out is not None:
        arrays = {name: getattr(found, name).cpu().numpy() for name in ("bits", "probe_error", "draw_error")}
        np.savez(options.out, **arrays, index=index)


def chosen(size: int, num: int | str | None, seed: int) -> NDArray[np.int64]:
    """Indices of the examples to score, ascending.

    Raises:
        OptionError: There are not so many, or num is another word than "all".
    """
    from diffkit.evaluation import scoring

    if isinstance(num, str) and num != "all":
        raise OptionError(f"--num must be a number or all, got {num!r}")
    try:
        return scoring.chosen(size, None if num == "all" else min(size, DEFAULT) if num is None else int(num), seed)
    except OptionError as error:
        raise OptionError(f"--{error}") from error


def _check(options: Options, given: Given) -> None:
    """Refuse what can be seen before anything is loaded."""
    from diffkit.options import check_integer

    check_integer("--probes", options.probes, ge=0)
    check_integer("--batch-size", options.batch_size, ge=1)
    check_file("--out", options.out, (".npz",))
    check_file("--plot", options.plot)
    if options.published is not None:
        check_folder("--published", options.published)
    bound_only = ("steps", "levels_per_example", "rows_per_call", "published", "plot")
    clashes = [f"--{name.replace('_', '-')}" for name in bound_only if name in given.values]
    if options.ode and clashes:
        raise OptionError(f"--ode solves the flow, which has no levels; leave out {', '.join(clashes)}")
    if options.ode and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("--ode runs in one process; start a single one")
    if not options.ode and "probes" in given.values:
        raise OptionError("--probes is for the flow; add --ode, or leave it out")


def _load(options: Options, among: Ranks) -> Saved:
    from diffkit.cli._saved import load

    return load(options.run, options.device if among.size == 1 else _device_of_rank(options.device))


def _device_of_rank(name: str | None) -> str | None:
    """Each process of a machine takes a GPU of its own."""
    import torch

    if name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def _open(source: str, options: Any) -> Data:
    from diffkit.data import source_for

    return source_for(source, **options).open()
