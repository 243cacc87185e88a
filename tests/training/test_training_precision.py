"""float16 and its loss scale, updates skipped on a device, memory that ends, compiled networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_support import config, content, images, lines, system, train

from diffkit.errors import DivergedError, OptionError
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine
from diffkit.training.loss_scale import LARGEST, PATIENCE, SMALLEST, START, LossScale
from diffkit.training.precision import emulation_warning
from diffkit.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer(composed=None, engine=None, **options) -> Trainer:
    chosen, composed = config(**options), composed or system()
    return Trainer(composed, composed.network, chosen, engine or Engine(CPU))


def run(made: Trainer, steps: int) -> Trainer:
    order = DataOrder(23, made.config.batch_size, made.config.seed)
    for batch in map(order.batch, range(steps)):
        made.update(images().batch(batch))
    return made


def weights(made: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


def test_the_scale_doubles_halves_and_stays_in_bounds():
    scale = LossScale(True, CPU)
    good, bad = torch.tensor(True), torch.tensor(False)
    assert float(scale.value) == START
    for _ in range(PATIENCE - 1):
        scale.update(good)
    assert float(scale.value) == START
    scale.update(good)
    assert (float(scale.value), int(scale.streak)) == (2 * START, 0)
    scale.update(good)
    scale.update(bad)
    assert (float(scale.value), int(scale.streak)) == (START, 0)
    for _ in range(100):
        scale.update(bad)
    assert float(scale.value) == SMALLEST
    scale.value.fill_(LARGEST)
    for _ in range(PATIENCE):
        scale.update(good)
    assert float(scale.value) == LARGEST


def test_float16_trains_as_float32_does():
    a, b = (
        run(trainer(batch_size=20, label_dropout=0.0), 60),
        trainer(batch_size=20, label_dropout=0.0, precision="fp16"),
    )
    run(b, 60)
    assert a.metrics()["mse"] == pytest.approx(b.metrics()["mse"], rel=0.02)
    assert b.metrics()["loss_scale"] == START and "loss_scale" not in a.metrics()
    assert all(t.dtype == torch.float32 for means in b.ema.means for t in means)
    assert int(b.skipped) == 0


def test_the_gradient_s_norm_is_reported_and_clipped_without_the_scale():
    free, scaled = trainer(lr=0.0, grad_clip=0.1), trainer(lr=0.0, grad_clip=0.1, precision="fp16")
    a, b = run(free, 3).metrics()["grad_norm"], run(scaled, 3).metrics()["grad_norm"]
    assert a == pytest.approx(b, rel=0.02)
    moments = [torch.cat([s["exp_avg"].flatten() for s in made.optimizer.state.values()]) for made in (free, scaled)]
    assert (moments[0] - moments[1]).norm() < 0.05 * moments[0].norm()


class Loud(nn.Module):
    """Its gradients are beyond float16 until the scale has come down."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 32)

    def forward(self, x, time, y):
        return _Explode.apply(self.linear(x.flatten(1)).view(-1, 2, 4, 4))


class _Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 300


def test_an_overflow_is_skipped_and_halves_the_scale():
    made = run(trainer(system(backbone=Loud()), precision="fp16", label_dropout=0.0), 12)
    skipped = int(made.skipped)
    assert 0 < skipped < 11
    assert float(made.scale.value) == START / 2**skipped
    assert weights(made).isfinite().all()


def test_the_scale_is_part_of_the_run(tmp_path):
    options = dict(precision="fp16", steps=12)
    train(tmp_path / "whole", **options)
    train(tmp_path / "parts", **(options | {"steps": 5}))
    train(tmp_path / "parts", **options)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_an_update_is_skipped_without_asking_the_device():
    """The path of a GPU, on a CPU: the fused optimizer gets the flag, and nothing is read."""
    engine = Engine(CPU)
    engine.reads_free = False
    made = run(trainer(engine=engine), 3)
    before, moments = weights(made), [s["exp_avg"].clone() for s in made.optimizer.state.values()]
    batch = images().batch(range(5))
    original = made._loss

    def infinite(*args):
        terms = original(*args)
        return {name: value * float("inf") for name, value in terms.items()}

    made._loss = infinite
    made.update(batch)
    assert torch.equal(weights(made), before)
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(made.optimizer.state.values(), moments, strict=True))
    assert (int(made.skipped), int(made.consecutive_skips)) == (1, 1)
    made._loss = original
    made.update(batch)
    assert not torch.equal(weights(made), before)
    for _ in range(12):
        made._loss = infinite
        made.update(batch)
    with pytest.raises(DivergedError, match="12 updates in a row"):
        made.raise_if_diverged()


@pytest.mark.parametrize(("microbatch", "text"), [(None, "microbatch=2"), (2, "microbatch=1"), (1, "strategy='fsdp'")])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("alloc_cpu: can't allocate memory")])
def test_memory_that_ends_is_answered_with_a_microbatch(tmp_path, monkeypatch, microbatch, text, error):
    def full(self, batch, draws=None):
        raise error

    monkeypatch.setattr(Trainer, "update", full)
    with pytest.raises(OptionError, match=f"no memory for .* examples at a time, at step 0; .* use {text}"):
        train(tmp_path, microbatch=microbatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_trains_the_same(tmp_path):
    train(tmp_path / "eager")
    train(tmp_path / "compiled", compile=True)
    for a, b in zip(lines(tmp_path / "eager"), lines(tmp_path / "compiled"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("asked", [True, False])
def test_that_compiling_takes_long_is_reported(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: None)
    train(tmp_path, steps=1, compile=asked, progress=True)
    assert ("compiling: the first update takes minutes\n" in capsys.readouterr().err) == asked


NO_BF16 = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


def tell(monkeypatch: pytest.MonkeyPatch, has: dict[str, object]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)


def test_a_precision_that_a_cpu_emulates_is_remarked_on(tmp_path, monkeypatch, capsys):
    tell(monkeypatch, NO_BF16)
    train(tmp_path / "bf16", steps=1, precision="bf16", progress=True)
    train(tmp_path / "fp32", steps=1, progress=True)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert notes == ["note: this CPU has no instructions for bf16 and emulates them: fp32 is several times as fast"]


@pytest.mark.parametrize(
    "has", [NO_BF16 | {"amx_bf16": True}, NO_BF16 | {"avx512_bf16": True}, {"architecture": "arm"}]
)
def test_one_that_it_has_or_may_have_is_not(has, monkeypatch):
    tell(monkeypatch, has)
    assert emulation_warning("bf16", CPU) is None and emulation_warning("fp32", CPU) is None


def test_nor_is_a_gpu_s_or_one_of_a_torch_that_cannot_tell(monkeypatch):
    tell(monkeypatch, NO_BF16)
    assert emulation_warning("bf16", torch.device("cuda")) is None and emulation_warning("bf16", CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert emulation_warning("bf16", CPU) is None
