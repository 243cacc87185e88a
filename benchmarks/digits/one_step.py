"""One-step models of the digits: the four losses of diffkit-flowmap, three seeds each, against their teacher.

    python -m benchmarks.digits.one_step                          # some 20 minutes on one core
    python -m benchmarks.digits.one_step --only mean_flow --seeds 0
    python -m benchmarks.digits.one_step --draw                   # measure nothing: write the page of what is there

The teacher is the demo's network trained by flow matching. Each student begins with its weights, is trained on one CPU
thread for less than five minutes, and draws 500 digits with one evaluation, which a hook on the network counts.
`results/one_step.json` has every figure; runs are in --runs, and those that are there are not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

import diffkit
from benchmarks.digits.cases import DRAWN, Digits, grey, labels_for, quality_of
from diffkit.demo import COMPOSITION, TRAINING
from diffkit.registry import registry

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
LEVELS = 64
TIME_SCALE = 10.0
"""Time at full noise: derivatives of a network that is fed 0 to 1000 are hundreds of times larger."""
PATH: dict[str, Any] = {
    "schedule": ("flow_linear", {"time_scale": TIME_SCALE}),
    "mean": "flow",
    "var": "fixed_small",
    "num_steps": LEVELS,
    "data_shape": COMPOSITION["data_shape"],
    "bins": COMPOSITION["bins"],
}
NETWORK = dict(COMPOSITION["backbone"][1])
_OF_DEMO = ("batch_size", "lr", "warmup", "anneal", "grad_clip", "ema")
TEACHER: dict[str, Any] = {"steps": 1200, **{name: TRAINING[name] for name in _OF_DEMO}}
STUDENT: dict[str, Any] = {
    "batch_size": 128,
    "lr": 3e-3,
    "betas": (0.9, 0.99),
    "warmup": 20,
    "anneal": True,
    "grad_clip": 1.0,
    "ema": (0.99,),
}


@frozen
class Method:
    """How one loss is trained.

    Attributes:
        loss: The loss with its options.
        updates: Number of updates, over all runs.
        timesteps: Levels, or pairs of them.
        times: How many times the network takes.
        rounds: Options of the loss in each of several runs, each taught by the one before.
        training: What differs from `STUDENT`.
    """

    loss: tuple[str, dict[str, Any]]
    updates: int
    timesteps: Any = "uniform"
    times: int = 1
    rounds: tuple[dict[str, Any], ...] = ({},)
    training: dict[str, Any] = attrs.field(factory=dict)


PAIRS = ("flowmap_pairs", {"uniform": 0.8, "equal": 0.2, "clean": 0.4})
METHODS = {
    "consistency": Method(("consistency", {"steps": 3, "teacher": "system"}), 220),
    "mean_flow": Method(("mean_flow", {"derivative": "difference", "teacher": "system"}), 450, PAIRS, times=2),
    "shortcut": Method(("shortcut", {"teacher": "ema"}), 250, PAIRS, times=2),
    "distill": Method(("distill", {"teacher": "system"}), 240, rounds=tuple({"steps": 2**k} for k in range(5, -1, -1))),
}


class Counted:
    """Counts the evaluations of a network by a hook."""

    def __init__(self, network: torch.nn.Module):
        self.count = 0
        self._handle = network.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()


def main() -> None:
    """Train what is not there, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/one_step"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="these losses")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="these seeds")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    path = RESULTS / "one_step.json"
    found = json.loads(path.read_text()) if path.exists() else {"students": []}
    if not arguments.draw:
        torch.set_num_threads(1)
        score = score_of(Digits.of("train"))
        teacher, seconds = trained_teacher(arguments.runs / "teacher")
        if "teacher" not in found:
            found["teacher"] = {"cpu_seconds": seconds} | teacher_figures(teacher, score)
            found["real"] = score(*held_out())
        for name in arguments.only:
            for seed in arguments.seeds:
                folder = arguments.runs / f"{name}_{seed}"
                if not (folder / "row.json").exists():
                    (folder / "row.json").write_text(json.dumps(student(name, seed, teacher, folder, score)))
                row = json.loads((folder / "row.json").read_text())
                print(row, flush=True)
                others = [r for r in found["students"] if (r["loss"], r["seed"]) != (name, seed)]
                found["students"] = sorted([*others, row], key=lambda r: (list(METHODS).index(r["loss"]), r["seed"]))
                found["versions"] = {"torch": torch.__version__, "diffkit": diffkit.__version__}
                path.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "one_step.md").write_text(report(found))


def held_out() -> tuple[Tensor, Tensor]:
    """Digits that were not trained on."""
    digits = Digits.of("held_out")
    return digits.images, digits.labels


def score_of(train: Digits) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Figures of samples: read as asked, distance, and the standard deviation within a class over that of the data."""
    quality, spread = quality_of(train), within_class(train.images, train.labels)

    def score(images: Tensor, labels: Tensor) -> dict[str, float]:
        return {**quality(images, labels), "spread": within_class(images, labels) / spread}

    return score


def within_class(images: Tensor, labels: Tensor) -> float:
    """Standard deviation of a pixel within its class, root mean square over classes and pixels."""
    pixels = grey(images).flatten(1) / 8 - 1
    return float(torch.stack([pixels[labels == c].var(0).mean() for c in range(10)]).mean().sqrt())


def trained_teacher(folder: Path) -> tuple[diffkit.System, float]:
    """The teacher, and the CPU seconds of its training in this call; a run that is there goes on or is only read."""
    torch.manual_seed(0)
    system = diffkit.compose(**PATH, loss="simple", timesteps="flow_logit_normal", backbone=("unet", NETWORK))
    begun = time.process_time()
    data = diffkit.data.loading.load("digits", split="train")
    trained = diffkit.train(system, data, out=folder, seed=0, progress=False, **TEACHER)
    return trained, round(time.process_time() - begun, 1)


def teacher_figures(teacher: diffkit.System, score: Any) -> dict[str, Any]:
    """Its figures in 50 steps, and in one by the solver that does best in one evaluation."""
    labels = labels_for(DRAWN)
    fifty = teacher.sample(DRAWN, steps=50, sampler="ddim", seed=0, y=labels, progress=False)
    best: dict[str, Any] = {}
    for name in registry("sampler").built_in_names():
        with Counted(teacher.network) as network:
            images = teacher.sample(DRAWN, steps=1, sampler=name, seed=0, y=labels, progress=False)
        row = {"sampler": name} | score(images, labels)
        if network.count == 1 and (not best or row["distance"] < best["distance"]):
            best = row
    return {"fifty": score(fifty, labels), "one": best}


def student(name: str, seed: int, teacher: diffkit.System, folder: Path, score: Any) -> dict[str, Any]:
    """Train one student, in one run or several, and measure it in one step."""
    method, seconds, current = METHODS[name], 0.0, teacher
    data = diffkit.data.loading.load("digits", split="train")
    for i, options in enumerate(method.rounds):
        torch.manual_seed(seed)
        loss = (method.loss[0], method.loss[1] | options)
        backbone = ("unet", NETWORK | {"times": method.times})
        system = diffkit.compose(**PATH, loss=loss, timesteps=method.timesteps, backbone=backbone)
        system.network.load_state_dict(current.network.state_dict(), strict=method.times == 1)
        given = {"teacher": current} if method.loss[1].get("teacher") == "system" else {}
        begun = time.process_time()
        options = STUDENT | method.training | {"steps": method.updates // len(method.rounds)}
        out = folder / str(i)
        current = diffkit.train(system, data, out=out, seed=seed, progress=False, **given, **options)
        seconds += time.process_time() - begun
    labels = labels_for(DRAWN)
    sampler = ("flow_map", {"times": method.times})
    with Counted(current.network) as network:
        images = current.sample(DRAWN, steps=1, sampler=sampler, seed=seed, y=labels, progress=False)
    figures = score(images, labels)
    return {"loss": name, "seed": seed, "cpu_seconds": round(seconds, 1), "evaluations": network.count} | figures


def report(found: dict[str, Any]) -> str:
    """The page: a line for each loss, mean over seeds and the worst seed."""
    teacher, real = found["teacher"], found["real"]
    one, fifty = teacher["one"], teacher["fifty"]
    rows = [
        "# One-step models of the digits",
        "",
        f"{DRAWN} digits, one evaluation each (counted by a hook); mean of the seeds, and the worst of them in",
        "brackets. Distance: Frechet's, between features of a classifier, from the digits trained on. Spread: standard",
        "deviation within a class over that of the data. Made by `python -m benchmarks.digits.one_step`.",
        "",
        "| | evaluations | distance | spread | read as asked | CPU s |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| digits held out | | {real['distance']:.2f} | {real['spread']:.2f} | {real['recognised']:.1%} | |",
        _line("teacher, 50 steps", 50, [fifty]),
        _line(f"teacher, one step of {one['sampler']}, its best", 1, [one]),
    ]
    for name in METHODS:
        if students := [row for row in found["students"] if row["loss"] == name]:
            few = "" if len(students) == len(SEEDS) else f", {len(students)} of {len(SEEDS)} seeds"
            rows.append(_line(f"`{name}`{few}", students[0]["evaluations"], students))
    return "\n".join(rows) + "\n"


def _line(name: str, evaluations: int, rows: list[dict[str, Any]]) -> str:
    def cell(key: str, form: str, worst: Any) -> str:
        values = [row[key] for row in rows]
        first = format(mean(values), form)
        return first if len(values) == 1 else f"{first} ({format(worst(values), form)})"

    seconds = f"{max(row['cpu_seconds'] for row in rows):.0f}" if "cpu_seconds" in rows[0] else ""
    cells = [cell("distance", ".2f", max), cell("spread", ".2f", min), cell("recognised", ".1%", min)]
    return f"| {name} | {evaluations} | {' | '.join(cells)} | {seconds} |"


if __name__ == "__main__":
    main()
