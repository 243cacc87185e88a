"""Laws of backbones: recipes, and the networks they build."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

import diffkit
from diffkit.data.base import BatchedData, MapData
from diffkit.errors import CompositionError, DiffkitError, OptionError
from diffkit.protocols import Backbone, ConditionalBackbone, Level, TwoTimeBackbone
from diffkit.runtime.files import load_weights
from diffkit.system.loss_network import JVP_METHODS, NetworkCall, derivative
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import map_tree, require, require_close, require_same
from diffkit.testing._conditions import Conditions, NoAnswerError, find_conditions, null_conditions_of
from diffkit.testing._host import on_fake_tensors
from diffkit.testing._parts import DATA_SHAPES
from diffkit.testing._paths import VP, compose_on_path
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.preflight import check_training as check_training
from diffkit.training.trainer import Trainer

_SHAPES_TRIED = ((2,), (1, 12), (3, 16, 16), (4, 12, 10), (2, 4, 8, 8))
"""Shapes that each get a network of their own: one to three axes, square and not, one channel and four."""


@frozen(eq=False)
class RandomizedNetwork:
    """Checks of backbones: a built network whose weights are all random and not zero, and conditions to call it with.

    Attributes:
        network: The network, in evaluation mode.
        data_shape: Shape of one example.
        out_channels: Channels of the output.
        conditions: Keywords to call it with, by batch size.
    """

    network: nn.Module
    data_shape: tuple[int, ...]
    out_channels: int
    conditions: Conditions

    @property
    def where(self) -> Where:
        """Return the shape of the data, as the place named in a result."""
        return Where(detail=f"data {self.data_shape}, {self.out_channels} output channels")

    def inputs(self, batch: int = 3) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return x, time and conditions of a batch, the same for every call."""
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, *self.data_shape, generator=generator)
        return x, torch.rand(batch, generator=generator) * 900 + 20, self.conditions(batch)

    def __call__(self, x: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """Evaluate the network without a gradient."""
        with torch.no_grad():
            out: Tensor = self.network(x, time, **conditions)
        return out


def _build_or_skip(backbone: Backbone) -> RandomizedNetwork:
    """Build a backbone for the first shape of data that it takes; skip the law if the network cannot be called."""
    try:
        return _build(backbone)
    except NoAnswerError as error:
        raise NotApplicableError("it does not answer; see conditions_are_known") from error


def _build(
    backbone: Backbone, data_shape: tuple[int, ...] | None = None, out_channels: int | None = None
) -> RandomizedNetwork:
    """Build a backbone for the first shape of data that it takes, or for the given one."""
    for shape in DATA_SHAPES if data_shape is None else (data_shape,):
        channels = shape[0] if out_channels is None else out_channels
        record_where(Where(detail=f"data {shape}"))
        try:
            network = backbone.build(shape, channels)
        except OptionError:
            continue
        _randomize(network)
        return RandomizedNetwork(network.eval(), shape, channels, find_conditions(backbone, network, shape))
    raise LawError("a shape of data that it takes", f"OptionError for each of {DATA_SHAPES}")


def _randomize(network: nn.Module) -> None:
    """Replace every weight of a network: many networks start as exactly zero, which would hide faults."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


@check("backbone")
def conditions_are_known(backbone: Backbone) -> None:
    """The network answers x and time, with labels y, low_res, what null_conditions() names, or the kit's conditions.

    Without an answer the other laws are skipped.
    Usually: a condition that the kit cannot generate, or an error inside the network.
    """
    _build(backbone)


@check("backbone")
def channels_as_asked(backbone: Backbone) -> None:
    """For every shape of data that the backbone takes, the output has the required channels and the data's sizes.

    Usually: a channel count of 3 or 6 written down, or sides that are rounded by down- and upsampling.
    """
    taken = _build_or_skip(backbone)
    for shape in {taken.data_shape: None} | dict.fromkeys(_SHAPES_TRIED):
        for channels in (shape[0], 2 * shape[0]) if shape == taken.data_shape else (shape[0] + 1,):
            try:
                net = _build(backbone, shape, channels)
            except LawError as error:
                if error.found.startswith("OptionError"):
                    continue
                raise
            for batch in (1, 2):
                out = net(*net.inputs(batch))
                expected = (batch, channels, *shape[1:])
                require(tuple(out.shape) == expected, f"shape {expected}", tuple(out.shape), net.where)
    read = backbone.channels_in(taken.data_shape) if isinstance(backbone, ConditionalBackbone) else taken.data_shape[0]
    require(read >= taken.data_shape[0], f"channels_in >= {taken.data_shape[0]}", read, taken.where)


@check("backbone")
def refuses_by_name(backbone: Backbone) -> None:
    """The backbone can be built for a shape of data without problems(), and raises OptionError for any other.

    Usually: a shape error from deep inside the network where an OptionError belongs.
    """
    for shape in _SHAPES_TRIED:
        parts = attrs.evolve(compose_on_path(VP, 3).parts, data_shape=shape, names=_part_names())
        problems = list(backbone.problems(parts))
        where = Where(detail=f"data {shape}")
        try:
            backbone.build(shape, shape[0])
        except OptionError as error:
            require(bool(problems), "a sentence in problems()", f"none, and build says: {error}", where)
        except DiffkitError:
            raise
        except Exception as error:
            raise LawError("an OptionError", f"{type(error).__name__}: {error}", where) from error
        else:
            require(not problems, "an OptionError from build()", f"none, and problems() says: {problems[:1]}", where)


def _part_names() -> dict[str, str]:
    return dict.fromkeys(("schedule", "mean", "var", "loss", "timesteps", "sampler", "backbone"), "any")


@check("backbone")
def uses_time(backbone: Backbone) -> None:
    """The network's output depends on time, and each example's on its own time.

    Usually: an embedding that never reaches the blocks, or the first example's time used for all.
    """
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    base = net(x, time, conditions)
    for i in range(len(x)):
        other = time.clone()
        other[i] += 300
        moved = (net(x, other, conditions) - base).flatten(1).abs().max(1).values > 1e-7
        expected = [j == i for j in range(len(x))]
        where = attrs.evolve(net.where, detail=f"{net.where.detail}, time of example {i} changed")
        require(moved.tolist() == expected, f"changed examples {expected}", moved.tolist(), where)


@check("backbone")
def tells_times_apart_in_bfloat16(backbone: Backbone) -> None:
    """In bfloat16 the network's output is finite and near that in float32, and differs between times 999 and 1000.

    Usually: time cast to the network's dtype before it is embedded; bfloat16 has 8 bits, so 999 becomes 1000.
    """
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    exact = net(x, time, conditions)
    short = attrs.evolve(net, network=net.network.to(torch.bfloat16))
    cast = map_tree(lambda c: c.bfloat16() if c.is_floating_point() else c, conditions)
    found = short(x.bfloat16(), time, cast)
    require(bool(found.isfinite().all()), "finite numbers in bfloat16", "inf or NaN", net.where)
    size = float(exact.abs().max())
    require_close(found.float(), exact, 0.1, "output in bfloat16", net.where, scale=size)
    one, other = (short(x.bfloat16(), torch.full((len(x),), at), cast) for at in (999.0, 1000.0))
    require(not torch.equal(one, other), "different answers at times 999 and 1000", "the same", net.where)


@check("backbone")
def rows_are_independent(backbone: Backbone) -> None:
    """The network's output for an example depends on nothing else in the batch, in training mode too.

    Usually: batch normalization, or a reshape that mixes examples with positions.
    """
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    changed = x.clone()
    changed[0] = -2 * changed[0] + 1
    for training in (False, True):
        net.network.train(training)
        answers = []
        for data in (x, changed):
            torch.manual_seed(11)  # the same dropout both times
            answers.append(net(data, time, conditions)[1:])
        where = attrs.evolve(net.where, detail=net.where.detail + (", training mode" if training else ""))
        size = float(answers[0].abs().max())
        require_close(answers[1], answers[0], 1e-5, "answers for examples that stayed", where, scale=size)


@check("backbone")
def every_weight_is_trained(backbone: Backbone) -> None:
    """Every parameter of the network gets a finite gradient that is not zero, and x gets one too.

    Where the network can do without its conditions, with or without them will do.
    Usually: a layer that is built but not called, a detach, or a parameter under another option's branch.
    """
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    x.requires_grad_()
    for chosen in (conditions, {}) if net.conditions.optional else (conditions,):
        _backpropagate(net, x, time, chosen)
    for name, tensor in [("x", x), *net.network.named_parameters()]:
        if tensor.requires_grad:
            require(tensor.grad is not None, f"a gradient for {name}", "none", net.where)
            good = bool(tensor.grad.isfinite().all() and (tensor.grad != 0).any())  # type: ignore[union-attr]
            require(good, f"a finite gradient for {name} that is not zero", "zero, inf or NaN", net.where)


def _backpropagate(net: RandomizedNetwork, x: Tensor, time: Tensor, conditions: Mapping[str, Any]) -> None:
    """Send a random gradient back from the network's output."""
    out = net.network(x, time, **conditions)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
    (out * weight).sum().backward()


@check("backbone")
def derivatives_agree(backbone: Backbone) -> None:
    """The network's derivatives in forward mode, by two passes in reverse mode, and as a difference are the same.

    A way that the network has not is left out.
    Usually: an autograd function with another backward pass than its forward has, or a detach of x or the time.
    """
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    one, seed = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=torch.float64), torch.Generator().manual_seed(4)
    parts = attrs.evolve(compose_on_path(VP, 3).parts, data_shape=net.data_shape, times=_times(backbone))
    call = NetworkCall(copy.deepcopy(net.network).double(), parts, False, conditions)
    level = Level(one, one, one, one, one, one, time.double(), None)
    to = level._replace(time=level.time / 2) if _times(backbone) == 2 else None
    along = torch.randn(x.shape, generator=seed, dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for method in JVP_METHODS:
        with suppress(NotImplementedError, RuntimeError):
            found[method] = derivative(call, x.double(), level, to, (along, None, None), method)
    require("difference" in found, "a difference of two outputs", "an error", net.where)
    size = found["difference"].abs().max()
    for method, one_way in found.items():
        name = f"derivative by {method!r}"
        require_close(one_way, found["difference"], 1e-2, name, net.where, scale=size)


def _times(backbone: Backbone) -> int:
    return backbone.times if isinstance(backbone, TwoTimeBackbone) else 1


@check("backbone")
def second_time_starts_at_nothing(backbone: Backbone) -> None:
    """A network of two times loads the weights of one with ``times=1``, and then computes what that does.

    Usually: a last layer of the second time's embedding that does not start at zero, or renamed weights of the first.
    """
    if _times(backbone) != 2:
        raise NotApplicableError("its network takes one time")
    one = _build_or_skip(attrs.evolve(backbone, times=1))  # type: ignore[misc]
    two = backbone.build(one.data_shape, one.out_channels).eval()
    load_weights(two, one.network.state_dict())
    x, time, conditions = one.inputs()
    with torch.no_grad():
        for time_to in (time, time / 3):
            found = two(x, time, time_to=time_to, **conditions)
            require_close(found, one(x, time, conditions), 1e-5, "output", one.where, scale=1.0)


@check("backbone")
def second_time_is_read(backbone: Backbone) -> None:
    """The output of a network of two times depends on the second, of each row on its own; by default it is the first.

    Usually: an embedding that is built but not added, or the first row's time for all.
    """
    if _times(backbone) != 2:
        raise NotApplicableError("its network takes one time")
    net = _build_or_skip(backbone)
    x, time, conditions = net.inputs()
    with torch.no_grad():
        still = net.network(x, time, time_to=time, **conditions)
        require_close(net(x, time, conditions), still, 1e-6, "output without a second time", net.where, scale=1.0)
        for i in range(len(x)):
            time_to = time.clone()
            time_to[i] /= 2
            other = net.network(x, time, time_to=time_to, **conditions)
            moved = [j for j in range(len(x)) if not torch.equal(other[j], still[j])]
            require(moved == [i], f"another output of row {i}, whose time moved", f"of rows {moved}", net.where)


@check("backbone")
def reads_all_of_x(backbone: Backbone) -> None:
    """The network's output depends on every channel and every place of x, also with five channels.

    Usually: x[:, :3], or another number of channels or a side that is written down.
    """
    first = _build_or_skip(backbone)
    nets = [first]
    try:
        nets.append(_build(backbone, (5, *first.data_shape[1:])))
    except LawError as error:
        if not error.found.startswith("OptionError"):
            raise
    for net in nets:
        x, time, conditions = net.inputs()
        _backpropagate(net, x.requires_grad_(), time, conditions)
        require(x.grad is not None, "a gradient for x", "none", net.where)
        size = x.grad.abs().amax(0)  # type: ignore[union-attr]
        unread = (size.reshape(len(size), -1).amax(1) == 0).nonzero().flatten().tolist()
        require(not unread, "an answer that depends on every channel", f"not on {unread}", net.where)
        places = (size.amax(0) == 0).nonzero().tolist() if size.ndim > 1 else []
        found = f"not on {tuple(places[0])} and {len(places) - 1} others" if places else ""
        require(not places, "an answer that depends on every place", found, net.where)


@check("backbone")
def pure_forward(backbone: Backbone) -> None:
    """In evaluation mode the network changes neither its arguments nor its weights and buffers, and repeats itself.

    Usually: an in-place activation on the input, or statistics updated in evaluation mode.
    """
    net = _build_or_skip(backbone)
    given = net.inputs()
    before = (map_tree(torch.clone, given), {n: v.clone() for n, v in net.network.state_dict().items()})
    first, again = net(*given), net(*given)
    require_same(again, first, "the same answer again", net.where)
    require_same(given, before[0], "x, time and conditions unchanged", net.where)
    require_same(dict(net.network.state_dict()), before[1], "weights and buffers unchanged", net.where)


@check("backbone")
def reads_no_value(backbone: Backbone) -> None:
    """The network never makes the host wait: no value of a tensor is read.

    Usually: .item() on time, an `if` on a tensor, or a constant tensor made on import.
    """
    net = _build_or_skip(backbone)
    shape, real = net.data_shape, net.conditions(2)
    with on_fake_tensors():
        network = backbone.build(shape, shape[0]).eval()
        conditions = map_tree(lambda value: torch.zeros(value.shape, dtype=value.dtype), real)
        network(torch.zeros(2, *shape), torch.ones(2), **conditions)


@check("backbone")
def labels_are_used(backbone: Backbone) -> None:
    """If the network takes labels, its output depends on them, each example's on its own.

    Usually: an embedding of labels that is added nowhere.
    """
    net = _build_or_skip(backbone)
    if "y" not in net.conditions.makers:
        raise NotApplicableError("it takes no labels")
    if not _is_used(net, "y"):
        raise NotApplicableError("it has one class")


@check("backbone")
def conditions_are_used(backbone: Backbone) -> None:
    """The network's output depends on every condition that it takes besides labels, each example's on its own.

    Usually: an embedding that is added nowhere, or the first example's condition used for all.
    """
    net = _build_or_skip(backbone)
    names = [name for name in net.conditions.makers if name != "y"]
    used = [name for name in names if _is_used(net, name)]
    if not used:
        raise NotApplicableError(f"no other value is known of {', '.join(names)}" if names else "it takes none")


@check("backbone")
def trains_with_and_without_conditions(backbone: Backbone) -> None:
    """The backbone trains for two steps with every condition, with null conditions, and without conditions if allowed.

    Usually: a null label without a row in the table of labels, or null_conditions() of another form than conditions.
    """
    net = _build_or_skip(backbone)
    given = net.conditions(_EXAMPLES)
    _train(backbone, net, given, "with conditions", 0.0)
    if isinstance(backbone, ConditionalBackbone) and (count := backbone.count_classes()) and "y" in given:
        last = torch.full((_EXAMPLES,), count - 1)
        _train(backbone, net, given | {"y": last}, f"with label {count - 1}, the last of count_classes()", 0.0)
    if given.keys() & null_conditions_of(backbone).keys():
        _train(backbone, net, given, "with null conditions in place of all", 1.0)
    if net.conditions.optional:
        _train(backbone, net, {}, "without conditions", 0.0)


_EXAMPLES = 4


def _train(
    backbone: Backbone, net: RandomizedNetwork, given: Mapping[str, Any], how: str, label_dropout: float
) -> None:
    """Train a fresh network for two steps on noise, as `diffkit.train` does."""
    where = record_where(Where(detail=f"data {net.data_shape}, {how}"))
    try:
        system = diffkit.compose(
            backbone=backbone, schedule="cosine", num_steps=20, data_shape=net.data_shape, bins=None
        )
    except CompositionError as error:
        raise NotApplicableError(f"it does not train with the usual parts: {error}") from error
    config = TrainConfig(steps=2, batch_size=_EXAMPLES, label_dropout=label_dropout, max_skips=0)
    data = BatchedData(_Noise(net.data_shape, given))
    try:
        check_training(system, {}, data, config)
        assert system.network is not None
        trainer = Trainer(system, system.network, config, Engine(torch.device("cpu")))
        for _ in range(config.steps):
            trainer.update(data.batch(range(_EXAMPLES)))
    except (DiffkitError, RuntimeError, IndexError) as error:
        raise LawError("two steps of training", f"{type(error).__name__}: {error}", where) from error


class _Noise(MapData):
    """Training data of the checks of backbones: noise with conditions."""

    bins = classes = None

    def __init__(self, shape: tuple[int, ...], given: Mapping[str, Any]):
        self.shape, self.given = shape, given

    def __len__(self) -> int:
        return _EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Any]]:
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(index))
        return x, {name: map_tree(lambda leaf: leaf[index], value) for name, value in self.given.items()}


def _is_used(net: RandomizedNetwork, name: str) -> bool:
    """Change a condition of one example and require another output; False if the network takes no other value."""
    x, time, conditions = net.inputs()
    base = net(x, time, conditions)
    for other in net.conditions.others(name, len(x), 1):
        try:
            moved = (net(x, time, conditions | {name: other}) - base).flatten(1).abs().max(1).values > 1e-7
        except Exception:  # no value of it: there are fewer classes
            continue
        where = attrs.evolve(net.where, detail=f"{net.where.detail}, {name} of example 1 changed")
        require(moved.tolist() == [False, True, False], "a change of example 1 only", moved.tolist(), where)
        return True
    return False
