"""``python -m benchmarks.paper``: train the grid, measure, write the table and its figures."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.paper.cells import Bench, floor, kinds
from benchmarks.paper.claims import NOTES, Results, Row, gather, rows
from benchmarks.paper.figures import draw
from benchmarks.paper.study import CLIP, SIZES, Network, Study

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    study, seeds = SIZES[options.size], range(options.seeds)
    work = options.work / study.name
    jobs = [] if options.table_only else list(_jobs(study, seeds))
    print(f"{len(jobs)} networks; kept in {work}/, table in {options.out}/", flush=True)
    begun = time.monotonic()
    for done, (name, seconds) in enumerate(_measured(jobs, study, work, options.device, options.workers), 1):
        spent = time.monotonic() - begun
        left = spent / done * (len(jobs) - done)
        print(f"{done}/{len(jobs)}  {name}  {seconds:.0f} s   ETA {left / 60:.0f} min", flush=True)
    bench = Bench(study, work, options.device)
    results = Results(study, gather(bench, seeds))
    options.out.mkdir(parents=True, exist_ok=True)
    captions = draw(results, options.out, floor())
    text = table(study, rows(results), captions, len(seeds))
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind; 3 by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes; 2 by default")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="where networks and results are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the table and figures go")
    parser.add_argument("--table-only", action="store_true", help="train nothing; write the table of what is kept")
    return parser.parse_args(argv)


def _jobs(study: Study, seeds: Sequence[int]) -> Iterator[Network]:
    """Every network, a whole seed after the other."""
    for seed in seeds:
        yield from study.networks(seed)


def _measured(
    jobs: Sequence[Network], study: Study, work: Path, device: str, workers: int
) -> Iterator[tuple[str, float]]:
    """Yield each network's name and seconds as it is done."""
    if workers <= 1:
        for network in jobs:
            yield _measure(network, study, work, device)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[Future[tuple[str, float]]] = [pool.submit(_measure, n, study, work, device) for n in jobs]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure(network: Network, study: Study, work: Path, device: str) -> tuple[str, float]:
    """Compute the cells of one network that are not kept yet."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    bench = Bench(study, work, device)
    for kind in kinds(study, network):
        bench.cell(kind, network)
    return network.name, time.monotonic() - begun


def table(study: Study, found: Sequence[Row], captions: dict[str, str], seeds: int) -> str:
    """Return the study as Markdown."""
    lines = [
        "# Improved DDPM's claims in miniature",
        "",
        "Written by `python -m benchmarks.paper"
        + ("" if study.name == "small" else f" --size {study.name}")
        + ("" if seeds == 3 else f" --seeds {seeds}")
        + "`; do not edit.",
        "",
        *_setting(study),
        "",
        "| | claim | paper | here | seeds | |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row.key} | {row.claim} | {row.paper} | {row.ours} | {row.seeds or 'exact'} | {row.verdict} |"
            for row in found
        ),
        "",
        *_verdicts(found),
        "",
        *(line for note in NOTES.get(study.name, ()) for line in (f"- {note}", "")),
    ]
    for name, caption in captions.items():
        lines += [f"![{caption}]({name})", ""]
    return "\n".join(lines)


def _setting(study: Study) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    crop, (likelihood, quality) = study.likelihood_data.removeprefix("crops"), study.steps
    return [
        f"Bits/dim of {crop}x{crop} crops of scikit-learn's two photographs ({study.held_out} held-out crops, from "
        f"whole bands of the photographs that no training crop is of), by a U-Net of width {study.width}, {likelihood} "
        f"updates of {study.batch[0]}. Samples of scikit-learn's 8x8 digits by a perceptron of width "
        f"{study.quality_width}, {quality} updates of {study.batch[1]}; {study.samples} samples for each figure, FD is "
        f"their Frechet distance by a digits classifier. T = {study.num_steps}. Gradients are clipped to a "
        f"norm of {CLIP:g}, which the paper does not do (study.py says why). Intervals are 95 % over seeds "
        "(Student's t; differences are paired by seed). A claim holds if its interval is on its side, and does not if "
        "it is on the other. Networks this small are far from converged: what does not hold here may hold at the "
        "paper's size.",
        "",
        f"Table written at {commit.stdout.strip() or 'unknown commit'}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}.",
    ]


def _verdicts(found: Sequence[Row]) -> list[str]:
    counts = {word: sum(row.holds is word for row in found) for word in (True, False, None)}
    return [
        f"Of {len(found)} claims {counts[True]} hold, {counts[False]} do not at this size, {counts[None]} left open by "
        "the seeds."
    ]


if __name__ == "__main__":
    sys.exit(main())
