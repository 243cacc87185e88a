"""Parts whose own code raises anything at all: an error of ours names them, wherever they are looked at."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen

import diffkit
from diffkit.errors import DiffkitError, ProtocolError
from diffkit.guidance import ClassifierFree
from diffkit.parts.samplers.ddim import DDIM
from diffkit.protocols import ConditionalBackbone, Guidance
from diffkit.registry import registry
from diffkit.registry.contracts import check_contract


class Ending(BaseException):
    """As exceptions that end a process."""


class OddNamespace(type):
    __dict__ = property(lambda cls: 1 / 0)


class OddAncestors(type):
    __mro__ = property(lambda cls: 3)


class NoAttributes(type):
    def __getattribute__(cls, name):
        raise Ending(name)


class Closed:
    def __getattribute__(self, name):
        raise Ending(name)


class Unreal(DDIM):
    __class__ = property(lambda self: 1 / 0)


class PropertyRaises(DDIM):
    order = property(lambda self: [].pop())


class MethodRaises(DDIM):
    plan = property(lambda self: exit(3))


class Unspeakable:
    def __getattr__(self, name):
        raise AttributeError(name)

    def __repr__(self):
        raise Ending

    def __eq__(self, other):
        raise Ending

    __hash__ = None


class OddAttribute(DDIM):
    order = Unspeakable()


class ProblemsRaise(DDIM):
    def problems(self, composition):
        raise Ending


class ProblemsAreNone(DDIM):
    def problems(self, composition):
        return 5


class ProblemsAreNumbers(DDIM):
    def problems(self, composition):
        return [5]


def of(metaclass):
    """A class of an odd metaclass; at the top of a file pytest would look at it."""
    return metaclass("Of" + metaclass.__name__, (), {})


METACLASSES = [OddNamespace, OddAncestors]
CLASSES = [PropertyRaises, MethodRaises, OddAttribute]
INSTANCES = [*CLASSES, Closed, Unreal, Unspeakable, ProblemsRaise, ProblemsAreNone, ProblemsAreNumbers]


def name_of(cls):
    return type.__dict__["__name__"].__get__(cls)


@pytest.mark.parametrize("made", [*CLASSES, *METACLASSES, NoAttributes], ids=lambda cls: cls.__name__)
def test_a_class_is_looked_at(made, monkeypatch):
    monkeypatch.setattr(registry("sampler"), "_here", {})  # so that it is forgotten
    cls = of(made) if issubclass(made, type) else made
    for look in (lambda: check_contract("sampler", cls), lambda: registry("sampler").register("a_hostile_one")(cls)):
        try:
            look()
        except DiffkitError as error:
            assert name_of(cls) in str(error) or "a_hostile_one" in str(error)


@pytest.mark.parametrize("made", [*INSTANCES, *METACLASSES], ids=lambda cls: cls.__name__)
def test_an_instance_is_refused_by_name(made):
    cls = of(made) if issubclass(made, type) else made
    part = cls()
    plain = diffkit.compose(backbone=None, data_shape=(2,), schedule="cosine", num_steps=10)
    with pytest.raises(ProtocolError, match=name_of(cls)):
        diffkit.compose(backbone=None, sampler=part)
    with pytest.raises(ProtocolError, match=name_of(cls)):
        plain.sample(2, model=lambda x, time: x, sampler=part, progress=False)


@pytest.mark.parametrize("method", ["null_conditions", "count_classes", "problems"])
def test_a_backbone_is_named(method):
    def fail(self, *_):
        raise Ending("not today")

    made = frozen(
        type("Hostile", (ConditionalBackbone,), {method: fail, "build": lambda self, *_: torch.nn.Identity()})
    )
    with pytest.raises(ProtocolError, match="backbone 'Hostile' cannot be used: its own code raised Ending: not today"):
        diffkit.compose(backbone=made(), data_shape=(2,))


@pytest.mark.parametrize("count", [-1, 2.5, "3", True])
def test_a_count_of_classes_that_is_none_is_refused(count):
    made = frozen(
        type("Odd", (ConditionalBackbone,), {"count_classes": lambda self: count, "build": lambda self, *_: None})
    )
    with pytest.raises(ProtocolError, match=r"backbone 'Odd': count_classes\(\) must return a number of classes"):
        diffkit.compose(backbone=made(), data_shape=(2,))


def test_a_guidance_is_named():
    class Hostile(Guidance):
        def problems(self, parts):
            raise Ending

    system = diffkit.compose(backbone=None, data_shape=(2,), schedule="cosine", num_steps=10)
    with pytest.raises(ProtocolError, match="guidance 'Hostile' cannot be used: its own code raised Ending"):
        system.sample(2, model=lambda x, time, y: x, guidance=[ClassifierFree(2.0, null={"y": 1}), Hostile()], y=0)


def test_guidance_is_held_to_its_contract():
    class Odd(Guidance):
        own_conditions = frozenset(["secret"])

        def columns(self): ...

    system = diffkit.compose(backbone=None, data_shape=(2,), schedule="cosine", num_steps=10)
    with pytest.raises(ProtocolError) as caught:
        system.sample(2, model=lambda x, time: x, guidance=Odd(), secret=1)
    assert str(caught.value).split("\n") == [
        "guidance 'Odd' does not honour the Guidance contract:",
        "  columns: expected columns(table), found columns()",
        "  own_conditions: belongs to diffkit.protocols.ConditionalGuidance; inherit from it, or rename this member",
        "inherit from diffkit.protocols.Guidance for the defaults",
    ]


def test_the_user_can_still_stop():
    class Stopped(DDIM):
        def problems(self, composition):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diffkit.compose(backbone=None, sampler=Stopped())
