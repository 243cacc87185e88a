import pytest
import torch
from backbone_support import inputs, randomize, size

from diffkit.errors import OptionError
from diffkit.parts.backbones.mlp import MLP

SHAPES = [(2,), (1,), (3, 5), (1, 4, 4), (2, 2, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2])
def test_data_of_any_shape(shape, factor):
    out_channels = factor * shape[0]
    network = randomize(MLP(hidden=16, depth=2).build(shape, out_channels))
    x, time = inputs(shape, batch=3)
    out = network(x, time)
    assert out.shape == (3, out_channels, *shape[1:])
    out.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_channels_come_first_in_the_result():
    network = MLP(hidden=8, depth=1).build((2, 3), 4)
    with torch.no_grad():
        network.out[2].bias.copy_(torch.arange(12.0))
    x, time = inputs((2, 3), batch=1)
    assert torch.equal(network(x, time)[0], torch.arange(12.0).reshape(4, 3))


def test_fresh_network_returns_zero():
    x, time = inputs((2,))
    assert torch.equal(MLP().build((2,), 2)(x, time), torch.zeros(2, 2))


def test_hidden_and_depth_set_the_size():
    sizes = [size(MLP(hidden=hidden, depth=depth).build((2,), 2)) for hidden, depth in ((8, 1), (8, 2), (8, 3), (9, 1))]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 3 * (8 * 8 + 8) + 2 * 8
    assert sizes[3] > sizes[0]


def test_classes():
    x, time = inputs((2,))
    network = randomize(MLP(hidden=8, num_classes=3, null_class=True).build((2,), 2))
    assert network.label_emb.num_embeddings == 4
    assert MLP(num_classes=3).build((2,), 2).label_emb.num_embeddings == 3
    assert not torch.equal(network(x, time, y=torch.tensor([0, 1])), network(x, time, y=torch.tensor([3, 3])))
    with pytest.raises(OptionError, match="y is missing, but the network has 4 labels"):
        network(x, time)
    for wrong in ([0, 4], [-1, 0]):
        with pytest.raises(OptionError, match=rf"y must lie in 0\.\.3, got values in {wrong[0]}\.\.{wrong[1]}"):
            network(x, time, y=torch.tensor(wrong))
    with pytest.raises(OptionError, match="y was given, but the network has no classes"):
        MLP().build((2,), 2)(x, time, y=torch.tensor([0, 1]))


def test_learns_a_curve():
    torch.manual_seed(0)
    network = MLP(hidden=32, depth=2).build((1,), 1)
    x = torch.linspace(-2, 2, 64)[:, None]
    time = torch.arange(64.0) * 10
    target = torch.sin(3 * x) * (time[:, None] / 640)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (network(x, time) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.square().mean()  # 2 % of what predicting zero gives


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden": 0}, "hidden must be >= 1, got 0"),
        ({"depth": 0}, "depth must be >= 1 and <= 10000, got 0"),
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
        (
            {"null_class": True},
            "null_class=True has no effect without classes; use null_class=False or num_classes=...",
        ),
    ],
)
def test_option_errors(options, text):
    with pytest.raises(OptionError) as caught:
        MLP(**options)
    assert str(caught.value) == text
