"""Losses that call the network again: runs resume to the bit, in microbatches and processes, with every teacher."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from forks import forked, forking
from test_training_ranks import assert_near, assert_same
from training_support import content, lines, points, train

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.gaussian import mean_flat, squared_error
from diffkit.protocols import NetworkLoss, Tangent
from diffkit.registry import registry
from diffkit.testing._paths import LevelPairs

OPTIONS = dict(batch_size=8, steps=8, label_dropout=0.0, save_every=4)


@frozen
class EveryCall(NetworkLoss):
    """A loss that uses all that it is given."""

    needs_two_times = True
    needs_pairs = True
    teacher: str | None = "ema"

    def __call__(self, at, network):
        rate, low = network.rate_at(network.t), network.next_level()
        along = Tangent(rate.alpha * at.x_start + rate.sigma * at.noise, rate)
        out, derivative = network.jvp(at.x_t, at.level, at.to, along)
        length = (at.level.time - at.to.time)[:, None]
        flow = mean_flat(squared_error(out, at.target - length * derivative))
        x_low = low.alpha * at.x_start + low.sigma * at.noise
        taught = network.x_start(at.x_t, at.level, low), network.teacher(x_low, low)
        return {"loss": flow + mean_flat(squared_error(*taught)), "flow": flow}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for kind, name, part in (("loss", "every_call", EveryCall), ("timesteps", "level_pairs", LevelPairs)):
        monkeypatch.setattr(registry(kind), "_here", {**registry(kind)._here})
        registry(kind).register(name)(part)


def composed(teacher: str | None = "ema", times: int = 2, seed: int = 0, **more) -> diffkit.System:
    torch.manual_seed(seed)
    settings = dict(
        backbone=("mlp", {"hidden": 8, "depth": 1, "times": times}),
        **dict(data_shape=(2,), bins=None, num_steps=10, schedule="cosine", mean="v"),
        **dict(loss=("every_call", {"teacher": teacher}), timesteps="level_pairs"),
    )
    return diffkit.compose(**(settings | more))


def run(out, wanted="ema", seed=0, **options):
    return train(out, system=composed(wanted, seed=seed), data=points(), **(OPTIONS | options))


@forking
def test_processes_microbatches_and_resuming_change_no_bit(tmp_path):
    run(tmp_path / "one", microbatch=4)
    forked(2, lambda rank: run(tmp_path / "two", seed=rank, steps=4, strategy="ddp") and None)
    run(tmp_path / "two", microbatch=4)  # goes on alone
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@forking
def test_shards_resume_to_the_bit_and_add_up_in_another_order(tmp_path):
    """The gradient of each call is exchanged on its own."""
    run(tmp_path / "one")
    for steps in (4, 8):
        forked(2, lambda rank, n=steps: run(tmp_path / "two", seed=rank, steps=n, strategy="fsdp") and None)
    forked(2, lambda rank: run(tmp_path / "whole", seed=rank, strategy="fsdp") and None)
    assert_same(tmp_path / "two", tmp_path / "whole")
    assert_near(tmp_path / "one", tmp_path / "two", weights=1e-5, losses=1e-4)


def test_the_teacher_is_the_running_mean_of_its_rate(tmp_path):
    """A mean that is the weights themselves teaches other things than one that stays where it began."""
    found = {
        name: run(tmp_path / name, name, steps=3, ema=(0.0, 0.999), ema_warmup=False, log_every=1)
        for name in ("ema", "ema_0.999")
    }
    first, second = (lines(tmp_path / name) for name in found)
    assert first[0]["loss"] == second[0]["loss"]
    assert first[2]["loss"] != second[2]["loss"]


def test_another_system_teaches_and_is_written_into_the_spec(tmp_path):
    """It may be given or named by its folder; a run resumes with no other one."""
    teacher = composed(seed=5, mean="eps", loss="simple", timesteps="uniform", times=1)
    teacher.save(tmp_path / "teacher")
    run(tmp_path / "given", "system", teacher=teacher)
    run(tmp_path / "folder", str(tmp_path / "teacher"))
    assert content(tmp_path / "given") == content(tmp_path / "folder")
    record = diffkit.system.loading.read_spec(tmp_path / "folder" / "spec.json")["teacher"]
    assert record["path"] == str(tmp_path / "teacher") and len(record["digest"]) == 64
    assert diffkit.load(tmp_path / "folder").sample(2, steps=2, progress=False).shape == (2, 2)
    with pytest.raises(OptionError, match="weights of the teacher"):
        run(tmp_path / "given", "system", steps=9, teacher=composed(seed=6, loss="simple", timesteps="uniform"))


def test_the_systems_own_network_may_be_the_teachers(tmp_path):
    """It is copied: training changes only its own."""
    student = composed("system")
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    other = diffkit.recompose(student, loss="simple", timesteps="uniform")
    trained = train(tmp_path, system=student, data=points(), **OPTIONS, teacher=other)
    assert any(not torch.equal(before[name], value) for name, value in trained.network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "teacher", "message"),
    [
        ({}, "system", "learns from another system; give diffkit.train teacher="),
        ({"ema": ()}, "ema", "learns from the running mean 'ema', which training does not compute"),
        ({}, "ema_0.5", r"means: ema_0.9, ema_0.99"),
        ({"teacher": "ema"}, "ema", "teacher was given, but loss 'every_call' learns from its own running mean"),
        ({"teacher": lambda: composed(num_steps=5)}, "system", "the teacher has other levels than the system"),
        ({"teacher": lambda: composed(data_shape=(3,))}, "system", r"the teacher is of data \(3,\)"),
    ],
)
def test_what_cannot_teach_is_refused(tmp_path, options, teacher, message):
    given = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(OptionError, match=message):
        run(tmp_path, teacher, **given)


def test_what_the_loss_needs_is_refused_together():
    with pytest.raises(CompositionError) as error:
        composed(times=1, timesteps="uniform")
    text = str(error.value)
    assert "2 problems" in text
    assert "loss 'every_call' needs pairs of levels, but timesteps 'uniform' draws one for each example" in text
    assert "needs a network of two times, but backbone 'mlp' takes one; use times=2" in text
    composed(times=2)
    with pytest.raises(CompositionError, match="draws pairs of levels, but loss 'simple' reads one; use timesteps="):
        composed(loss="simple")
    with pytest.raises(CompositionError, match="use time_to_argument='time_to'"):
        composed(backbone=torch.nn.Bilinear(2, 1, 2))


def test_forward_passes_are_counted():
    dry = diffkit.training.dry_run(composed(), points(), batch_size=8, steps=4)
    assert dry.network_calls == "2 of the network, 1 of the teacher, 1 for a derivative, of 4 to 9 each"
    assert "passes" in str(dry)
    assert f"forward passes of an update: {dry.network_calls}" in str(diffkit.explain.explain(composed()))


def test_held_out_data_is_measured_with_the_teacher(tmp_path):
    trained = run(tmp_path, val=points(16), val_every=4)
    assert trained is not None and all(line["val_flow"] > 0 for line in lines(tmp_path) if "val_flow" in line)
