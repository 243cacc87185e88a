"""Coefficients of a level belong to who computed them: the variance part and each guidance, whatever their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import frozen

import diffkit
from diffkit.errors import ProtocolError
from diffkit.guidance import ClassifierFree
from diffkit.parts.guidance._together import evaluate_together
from diffkit.protocols import Guidance, IntervalGuidance
from diffkit.registry import registry
from diffkit.system.coefficients import LEVEL, level_coefficients

HOW = dict(steps=4, seed=0, progress=False)


def system_of(var="learned_range", **more):
    return diffkit.compose(
        schedule="cosine",
        var=var,
        loss="vlb",
        backbone=None,
        data_shape=(1, 2, 2),
        num_steps=12,
        sampler="ancestral",
        **more,
    )


def model_of(system):
    """A network with as many channels as the system needs."""
    return lambda x, time, **given: torch.cat([0.7 * x] * (1 + system.parts.var.extra_outputs), 1)


@frozen(eq=False)
class Hostile(Guidance):
    """Columns under every name that others use, which change nothing."""

    names: tuple[str, ...]

    def columns(self, table):
        return {name: np.full(table.num_steps + 1, 1e3) for name in self.names}


@pytest.mark.parametrize("var", registry("var").built_in_names())
def test_no_column_of_guidance_is_taken_for_anothers(var):
    system = system_of(var)
    own = [name.rpartition("/")[2] for name in level_coefficients(system.parts, system.table)]
    names = tuple(dict.fromkeys([*own, *LEVEL, "bare", "var/middle", "guidance 0/middle", "middle", "log_variance"]))
    model = model_of(system)
    plain = system.sample(3, model=model, **HOW)
    for guidance in (Hostile(names), [Hostile(names), Hostile(names)]):
        assert torch.equal(system.sample(3, model=model, guidance=guidance, **HOW), plain)


@frozen(eq=False)
class Adding(Guidance):
    """Adds its own column to x_start, before clipping and after; both are distinguished by their owner."""

    amount: float

    def columns(self, table):
        return {"middle": np.full(table.num_steps + 1, self.amount)}

    def guide(self, evaluate, x, level, conditions):
        assert set(level.coefficients) == {"middle"} and "middle" in level.coefficients
        first, second = evaluate_together(evaluate, x, level, [conditions, conditions])
        return first.with_x_start((first.x_start + second.x_start) / 2 + level.coefficients["middle"])

    def correct(self, prediction, x, level, conditions):
        return prediction._replace(x_start=prediction.x_start + level.coefficients["middle"])


@pytest.mark.parametrize("amounts", [(0.25,), (0.25, 0.5), (0.5, 0.25, -0.125)])
def test_each_guidance_of_a_kind_reads_its_own(amounts):
    system = system_of("fixed_small", clip_x_start=False, bins=None)
    guidance = [Adding(amount) for amount in amounts]
    model = model_of(system)
    made = system.sample(3, model=model, guidance=guidance, **HOW)
    total = 2 * sum(amounts)
    wanted = system.sample(3, model=model, x_transform=lambda x_start: x_start + total, **HOW)
    torch.testing.assert_close(made, wanted)


def test_where_one_guidance_is_idle_the_next_still_reads_its_own():
    system = system_of("fixed_small", clip_x_start=False, bins=None)
    model = model_of(system)

    @frozen(eq=False)
    class Asleep(Adding, IntervalGuidance):
        def inactive_at(self, at):
            return np.ones(np.shape(at.alpha), dtype=bool)

    both = system.sample(3, model=model, guidance=[Asleep(9.0), Adding(0.25)], **HOW)
    torch.testing.assert_close(both, system.sample(3, model=model, guidance=Adding(0.25), **HOW))


def test_columns_of_another_length_are_refused():
    @frozen(eq=False)
    class Short(Guidance):
        def columns(self, table):
            return {"middle": np.zeros(3)}

    system = system_of()
    with pytest.raises(ProtocolError, match=r"column 'middle' of guidance 0 must have shape \(5,\), got \(3,\)"):
        system.sample(1, model=model_of(system), guidance=Short(), **HOW)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (None, r"columns\(\) of guidance 0 must return a mapping of names to columns, got None"),
        ({3: np.zeros(5)}, r"columns\(\) of guidance 0 must return a mapping of names to columns, got \{3"),
        ({"middle": ["a"] * 5}, r"column 'middle' of guidance 0 must be numbers, \(T\+1,\), got a list"),
    ],
)
def test_columns_that_are_none_are_refused(columns, text):
    @frozen(eq=False)
    class Odd(Guidance):
        def columns(self, table):
            return columns

    system = system_of()
    with pytest.raises(ProtocolError, match=text):
        system.sample(1, model=model_of(system), guidance=Odd(), **HOW)


def test_a_column_may_be_a_list():
    @frozen(eq=False)
    class Listed(Adding):
        def columns(self, table):
            return {"middle": [self.amount] * (table.num_steps + 1)}

    system = system_of()
    model = model_of(system)
    found = system.sample(2, model=model, guidance=Listed(0.25), **HOW)
    assert torch.equal(found, system.sample(2, model=model, guidance=Adding(0.25), **HOW))


def test_guidance_that_asks_twice_keeps_coefficients_apart():
    system = system_of("fixed_small", clip_x_start=False, bins=None)
    model = lambda x, time, y: 0.7 * x + 0.1 * y.view(-1, 1, 1, 1)  # noqa: E731
    free = ClassifierFree(2.0, null={"y": 0})
    made = system.sample(2, model=model, y=1, guidance=[Adding(0.25), free, Adding(0.5)], **HOW)
    assert made.isfinite().all()
