"""Hooks with one mistake each."""

from __future__ import annotations

import math
from typing import Any

import torch
from attrs import field, frozen

from diffkit.options import integer
from diffkit.training import Hook, HookResult
from mutants import Mutant


@frozen
class Counting(Hook):
    """Counts updates and remembers the last loss, in a state; reports both, and stops at a number."""

    most: int = integer(100, ge=1)

    def init(self):
        return {"count": 0, "loss": torch.zeros(())}

    def after_update(self, facts, state):
        count = state["count"] + 1
        metrics = {"count": count} if facts.logs else {}
        return HookResult({"count": count, "loss": torch.tensor(facts.loss())}, metrics)


@frozen
class Misspelt(Counting):
    """Without an argument."""

    def after_line(self, facts):
        return None


@frozen
class Array(Counting):
    """A state that a checkpoint cannot hold."""

    def after_update(self, facts, state):
        return HookResult({"count": math.inf})


@frozen
class Word(Counting):
    """A word where a result belongs."""

    def after_update(self, facts, state):
        return "stop"


@frozen
class Shrinking(Counting):
    """Decays the weights."""

    def after_update(self, facts, state):
        for weight in facts.parameters.values():
            weight.mul_(0.999)


@frozen
class Clipping(Counting):
    """Clips the gradients."""

    def after_backward(self, facts, state):
        for gradient in facts.gradients.values():
            gradient.clamp_(-1e-4, 1e-4)


@frozen
class Remembering(Counting):
    """A count on the hook itself."""

    counts: Any = field(factory=lambda: [0], init=False, eq=False)

    def after_update(self, facts, state):
        self.counts[0] += 1
        return HookResult({"count": self.counts[0]})


@frozen
class Restarting(Counting):
    """A state that begins anew wherever the run does."""

    def at_begin(self, facts, state):
        return HookResult(self.init())


@frozen
class Late(Counting):
    """A metric for a line that is written already."""

    def after_line(self, facts, state):
        return HookResult(metrics={"line": facts.step})


@frozen
class Expecting(Counting):
    """Reads the loss of a line that has metrics of held-out data only."""

    def after_line(self, facts, state):
        return HookResult({**state, "loss": torch.tensor(facts.metrics["loss"])})


MUTANTS = [
    Mutant("hook", Misspelt(), Counting(), "members_of_a_hook"),
    Mutant("hook", Array(), Counting(), "returns_plain_results"),
    Mutant("hook", Word(), Counting(), "returns_plain_results"),
    Mutant("hook", Late(), Counting(), "returns_plain_results"),
    Mutant("hook", Expecting(), Counting(), "returns_plain_results"),
    Mutant("hook", Shrinking(), Counting(), "changes_no_update"),
    Mutant("hook", Clipping(), Counting(), "changes_no_update"),
    Mutant("hook", Remembering(), Counting(), "holds_no_state"),
    Mutant("hook", Restarting(), Counting(), "resumes_to_the_bit"),
]
