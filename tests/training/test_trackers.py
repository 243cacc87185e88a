"""Trackers receive everything of a run once, and cannot end it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from training_support import train

from diffkit import MissingExtraError, OptionError
from diffkit.training import Tracker, read_metrics


class Recorder(Tracker):
    """Records its calls, or fails at a chosen one."""

    def __init__(self, fails: str = ""):
        self.heard: list[tuple[Any, ...]] = []
        self.fails = fails

    def begin(self, folder: Path, step: int) -> None:
        self._hear("begin", folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        self._hear("metrics", line["step"])

    def preview(self, step: int, path: Path) -> None:
        assert path.read_bytes().startswith(b"\x89PNG")
        self._hear("preview", step)

    def end(self) -> None:
        self._hear("end")

    def _hear(self, what: str, *more: Any) -> None:
        self.heard.append((what, *more))
        if what == self.fails:
            raise RuntimeError("out of ink")


PREVIEWS = dict(preview_every=3, preview=2, preview_steps=2)


def test_trackers_receive_everything_in_order(tmp_path: Path):
    one = Recorder()
    train(tmp_path, steps=5, log_every=2, track=[one], **PREVIEWS)
    lines = [("metrics", 2), ("preview", 3), ("metrics", 4), ("metrics", 5)]
    assert one.heard == [("begin", tmp_path, 0), *lines, ("end",)]


def test_a_run_that_resumes_reports_from_where(tmp_path: Path):
    train(tmp_path, steps=4)
    one = Recorder()
    train(tmp_path, steps=6, track=[one])
    assert one.heard == [("begin", tmp_path, 4), ("metrics", 5), ("metrics", 6), ("end",)]


@pytest.mark.parametrize("fails", ["metrics", "end"])
def test_one_that_fails_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: str):
    bad, good = Recorder(fails), Recorder()
    train(tmp_path, steps=3, track=[bad, good])
    assert [heard[0] for heard in good.heard] == ["begin", *["metrics"] * 3, "end"]
    assert capsys.readouterr().err == "warning: Recorder failed and is not called again: out of ink\n"
    assert len(read_metrics(tmp_path)) == 3


def test_one_that_cannot_begin_stops_all(tmp_path: Path):
    with pytest.raises(RuntimeError, match="out of ink"):
        train(tmp_path, track=[Recorder("begin")])
    assert not read_metrics(tmp_path)


def test_trackers_are_ended_when_a_run_fails(tmp_path: Path):
    one = Recorder()
    with pytest.raises(Exception, match="not finite"):
        train(tmp_path, lr=1e18, grad_clip=None, steps=40, max_skips=0, track=[one])
    assert one.heard[-1] == ("end",)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["wandbb"], "no tracker named 'wandbb'; did you mean 'wandb'? (known: tensorboard, wandb)"),
        ("wandb", "track must be a list, got 'wandb'; use track=['wandb']"),
        ([3], "int is not a tracker; see diffkit.training.Tracker"),
    ],
)
def test_others_are_refused_before_anything_is_made(tmp_path: Path, chosen: Any, said: str):
    with pytest.raises(OptionError) as caught:
        train(tmp_path / "run", track=chosen)
    assert str(caught.value) == said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [("tensorboard", "torch.utils.tensorboard", "TensorBoard"), ("wandb", "wandb", "Weights & Biases")],
)
def test_a_missing_package_is_one_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, words: str
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        train(tmp_path / "run", track=[name])
    assert str(caught.value) == f'tracking with {words} needs the {name!r} extra; run: pip install "diffkit[{name}]"'
    assert not (tmp_path / "run").exists()


class Board:
    """Stands in for TensorBoard's writer."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, folder: str, purge_step: int | None):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "events.1").touch()
        self.calls.append(("open", Path(folder).name, purge_step))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.calls.append((tag, value, step))

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert image.ndim == 3 and image.dtype == np.uint8 and dataformats == "HWC"
        self.calls.append((tag, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Board.calls.clear()
    return Board.calls


def test_tensorboard_has_the_lines_of_the_metrics(board: list[tuple[Any, ...]], tmp_path: Path):
    train(tmp_path, steps=3, track=["tensorboard"], **PREVIEWS)
    assert board[0] == ("open", "tensorboard", None) and board[-1] == ("close",)
    told: dict[int, dict[str, float]] = {}
    for name, value, step in (call for call in board if len(call) == 3 and call[0] != "open"):
        told.setdefault(step, {"step": step})[name.removeprefix("quartiles/")] = value
    written = [{k: v for k, v in line.items() if v is not None} for line in read_metrics(tmp_path)]
    assert list(told.values()) == written
    assert ("previews", 3) in board and any(call[0].startswith("quartiles/loss_q") for call in board)


def test_tensorboard_hides_what_a_run_that_resumes_does_again(board: list[tuple[Any, ...]], tmp_path: Path):
    train(tmp_path, steps=2, track=["tensorboard"])
    train(tmp_path, steps=3, track=["tensorboard"])
    assert [call for call in board if call[0] == "open"] == [("open", "tensorboard", None), ("open", "tensorboard", 3)]
    assert [call[2] for call in board if call[0] == "loss"] == [1, 2, 3]


def test_a_tracker_added_later_receives_the_history(board: list[tuple[Any, ...]], tmp_path: Path):
    train(tmp_path, steps=3, **PREVIEWS)
    train(tmp_path, steps=4, track=["tensorboard"], **PREVIEWS)
    order = [call[-1] for call in board if call[0] in ("loss", "previews")]
    assert order == [1, 2, 3, 3, 4]


def test_real_tensorboard(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, steps=4, save_every=2, track=["tensorboard"], **PREVIEWS)
    for path in (tmp_path / "checkpoints").glob("step_00000004*"):  # as if killed after step 3
        path.rename(path.with_name("gone"))
    train(tmp_path, steps=5, track=["tensorboard"], **PREVIEWS)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    lines = read_metrics(tmp_path)
    assert [(event.step, pytest.approx(event.value)) for event in found.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert [event.step for event in found.Images("previews")] == [3]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the package; like the real one it ignores steps that it has."""
    module: Any = ModuleType("wandb")
    known: dict[str, dict[int, dict[str, Any]]] = {}
    begun: list[dict[str, Any]] = []

    class Run:
        def __init__(self, name: str):
            self.rows = known.setdefault(name, {})
            self.last = max(self.rows, default=-1)

        def log(self, values: dict[str, Any], step: int) -> None:
            assert step >= max(self.rows, default=-1) or step <= self.last, "steps must not fall"
            if step > self.last:
                self.rows.setdefault(step, {}).update(values)

        def finish(self) -> None: ...

    def init(**options: Any) -> Run:
        begun.append(options)
        return Run(options["id"])

    module.init, module.Image = init, lambda path: ("image", Path(path).name)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return SimpleNamespace(known=known, begun=begun, module=module)


def test_wandb_has_every_step_once_whatever_happens(wandb: SimpleNamespace, tmp_path: Path):
    out = tmp_path / "mine"
    train(out, steps=4, save_every=2, track=["wandb"], **PREVIEWS)
    for path in (out / "checkpoints").glob("step_00000004*"):
        path.rename(path.with_name("gone"))
    train(out, steps=5, track=["wandb"], **PREVIEWS)
    (rows,) = wandb.known.values()
    assert sorted(rows) == [1, 2, 3, 4, 5] and rows[3]["previews"] == ("image", "step_00000003.png")
    assert [rows[line["step"]]["loss"] for line in read_metrics(out)] == [line["loss"] for line in read_metrics(out)]
    first = wandb.begun[0]
    assert (first["project"], first["name"], first["resume"]) == ("diffkit", "mine", "allow")
    assert first["config"]["train"]["steps"] == 4 and first["id"] == json.loads((out / "wandb.json").read_text())["id"]


def test_wandb_that_cannot_begin_gives_advice(wandb: SimpleNamespace, tmp_path: Path):
    def init(**options: Any) -> None:
        raise RuntimeError("no API key")

    wandb.module.init = init
    with pytest.raises(OptionError, match="wandb cannot begin: no API key; WANDB_MODE=offline needs no login"):
        train(tmp_path, track=["wandb"])
