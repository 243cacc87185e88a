"""Networks that are not plain modules with parameters: quantized, scripted, traced, frozen, exported."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import diffkit
from diffkit.errors import OptionError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:.*quantized tensor creation",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
)  # what torch says of torch.jit and torch.ao

SHAPE = (3, 4, 4)
UNET = ("unet", dict(channels=8, channel_mult=(1,), num_res_blocks=1, groups=4, num_classes=3))
DIT = ("dit", dict(patch=2, depth=1, hidden=16, heads=2, num_classes=3))
MLP = ("mlp", dict(hidden=16, depth=1, num_classes=3))


class Plain(nn.Module):
    """A network that torch.jit can script."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        return self.dropout(self.inner(x)) + 0.001 * (time + y).to(x.dtype)[:, None, None, None]


class SelfByAnotherName(nn.Module):
    def forward(this, x: Tensor, time: Tensor) -> Tensor:  # noqa: N805
        return 0.1 * x + 0.001 * time[:, None, None, None]


class TimeFirst(nn.Module):
    def forward(self, timesteps: Tensor, sample: Tensor) -> Tensor:
        return 0.1 * sample + 0.001 * timesteps[:, None, None, None]


class Buffered(nn.Module):
    """All it has is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.1], dtype=torch.bfloat16))

    def forward(self, x, time):
        assert x.dtype == torch.bfloat16
        return self.scale * x


class Held(nn.Module):
    """Its weights are not its own."""

    def __init__(self):
        super().__init__()
        self.inner = [Plain().eval()]

    def forward(self, x, time, y):
        return self.inner[0](x, time, y)


def compose(backbone, **more):
    torch.manual_seed(0)
    return diffkit.compose(schedule="cosine", backbone=backbone, data_shape=SHAPE, num_steps=10, **more)


def reloaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


def exported(network):
    batch = torch.export.Dim("batch")
    x, time, y = _given()
    shapes = {name: {0: batch} for name in ("x", "time", "y")}
    return torch.export.export(network, (x, time), {"y": y}, dynamic_shapes=shapes).module()


def _given():
    return torch.zeros(2, *SHAPE), torch.zeros(2), torch.zeros(2, dtype=torch.int64)


MADE = {
    "scripted": torch.jit.script,
    "scripted, from a file": lambda network: reloaded(torch.jit.script(network)),
    "traced": lambda network: torch.jit.trace(network, _given()),
    "traced, from a file": lambda network: reloaded(torch.jit.trace(network, _given())),
    "frozen": lambda network: torch.jit.freeze(torch.jit.script(network)),
    "exported": exported,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_compiled_modules_sample_score_and_train_as_what_they_were_made_of(make):
    torch.manual_seed(0)
    network = Plain().eval()
    made = compose(make(copy.deepcopy(network)))
    plain = compose(network)
    call = dict(steps=3, y=[0, 2, 1])
    x = torch.rand(3, *SHAPE) * 2 - 1
    for ask in (
        lambda system: system.sample(3, seed=1, progress=False, **call),
        lambda system: system.bits_per_dim(x, seed=1, **call).total,
        lambda system: system(x, generator=torch.Generator().manual_seed(0), y=torch.tensor([0, 2, 1]))["loss"],
        lambda system: diffkit.recompose(system, sampler="heun").sample(3, seed=1, progress=False, **call),
    ):
        torch.testing.assert_close(ask(made), ask(plain))
    with pytest.raises(OptionError, match=r"takes no condition 'z' \(conditions: y\)"):
        made.sample(3, steps=2, y=0, z=1, progress=False)


def test_scripted_dropout_is_off_while_sampling():
    system = compose(torch.jit.script(Plain()))
    assert system.training
    draws = [system.sample(2, steps=2, y=1, seed=0, progress=False) for _ in range(2)]
    assert torch.equal(*draws) and system.network.training


def test_advice_for_a_scripted_network_with_time_first_works():
    for scripted in (torch.jit.script(TimeFirst()), reloaded(torch.jit.script(TimeFirst()))):
        with pytest.raises(OptionError, match=r"takes 'timesteps' first.* pass time_argument='timesteps'"):
            compose(scripted)
        assert compose(scripted, time_argument="timesteps").sample(2, steps=2, progress=False).shape == (2, *SHAPE)
    with pytest.raises(OptionError, match=r"forward must take data and time \(arguments: input\)"):
        compose(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))))


def test_a_scripted_network_may_call_itself_by_another_name_than_self():
    assert compose(torch.jit.script(SelfByAnotherName())).sample(2, steps=2, progress=False).shape == (2, *SHAPE)


def test_a_scripted_function_stands_for_the_network():
    @torch.jit.script
    def model(x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        return 0.1 * x

    system = compose(None)
    assert system.sample(2, steps=2, model=model, y=0, progress=False).shape == (2, *SHAPE)
    with pytest.raises(OptionError, match=r"takes no condition 'z' \(conditions: y\)"):
        system.sample(2, steps=2, model=model, z=0, progress=False)


@pytest.mark.parametrize("backbone", [UNET, DIT, MLP], ids=lambda backbone: backbone[0])
def test_quantized_networks_sample_and_score(backbone):
    """Linear layers in 8 bits have no parameters; those of time embeddings come first."""
    system = compose(backbone).eval()
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(system), {nn.Linear}, dtype=torch.qint8)
    call, x = dict(steps=3, seed=1, y=[0, 1, 2]), torch.rand(3, *SHAPE) * 2 - 1
    found = packed.sample(3, progress=False, **call)
    assert not torch.equal(found, system.sample(3, progress=False, **call))
    # 8 bits a weight and a division by alpha at the first step; a layer left out would be off by more than 1
    torch.testing.assert_close(found, system.sample(3, progress=False, **call), rtol=0, atol=0.3)
    torch.testing.assert_close(
        packed.bits_per_dim(x, **call).total, system.bits_per_dim(x, **call).total, rtol=0.05, atol=0
    )


@pytest.mark.parametrize(("network", "given"), [(Buffered(), {}), (Held(), {"y": 1})], ids=["buffers", "none"])
def test_networks_without_parameters(network, given):
    system = compose(network)
    assert system.device == torch.device("cpu")
    assert system.sample(2, steps=2, progress=False, **given).shape == (2, *SHAPE)
    assert system.bits_per_dim(torch.zeros(2, *SHAPE), steps=2, **given).total.shape == (2,)
