"""Composition: every pair of built-in parts works or is refused with both names and a way out; every error text."""

from __future__ import annotations

import functools
import re
import threading
import types
from itertools import combinations, product

import attrs
import numpy as np
import pytest
import torch
from companions import COMPANIONS, with_companions
from lanes import some_by_default
from networks import Tiny
from torch import nn

import diffkit
from diffkit import errors
from diffkit.parts.samplers.ddim import DDIM
from diffkit.parts.schedules.cosine import Cosine
from diffkit.protocols import Loss
from diffkit.registry import SLOTS, registry

SLOTS = [kind for kind in SLOTS if kind != "backbone"]
DEFAULT = dict(
    schedule="cosine", mean="eps", var="fixed_large", loss="simple", timesteps="uniform", sampler="ancestral"
)
CHANNELS = (1, 3, 4, 16)


def pairs():
    for first, second in combinations(SLOTS, 2):
        for a, b in product(registry(first).built_in_names(), registry(second).built_in_names()):
            yield first, a, second, b


@pytest.mark.parametrize(("first", "a", "second", "b"), some_by_default(pairs(), 4))
def test_every_pair_works_or_is_refused(first, a, second, b):
    index = hash_free_index(first, a, second, b)
    channels = CHANNELS[index % len(CHANNELS)]
    parts = DEFAULT | with_companions({first: a, second: b})  # so that what is refused is the pair
    linear = parts["schedule"] in ("linear", "zero_snr")  # which rescales the linear one
    settings = dict(data_shape=(channels, 8, 8), num_steps=20 if linear else 4, bins=256)
    if linear and parts["mean"] in ("eps", "score"):
        settings["num_steps"] = 24  # at 20 the last level of 'linear' has no signal, which 'eps' is refused for
    backbone = ("mlp", {"hidden": 16, "depth": 1}) if index % 2 else None
    try:
        system = diffkit.compose(**parts, **settings, backbone=backbone or tiny(channels, parts["var"]))
    except errors.CompositionError as error:
        assert refused(parts), f"{first}={a} with {second}={b}: {error}"
        text = str(error)
        assert is_named(first, a, text) and is_named(second, b, text) and "use " in text
        return
    assert not refused(parts)
    trains_samples_and_scores(system)


def is_named(kind: str, name: str, text: str) -> bool:
    """Whether a text names a part, or one of its companions."""
    slots = {**COMPANIONS.get((kind, name), {}), kind: name}
    return any(f"{slot} {part!r}" in text for slot, part in slots.items())


def hash_free_index(*words: str) -> int:
    return sum(map(ord, "".join(words)))


def tiny(channels: int, var: str) -> nn.Module:
    return Tiny(channels, channels * (2 if var.startswith("learned") else 1))


def refused(parts: dict[str, str]) -> bool:
    learned = parts["var"].startswith("learned")
    blind = parts["schedule"] == "zero_snr" and parts["mean"] in ("eps", "score")
    untrained = parts["loss"] not in ("hybrid", "vlb") and learned
    return blind or untrained or (parts["loss"] == "hybrid" and not learned) or mistimed(parts)


def mistimed(parts: dict[str, str]) -> bool:
    """Whether times meet a schedule, a loss or a mean that knows levels only, or a schedule of times meets levels."""
    schedule, timesteps = parts["schedule"] == "monotone", parts["timesteps"] == "uniform_time"
    known = parts["loss"] == "continuous_vlb" and parts["mean"] != "x_prev"
    return schedule != timesteps or (schedule and not known)


def trains_samples_and_scores(system: diffkit.System) -> None:
    x = torch.rand(3, *system.data_shape) * 2 - 1
    terms = system(x)
    assert all(v.shape == (3,) and v.isfinite().all() for v in terms.values())
    terms["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())
    samples = system.sample(2, steps=2, seed=0, progress=False)
    assert samples.shape == (2, *system.data_shape) and samples.isfinite().all()
    bound = system.bits_per_dim(x, steps=3, seed=0)
    assert bound.total.shape == (3,) and bound.total.isfinite().all()


@pytest.mark.parametrize("shape", [(2,), (1, 7), (3, 5, 8), (2, 4, 3, 5)])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_any_shape_and_the_shortest_chains(shape, num_steps):
    system = diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        data_shape=shape,
        num_steps=num_steps,
        backbone=("mlp", {"hidden": 16, "depth": 1}),
    )
    x = torch.rand(3, *shape) * 2 - 1
    assert system(x)["loss"].isfinite().all()
    assert system.sample(2, seed=0, progress=False).shape == (2, *shape)
    assert system.sample(1, seed=0, progress=False, sampler="ddim").isfinite().all()
    assert system.bits_per_dim(x).total.isfinite().all()


def test_the_call_in_the_users_words():
    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid")
    assert system.data_shape == (3, 64, 64) and system.num_steps == 1000
    with torch.no_grad():
        out = system.network(torch.zeros(1, 3, 64, 64), torch.zeros(1))
    assert out.shape == (1, 6, 64, 64)


def test_every_form_of_a_slot_is_the_same_part():
    forms = [("cosine", {"s": 0.01}), ["cosine", {"s": 0.01}], {"name": "cosine", "s": 0.01}, Cosine(s=0.01)]
    for form in forms:
        assert diffkit.compose(schedule=form, backbone=None).parts.schedule == Cosine(s=0.01)


def test_rescaled_time_means_the_same_at_any_length():
    for num_steps in (50, 1000, 4000):
        table = diffkit.compose(schedule="cosine", num_steps=num_steps, backbone=None).table
        assert table.time[1] == 0 and table.time[-1] == pytest.approx(1000 * (num_steps - 1) / num_steps)
    plain = diffkit.compose(schedule="cosine", num_steps=50, rescale_time=False, backbone=None).table
    np.testing.assert_array_equal(plain.time[1:], np.arange(50))


def test_all_problems_come_at_once():
    with pytest.raises(errors.CompositionError) as caught:
        diffkit.compose(schedule="linear", num_steps=20, loss="hybrid", backbone=None)
    assert str(caught.value) == (
        "2 problems composing this system:\n"
        "  loss 'hybrid' trains the variance, but var 'fixed_large' has none to train; "
        "use var='learned_range' or loss='simple'\n"
        "  mean 'eps' cannot recover x_start where alpha_bar = 0 (level 20 of schedule 'linear'); "
        "use mean='v' or mean='x_start'"
    )


@attrs.frozen
class NotRegistered(DDIM):
    pass


WRONG = [
    (
        dict(schedule="cosin"),
        LookupError,
        "no schedule named 'cosin'; did you mean 'cosine'? (known: cosine, laplace, linear,",
    ),
    (dict(schedule=("cosine", {"S": 1})), TypeError, "schedule 'cosine' has no option 'S'"),
    (dict(schedule=("cosine", {"s": -1})), ValueError, "schedule 'cosine': s must be >= 0, got -1.0"),
    (dict(schedule=("cosine", {"s": "a"})), TypeError, "s must be a number, got 'a'"),
    (dict(schedule=("cosine", {"max_beta": 1})), ValueError, "max_beta must be > 0 and < 1, got 1.0"),
    (dict(schedule=("cosine", {"s": float("nan")})), ValueError, "s must be finite, got nan"),
    (dict(loss=("hybrid", {"scale_by_steps": 1})), ValueError, "scale_by_steps must be True or False, got 1"),
    (dict(timesteps=("loss_second_moment", {"history": 1.5})), ValueError, "history must be an integer, got 1.5"),
    (dict(timesteps=("loss_second_moment", {"history": True})), ValueError, "history must be an integer, got True"),
    (dict(sampler=("ddim", {"eta": 1.5})), ValueError, "eta must be >= 0 and <= 1, got 1.5"),
    (dict(schedule=3), TypeError, "schedule must be a name, a (name, options) pair, a mapping or an instance, got 3"),
    (dict(schedule=("cosine", 3)), TypeError, "schedule as a pair must be (name, {option: value})"),
    (dict(schedule={"s": 1}), TypeError, "schedule as a mapping needs a 'name'"),
    (dict(schedule=Cosine), TypeError, "schedule must be an instance, not the class Cosine; write Cosine()"),
    (dict(schedule=object()), TypeError, "does not honour the NoiseSchedule contract"),
    (dict(num_steps=0), ValueError, "num_steps must be >= 1, got 0"),
    (dict(num_steps=10.0), ValueError, "num_steps must be an integer, got 10.0"),
    (
        dict(schedule="linear", num_steps=5),
        ValueError,
        "num_steps=5 gives schedule 'linear' a variance above 1, as any below 20 does; use num_steps=21",
    ),
    (dict(schedule=("linear", {"end": 0.0105}), num_steps=5), ValueError, "use num_steps=11 or schedule='cosine'"),
    (dict(data_shape="3"), ValueError, "data_shape must be (channels, *sizes), such as (3, 64, 64), got '3'"),
    (dict(data_shape=(3, 0, 4)), ValueError, "each of data_shape must be >= 1, got 0"),
    (dict(bins=1), ValueError, "bins must be >= 2, got 1; 256 is 8-bit data, None is continuous data"),
    (dict(bins={"bin": 3}), ValueError, "bins as a mapping takes bins, cdf and floor"),
    (dict(train_spacing=2000), ValueError, "steps must be <= 1000, the number of levels of the table, got 2000"),
    (dict(backbone=Tiny(3, 4)), ValueError, "backbone Tiny returns (4, 64, 64)"),
    (dict(backbone=Tiny(3, 3), time_argument="when"), ValueError, "Tiny.forward has no argument 'when' for the time"),
    (dict(time_argument="t", backbone="mlp"), ValueError, "time_argument is for a network of your own"),
    (dict(var="learned_range"), ValueError, "loss 'simple' has no term that trains var 'learned_range'"),
]


@pytest.mark.parametrize(("arguments", "kind", "text"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_every_error_contains_a_fix(arguments, kind, text):
    with pytest.raises(kind, match=re.escape(text)) as caught:
        diffkit.compose(**({"backbone": None} | arguments))
    assert isinstance(caught.value, errors.DiffkitError)


class Foreign(nn.Module):
    """A network that was never written for diffkit."""

    def __init__(self):
        super().__init__()
        self.inner = Tiny(3, 3)

    def forward(self, sample, *, timestep, class_labels=None):
        return self.inner(sample, timestep, class_labels)


def test_a_foreign_network_goes_by_keyword():
    system = diffkit.compose(schedule="cosine", backbone=Foreign(), time_argument="timestep", data_shape=(3, 8, 8))
    assert system.sample(2, steps=2, class_labels=[0, 1], progress=False).shape == (2, 3, 8, 8)


class Choosy(nn.Module):
    """Cannot be asked without values, because it reads a value."""

    def __init__(self, out: int):
        super().__init__()
        self.inner = Tiny(3, out)

    def forward(self, x, time):
        return self.inner(x, time) if float(time.max()) >= 0 else x


def test_a_network_that_cannot_run_on_meta_tensors_is_checked_at_its_first_call():
    system = diffkit.compose(schedule="cosine", backbone=Choosy(5), data_shape=(3, 8, 8))
    with pytest.raises(errors.OptionError, match=re.escape("returned shape (2, 5, 8, 8), the parts need (2, 3, 8, 8)")):
        system.sample(2, steps=2, progress=False)


class Counting(Tiny):
    """Counts its calls, as batch normalization does."""

    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, time):
        self.calls += 1
        return super().forward(x, time)


def test_asking_a_network_leaves_it_as_it_was():
    network = Counting().train()
    diffkit.compose(schedule="cosine", backbone=network, data_shape=(3, 8, 8))
    assert network.calls == 0 and network.training


@functools.lru_cache
def shared_table(channels):
    return torch.linspace(0, 1, channels)


class Caching(Tiny):
    """Makes a table when it is first called."""

    def __init__(self, out: int = 3):
        super().__init__(3, out)
        self.table = None

    def forward(self, x, time):
        if self.table is None:
            self.table = torch.linspace(0, 1, self.convolution.out_channels, device=x.device)
        return super().forward(x, time) * self.table[:, None, None]


def test_the_shape_check_changes_no_state_of_a_network():
    network = Caching()
    system = diffkit.compose(schedule="cosine", backbone=network, data_shape=(3, 8, 8))
    assert network.table is None
    system(torch.zeros(2, 3, 8, 8))["loss"].mean().backward()
    assert type(network.table) is torch.Tensor and type(network.shift.grad) is torch.Tensor
    with pytest.raises(errors.CompositionError, match=re.escape("backbone Caching returns (5, 8, 8)")):
        diffkit.compose(schedule="cosine", backbone=Caching(5), data_shape=(3, 8, 8))


class Sharing(Tiny):
    """Keeps its table outside of itself."""

    def forward(self, x, time):
        return super().forward(x, time) * shared_table(3)[:, None, None].to(x.device)


def test_asking_a_network_leaves_nothing_in_what_functions_keep():
    shared_table.cache_clear()
    diffkit.compose(schedule="cosine", backbone=Sharing(3, 3), data_shape=(3, 8, 8))
    assert type(shared_table(3)) is torch.Tensor and not shared_table(3).is_meta


class Locked(Tiny):
    """Cannot be copied."""

    def __init__(self, out: int):
        super().__init__(3, out)
        self.lock = threading.Lock()


def test_a_network_that_cannot_be_copied_is_checked_at_its_first_call():
    system = diffkit.compose(schedule="cosine", backbone=Locked(5), data_shape=(3, 8, 8))
    with pytest.raises(errors.OptionError, match=re.escape("returned shape (2, 5, 8, 8)")):
        system.sample(2, steps=2, progress=False)


def test_asking_a_network_leaves_its_frozen_part_frozen():
    network = Tiny(3, 3).train()
    network.convolution.eval()
    diffkit.compose(schedule="cosine", backbone=network, data_shape=(3, 8, 8))
    assert network.training and not network.convolution.training


@pytest.mark.parametrize(("device", "found"), [(None, "meta"), ("meta", "meta")])
def test_a_network_stays_where_it_is(device, found):
    network = Tiny(3, 3).to("meta")
    system = diffkit.compose(schedule="cosine", backbone=network, data_shape=(3, 8, 8), device=device)
    assert system.network is network and system.device.type == found
    rebuilt = diffkit.from_spec(diffkit.compose(backbone="mlp", data_shape=(3, 8, 8)).spec(), device=device)
    assert rebuilt.device.type == ("cpu" if device is None else found)


def test_a_network_is_moved_to_the_device():
    system = diffkit.compose(schedule="cosine", backbone=Tiny(3, 3), data_shape=(3, 8, 8), device="meta")
    assert system.device.type == "meta"


def test_a_composition_without_a_network_takes_one_at_every_call():
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(3, 8, 8))
    with pytest.raises(errors.OptionError, match="composed with backbone=None; pass model= to this call"):
        system.sample(1, progress=False)
    assert system.sample(1, steps=1, model=Tiny(3, 3), progress=False).shape == (1, 3, 8, 8)


# ---- what is given in place of a part --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        (dict(backbone=lambda x, time: x), "backbone must be a part, not the function '<lambda>'; pass it as model="),
        (
            dict(loss=nn.functional.mse_loss),
            "not the function 'mse_loss'; write a class that inherits from diffkit.pro",
        ),
        (dict(schedule=np.linspace), "schedule must be a part, not the function 'linspace'"),
    ],
)
def test_a_function_is_no_part(slots, text):
    with pytest.raises(errors.OptionError, match=re.escape(text)):
        diffkit.compose(**slots, data_shape=(3, 8, 8))
    with pytest.raises(errors.OptionError, match="sampler must be a part, not the function"):
        diffkit.compose(backbone=None, data_shape=(2,)).sample(1, sampler=np.linspace, model=lambda x, time: x)


class TimeFirst(Tiny):
    def forward(self, t, x, labels=None):
        return super().forward(x, t)


class NoTime(Tiny):
    def forward(self, x):
        return x


class NamedOnly(Tiny):
    def forward(self, x, *, timesteps):
        return super().forward(x, timesteps)


class Anything(Tiny):
    def forward(self, *given):
        return super().forward(*given)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (TimeFirst(3, 3), "takes 't' first, where data comes (arguments: t, x, labels); pass time_argument='t'"),
        (NoTime(3, 3), "must take data and time (arguments: x); let it take the time second, or pass time_argument="),
        (NamedOnly(3, 3), "must take data and time (arguments: x, timesteps); pass time_argument='timesteps'"),
    ],
)
def test_a_network_that_cannot_be_given_data_and_time_is_refused(network, text):
    with pytest.raises(errors.OptionError, match=re.escape(text)):
        diffkit.compose(schedule="cosine", backbone=network, data_shape=(3, 8, 8))


def test_where_the_time_stands_does_not_matter():
    wanted = Tiny(3, 3)
    networks = [(TimeFirst(3, 3), "t"), (NamedOnly(3, 3), "timesteps"), (Anything(3, 3), None)]
    answers = []
    for network, name in [(wanted, None), *networks]:
        network.load_state_dict(wanted.state_dict())
        system = diffkit.compose(schedule="cosine", backbone=network, time_argument=name, data_shape=(3, 8, 8))
        answers.append(system.sample(2, steps=3, seed=0, progress=False))
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    system = diffkit.compose(schedule="cosine", backbone=TimeFirst(3, 3), time_argument="t", data_shape=(3, 8, 8))
    with pytest.raises(errors.OptionError, match=re.escape("takes no condition 'y' (conditions: labels)")):
        system.sample(2, y=1, progress=False)


# ---- what parts return -----------------------------------------------------------------------------------------------


@attrs.frozen
class Declared(Loss):
    """A loss that only says whether it trains the variance."""

    trains_variance: bool = False

    def __call__(self, at):
        return {"loss": at.out.flatten(1).mean(1)}


def test_trains_variance_of_losses_is_checked():
    how = dict(schedule="cosine", backbone=None, data_shape=(2,), num_steps=10)
    with pytest.raises(diffkit.CompositionError, match="loss 'Declared' has no term that trains var 'learned_range'"):
        diffkit.compose(loss=Declared(), var="learned_range", **how)
    diffkit.compose(loss=Declared(), **how)
    diffkit.compose(loss=Declared(trains_variance=True), var="learned_range", **how)
    with pytest.raises(diffkit.ProtocolError, match="trains_variance: expected bool, found 'yes'"):
        diffkit.compose(loss=Declared("yes"), **how)


@attrs.frozen(eq=False)
class Holding(Loss):
    """A loss with an option of any kind."""

    option: object

    def __call__(self, at):
        return {"loss": at.out.flatten(1).mean(1)}


class ModuleLoss(torch.nn.Module, Loss):
    def __call__(self, at):
        return {"loss": at.out.flatten(1).mean(1)}


def closing_over(value):
    return lambda x: value(x)


NETWORK = torch.nn.Linear(2, 2)
HELD = {
    "a network": (NETWORK, "Linear", "option"),
    "a tuple": ((1, (NETWORK,)), "Linear", "option[1][0]"),
    "a mapping": ({"features": [NETWORK]}, "Linear", "option['features'][0]"),
    "another part": (Holding(NETWORK), "Linear", "option.option"),
    "a partial": (functools.partial(torch.add, NETWORK), "Linear", "option.args[0]"),
    "a partial's keyword": (functools.partial(torch.add, alpha=NETWORK), "Linear", "option.keywords['alpha']"),
    "a method": (NETWORK.forward, "Linear", "option.__self__"),
    "a function": (closing_over(NETWORK), "Linear", "option.value"),
    "an object": (types.SimpleNamespace(network=NETWORK), "Linear", "option.network"),
    "a parameter": (torch.nn.Parameter(torch.zeros(2)), "Parameter", "option"),
    "a tensor": ([torch.zeros(2)], "Tensor", "option[0]"),
}


@pytest.mark.parametrize("name", HELD)
def test_a_part_holds_no_network(name):
    option, kind, place = HELD[name]
    text = f"loss 'Holding' holds a {kind} in {place!r}, which would not be trained, moved or saved"
    how = dict(schedule="cosine", backbone=None, data_shape=(2,), num_steps=10)
    with pytest.raises(diffkit.OptionError, match=re.escape(text)):
        diffkit.compose(loss=Holding(option), **how)
    with pytest.raises(diffkit.OptionError, match="holds a"):
        diffkit.recompose(diffkit.compose(**how), loss=Holding(option))


def test_a_part_is_no_network():
    with pytest.raises(
        diffkit.OptionError, match="loss 'ModuleLoss' holds a ModuleLoss, which would not be trained, moved or saved"
    ):
        diffkit.compose(loss=ModuleLoss(), backbone=None, data_shape=(2,))


def test_a_part_may_hold_anything_else():
    held = (1, "a", None, {"b": torch.float32}, len, torch.relu, np.zeros(2), closing_over(torch.relu))
    diffkit.compose(loss=Holding(held), backbone=None, data_shape=(2,))


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            lambda e: {"loss": e.mean()},
            "loss 'Own' must return 'loss' of shape (4,), a value for each example, got shape ()",
        ),
        (lambda e: {"loss": e}, "got shape (4, 3, 8, 8); diffkit.gaussian.mean_flat averages over everything else"),
        (lambda e: {"loss": e.flatten(1).mean(1), "share": 0.5}, "must return 'share' of shape (4,)"),
        (
            lambda e: {"mse": e.flatten(1).mean(1)},
            "must return a mapping with 'loss', a value for each example, got the keys",
        ),
        (lambda e: e.flatten(1).mean(1), "must return a mapping with 'loss', a value for each example, got a Tensor"),
        (
            lambda e: {"loss": e.flatten(1).mean(1), "level": e.flatten(1).mean(1)},
            "returns 'level', a name reserved for",
        ),
    ],
)
def test_what_a_loss_returns_is_checked(returned, text):
    @attrs.frozen
    class Own(Loss):
        def __call__(self, at):
            return returned((at.out - at.target).square())

    system = diffkit.compose(schedule="cosine", loss=Own(), backbone=Tiny(3, 3), data_shape=(3, 8, 8))
    with pytest.raises(errors.ProtocolError, match=re.escape(text)):
        system(torch.zeros(4, 3, 8, 8))


def test_what_a_schedule_returns_is_checked():
    @attrs.frozen
    class Own(Cosine):
        def table(self, num_steps):
            return np.linspace(1e-4, 0.02, num_steps)

    with pytest.raises(
        errors.ProtocolError, match=re.escape("schedule Own.table must return a ProcessTable, got ndarray")
    ):
        diffkit.compose(schedule=Own(), backbone=None, data_shape=(2,))
