"""What every network does, whatever it is made of."""

import pickle
import re
import subprocess
import sys

import attrs
import pytest
import torch
from backbone_support import close, inputs, randomize

from diffkit.errors import OptionError
from diffkit.guidance.classifier import Classifier
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.mlp import MLP
from diffkit.parts.backbones.unet import UNet

SHAPE = (3, 8, 8)
SMALL = {"channels": 16, "groups": 8, "num_res_blocks": 1, "channel_mult": (1, 2)}
RECIPES = {
    "unet": UNet(**SMALL, num_classes=4),
    "adm": UNet(
        **SMALL, num_head_channels=8, attention_order="new", resblock_updown=True, num_classes=4, null_class=True
    ),
    "dit": DiT(depth=2, hidden=32, heads=4, num_classes=4, null_class=True),
    "mlp": MLP(hidden=32, depth=2, num_classes=4),
    "classifier": Classifier(**SMALL, num_head_channels=8),
}


def _labels(name):
    return {} if name == "classifier" else {"y": torch.tensor([1, 3])}


def _network(name):
    return randomize(RECIPES[name].build(SHAPE, 6))


@pytest.fixture(params=RECIPES)
def name(request):
    return request.param


@pytest.mark.parametrize(
    "module", ["parts.backbones.unet", "parts.backbones.dit", "parts.backbones.mlp", "guidance.classifier"]
)
def test_options_are_read_without_torch(module):
    code = f"import sys, diffkit.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_recipes_are_values(name):
    recipe = RECIPES[name]
    again = type(recipe)(**attrs.asdict(recipe, recurse=False))
    assert recipe == again == pickle.loads(pickle.dumps(recipe))
    assert hash(recipe) == hash(again)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        recipe.checkpoint = True


def test_every_parameter_gets_a_gradient(name):
    network = _network(name)
    x, time = inputs(SHAPE)
    network(x, time, **_labels(name)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    # Keys share a bias that softmax ignores, and a norm ignores the mean; nothing else may be without effect.
    still = [key for key, value in network.named_parameters() if value.grad.abs().max() == 0]
    assert all(key.endswith("bias") for key in still)


def test_time_is_used_and_may_be_a_scalar(name):
    network = _network(name).eval()
    x, _ = inputs(SHAPE)
    with torch.no_grad():
        scalar = network(x, torch.tensor(7.0), **_labels(name))
        rows = network(x, torch.tensor([7.0, 7.0]), **_labels(name))
        later = network(x, torch.tensor([7.0, 8.0]), **_labels(name))
    close(scalar, rows, 1e-6)
    close(later[:1], rows[:1], 1e-5)
    assert (later[1] - rows[1]).abs().max() > 1e-4


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(3,), (0,), (2, 1), (1, 1)])
def test_other_times_than_one_for_each_example_are_refused(name, batch, shape):
    """One example would be spread over three times, and give three results."""
    x, labels = inputs(SHAPE)[0][:batch], {key: y[:batch] for key, y in _labels(name).items()}
    with pytest.raises(OptionError, match=rf"time must have shape \({batch},\) or \(\), got {re.escape(str(shape))}"):
        RECIPES[name].build(SHAPE, 6)(x, torch.zeros(shape), **labels)


def test_examples_do_not_see_each_other(name):
    network = _network(name).eval()
    x, time = inputs(SHAPE)
    with torch.no_grad():
        both = network(x, time, **_labels(name))
        alone = network(x[:1], time[:1], **{key: y[:1] for key, y in _labels(name).items()})
    close(alone, both[:1], 1e-5)


def test_arguments_are_left_unchanged(name):
    network = _network(name)
    x, time = inputs(SHAPE)
    before = x.clone(), time.clone()
    network(x, time, **_labels(name))
    assert torch.equal(x, before[0])
    assert torch.equal(time, before[1])


def test_channels_last_agrees(name):
    network = _network(name).eval()
    x, time = inputs(SHAPE)
    with torch.no_grad():
        want = network(x, time, **_labels(name))
        network.to(memory_format=torch.channels_last)
        close(network(x.to(memory_format=torch.channels_last), time, **_labels(name)), want, 1e-5)


@pytest.mark.parametrize("mode", ["autocast", "weights"])
def test_bfloat16_agrees(name, mode):
    # bfloat16 keeps 8 bits, 0.4 % per rounding; measured over these networks: at most 0.9 % of the largest output.
    network = _network(name).eval()
    x, time = inputs(SHAPE)
    with torch.no_grad():
        want = network(x, time, **_labels(name))
        if mode == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = network(x, time, **_labels(name))
        else:
            got = network.bfloat16()(x.bfloat16(), time, **_labels(name))
            assert got.dtype == torch.bfloat16
    close(got, want, 2e-2)


def test_trains_in_bfloat16_autocast(name):
    network = _network(name)
    x, time = inputs(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, time, **_labels(name))
    out.float().square().mean().backward()
    for parameter in network.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_runs_on_meta(name):
    with torch.device("meta"):
        network = RECIPES[name].build(SHAPE, 6)
    assert all(value.is_meta for value in network.state_dict().values())
    x, time = inputs(SHAPE)
    labels = {key: y.to("meta") for key, y in _labels(name).items()}
    assert network(x.to("meta"), time.to("meta"), **labels).is_meta


@pytest.mark.parametrize("name", [key for key in RECIPES if key != "mlp"])
def test_checkpointing_changes_nothing_even_frozen_and_with_dropout(name):
    options = attrs.asdict(RECIPES[name], recurse=False)
    if "dropout" in options:
        options["dropout"] = 0.3
    gradients = []
    for checkpoint in (False, True):
        network = randomize(type(RECIPES[name])(**options | {"checkpoint": checkpoint}).build(SHAPE, 6))
        frozen = network.blocks[0] if name == "dit" else network.input_blocks
        frozen.requires_grad_(False)
        x, time = inputs(SHAPE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            network(x, time, **_labels(name)).square().sum().backward()
        assert all(parameter.grad is None for parameter in frozen.parameters())
        gradients.append({key: value.grad for key, value in network.named_parameters() if value.requires_grad})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)


@pytest.mark.parametrize("name", [key for key in RECIPES if key != "mlp"])
def test_checkpointing_stores_fewer_values(name):
    kept = []
    for checkpoint in (False, True):
        recipe = attrs.evolve(RECIPES[name], checkpoint=checkpoint)
        network, values = randomize(recipe.build(SHAPE, 6)), []
        x, time = inputs(SHAPE)
        with torch.autograd.graph.saved_tensors_hooks(lambda kept, v=values: v.append(kept.numel()), lambda kept: kept):
            network(x, time, **_labels(name))
        kept.append(sum(values))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_gets_unit_strides_and_splits_as_documented(order, monkeypatch):
    from diffkit.parts.backbones import _blocks

    seen = []
    plain = _blocks.F.scaled_dot_product_attention
    monkeypatch.setattr(
        _blocks.F, "scaled_dot_product_attention", lambda *given: seen.extend(given[:3]) or plain(*given)
    )
    batch, tokens, heads, width = 2, 5, 2, 3
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=torch.Generator().manual_seed(0))
    out = _blocks.attend(qkv, heads, order)
    assert all(part.stride(-1) == 1 for part in seen)
    for head in range(heads):  # by hand, one head at a time
        starts = [(3 * head + i if order == "legacy" else heads * i + head) * width for i in range(3)]
        q, k, v = (qkv[..., start : start + width] for start in starts)
        weights = (q @ k.transpose(1, 2) / width**0.5).softmax(dim=-1)
        close(out[..., head * width : (head + 1) * width], weights @ v, 1e-5)


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_in_bfloat16_trains_as_in_float32(order):
    """On a CPU it takes another path then; scores rounded to 8 bits move a result by up to 1 %."""
    from diffkit.parts.backbones._blocks import attend

    qkv = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        values = qkv.to(torch.bfloat16).to(dtype).requires_grad_()
        out = attend(values, 4, order)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        results.append((out, values.grad))
    close(results[1][0], results[0][0], 2e-2)
    close(results[1][1], results[0][1], 3e-2)


def test_compiles_to_one_graph(name):
    from torch._dynamo.testing import CompileCounter

    network = _network(name)
    x, time = inputs(SHAPE)
    counter = CompileCounter()
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for x, time in (inputs(SHAPE), inputs(SHAPE, seed=2)):
        close(compiled(x, time, **_labels(name)), network(x, time, **_labels(name)), 1e-6)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own imports
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_kernels_agree(name, precision):
    """Needs a C++ compiler. Bounds: a sum in another order in float32, and test_bfloat16_agrees' in bfloat16."""
    network = _network(name)
    compiled = torch.compile(network, fullgraph=True)
    x, time = inputs(SHAPE)
    gradients = []
    for call in (network, compiled):
        low = precision == "bf16" and call is compiled
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            out = call(x, time, **_labels(name))
        out.float().square().sum().backward()
        gradients.append((out.detach(), [parameter.grad.clone() for parameter in network.parameters()]))
        network.zero_grad()
    close(gradients[1][0], gradients[0][0], 1e-5 if precision == "fp32" else 2e-2)
    scale = max(gradient.abs().max() for gradient in gradients[0][1])
    for got, want in zip(gradients[1][1], gradients[0][1], strict=True):
        assert (got - want).abs().max() <= (1e-4 if precision == "fp32" else 5e-2) * scale
    torch._dynamo.reset()
