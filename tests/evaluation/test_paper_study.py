"""The paper study: its verdicts follow from its figures, and its one command writes the table from nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "paper").is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT))

from benchmarks.paper.claims import Estimate, Results, noise_scale, power_law, rows, together  # noqa: E402
from benchmarks.paper.data import BAND, HELD_BANDS, data  # noqa: E402
from benchmarks.paper.study import SIZES, Network  # noqa: E402

STUDY = SIZES["small"]


def test_an_interval_is_students():
    """Three values with mean 2 and deviation 1: t(0.975, 2) = 4.3027 (any table of Student's t)."""
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.above(0) is None and found.above(-1) is True and found.above(5) is False
    assert found.text(1) == "2.0 ± 2.5"
    alone = Estimate.of([1.0])
    assert alone.above(0) is None and alone.text() == "1.00"  # one seed decides nothing


def test_a_claim_of_several_parts():
    assert together(True, True) is True and together(True, None) is None and together(None, False) is False


def test_a_power_law_is_found():
    cells = {w: {0: {"parameters": w**2, "bits": 3 * w**-0.4}} for w in (8, 16, 24)}
    slope, fit = power_law(cells, 0, "bits")
    assert slope == pytest.approx(-0.2) and fit == pytest.approx(1)


def bits(objective: str, value: float, schedule: str = "cosine", width: int = STUDY.width) -> dict:
    """Cells of one objective at three seeds that scatter by 0.01 together."""
    network = Network(STUDY.likelihood_data, schedule, objective, width, 0)
    key = f"bits {network.data} {network.schedule} {network.objective} {network.width}"
    levels = np.arange(1, 1001)
    cell = dict(levels=levels.tolist(), terms=(1 / levels**2).tolist(), parameters=width**2, eps_mse=1 / width)
    return {key: {seed: cell | {"bits": value + 0.01 * seed} for seed in range(3)}}


def verdicts(**found) -> dict:
    return {row.key: row.holds for row in rows(Results(STUDY, found))}


def test_verdicts_follow_the_figures():
    paper = bits("simple", 3.68) | bits("hybrid", 3.62) | bits("vlb_is", 3.57) | bits("vlb", 3.6)
    paper |= bits("simple", 3.77, "linear")
    found = verdicts(**paper)
    assert {key: found[key] for key in ("b1", "b2", "b3", "c3", "e1")} == dict.fromkeys(
        ("b1", "b2", "b3", "c3", "e1"), True
    )
    assert found["a1"] and found["e2"]  # from the schedules alone
    other = paper | bits("vlb_is", 3.7)
    assert verdicts(**other)["b3"] is False and verdicts(**other)["b2"] is True


def test_seeds_that_disagree_decide_nothing():
    found = bits("simple", 3.68) | bits("hybrid", 3.62)
    (key,) = bits("hybrid", 0)
    for seed, value in enumerate((3.5, 3.7, 3.8)):
        found[key][seed] = found[key][seed] | {"bits": value}
    assert verdicts(**found)["b2"] is None


def test_a_gradient_lost_in_its_noise_counts_with_the_least_noise_it_can_have():
    """64 examples in each of 96 batches: the squared mean gradient is below twice its variance, noise / (64 * 96)."""
    assert noise_scale(STUDY, {"scale": 12.0}) == (12.0, False)
    assert noise_scale(STUDY, {"scale": -5.0, "noise": 1.0, "signal": -0.2}) == (64 * 96 / 2, True)


def test_a_claim_without_cells_is_left_out():
    assert set(verdicts()) == {"a1", "e2"}


def test_no_held_out_crop_overlaps_a_training_crop():
    """Every held-out crop is found in a held-out band of a photograph, and no training crop is."""
    from sklearn.datasets import load_sample_images

    inside = set()
    for image in load_sample_images().images:
        for band in HELD_BANDS:
            part = image[:, band * BAND : (band + 1) * BAND]
            windows = np.lib.stride_tricks.sliding_window_view(part, (8, 8), axis=(0, 1))
            inside |= {w.tobytes() for w in windows.reshape(-1, 3, 8, 8)}
    held, train = data("crops8", "held_out"), data("crops8", "train")
    assert all(crop.numpy().tobytes() in inside for crop in held.batch(np.arange(50)).images)
    shared = sum(crop.numpy().tobytes() in inside for crop in train.batch(np.arange(2000)).images)
    assert shared <= 2  # a patch of plain sky may look the same elsewhere
    assert held.shape == train.shape == (3, 8, 8)


@pytest.mark.slow(minutes=1.5)
def test_one_command_writes_the_table_and_resumes_where_it_was(tmp_path):
    command = [sys.executable, "-m", "benchmarks.paper", "--size", "tiny", "--seeds", "1", "--workers", "1"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run() -> str:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    table = run()
    for key in ("a1", "a2", "b1", "b2", "b3", "c1", "c2", "c3", "d1", "d2", "d3", "e1", "e2", "f1", "f2"):
        assert f"| {key} |" in table
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 4 and all(f"({name})" in table for name in pictures)
    cells = sorted((tmp_path / "work").rglob("cells/*.json"))
    times = [path.stat().st_mtime_ns for path in cells]
    assert run() == table and [path.stat().st_mtime_ns for path in cells] == times
