"""What may be given to a call, and what is refused before any work, in words."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from networks import Tiny

import diffkit
from diffkit import tasks
from diffkit.errors import OptionError
from diffkit.guidance import DPS
from diffkit.likelihood import score
from diffkit.system.module import System
from diffkit.system.signatures import OPTIONS

SHAPE = (3, 8, 8)


class Seeing(Tiny):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = []

    def forward(self, x, time, y=None, text=None, context=None):
        self.seen.append((y, text, context))
        return super().forward(x, time, y)


class Open(Tiny):
    """Takes any condition, and must not be reached with a slip."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = []

    def forward(self, x, time, steps=None, **more):
        self.seen.append(more)
        return super().forward(x, time)


def system_of(network=None, **more):
    torch.manual_seed(0)
    backbone = Seeing() if network is None else network
    return diffkit.compose(schedule="cosine", backbone=backbone, data_shape=SHAPE, num_steps=10, **more)


def draw(system, n=4, **more):
    return system.sample(n, **(dict(steps=2, seed=1, progress=False) | more))


SAME = {
    "list": [0, 1, 2, 3],
    "tuple": (0, 1, 2, 3),
    "array": np.array([0, 1, 2, 3]),
    "read-only": np.broadcast_to(np.arange(4), (4,)),
    "backwards": np.arange(4)[::-1][::-1],
    "numbers of NumPy": list(np.arange(4)),
    "tensor": torch.arange(4),
}


@pytest.mark.parametrize("y", SAME.values(), ids=list(SAME))
def test_labels_may_be_written_in_any_way(y):
    system, x = system_of(), torch.zeros(4, *SHAPE)
    assert torch.equal(draw(system, y=y), draw(system, y=torch.arange(4)))
    draws = (torch.ones(4, dtype=torch.int64), torch.zeros(4, *SHAPE))
    wanted = system.loss_terms(None, x, *draws, y=torch.arange(4))["loss"]
    assert torch.equal(system.loss_terms(None, x, *draws, y=y)["loss"], wanted)
    assert system(x, y=y)["loss"].shape == (4,)


@pytest.mark.parametrize(
    "three",
    [3, np.int64(3), np.array(3), torch.tensor(3), [3], (3,), np.array([3], ">i4"), torch.tensor([3])],
    ids=repr,
)
def test_one_label_is_for_all(three):
    system, x = system_of(), torch.zeros(4, *SHAPE)
    assert torch.equal(draw(system, y=three), draw(system, y=[3] * 4))
    system(x, y=three)
    assert system.network.seen[-1][0].tolist() == [3] * 4


@pytest.mark.parametrize(
    "texts", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])], ids=["list", "tuple", "array"]
)
def test_texts_reach_the_network_as_a_list(texts):
    system = system_of()
    draw(system, 3, text=texts)
    assert all(text == ["a", "b", "c"] for _, text, _ in system.network.seen)
    system.network.seen.clear()
    draw(system, 3, text=texts, batch_size=2)
    assert [text for _, text, _ in system.network.seen] == [["a", "b"]] * 2 + [["c"]] * 2


def test_a_text_is_for_all():
    system = system_of()
    draw(system, 3, text="a", batch_size=2)
    assert {text for _, text, _ in system.network.seen} == {"a"}


def test_arrays_take_the_place_of_tensors():
    system, start = system_of(), np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    assert torch.equal(draw(system, 2, start=start), draw(system, 2, start=torch.from_numpy(start)))
    assert len(list(system.trajectory(2, steps=2, start=start))) == 2
    image, mask = np.zeros(SHAPE, np.float32), np.ones(SHAPE[1:], bool)
    options = dict(steps=2, progress=False)
    assert tasks.image_to_image(system, image, strength=0.5, **options).shape == (1, *SHAPE)
    assert torch.equal(tasks.inpaint(system, image, mask, resample=1, **options), torch.zeros(1, *SHAPE))
    method = DPS(tasks.average_pool(2))
    assert tasks.solve(system, np.zeros((3, 4, 4), np.float32), method, **options).shape == (1, *SHAPE)
    unet = dict(channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), low_res_channels=3)
    larger = tasks.super_resolve(system_of(("unet", unet)), np.zeros((2, 3, 4, 4), np.float32), **options)
    assert larger.shape == (2, *SHAPE)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: draw(s, start=[[0.0]]), "start must be a tensor or a NumPy array of numbers, got list"),
        (lambda s: tasks.solve(s, "x", DPS(lambda x: x)), "measurement must be a tensor or a NumPy array"),
        (lambda s: tasks.super_resolve(s, None), "low_res must be a tensor or a NumPy array of numbers, got NoneType"),
        (lambda s: draw(s, y=[0, 1]), "condition 'y' must have one value for each of 4 examples, got 2"),
        (lambda s: draw(s, text=["a", "b"]), "condition 'text' must have one value for each of 4 examples, got 2"),
        (lambda s: draw(s, context={"text": torch.zeros(3, 5)}), "condition 'context'['text'] must have one value for"),
        (
            lambda s: s(torch.zeros(2, *SHAPE), y=[0] * 3),
            "condition 'y' must have one value for each of 2 examples, got 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    system = system_of()
    with pytest.raises(OptionError, match=re.escape(text)):
        call(system)
    assert not system.network.seen


@pytest.mark.parametrize("seed", [torch.tensor(3), np.int64(3), np.array(3)], ids=repr)
def test_a_seed_may_be_a_tensor(seed):
    system = system_of()
    assert torch.equal(draw(system, seed=seed), draw(system, seed=3))
    assert torch.equal(draw(system, seed=torch.tensor([5, 6, 7, 8])), draw(system, seed=[5, 6, 7, 8]))


def test_conditions_inside_of_conditions_are_cut_into_rows():
    system, e = system_of(), torch.randn(4, 5)
    draw(system, batch_size=3, context={"text": e, "more": [e, e + 1], "scale": 2.0})
    first, last = (system.network.seen[i][2] for i in (0, -1))
    assert torch.equal(first["text"], e[:3]) and torch.equal(last["text"], e[3:])
    assert torch.equal(first["more"][1], e[:3] + 1) and last["scale"] == 2.0
    system.network.seen.clear()
    system.bits_per_dim(torch.zeros(4, *SHAPE), steps=2, rows_per_call=3, context={"text": e})
    assert torch.equal(system.network.seen[1][2]["text"], e[[1, 2, 2]])


# ---- names -----------------------------------------------------------------------------------------------------------

X = torch.zeros(2, *SHAPE)
SLIPS = [
    (
        lambda s: draw(s, watch=print),
        "the network Seeing takes no condition 'watch'",
        "(conditions: context, text, y)",
    ),
    (lambda s: draw(s, step=3), "takes no condition 'step'; did you mean 'steps'?", ""),
    (
        lambda s: s.trajectory(2, progress=False),
        "'progress' is an option of other calls, not of this one",
        "leave it out",
    ),
    (lambda s: s.bits_per_dim(X, batch_size=4), "'batch_size' is an option of other calls, not of this one", ""),
    (lambda s: s(X, seed=3), "'seed' is an option of other calls", ""),
    (lambda s: s.denoiser(labels=3), "takes no condition 'labels'", ""),
    (lambda s: s.sample_from(None, X, None, sampler="ddim", labels=3), "takes no condition 'labels'", ""),
    (lambda s: draw(s, time=3), "takes no condition 'time'", ""),
    (lambda s: draw(s, model=lambda x, time: x, y=3), "the function given as model takes no condition 'y'", "none"),
]


@pytest.mark.parametrize(("call", "text", "end"), SLIPS)
def test_a_keyword_that_is_no_condition_is_refused(call, text, end):
    system = system_of()
    with pytest.raises(OptionError, match=re.escape(text) + ".*" + re.escape(end)):
        call(system)
    assert not system.network.seen


@pytest.mark.parametrize(
    ("name", "ours"),
    [("num_inference_steps", "steps="), ("generator", "seed="), ("eta", "sampler=('ddim', {'eta': 0.5})")],
)
def test_options_of_other_libraries_are_answered_with_ours(name, ours):
    with pytest.raises(OptionError, match=re.escape(f"{name!r} is not a condition of the network Seeing") + ".*it is "):
        draw(system_of(), **{name: 3})
    with pytest.raises(OptionError, match=re.escape(ours)):
        draw(system_of(), **{name: 3})
    if name != "generator":
        system = system_of(Open())
        draw(system, **{name: 3})  # a network that takes anything may mean it
        assert list(system.network.seen[0]) == [name]


def test_a_generator_is_no_seed():
    with pytest.raises(OptionError, match=r"seed must be a number, not a generator.*use generator.initial_seed\(\)"):
        draw(system_of(), seed=torch.Generator())


def test_all_problems_are_reported_at_once():
    with pytest.raises(OptionError) as caught:
        draw(system_of(), y=[0, 1], callback=print, stepz=3)
    assert str(caught.value).startswith("3 problems with this call:\n  ")
    assert all(f"'{name}'" in str(caught.value) for name in ("y", "callback", "stepz"))


def test_a_network_that_takes_anything_is_not_given_slips_of_options():
    system = system_of(Open())
    for slip, text in [
        (dict(step=3), "condition 'step' looks like the option 'steps'; write that, or name 'step' in the network"),
        (dict(rows_per_call=3), "'rows_per_call' is an option of other calls"),
    ]:
        with pytest.raises(OptionError, match=re.escape(text)):
            draw(system, **slip)
    assert not system.network.seen
    system.denoiser(mode="far enough from 'model'", steps="named by the network")
    draw(system, style=3, mode="fast")
    assert list(system.network.seen[0]) == ["style", "mode"]


def test_a_network_with_a_time_argument_of_its_own_names_its_conditions():
    class Foreign(Tiny):
        def forward(self, sample, timestep, labels=None):
            return super().forward(sample, timestep)

    system = system_of(Foreign(3, 3), time_argument="timestep")
    assert draw(system, labels=3).shape == (4, *SHAPE)
    with pytest.raises(OptionError, match=r"takes no condition 'y'.* \(conditions: labels\)"):
        draw(system, y=3)


@pytest.mark.parametrize(
    ("forward", "argument", "text"),
    [
        (lambda self, x, time, /: x, "time", "takes 'time' by position only; leave time_argument out, and let it come"),
        (lambda self, time: time, "time", "takes 'time' alone; it must take data and time"),
        (lambda self, x, time: x, 3, "has no argument 3 for the time (arguments: x, time)"),
        (lambda self, x, *time: x, "time", "takes 'time' by position only"),
        (lambda self, x, **more: x, None, "must take data and time"),
    ],
)
def test_a_time_argument_that_cannot_be_given_by_name_is_refused(forward, argument, text):
    network = type("Odd", (torch.nn.Module,), {"forward": forward})()
    with pytest.raises(OptionError, match=re.escape(f"Odd.forward {text}")):
        diffkit.compose(backbone=network, data_shape=SHAPE, time_argument=argument)


def test_a_network_without_forward_is_refused():
    with pytest.raises(OptionError, match="ModuleList has no forward, so nothing can be computed with it"):
        diffkit.compose(backbone=torch.nn.ModuleList(), data_shape=SHAPE)


def test_a_condition_that_a_network_needs_is_named():
    def needing(x, time, y, *, text, size=3):
        return x

    system = system_of()
    with pytest.raises(OptionError, match=r"2 problems(?s:.*)needs the condition 'y'; pass y=(?s:.*)condition 'text'"):
        draw(system, model=needing)
    draw(system, model=needing, y=0, text="a")


def test_every_option_of_a_call_is_known():
    calls = [System.forward, System.loss_terms, System.sample, System.trajectory, System.sample_from]
    calls += [System.encode, System.bits_per_dim, System.prepare, System.denoiser]
    named = {name for call in calls for name in inspect.signature(call).parameters}
    assert named - {"self", "n", "x", "x_start", "conditions"} == OPTIONS


# ---- answers and devices ---------------------------------------------------------------------------------------------


class Output(dict):
    """As other libraries return theirs."""


@pytest.mark.parametrize(("wrap", "part"), [(lambda x: Output(sample=x), ".sample"), (lambda x: (x,), "[0]")])
def test_an_output_that_is_not_a_tensor_is_an_error_with_advice(wrap, part):
    text = "not a tensor; wrap it so that it returns the tensor inside, as model=lambda x, time, **given: network(x, "
    text += f"time, **given){part}"
    with pytest.raises(OptionError, match=re.escape(text)):
        draw(system_of(), model=lambda x, time: wrap(x))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(
        OptionError, match=re.escape(f"device {str(device)!r} cannot be used: ") + ".*; 'cpu' always can"
    ):
        system_of(device=device)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda s: s.encode(X, seed=3), "seed"),
        (lambda s: s.bits_per_dim(X, steps=2, sampler="heun"), "sampler"),
        (lambda s: s.bits_per_dim(X, steps=2, compile=True), "compile"),
        (lambda s: score(s, X, steps=2, sampler="heun"), "sampler"),
        (lambda s: tasks.invert(s, X, steps=2, seed=3), "seed"),
        (lambda s: tasks.exact_encode(s, X, steps=2, sampler="heun"), "sampler"),
        (lambda s: tasks.exact_encode(s, X, steps=2, compile=True), "compile"),
    ],
)
def test_options_without_effect_in_a_call_are_refused(call, name):
    with pytest.raises(OptionError, match=re.escape(f"{name!r} is an option of other calls, not of this one")):
        call(system_of())
