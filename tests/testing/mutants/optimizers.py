"""Optimizers with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Optimizer
from mutants import Mutant


class Descent(torch.optim.Optimizer):
    """Gradient descent with momentum and decoupled weight decay, written out; each flag makes one mistake."""

    def __init__(self, groups, momentum, mistake=""):
        super().__init__(groups, {})
        self.momentum, self.mistake, self.outside = momentum, mistake, {}
        self.first = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for group, first in zip(self.param_groups, self.first, strict=True):
            lr = first if self.mistake == "reads once" else group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    if self.mistake == "decays all":
                        parameter.mul_(1 - lr * group["weight_decay"])
                    continue
                state = self.state[parameter]
                held = self.outside.setdefault(parameter, {}) if self.mistake == "outside" else state
                if not held:
                    held["buffer"] = torch.zeros_like(parameter)
                    state["count"] = 0
                state["count"] += 1
                gradient = parameter.grad
                if self.mistake == "normalizes":
                    gradient = gradient / gradient.norm()
                if self.mistake == "draws":
                    gradient = gradient + 0.01 * torch.randn_like(gradient)
                held["buffer"].mul_(self.momentum).add_(gradient)
                decay = group["weight_decay"] * (1 if self.mistake == "decays at 0" else lr)
                parameter.mul_(1 - decay)
                parameter.add_(held["buffer"], alpha=lr if self.mistake == "uphill" else -lr)


class Searching(Descent):
    """It needs a closure."""

    def step(self, closure):
        closure()
        super().step()


@frozen
class Right(Optimizer):
    """Gradient descent."""

    elementwise: ClassVar[bool] = True
    mistake: ClassVar[str] = ""

    momentum: float = number(0.5, ge=0, lt=1)

    def build(self, groups, network):
        return Descent(groups, self.momentum, self.mistake)


@frozen
class ReadsOnce(Right):
    """The learning rate of the beginning."""

    mistake: ClassVar[str] = "reads once"


@frozen
class DecaysAtZero(Right):
    """Weight decay that does not depend on the learning rate."""

    mistake: ClassVar[str] = "decays at 0"


@frozen
class DecaysAll(Right):
    """Weight decay of parameters without a gradient."""

    mistake: ClassVar[str] = "decays all"


@frozen
class Outside(Right):
    """A momentum that `state` does not hold."""

    mistake: ClassVar[str] = "outside"


@frozen
class Normalizes(Right):
    """Steps by the norm of the whole parameter."""

    mistake: ClassVar[str] = "normalizes"


@frozen
class Draws(Right):
    """Noise of its own."""

    mistake: ClassVar[str] = "draws"


@frozen
class Uphill(Right):
    """The wrong sign."""

    mistake: ClassVar[str] = "uphill"


@frozen
class MatricesOnly(Right):
    """Vectors are left out."""

    def build(self, groups, network):
        for group in groups:
            group["params"] = [p for p in group["params"] if p.ndim > 1]
        return Descent(groups, self.momentum)


@frozen
class Everything(Right):
    """All of the network's parameters, frozen ones too."""

    def build(self, groups, network):
        return Descent([{**groups[0], "params": [*network.parameters()]}], self.momentum)


@frozen
class Searches(Right):
    """A line search."""

    def build(self, groups, network):
        return Searching(groups, self.momentum)


@frozen
class StepsAtOnce(Right):
    """It decays the weights when it is made."""

    def build(self, groups, network):
        made = Descent(groups, self.momentum)
        with torch.no_grad():
            for group in made.param_groups:
                torch._foreach_mul_(group["params"], 0.5)
        return made


MUTANTS = [
    Mutant("optimizer", MatricesOnly(), Right(), "every_parameter_once", "parameters once"),
    Mutant("optimizer", Everything(), Right(), "every_parameter_once", "12 parameters"),
    Mutant("optimizer", Searches(), Right(), "needs_no_closure", "step(closure)"),
    Mutant("optimizer", Uphill(), Right(), "trains_every_parameter", "a loss below"),
    Mutant("optimizer", ReadsOnce(), Right(), "reads_the_learning_rate", "the same weights"),
    Mutant("optimizer", DecaysAtZero(), Right(), "reads_the_learning_rate", "the same weights"),
    Mutant("optimizer", DecaysAll(), Right(), "no_gradient_no_change", "without a gradient"),
    Mutant("optimizer", Draws(), Right(), "same_twice", "to the bit"),
    Mutant("optimizer", Outside(), Right(), "resumes_to_the_bit", "to the bit"),
    Mutant("optimizer", Normalizes(), Right(), "elementwise_as_declared", "weight"),
    Mutant("optimizer", StepsAtOnce(), Right(), "builds_anew", "the same weights"),
]
