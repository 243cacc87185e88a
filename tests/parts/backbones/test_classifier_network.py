from functools import partial

import pytest
import torch
from backbone_support import golden, inputs, param_counts, randomize, size

from diffkit.errors import OptionError
from diffkit.guidance.classifier import Classifier

Tiny = partial(Classifier, channels=8, groups=4, num_res_blocks=1, num_head_channels=4)
POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
NAMES = ["classifier_adaptive_pool", "classifier_attention_pool"]
CONFIGURATIONS = [name for name in param_counts() if "classifier" in name]


@pytest.mark.parametrize("name", NAMES)
def test_matches_reference(name):
    stored = golden(name)
    options = {"num_head_channels": None, "resblock_updown": False} | stored.options()
    stored.check(stored.load(Classifier(**options).build(stored.shape, 10)))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_size_of_published_configurations(name):
    about = param_counts()[name]
    flags = about["flags"]
    with torch.device("meta"):
        side = flags["image_size"]
        network = Classifier(num_res_blocks=flags.get("classifier_depth", 2)).build((3, side, side), 1000)
    keys = list(network.state_dict())
    assert size(network) == about["params"]
    assert len(keys) == about["tensors"]
    assert keys[:2] == about["first_keys"]
    assert keys[-2:] == about["last_keys"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [(3, 8), (1, 8, 12), (2, 3, 8, 4)])
def test_every_head_on_one_two_and_three_axes(pool, shape):
    network = randomize(Tiny(pool=pool).build(shape, 5))
    x, time = inputs(shape)
    logits = network(x.requires_grad_(), time)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("pool", "layers"), [("spatial", (0, 2)), ("spatial_v2", (0, 1, 3))])
def test_spatial_heads_read_the_mean_of_every_block(pool, layers):
    network = randomize(Tiny(pool=pool).build((3, 8, 8), 5))
    keys = [key for key in network.state_dict() if key.startswith("out.")]
    assert keys == [f"out.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    seen = []
    for block in [*network.input_blocks, network.middle_block]:
        block.register_forward_hook(lambda _module, _given, h: seen.append(h.mean(dim=(2, 3))))
    x, time = inputs((3, 8, 8))
    logits = network(x, time)
    assert torch.allclose(logits, network.out(torch.cat(seen, dim=1)), atol=1e-6)


def test_default_attention_is_at_32_16_and_8():
    assert Classifier()._layout((3, 64, 64)).attention == (False, True, True, True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_res_blocks": 2},
        {"channel_mult": (1, 2, 2)},
        {"attention_resolutions": (4,)},
        {"num_head_channels": None, "num_heads": 2},
        {"attention_order": "new"},
        {"scale_shift_norm": False},
        {"resblock_updown": False},
        {"resblock_updown": False, "conv_resample": False},
        {"checkpoint": True},
        {"dropout": 0.5},
    ],
)
def test_options(options):
    x, time = inputs((3, 8, 8))
    plain, changed = (randomize(Tiny(**given).build((3, 8, 8), 5)) for given in ({}, options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        same = torch.equal(plain(x, time), changed(x, time))
    assert same == (options == {"checkpoint": True})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pool": "max"}, "pool must be one of 'adaptive', 'attention', 'spatial', 'spatial_v2', got 'max'"),
        (
            {"conv_resample": False},
            "resblock_updown=True has no effect without conv_resample; use resblock_updown=False or conv_resample=True",
        ),
    ],
)
def test_option_errors(options, text):
    with pytest.raises(OptionError) as caught:
        Classifier(**options)
    assert str(caught.value) == text


def test_what_does_not_fit():
    with pytest.raises(OptionError, match=r"num_head_channels=48 does not divide the width of every level"):
        Classifier(num_head_channels=48).build((3, 32, 32), 10)
    with pytest.raises(OptionError, match=r"num_classes must be >= 1, got 0"):
        Classifier().build((3, 32, 32), 0)
