"""Guidance by name: what a call takes, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from guidance_support import system_of

from diffkit.errors import DiffkitError
from diffkit.guidance import ClassifierFree
from diffkit.registry import registry
from diffkit.system.call_parts import parts_for

Y = torch.tensor([0, 1])
CFG = ("cfg", {"scale": 2})


@pytest.fixture(scope="module")
def system():
    return system_of(null_conditions={"y": 3})


def draw(system, guidance):
    return system.sample(2, steps=2, seed=0, guidance=guidance, y=Y, progress=False)


@pytest.mark.parametrize(
    "slot",
    [CFG, list(CFG), {"name": "cfg", "scale": 2}, [ClassifierFree(2.0)], [CFG]],
    ids=["pair", "list", "mapping", "instances", "pairs"],
)
def test_every_way_to_say_it(system, slot):
    assert torch.equal(draw(system, slot), draw(system, ClassifierFree(2.0)))


def test_several(system):
    found = parts_for(system.parts, None, [("cfg", {"scale": 2}), "dynamic-threshold", None]).guidance
    assert [registry("guidance").provenance(one).name for one in found] == ["cfg", "dynamic_threshold"]
    assert torch.equal(draw(system, []), draw(system, None))


BAD = [
    ("cgf", "no guidance named 'cgf'; did you mean 'cfg'? (known: apg, autoguidance, cfg, cfg_zero, classifier"),
    ("cfg", "guidance 'cfg' needs 'scale' (options: scale, interval"),
    (("cfg", {"scal": 2}), "guidance 'cfg' has no option 'scal'; did you mean 'scale'? (options: scale, interval"),
    (("cfg", {"scale": "x"}), "guidance 'cfg': scale must be a number, got 'x'"),
    ({"scale": 2}, "guidance as a mapping needs a 'name', got {'scale': 2}"),
    (ClassifierFree, "guidance must be an instance, not the class ClassifierFree; write ClassifierFree()"),
    (2.0, "guidance must be a name, a (name, options) pair, a mapping or an instance, got 2.0"),
]


@pytest.mark.parametrize(("slot", "text"), BAD, ids=[t[:30] for _, t in BAD])
def test_wrong_names_and_options(system, slot, text):
    with pytest.raises(DiffkitError, match=re.escape(text)):
        draw(system, slot)


def test_what_is_no_guidance_is_refused_member_by_member(system):
    with pytest.raises(DiffkitError, match="does not honour the Guidance contract"):
        draw(system, torch.nn.Identity())
