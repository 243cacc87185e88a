"""The kinds of part, each declared once; everything that lists kinds reads this table.

A new kind is one record here and one protocol. Its built-in parts are the public modules of its package, each named as
the part in it; those of others are found by entry point, or registered in the process. Commands are found in the same
way, though they are not parts: a command is the module itself, and so is a reader of another library's models.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from attrs import field, frozen


@frozen
class Kind:
    """One kind of part.

    Attributes:
        name: How it is referred to: the keyword of calls, the option of commands.
        about: What a part of this kind is, in one line.
        protocol: "module:Class" of its contract; imported on first use, as the registry imports nothing above itself.
        package: Dotted name of the package with its built-in parts.
        slot: True for the keywords of `diffkit.compose`, of which a composition has one each.
        objects: True if options may be objects such as networks and functions, not plain data only. A part with
            such options can be made in Python only.
        recipe: True if a part holds options only. Otherwise a name stands for a class or function that makes an object
            to use at once, such as a network; the contract is checked on that object.
        module: True if what a name stands for is a module, not a class in it.
        weights: True if its parts may have weights, as a `LearnedPart`.
        several: True if a command takes several of them: ``--hook early_stopping,gradient_norms``.
        group: Group of its entry points; "diffkit.NAME" by default.
    """

    name: str
    about: str
    protocol: str
    package: str
    slot: bool = False
    objects: bool = False
    recipe: bool = True
    module: bool = False
    several: bool = False
    weights: bool = False
    group: str = field()

    @group.default
    def _group(self) -> str:
        return f"diffkit.{self.name}"

    @property
    def contract(self) -> type[Any]:
        """The protocol that its parts follow."""
        return _contract(self.protocol)

    @property
    def home(self) -> str:
        """Where users import the protocol from, for messages: "diffkit.protocols.Sampler"."""
        return self.protocol.replace(":", ".")


@cache
def _contract(protocol: str) -> type[Any]:
    module, _, name = protocol.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def _slot(name: str, about: str, protocol: str, folder: str, weights: bool = False) -> Kind:
    return Kind(name, about, f"diffkit.protocols:{protocol}", f"diffkit.parts.{folder}", slot=True, weights=weights)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _slot("schedule", "Noise schedule.", "NoiseSchedule", "schedules", weights=True),
        _slot("mean", "What the network predicts.", "MeanParameterization", "means"),
        _slot("var", "Variance of the reverse step.", "VarianceParameterization", "variances"),
        _slot("loss", "What training minimizes.", "Loss", "losses", weights=True),
        _slot("timesteps", "Which levels training visits.", "TimestepSampler", "timesteps"),
        _slot("sampler", "How samples are drawn.", "Sampler", "samplers"),
        _slot("backbone", "The network.", "Backbone", "backbones"),
        Kind(
            "guidance",
            "Guidance of the samples.",
            "diffkit.protocols:Guidance",
            "diffkit.parts.guidance",
            objects=True,
        ),
        Kind("spacing", "Levels that are visited.", "diffkit.protocols:LevelSpacing", "diffkit.parts.spacings"),
        Kind("decoder", "Likelihood of data at the last step.", "diffkit.protocols:Decoder", "diffkit.parts.decoders"),
        Kind("coupling", "Which noise meets which example.", "diffkit.protocols:Coupling", "diffkit.parts.couplings"),
        Kind(
            "codec",
            "What is between data and network.",
            "diffkit.protocols:Codec",
            "diffkit.parts.codecs",
            weights=True,
        ),
        Kind(
            "adapter", "What is trained beside frozen weights.", "diffkit.protocols:Adapter", "diffkit.parts.adapters"
        ),
        Kind("data", "Where examples come from.", "diffkit.data:Source", "diffkit.data.sources"),
        Kind(
            "optimizer",
            "How weights change by their gradients.",
            "diffkit.protocols:Optimizer",
            "diffkit.training.optimizers",
        ),
        Kind(
            "lr_schedule",
            "How the learning rate changes.",
            "diffkit.protocols:LRSchedule",
            "diffkit.training.lr_schedules",
        ),
        Kind(
            "extractor",
            "Feature network that samples are measured with.",
            "diffkit.evaluation:Extractor",
            "diffkit.evaluation.extractors",
            objects=True,
            recipe=False,
            group="diffkit.extractors",
        ),
        Kind(
            "hook",
            "What runs beside the updates of training.",
            "diffkit.training:Hook",
            "diffkit.training.hooks",
            objects=True,
            recipe=False,
            several=True,
        ),
    )
}
"""Every kind of part by its name, in the order of listings."""

COMMAND = Kind(
    "command",
    "Command of diffkit.",
    "diffkit.cli.parsing.commands:CommandModule",
    "diffkit.cli.commands",
    module=True,
)
"""What ``diffkit NAME`` runs."""

ADOPTER = Kind(
    "adopter",
    "Reader of another library's models.",
    "diffkit.system.adopting:Adopter",
    "",
    module=True,
)
"""A module that `diffkit.adopt` reads a library's models by; its name is that of the library's package."""

OFFERED: dict[str, Kind] = {**KINDS, COMMAND.name: COMMAND, ADOPTER.name: ADOPTER}
"""Everything that a package can offer by name, by kind: parts, commands, and readers of other libraries' models."""

KERNEL = Kind(
    "kernel",
    "Arithmetic of networks in fewer passes over memory.",
    "diffkit.protocols:GroupNormKernel",
    "",
    module=True,
)
"""A module that computes what layers do; it is installed, and has no name in a composition. There is none built in."""

FOUND: dict[str, Kind] = {**OFFERED, KERNEL.name: KERNEL}
"""Everything that is looked for among entry points, by kind."""

SLOTS: tuple[str, ...] = tuple(kind.name for kind in KINDS.values() if kind.slot)
"""Names of the kinds that `diffkit.compose` has a keyword for."""
