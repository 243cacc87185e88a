"""What means "none" of a condition: said by a backbone or to compose, saved, and put in the condition's place."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import diffkit
from diffkit.errors import CompositionError, OptionError, SpecError
from diffkit.guidance import ClassifierFree
from diffkit.system.null_conditions import drop, none_of


class Text(nn.Module):
    """Reads tokens (B, L, 8) under a mask (B, L), and labels."""

    def __init__(self):
        super().__init__()
        self.layer, self.labels = nn.Linear(8, 1), nn.Embedding(4, 1)
        self.seen = []

    def forward(self, x, time, tokens=None, mask=None, y=None, words=None):
        self.seen.append(dict(tokens=tokens, mask=mask, y=y, words=words))
        out = 0.1 * x
        if tokens is not None:
            weight = torch.ones(tokens.shape[:2]) if mask is None else mask.float()
            out = out + ((self.layer(tokens)[..., 0] * weight).sum(1) / weight.sum(1).clamp(min=1)).view(-1, 1, 1, 1)
        return out if y is None else out + self.labels(y).view(-1, 1, 1, 1)


def system_of(**more):
    torch.manual_seed(0)
    return diffkit.compose(schedule="cosine", backbone=Text(), data_shape=(1, 4, 4), num_steps=100, **more).eval()


TOKENS, EMPTY = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0)), torch.full((7, 8), 0.25)
CALL = dict(steps=3, seed=0, progress=False)


@pytest.mark.parametrize("n", [3, 7])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(
    "null",
    [EMPTY, EMPTY[None], EMPTY.numpy(), EMPTY.tolist(), 0.25, torch.tensor(0.25)],
    ids=["one", "row", "array", "list", "number", "0-d"],
)
def test_a_null_condition_of_one_example_is_for_all(n, joint, null):
    """Also where an example has as many rows as there are examples."""
    system, tokens = system_of(), torch.randn(n, 7, 8)
    want = ClassifierFree(3.0, null={"tokens": EMPTY.expand(n, 7, 8)}, joint=joint)
    want = system.sample(n, tokens=tokens, guidance=want, **CALL)
    for batch_size in (None, 2):
        guidance = ClassifierFree(3.0, null={"tokens": null}, joint=joint)
        got = system.sample(n, tokens=tokens, guidance=guidance, batch_size=batch_size, **CALL)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_null_condition_of_another_length(rows):
    system, short = system_of(), torch.randn(rows, 5, 8)
    each = ClassifierFree(3.0, null={"tokens": short.expand(3, 5, 8)}, joint=False)
    got = system.sample(3, tokens=TOKENS, guidance=ClassifierFree(3.0, null={"tokens": short}, joint=False), **CALL)
    torch.testing.assert_close(got, system.sample(3, tokens=TOKENS, guidance=each, **CALL))
    system.network.seen.clear()
    with pytest.raises(
        OptionError, match=r"condition 'tokens' cannot be .* shapes are \(7, 8\) and \(5, 8\); use joint="
    ):
        system.sample(3, tokens=TOKENS, guidance=ClassifierFree(3.0, null={"tokens": short}), **CALL)
    assert not system.network.seen


def test_null_conditions_inside_of_mappings_and_lists():
    seen = []

    def model(x, time, context, pair, points, size=None):
        seen.append((context, pair, points))
        return 0 * x

    system = diffkit.compose(backbone=None, data_shape=(2,), num_steps=20, schedule="cosine")
    context = {"tokens": TOKENS, "mask": torch.ones(3, 7, dtype=torch.bool), "scale": 2.0}
    points = [torch.ones(5, 2), torch.ones(6, 2), torch.ones(3, 2)]
    null = {"context": {"tokens": torch.zeros(1, 5, 8), "mask": torch.ones(5)}, "pair": 0, "points": torch.zeros(1, 2)}
    with pytest.raises(OptionError, match="the null condition of \"context\\['mask'\\]\" is floating point, but"):
        guidance = ClassifierFree(2.0, null=null)
        system.sample(3, model=model, guidance=guidance, context=context, pair=(TOKENS, TOKENS), points=points)
    null["context"]["mask"] = torch.ones(5, dtype=torch.bool)
    for joint in (False, True):
        call = dict(model=model, steps=1, context=context, pair=(TOKENS, TOKENS), points=points, progress=False)
        guidance = ClassifierFree(2.0, null=null, joint=joint)
        if joint:
            with pytest.raises(OptionError, match="use joint=False"):
                system.sample(3, guidance=guidance, **call)
            continue
        system.sample(3, guidance=guidance, batch_size=2, **call)
    inside, pair, sets = seen[1]
    assert inside["tokens"].shape == (2, 5, 8) and inside["mask"].shape == (2, 5) and inside["scale"] == 2.0
    assert [tuple(each.shape) for each in pair] == [(2, 7, 8)] * 2 and not pair[0].any()
    assert [tuple(each.shape) for each in sets] == [(1, 2)] * 2


# ---- said to compose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_an_entry_that_is_none_stays_so_beside_a_null_condition(joint):
    seen = []

    def model(x, time, text):
        seen.append(text)
        return 0.5 * x + text["embedding"]

    system = diffkit.compose(backbone=None, data_shape=(2,), num_steps=5, schedule="cosine", bins=None)
    guidance = ClassifierFree(2.0, null={"text": {"embedding": 0.0}}, joint=joint)
    text = {"embedding": torch.ones(3, 2), "mask": None}
    system.sample(3, model=model, guidance=guidance, text=text, progress=False)
    assert all(given["mask"] is None for given in seen)


def test_null_conditions_of_compose_are_those_of_guidance():
    null = {"y": 3, "tokens": EMPTY}
    system, call = system_of(null_conditions=null), dict(tokens=TOKENS, y=[0, 1, 2], **CALL)
    assert system.parts.classes is None
    got = system.sample(3, guidance=ClassifierFree(2.0), **call)
    torch.testing.assert_close(got, system.sample(3, guidance=ClassifierFree(2.0, null=null), **call))
    assert not torch.equal(got, system.sample(3, **call))


def test_null_conditions_are_saved_with_the_system(tmp_path):
    null = {"y": 3, "tokens": EMPTY.numpy(), "words": "", "mask": np.bool_(True)}
    system, call = system_of(null_conditions=null), dict(tokens=TOKENS, y=1, words=["a"], mask=torch.ones(3, 7), **CALL)
    want = system.sample(3, guidance=ClassifierFree(2.0), **call)
    assert json.loads(json.dumps(system.spec()))["settings"]["null_conditions"]["tokens"] == EMPTY.tolist()
    again = diffkit.load(system.save(tmp_path / "saved"), backbone=Text())
    assert torch.equal(again.sample(3, guidance=ClassifierFree(2.0), **call), want)
    other = diffkit.recompose(again, loss="huber")
    assert torch.equal(other.sample(3, guidance=ClassifierFree(2.0), **call), want)
    assert diffkit.recompose(system, backbone="mlp").parts.null_conditions is None
    assert "null_conditions" not in system_of().spec()["settings"]


def test_compose_may_say_it_of_a_backbone():
    options = {"hidden": 8, "depth": 1, "num_classes": 4}
    system = diffkit.compose(backbone=("mlp", options), data_shape=(2,), bins=None, null_conditions={"y": 3})
    assert system.parts.classes == 4
    system.sample(2, guidance=ClassifierFree(2.0), y=0, **CALL)


@pytest.mark.parametrize(
    ("null", "text"),
    [
        (10, "null_conditions must be a mapping such as {'y': 10}, got 10"),
        ({}, "null_conditions must be a mapping such as {'y': 10}, got {}"),
        ({1: 2}, "null_conditions must be a mapping such as {'y': 10}, got {1: 2}"),
        ({"y": float("nan")}, "null_conditions['y'] has nan, which JSON cannot hold; use a finite number"),
        (
            {"y": 10**20},
            "null_conditions['y'] is 100000000000000000000, which is more than 64 bits hold; use a smaller",
        ),
        ({"y": print}, "null_conditions['y'] is a builtin_function_or_method; give a number, a text, a tensor"),
        (
            {"e": torch.zeros(1024, 1024)},
            "null_conditions['e'] has 1048576 numbers, and a spec holds up to 262144; give",
        ),
    ],
)
def test_null_conditions_that_cannot_be_are_refused(null, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        system_of(null_conditions=null)


@pytest.mark.parametrize("label", [3, -1, 11])
def test_a_null_label_that_the_network_does_not_have_is_refused_before_work(label):
    options = {"hidden": 8, "depth": 1, "num_classes": 3}
    system = diffkit.compose(backbone=("mlp", options), data_shape=(2,))
    text = f"null={{'y': {label}}} is not a label of backbone 'mlp', which has 0..2"
    with pytest.raises(CompositionError, match=re.escape(text)):
        system.sample(2, guidance=ClassifierFree(2.0, null={"y": label}), y=0)


@pytest.mark.parametrize("said", [5, [1], {1: 2}])
def test_a_backbone_whose_null_conditions_are_none_is_named(said):
    class Odd(type(diffkit.compose(backbone="mlp", data_shape=(2,)).parts.backbone)):
        def null_conditions(self):
            return said

    with pytest.raises(OptionError, match="backbone 'Odd': null_conditions\\(\\) must return a mapping"):
        diffkit.compose(backbone=Odd(), data_shape=(2,), bins=None)


# ---- no class --------------------------------------------------------------------------------------------------------


def labelled(**more):
    options = {"hidden": 8, "depth": 1, "num_classes": 3, **more}
    torch.manual_seed(0)
    return diffkit.compose(
        backbone=("mlp", options), data_shape=(2,), num_steps=50, bins=None, schedule="cosine"
    ).eval()


@pytest.mark.parametrize("none", [-1, None, [-1, -1], [None, None], torch.tensor([-1, 3]), [None, 3], 3])
def test_none_and_minus_one_mean_no_class(none):
    system, x = labelled(null_class=True), torch.zeros(2, 2)
    assert torch.equal(system.sample(2, y=none, **CALL), system.sample(2, y=[3, 3], **CALL))
    draws = (torch.ones(2, dtype=torch.int64), torch.ones(2, 2))
    want = system.loss_terms(None, x, *draws, y=torch.tensor([3, 3]))["loss"]
    assert torch.equal(system.loss_terms(None, x, *draws, y=none)["loss"], want)
    bound = system.bits_per_dim(x, steps=2, seed=0, y=none).total
    assert torch.equal(bound, system.bits_per_dim(x, steps=2, seed=0, y=3).total)


def test_no_class_among_classes():
    system = labelled(null_class=True)
    with pytest.raises(OptionError, match=r"pass y, class numbers 0\.\.2, or -1 for no class"):
        system.prepare(4)
    want = system.sample(4, y=[0, 3, 2, 3], **CALL)
    assert torch.equal(system.sample(4, y=[0, None, 2, -1], **CALL), want)
    torch.testing.assert_close(system.sample(4, y=[0, None, 2, -1], batch_size=3, **CALL), want)


def test_without_a_null_label_minus_one_is_refused():
    for y in (-1, [0, -1], None):
        with pytest.raises(OptionError, match=r"y has label -1, but the network has 3 classes|y is missing"):
            labelled().sample(2, y=y, **CALL)


@pytest.mark.parametrize("y", [[0, None], [None, None], (1, None)])
def test_without_a_null_label_none_among_classes_is_refused_and_the_advice_works(y):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 2)

        def forward(self, x, time, y):
            return 0.1 * x + self.table(y)

    own = dict(data_shape=(2,), num_steps=5, schedule="cosine", bins=None)
    for system in (labelled(), diffkit.compose(backbone=Own(), **own)):
        with pytest.raises(OptionError, match=r"y has None for example \d, but the network has no null class"):
            system.sample(2, y=y, **CALL)
    system = diffkit.compose(backbone=Own(), null_conditions={"y": 10}, **own)
    assert system.sample(2, y=y, **CALL).isfinite().all()


def test_zero_classes_are_none():
    assert labelled(num_classes=0).parts.classes == 0
    assert torch.equal(labelled(num_classes=0).sample(2, **CALL), labelled(num_classes=None).sample(2, **CALL))


# ---- dropping --------------------------------------------------------------------------------------------------------


def chosen(*drops):
    return lambda device: torch.tensor(drops, device=device)


def test_conditions_are_dropped_example_by_example():
    given = {
        "y": torch.tensor([0, 1, 2]),
        "tokens": TOKENS,
        "words": ["a", "b", "c"],
        "context": {"e": TOKENS, "mask": torch.ones(3, 7)},
        "pair": (TOKENS, TOKENS),
        "size": torch.tensor([5, 6, 7]),
    }
    null = {"y": 9, "tokens": EMPTY, "words": "", "context": {"e": 0, "mask": 1}, "pair": [EMPTY, 0], "other": 3}
    found = drop(given, null, 3, chosen(True, False, True))
    assert found["y"].tolist() == [9, 1, 9] and found["words"] == ["", "b", ""]
    for tokens, none in ((found["tokens"], EMPTY), (found["context"]["e"], 0 * EMPTY), (found["pair"][0], EMPTY)):
        assert torch.equal(tokens, torch.stack([none, TOKENS[1], none]))
    assert found["size"] is given["size"] and found.keys() == given.keys()


@pytest.mark.parametrize(
    ("given", "null", "text"),
    [
        (TOKENS, torch.zeros(5, 8), "the null condition of 'c' has shape (5, 8), but an example's condition (7, 8)"),
        (TOKENS, "", "the null condition of 'c' is a str, but the condition is a tensor of shape (3, 7, 8)"),
        (
            TOKENS,
            torch.zeros(2, 7, 8),
            "the null condition of 'c' must have one row, or one for each of 3 examples, got 2",
        ),
        (TOKENS, torch.zeros(8), "the null condition of 'c' is a tensor of shape (8,), but the condition is a tensor"),
        (torch.arange(3), 1.5, "the null condition of 'c' is 1.5, but the condition has whole numbers"),
        (torch.arange(3), {"y": 1}, "the null condition of 'c' is a dict, but the condition is a tensor of shape (3,)"),
        ({"e": TOKENS}, {"e": None}, "the null condition of 'c' leaves out 'e', which cannot be done for one example"),
        ({"e": TOKENS}, EMPTY, "the null condition of 'c' is a tensor of shape (7, 8), but the condition is a mapping"),
        (2.0, 0.0, "condition 'c' is one for all examples, so it cannot be dropped for one"),
    ],
)
def test_a_null_condition_of_another_form_is_refused(given, null, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        drop({"c": given}, {"c": null}, 3, chosen(True, False, True))


def test_a_null_condition_is_of_the_type_of_the_condition():
    found = none_of("c", torch.zeros(7, 8, dtype=torch.float64), TOKENS.half(), 3)
    assert found.dtype == torch.float16 and found.shape == (3, 7, 8)
    assert none_of("c", 3, torch.arange(3, dtype=torch.int32), 3).dtype == torch.int32


def test_a_spec_with_rubbish_in_its_place_is_refused():
    spec = labelled().spec()
    spec["settings"]["null_conditions"] = {"y": {"z": [1, object]}}
    with pytest.raises((OptionError, SpecError)):
        diffkit.from_spec(spec)
