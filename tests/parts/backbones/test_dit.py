import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from backbone_support import NETS, close, golden, inputs, param_counts, randomize, size

from diffkit.errors import OptionError
from diffkit.parts.backbones._dit import positions
from diffkit.parts.backbones.dit import SIZES, DiT

Tiny = partial(DiT, depth=1, hidden=16, heads=2)
CONFIGURATIONS = [name for name in param_counts() if name.startswith("dit/")]


def _from_golden():
    stored = golden("dit_small")
    recipe = DiT(patch=2, depth=2, hidden=64, heads=4, num_classes=10, null_class=True)
    return stored, stored.load(recipe.build(stored.shape, 8))


def _problem(recipe, shape):
    with pytest.raises(OptionError) as caught:
        recipe.build(shape, shape[0])
    return str(caught.value)


def test_matches_reference():
    stored, network = _from_golden()
    stored.check(network)


def test_guided_output_matches_reference():
    stored, network = _from_golden()
    given, scale = stored.arguments, float(stored.arrays["cfg_scale"])
    x, time, y = given["x"], given["time"], given["y"]
    with torch.no_grad():
        labelled, free = network(x, time, y), network(x, time, torch.full_like(y, 10))
    guided = free[:, :3] + scale * (labelled[:, :3] - free[:, :3])
    want = [torch.cat([guided, out[:, 3:]], dim=1) for out in (labelled, free)]
    close(torch.cat(want), stored.arrays["out_cfg"])


def test_positions_match_reference():
    want = torch.tensor(json.loads((NETS / "dit_pos_embed.json").read_text())["value"])
    assert torch.allclose(positions(3, 3, 8), want, rtol=0, atol=1e-7)


def test_positions_of_a_rectangle():
    table = positions(2, 3, 8).reshape(2, 3, 8)
    assert torch.equal(table, positions(3, 3, 8).reshape(3, 3, 8)[:2])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_size_of_published_configurations(name):
    about, letters = param_counts()[name], name.removeprefix("dit/DiT-")
    letters, patch = letters.split("/")
    with torch.device("meta"):
        network = DiT(size=letters, patch=int(patch), num_classes=1000, null_class=True).build((4, 32, 32), 8)
    state = network.state_dict()
    assert size(network) == about["trainable_params"]
    assert sum(value.numel() for value in state.values()) == about["params"]
    assert len(state) == about["tensors"]


def test_fresh_network_returns_zero_and_blocks_start_as_identity():
    network = Tiny().build((4, 8, 8), 8)
    x, time = inputs((4, 8, 8))
    assert torch.equal(network(x, time), torch.zeros(2, 8, 8, 8))
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.blocks[0](tokens, torch.ones(2, 16)), tokens)


def test_initial_weights_follow_the_paper():
    torch.manual_seed(0)
    network = DiT(depth=1, hidden=128, heads=2, num_classes=500).build((4, 8, 8), 4)
    state = network.state_dict()
    assert state["y_embedder.embedding_table.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["t_embedder.mlp.2.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    bound = (6 / (128 + 4 * 2 * 2)) ** 0.5  # Xavier, of the patch as a linear map
    assert state["x_embedder.proj.weight"].abs().max().item() == pytest.approx(bound, rel=0.02)
    assert all((value == 0).all() for key, value in state.items() if key.endswith("bias"))


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 8, 16), (5, 16, 8)])
def test_rectangles_channels_and_patches(patch, shape):
    network = randomize(Tiny(patch=patch).build(shape, 3))
    x, time = inputs(shape, batch=1)
    out = network(x, time)
    assert out.shape == (1, 3, *shape[1:])
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_patch_goes_back_where_it_came_from():
    network = Tiny(patch=2).build((3, 4, 6), 3)
    image = torch.arange(72.0).reshape(1, 3, 4, 6)
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, C, rows, columns, 2, 2)
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(1, 6, 12)
    assert torch.equal(network._image(tokens), image)


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_and_overrides(size):
    depth, hidden, heads = SIZES[size]
    assert DiT(size=size)._dimensions() == (depth, hidden, heads)
    assert DiT(size=size, depth=2, hidden=16, heads=1)._dimensions() == (2, 16, 1)


def test_mlp_ratio():
    network = Tiny(mlp_ratio=2.5).build((4, 8, 8), 4)
    assert network.blocks[0].mlp.fc1.out_features == 40


def test_null_class_is_one_row_more():
    x, time = inputs((4, 8, 8))
    assert "y_embedder.embedding_table.weight" not in Tiny().build((4, 8, 8), 4).state_dict()
    network = Tiny(num_classes=3, null_class=True).build((4, 8, 8), 4)
    assert network.y_embedder.embedding_table.num_embeddings == 4
    assert network(x, time, y=torch.tensor([3, 0])).shape == x.shape


def test_label_errors():
    x, time = inputs((4, 8, 8))
    with pytest.raises(OptionError, match="y was given, but the network has no classes"):
        Tiny().build((4, 8, 8), 4)(x, time, y=torch.tensor([1, 2]))
    with pytest.raises(OptionError, match="y is missing, but the network has 4 labels"):
        Tiny(num_classes=3, null_class=True).build((4, 8, 8), 4)(x, time)


def test_what_does_not_fit():
    assert (
        _problem(Tiny(), (2,)) == "data_shape (2,) has 0 spatial axes, but dit needs 2; backbone 'mlp' takes any shape"
    )
    assert _problem(Tiny(patch=8), (3, 12, 8)) == "patch=8 does not divide the sides 12x8; use patch=4"
    assert _problem(DiT(hidden=30, heads=2), (3, 8, 8)).startswith("hidden=30 has no sine and cosine positions")
    assert _problem(DiT(heads=7), (3, 8, 8)) == "heads=7 does not divide the width 384; use a divisor of it"
    assert len(_problem(DiT(patch=3, hidden=30, heads=7), (3, 8, 8)).splitlines()) == 3


def test_problems_are_those_of_the_data_shape():
    composition = SimpleNamespace(data_shape=(3, 7, 7), label="{} 'dit'".format)
    assert DiT().problems(composition) == ["backbone 'dit': patch=2 does not divide the sides 7x7; use patch=1"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": "M"}, "size must be one of 'S', 'B', 'L', 'XL', got 'M'"),
        ({"patch": 0}, "patch must be >= 1, got 0"),
        ({"depth": 0}, "depth must be >= 1 and <= 10000, got 0"),
        ({"hidden": 2}, "hidden must be >= 4, got 2"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be > 0, got 0.0"),
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
        ({"checkpoint": 1}, "checkpoint must be True or False, got 1"),
        (
            {"null_class": True},
            "null_class=True has no effect without classes; use null_class=False or num_classes=...",
        ),
    ],
)
def test_option_errors(options, text):
    with pytest.raises(OptionError) as caught:
        DiT(**options)
    assert str(caught.value) == text
