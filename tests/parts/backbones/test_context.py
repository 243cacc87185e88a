"""Networks that attend to a sequence of vectors: masks, lengths, the null condition, weights without it."""

import pytest
import torch
from backbone_support import SMALL, close, inputs, randomize

from diffkit.errors import OptionError
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.unet import UNet
from diffkit.runtime.files import load_weights

WIDTH, SHAPE = 5, (2, 8, 8)
RECIPES = {
    "unet": lambda **o: UNet(**SMALL, attention_resolutions=(4,), **o),
    "dit": lambda **o: DiT(depth=2, hidden=16, heads=2, patch=4, **o),
}


@pytest.fixture(params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture
def network(recipe):
    return randomize(recipe(context=WIDTH).build(SHAPE, 2)).eval()


def vectors(*shape):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(7))


def test_weights_without_it_mean_the_same_to_the_bit(recipe):
    plain, reading = randomize(recipe().build(SHAPE, 2)), recipe(context=WIDTH).build(SHAPE, 2)
    load_weights(reading, plain.state_dict())
    assert reading(*inputs(SHAPE), context=vectors(2, 3)).equal(plain(*inputs(SHAPE)))
    assert recipe(context=WIDTH).build(SHAPE, 2)(*inputs(SHAPE), context=0).count_nonzero() == 0


RAGGED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_padding_changes_nothing(network, dtype):
    x, time = inputs(SHAPE, 3)
    context, mask = vectors(3, 4), RAGGED.to(dtype)
    padded = network(x, time, context=context.masked_fill(mask[..., None] == 0, torch.nan), context_mask=mask)
    alone = [network(x[i : i + 1], time[i : i + 1], context=context[i : i + 1, mask[i] != 0]) for i in range(3)]
    close(padded, torch.cat(alone), 1e-6)
    assert (padded - network(x, time, context=context)).flatten(1).abs().amax(1).gt(1e-4).tolist() == [
        False,
        True,
        True,
    ]


@torch.no_grad()
def test_padding_changes_rounding_only_in_bfloat16(network):
    x, time = inputs(SHAPE, 3)
    context = vectors(3, 4)
    want = network(x, time, context=context, context_mask=RAGGED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [network(x, time, context=context, context_mask=RAGGED)]
    x, context, network = x.bfloat16(), context.bfloat16(), network.bfloat16()
    found.append(network(x, time, context=context, context_mask=RAGGED))
    rows = range(3)
    alone = [network(x[i : i + 1], time[i : i + 1], context=context[i : i + 1, RAGGED[i] != 0]) for i in rows]
    for each in (*found, torch.cat(alone)):
        close(each, want, 2e-2)  # that of test_bfloat16_agrees


@pytest.mark.slow
def test_compiles_to_one_graph(network):
    from torch._dynamo.testing import CompileCounter

    x, time = inputs(SHAPE, 3)
    counter = CompileCounter()
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for mask in (RAGGED, 1 - RAGGED):
        given = {"context": vectors(3, 4), "context_mask": mask}
        close(compiled(x, time, **given), network(x, time, **given), 1e-6)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_every_spelling_of_none_is_one(network):
    x, time = inputs(SHAPE)
    expected = network(x, time, context=0)
    masked = network(x, time, context=vectors(2, 3), context_mask=torch.zeros(2, 3))
    for other in (masked, network(x, time, context=torch.zeros(2, 6, WIDTH))):
        close(other, expected, 1e-6)
    assert not torch.allclose(expected, network(x, time, context=vectors(2, 3)), atol=1e-4)


def test_every_weight_of_it_is_trained_with_and_without_recomputation(recipe):
    found = []
    for checkpoint in (False, True):
        network = randomize(recipe(context=WIDTH, checkpoint=checkpoint).build(SHAPE, 2))
        network(
            *inputs(SHAPE), context=vectors(2, 3), context_mask=torch.tensor([[1, 0, 1], [0, 0, 0]])
        ).sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if ".cross." in name})
        assert found[-1] and all(grad.isfinite().all() and grad.any() for grad in found[-1].values())
    for name, grad in found[0].items():
        close(found[1][name], grad, 1e-5)


def test_large_batches_are_those_of_one(network, monkeypatch):
    monkeypatch.setattr("diffkit.parts.backbones._slices.SLICE_BYTES", 1)
    x, time = inputs(SHAPE, 40)
    context, mask = vectors(40, 3), torch.arange(3) <= torch.arange(40)[:, None] % 3
    with torch.no_grad():
        sliced = network(x, time, context=context, context_mask=mask)
    close(sliced.detach(), network(x, time, context=context, context_mask=mask).detach(), 1e-5)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"num_classes": 3, "null_class": True}], ids=str)
def test_null_conditions(recipe, options):
    label = {"y": 3} if "null_class" in options else {}
    assert recipe(context=WIDTH, **options).null_conditions() == label | {"context": 0.0}
    assert recipe(context=WIDTH).context_width() == WIDTH


REFUSED = [
    (0, {"context": vectors(2, 3)}, "context was given, but the network reads none"),
    (0, {"context_mask": torch.ones(2, 3)}, "context_mask was given, but the network reads none"),
    (WIDTH, {}, "context is missing, but the network reads vectors of width 5; pass context, (2, L, 5), or context=0"),
    (WIDTH, {"context": vectors(2)}, "context must have shape (2, L, 5), got (2, 5)"),
    (WIDTH, {"context": vectors(2, 0)}, "context must have shape (2, L, 5), got (2, 0, 5)"),
    (WIDTH, {"context": vectors(3, 3)}, "context must have shape (2, L, 5), got (3, 3, 5)"),
    (
        WIDTH,
        {"context": vectors(2, 3), "context_mask": torch.ones(2, 4)},
        "context_mask must have shape (2, 3), as the context has, got (2, 4)",
    ),
]


@pytest.mark.parametrize(("width", "given", "text"), REFUSED, ids=[text[:30] for *_, text in REFUSED])
def test_what_does_not_fit_is_refused(recipe, width, given, text):
    with pytest.raises(OptionError) as caught:
        recipe(context=width).build(SHAPE, 2)(*inputs(SHAPE), **given)
    assert str(caught.value).startswith(text)
