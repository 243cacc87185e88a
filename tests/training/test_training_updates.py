"""One update: microbatches, clipping, precision, schedules of the learning rate, metrics, and losses that diverge."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_support import config, images, lines, point_system, points, system, train

import diffkit
from diffkit.data import from_array
from diffkit.errors import DivergedError
from diffkit.registry import registry
from diffkit.system.draws import seeded_draws, training_loss
from diffkit.training import TrainConfig
from diffkit.training.data_order import DataOrder
from diffkit.training.ema import Ema
from diffkit.training.engines import Engine
from diffkit.training.metrics import MetricsWindow, quartile_sums
from diffkit.training.trainer import Trainer


def trainer(composed=None, **options) -> Trainer:
    chosen, composed = config(**options), composed or system()
    return Trainer(composed, composed.network, chosen, Engine(torch.device("cpu")))


def run(made: Trainer, steps: int, data=None) -> Trainer:
    data = images() if data is None else data
    order = DataOrder(len(data), made.config.batch_size, made.config.seed)
    for batch in map(order.batch, range(steps)):
        made.update(data.batch(batch))
    return made


def weights(made: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 5, 9])
def test_microbatches_change_nothing_but_rounding(microbatch):
    """3 + 2 included: parts are weighted by their size."""
    whole, parts = trainer(), trainer(microbatch=microbatch)
    a, b = run(whole, 6), run(parts, 6)
    assert (weights(a) - weights(b)).abs().max() < 2e-5
    first, second = a.metrics(), b.metrics()
    for name in ("loss", "mse", "vb", "grad_norm", "loss_q1"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)


def test_the_gradient_is_that_of_the_weighted_mean():
    made = trainer(system(timesteps=("loss_second_moment", {"history": 1}), num_steps=4), lr=0.0, label_dropout=0.0)
    run(made, 12)
    draws = []
    original = Trainer._finish

    def keep(self, batch, drawn, terms):
        draws.append((batch, drawn))
        self.found = [p.grad.clone() for p in self.network.parameters()]
        original(self, batch, drawn, terms)

    Trainer._finish = keep
    try:
        made.update(images().batch(range(5)))
    finally:
        Trainer._finish = original
    (batch, drawn), composed = draws[0], made.system
    assert drawn.weight.std() > 0
    loss, _ = training_loss(composed.loss_terms, None, batch.images.float() / 8 - 1, drawn, batch.conditions)
    expected = torch.autograd.grad(loss.mean(), list(made.network.parameters()))
    for got, want in zip(made.found, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)


def test_the_sampler_is_fed_unweighted_losses():
    made = trainer(system(timesteps=("loss_second_moment", {"history": 1}), num_steps=2), lr=0.0, label_dropout=0.0)
    run(made, 8)
    composed, history = made.system, made.timesteps
    assert history.seen.sum() == 8 * 5
    draws = seeded_draws(composed.parts, history, 0, 8, 5, slice(None), composed.device)
    made.update(images().batch(range(5)))
    terms = composed.loss_terms(
        None,
        images().batch(range(5)).images.float() / 8 - 1,
        draws.level,
        draws.noise,
        **images().batch(range(5)).conditions,
    )
    for level in (1, 2):
        mine = terms["loss"][draws.level == level]
        if len(mine):
            assert made.timesteps.values[level - 1, 0] == pytest.approx(float(mine[-1].detach()), rel=1e-5)


def test_gradients_are_clipped_and_their_norm_is_reported_unclipped():
    free, clipped = trainer(ema=()), trainer(grad_clip=1e-3, ema=())
    run(free, 1)
    run(clipped, 1)
    assert free.metrics()["grad_norm"] == pytest.approx(clipped.metrics()["grad_norm"])
    moment = next(iter(clipped.optimizer.state.values()))["exp_avg"]
    other = next(iter(free.optimizer.state.values()))["exp_avg"]
    ratio = 1e-3 / free.metrics()["grad_norm"]
    assert torch.allclose(moment, other * ratio, rtol=1e-3, atol=1e-9)


def test_the_learning_rate_rises_and_falls():
    rates = [TrainConfig(steps=10, lr=1.0, warmup=4, anneal=True).lr_at(step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert {TrainConfig(steps=10).lr_at(step) for step in range(10)} == {1e-4}


def rates(steps, at=None, **options):
    made = TrainConfig(steps=steps, lr=1.0, **options)
    return [made.lr_at(step) for step in (range(steps) if at is None else at)]


def test_every_schedule_of_the_learning_rate():
    """Values by hand; "rsqrt" as the published edm2 has it: lr / sqrt(max(seen / (t_ref batch_size), 1))."""
    assert rates(10, lr_schedule="linear") == rates(10, anneal=True) == rates(10, anneal=True, lr_schedule="linear")
    assert rates(10, lr_schedule="constant") == rates(10) == [1.0] * 10
    assert rates(4, lr_schedule="cosine") == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert rates(10, lr_schedule=("linear", {"end": 20}), anneal=True) == rates(10, anneal_steps=20)
    assert rates(2, lr_schedule="cosine", anneal_steps=4) == rates(4, lr_schedule="cosine")[:2]
    found = rates(100, (0, 5, 10, 40, 90), lr_schedule="rsqrt", rsqrt_steps=10)
    assert found == pytest.approx([1, 1, 1, 1 / 2, 1 / 3])
    assert rates(10**6, (70_000, 280_000), lr_schedule="rsqrt") == pytest.approx([1, 0.5])


@given(st.sampled_from(registry("lr_schedule").built_in_names()), st.integers(1, 30), st.integers(0, 30))
def test_warm_up_multiplies_any_schedule(schedule, steps, warmup):
    plain, warm = (rates(steps, lr_schedule=schedule, warmup=w) for w in (0, warmup))
    assert all(0 < after <= before <= 1 for before, after in pairwise(plain))
    rising = [min(1, (step + 1) / max(warmup, 1)) for step in range(steps)]
    assert warm == pytest.approx([a * b for a, b in zip(plain, rising, strict=True)])


def test_the_learning_rate_reaches_the_optimizer():
    made = run(trainer(lr=0.5, warmup=10), 1)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert made.metrics()["lr"] == pytest.approx(0.05)


def test_bfloat16_runs_the_network_and_nothing_else():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, time):
            out = self.linear(x)
            if self.training:
                seen.append((x.dtype, time.dtype, out.dtype))
            return out

    made = trainer(point_system(backbone=Watched()), precision="bf16", label_dropout=0.0)
    run(made, 3, points())
    assert set(seen) == {(torch.float32, torch.float32, torch.bfloat16)}
    assert all(p.dtype == torch.float32 for p in made.network.parameters())
    assert all(t.dtype == torch.float32 for means in made.ema.means for t in means)


def test_bfloat16_stays_near_float32():
    a = run(trainer(system(), label_dropout=0.0, batch_size=20), 60)
    b = run(trainer(system(), label_dropout=0.0, batch_size=20, precision="bf16"), 60)
    assert a.metrics()["mse"] == pytest.approx(b.metrics()["mse"], rel=0.02)


def test_means_start_as_copies_and_warm_up():
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, (0.5, 0.9999), warmup=True)
    assert ema.means[0][0] == 1 and ema.means[0][0].data_ptr() != network.weight.data_ptr()
    expected = [1.0, 1.0]
    for n in range(30):
        with torch.no_grad():
            network.weight.fill_(float(n))
        ema.update(n)
        for i, rate in enumerate((0.5, 0.9999)):
            now = min(rate, (1 + n) / (10 + n))
            expected[i] = now * expected[i] + (1 - now) * n
    assert [float(means[0]) for means in ema.means] == pytest.approx(expected, rel=1e-5)


def test_a_mean_of_bfloat16_weights_moves():
    network = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, (0.9999,), warmup=False)
    with torch.no_grad():
        network.weight.fill_(1.5)
    for n in range(1000):
        ema.update(n)
    assert float(ema.means[0][0]) == pytest.approx(1.5 - 0.5 * 0.9999**1000, rel=1e-5)


def test_frozen_and_tied_parameters_and_buffers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.unused = nn.Parameter(torch.ones(2))
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, time):
            if self.training:
                self.count += 1
            return self.b(self.a(x)) * self.frozen

    made = run(trainer(point_system(backbone=Odd()), label_dropout=0.0), 3, points())
    state = made.ema.state("ema_0.9", made.network)
    assert state.keys() == made.network.state_dict().keys()
    assert torch.equal(state["a.weight"], state["b.weight"])
    assert not torch.equal(state["a.weight"], made.network.a.weight)
    assert torch.equal(state["frozen"], torch.ones(2)) and state["count"] == 3
    other = trainer(point_system(backbone=Odd()), label_dropout=0.0)
    other.restore(3, made.files())
    assert torch.equal(weights(other), weights(made)) and other.network.count == 3


def test_metrics_are_means_over_uniform_levels():
    """Weights of 1 / (T p) undo the sampler's preference; within a quartile they are normalized."""
    level = torch.tensor([1, 2, 3, 5, 6, 7, 8, 8])
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 0.25, 1.0])
    loss = torch.arange(8.0)
    window = MetricsWindow()
    finite = torch.tensor(True)
    window.add(quartile_sums({"loss": loss, "mse": 2 * loss}, level, weight, 8), torch.tensor(3.0), finite)
    window.add(quartile_sums({"loss": loss, "mse": 2 * loss}, level, weight, 8), torch.tensor(5.0), finite)
    broken = quartile_sums({"loss": loss * math.nan, "mse": loss}, level, weight, 8)
    window.add(broken, torch.tensor(math.nan), ~finite)
    found = window.read(("loss", "mse"), 8)
    assert found["loss"] == pytest.approx(float((loss * weight).mean()))
    assert found["loss_q0"] == pytest.approx((0 * 1 + 1 * 2) / 3)
    assert found["loss_q1"] == pytest.approx(2.0)
    assert found["mse_q3"] == pytest.approx(2 * (5 * 1 + 6 * 0.25 + 7) / 2.25)
    assert found["grad_norm"] == 4


def test_a_quartile_that_was_not_visited_is_left_out():
    window = MetricsWindow()
    sums = quartile_sums({"loss": torch.ones(2)}, torch.tensor([1, 8]), torch.ones(2), 8)
    window.add(sums, torch.tensor(1.0), torch.tensor(True))
    assert {k for k in window.read(("loss",), 2) if "_q" in k} == {"loss_q0", "loss_q3"}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 1000])
def test_levels_fall_into_quartiles_as_in_the_published_logger(num_steps):
    level = torch.arange(1, num_steps + 1)
    for k in level.tolist():
        one = torch.tensor([k])
        sums = quartile_sums({"loss": torch.ones(1)}, one, torch.ones(1), num_steps)
        assert sums[0].argmax() == int(4 * (k - 1) / num_steps)


def test_metrics_are_valid_json_with_the_promised_keys(tmp_path):
    train(tmp_path, steps=4, log_every=2, lr=1e-3)
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is not JSON")) for line in text]
    assert [line["step"] for line in found] == [2, 4]
    promised = {"step", "samples", "loss", "mse", "vb", "grad_norm", "param_norm", "lr", "skipped", "images_per_s"}
    assert promised <= found[0].keys()


class Exploding(nn.Module):
    """Not finite whenever the time is above a limit, or always."""

    def __init__(self, above: float = -1.0, until: int = 10**9):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.above, self.until, self.calls = above, until, 0

    def forward(self, x, time):
        self.calls += self.training  # composing asks once, in evaluation mode
        bad = (time > self.above) & (self.calls <= self.until)
        return (x * self.weight).masked_fill(bad[:, None], math.nan)


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
    made = run(trainer(point_system(backbone=Exploding(until=3)), label_dropout=0.0), 3, points())
    assert made.network.weight == 1 and made.step == 3 and made.skipped == 3 and made.consecutive_skips == 3
    assert made.metrics()["loss"] is None
    made.window.rows.clear()
    made.update(points().batch(range(5)))
    assert made.network.weight != 1 and made.consecutive_skips == 0 and made.skipped == 3
    assert made.metrics()["skipped"] == 3 and math.isfinite(made.metrics()["loss"])


def test_after_ten_in_a_row_training_stops_with_a_report(tmp_path):
    composed = point_system(backbone=Exploding(until=10))
    train(tmp_path / "ten", system=composed, data=points(), label_dropout=0.0)
    assert composed.network.calls == 12 and composed.network.weight != 1
    composed = point_system(backbone=Exploding())
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "eleven", system=composed, data=points(), label_dropout=0.0, save_every=4, steps=30)
    text = str(caught.value)
    assert text.startswith("11 updates in a row had no finite loss and gradient, so training stopped after step 0; ")
    assert "in the last batch not finite: loss, mse, at levels [" in text
    last = DataOrder(40, 5, 0).batch(10)
    assert f"of examples [{', '.join(map(str, last))}]" in text
    assert text.endswith("step_00000008'; a new run can begin with its weights (--init)")


def test_a_skipped_update_leaves_the_sampler_and_the_optimizer_alone():
    composed = point_system(backbone=Exploding(above=500.0), timesteps=("loss_second_moment", {"history": 1}))
    made = run(trainer(composed, label_dropout=0.0, max_skips=1000), 20, points())
    assert torch.isfinite(made.timesteps.values).all()
    assert all(torch.isfinite(value).all() for state in made.optimizer.state.values() for value in state.values())
    assert 0 < made.skipped <= 20


def test_data_of_sixteen_bits_and_floats_reach_the_network_scaled(tmp_path):
    seen = []

    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, time):
            return x * self.weight

    original = diffkit.System.loss_terms

    def watch(self, model, x_start, *rest, **more):
        seen.append(x_start.detach().clone())
        return original(self, model, x_start, *rest, **more)

    diffkit.System.loss_terms = watch
    try:
        ends = np.array([0, 65535, 257 * 128, 1], np.uint16).reshape(4, 1, 1, 1)
        composed = diffkit.compose(schedule="cosine", num_steps=5, backbone=Seeing(), data_shape=(1, 1, 1), bins=65536)
        train(tmp_path, system=composed, data=from_array(ends), batch_size=4, steps=1, label_dropout=0.0)
    finally:
        diffkit.System.loss_terms = original
    expected = sorted(ends.astype(np.float64).flatten() / 32767.5 - 1)
    assert sorted(seen[0].flatten().tolist()) == pytest.approx(expected, abs=1e-7)
    assert seen[0].max() == 1 and seen[0].min() == -1


def test_returned_and_saved_are_the_first_mean(tmp_path):
    done = train(tmp_path)
    assert not done.training
    loaded = diffkit.load(tmp_path)
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "checkpoints" / "step_00000012" / "ema_0.9.safetensors")
    raw = load_file(tmp_path / "checkpoints" / "step_00000012" / "model.safetensors")
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, stored[name]) and torch.equal(value, done.network.state_dict()[name])
    assert any(not torch.equal(stored[name], raw[name]) for name in stored)


def test_without_means_the_weights_themselves_are_kept(tmp_path):
    done = train(tmp_path, ema=())
    from safetensors.torch import load_file

    raw = load_file(tmp_path / "checkpoints" / "step_00000012" / "model.safetensors")
    assert all(torch.equal(value, raw[name]) for name, value in done.network.state_dict().items())


def test_a_short_run_learns(tmp_path):
    """Two moons: the loss falls well below that of a network that knows nothing, and the metrics say so."""
    composed = point_system(num_steps=50, backbone=("mlp", {"hidden": 32, "depth": 2}))
    data = diffkit.data.loading.load("points", kind="moons", examples=500)
    train(tmp_path, system=composed, data=data, steps=150, batch_size=64, label_dropout=0.0, log_every=50, lr=5e-3)
    found = lines(tmp_path)
    assert found[0]["loss"] > found[-1]["loss"] and found[-1]["loss"] < 0.5
