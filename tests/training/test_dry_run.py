"""A dry run: its figures are those of the training, and it leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_support import config, images, point_system, points, system, train

from diffkit import DataError, OptionError
from diffkit.runtime.progress import duration
from diffkit.training import read_metrics
from diffkit.training.estimate import DryRun, _bytes_text, _count_checkpoints, dry_run


def figures(**more: object) -> DryRun:
    known = dict(
        parameters=1_500_000, trained=1_500_000, device="cpu, 1 threads", memory=3 * 1024**3, step_seconds=0.5,
        steps=20_000, done=0, examples=50_000, batch_size=100, checkpoint=2 * 1024**2, kept=7 * 1024**2, loss=1.00012,
    )  # fmt: skip
    return DryRun(**(known | more))


def test_its_text():
    assert str(figures()).splitlines() == [
        "parameters  1,500,000",
        "device      cpu, 1 threads",
        "memory      3.0 GiB at most",
        "update      500.0 ms, 200.0 images/s",
        "training    20,000 steps, about 2 h 47 min",
        "epoch       50,000 images, 500.0 steps; 40.0 epochs in all",
        "checkpoint  2.0 MiB; 7.0 MiB in the end",
        "loss        1.0001 at first",
    ]
    some = str(figures(trained=7, done=19_980, memory=None))
    assert "1,500,000, 7 of them trained" in some and "cannot be measured here" in some
    assert "20,000 steps, 19,980 of them done, about 10 s" in some


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3600 + 300, "1 h 5 min"), (86_400 * 3 + 3600 * 4, "3 days 4 h")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_sizes():
    assert [_bytes_text(n) for n in (7, 2048, 1024**2, 3 * 1024**3)] == ["7 bytes", "2.0 KiB", "1.0 MiB", "3.0 GiB"]


def test_its_figures_are_the_training_s(tmp_path: Path):
    options = dict(steps=6, save_every=2, keep=2, keep_every=2)
    chosen = config(**options)
    found = dry_run(system(), images(), config=chosen)
    train(tmp_path / "run", **options)
    files = {path: path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors")}
    newest = sum(size for path, size in files.items() if path.parent.name == "step_00000006")
    headers = 8192  # a safetensors file has names and shapes beside the numbers
    assert found.checkpoint < newest < found.checkpoint + 5 * headers
    assert found.kept < sum(files.values()) < found.kept + 16 * headers
    assert found.loss == pytest.approx(read_metrics(tmp_path / "run")[0]["loss"], rel=1e-6)
    assert found.parameters == found.trained == sum(p.numel() for p in system().parameters())
    assert found.steps_per_epoch == pytest.approx(23 / 5) and found.steps == 6
    assert found.seconds == 6 * found.step_seconds > 0
    assert found.memory is None or found.memory > 2**20
    assert found.copied == found.checkpoint and "; 7 bytes of host memory for the copy" in str(figures(copied=7))
    assert dry_run(system(), images(), config=config(async_save=False)).copied == 0


class Slow(torch.nn.Module):
    """A network on a machine where an update takes 2 s, and 1 s more for each example; time is the test's own."""

    def __init__(self, clock: list[float]):
        super().__init__()
        self.scale, self.clock = torch.nn.Parameter(torch.ones(())), clock

    def __deepcopy__(self, memo: object) -> Slow:
        return Slow(self.clock)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        self.clock[0] += 2 + len(x)
        return self.scale * x


def test_a_slow_machine_is_judged_by_few_examples(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    import diffkit
    from diffkit.training import estimate

    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    slow = diffkit.compose(schedule="cosine", num_steps=20, backbone=Slow(clock), data_shape=(2,), bins=None)
    found = dry_run(slow, points(), steps=1000, batch_size=40, progress=True)
    assert clock[0] <= 3 * estimate.PATIENCE
    assert found.tried is not None and found.tried < 40
    assert found.step_seconds >= 42  # in proportion where only one size could be tried, else exact
    assert "40 examples tried" in str(found) and "no whole batch was tried" in str(found)
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == "trying updates of 1 of 40 examples" and "one of 40 about" in shown[1]
    assert dry_run(slow, points(), steps=1000, batch_size=1).tried is None


def test_time_is_extrapolated_on_a_line():
    from diffkit.training.estimate import _extrapolate_seconds, _TimedUpdates

    one, four = (_TimedUpdates(None, seconds, 0.0, size) for seconds, size in ((3.0, 1), (6.0, 4)))
    assert _extrapolate_seconds([one], 40) == 120
    assert _extrapolate_seconds([one, four], 40) == 42


def test_nothing_changes(tmp_path: Path):
    one = system()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    state = torch.random.get_rng_state()
    dry_run(one, images(), out=tmp_path / "run", config=config(workers=1))
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert one.training == system().training


def test_a_run_that_is_there_is_only_read(tmp_path: Path):
    train(tmp_path, steps=4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert dry_run(system(), images(), out=tmp_path, config=config(steps=12)).done == 4
    with pytest.raises(OptionError, match=r"lr=0.01, now lr=0.5"):
        dry_run(system(), images(), out=tmp_path, config=config(lr=0.5))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_it_refuses_what_training_would(tmp_path: Path):
    with pytest.raises(DataError, match="batch_size=50 is more than the 23 examples"):
        dry_run(system(), images(), config=config(batch_size=50))
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file; choose a folder"):
        dry_run(system(), images(), out=tmp_path / "file", config=config())


def test_data_that_is_not_an_image():
    found = dry_run(point_system(), points(), steps=3, batch_size=7)
    assert found.examples == 40 and found.batch_size == 7


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(1, 20))
def test_how_many_checkpoints_a_run_ends_with(steps, every, keep, keep_every):
    made = {*range(every, steps + 1, every), steps}
    ever = set() if keep_every is None else {step for step in made if step % keep_every == 0}
    asked = config(steps=steps, save_every=every, keep=keep, keep_every=keep_every)
    assert _count_checkpoints(asked) == len({*sorted(made)[-keep:], *ever})


def test_steps_without_end_are_counted_too():
    assert _count_checkpoints(config(steps=10**20, save_every=1000, keep=3, keep_every=None)) == 3
