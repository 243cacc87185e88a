"""Runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Command, Refused

from diffkit.cli.commands.runs import table


def make(folder: Path, *, step: int | None = 40, parts: bool = True, **train: object) -> Path:
    """The files of a run, written by hand."""
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000040").mkdir()
    (folder / "checkpoints" / ".doomed-step_00000060").mkdir()
    options = {"steps": 100, "lr": 1e-4, "seed": 0, "ema": [0.9999], **train}
    data = {"source": "photos", "examples": 9, "classes": None}
    (folder / "config.json").write_text(json.dumps({"format": 1, "train": options, "data": data}))
    if step is not None:
        line = {"step": step, "samples": step * 8, "loss": 0.123456, "mse": 0.1, "loss_q0": 0.5, "grad_norm": 2.0,
                "param_norm": 9.0, "lr": options["lr"], "skipped": 0, "images_per_s": 1234.5}  # fmt: skip
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10}) + "\n" + json.dumps(line) + "\n" + '{"step": 5')
    if parts:
        spec = {
            "parts": {"schedule": {"name": "cosine", "options": {"s": 0.01}}, "mean": {"name": "eps", "options": {}}},
            "settings": {"num_steps": 1000},
        }
        (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def test_one_run(command: Command, tmp_path: Path):
    run = make(tmp_path / "a")
    found = command("runs", run)
    assert found.code == 0, found.err
    wide = len(str(run))
    assert found.out.splitlines() == [
        f"{'run':<{wide}}  step    loss    mse  lr      images/s  checkpoint  seed",
        f"{run}  40/100  0.1235  0.1  0.0001  1234      40          0",
        "",
        "parts: schedule cosine, mean eps",
    ]


def test_where_runs_differ(command: Command, tmp_path: Path):
    make(tmp_path / "runs" / "b", step=None, parts=False)
    make(tmp_path / "runs" / "a", lr=2e-4, ema=[0.9, 0.99])
    (tmp_path / "runs" / "notes").mkdir()
    out = command("runs", tmp_path / "runs").out.splitlines()
    assert [line.split()[0].rpartition("/")[2] for line in out[1:3]] == ["a", "b"]
    assert out[2].split()[1:] == ["0/100", "-", "-", "-", "-", "40", "0"]
    rows = {line.split()[0]: line.split()[1:] for line in out[5:]}
    assert rows == {"schedule": ["cosine", "-"], "schedule.s": ["0.01", "-"], "mean": ["eps", "-"],
                    "num_steps": ["1000", "-"], "lr": ["0.0002", "0.0001"], "ema": ["0.9,0.99", "0.9999"]}  # fmt: skip


def test_json(command: Command, tmp_path: Path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b", seed=3)
    found = json.loads(command("runs", two, one, one, "--json").out)
    assert [run["run"] for run in found["runs"]] == [str(two), str(one)]
    assert found["differences"] == {"seed": [3, 0]}
    first = found["runs"][0]
    assert (first["step"], first["steps"], first["checkpoints"]) == (40, 100, [20, 40])
    assert first["metrics"]["loss_q0"] == 0.5 and first["train"]["seed"] == 3 and first["data"]["source"] == "photos"


def test_refusals(refused: Refused, saved: Path, tmp_path: Path):
    assert refused("runs") == "diffkit runs needs RUN"
    assert refused("runs", tmp_path / "no") == f"{tmp_path / 'no'} is not there; name the folder of a run"
    (tmp_path / "file").touch()
    assert refused("runs", tmp_path / "file") == f"{tmp_path / 'file'} is a file; name the folder of a run"
    assert refused("runs", tmp_path) == f"{tmp_path} is not a training run, and holds none"
    assert refused("runs", saved) == f"{saved} is not a training run: its config.json says nothing of training"
    (tmp_path / "config.json").write_text("{")
    assert refused("runs", tmp_path).startswith(f"{tmp_path / 'config.json'} cannot be read as JSON: ")
    (tmp_path / "config.json").write_text("[]")
    assert (
        refused("runs", tmp_path)
        == f"{tmp_path / 'config.json'} cannot be read as JSON: it holds a list, not an object"
    )


def test_help_shows_that_several_can_be_named(command: Command):
    assert "Usage: diffkit runs RUN... [OPTIONS]" in command("runs", "--help").out


@pytest.mark.parametrize("rows", [[{"a": "1", "lr": "2"}, {"a": "33", "b": "4", "lr": "5"}]])
def test_table_puts_further_columns_before_lr(rows):
    assert table(rows) == ["a   b  lr", "1   -  2", "33  4  5"]


def test_a_real_run(command: Command, tmp_path: Path):
    words = ["--data", "points", "--schedule", "cosine", "--backbone", "mlp", "--backbone.hidden", "8"]
    words += ["--num-steps", "20", "--batch-size", "8"]
    for seed in (0, 1):
        out = tmp_path / str(seed)
        assert command("train", *words, "--steps", "3", "--log-every", "1", "--seed", seed, "--out", out).code == 0
    out = command("runs", tmp_path).out
    assert "in all: schedule cosine, mean eps, var fixed_large" in out and out.count(" 3/3 ") == 2
    assert out.splitlines()[-1].split() == ["seed", "0", "1"]


def test_a_damaged_run_hides_no_other(command: Command, refused: Refused, tmp_path: Path):
    one, two = make(tmp_path / "runs" / "a"), make(tmp_path / "runs" / "b")
    (one / "spec.json").write_text('{"parts"')
    found = command("runs", tmp_path / "runs")
    assert found.code == 0 and str(two) in found.out and str(one) not in found.out
    assert (
        found.err.startswith(f"left out: {one / 'spec.json'} cannot be read as JSON: ") and found.err.count("\n") == 1
    )
    (two / "config.json").write_text("{")
    assert refused("runs", tmp_path / "runs").count("cannot be read as JSON") == 2
