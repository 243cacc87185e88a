"""Guidance from configuration files: names and options."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from guidance_support import system_of

from diffkit.errors import OptionError
from diffkit.guidance import NAMES, ClassifierFree, DynamicThreshold, guidance_class, guidance_for


@pytest.mark.parametrize(
    "slot",
    [("cfg", {"scale": 2}), ["cfg", {"scale": 2}], {"name": "cfg", "scale": 2}, ClassifierFree(2.0)],
    ids=["pair", "list", "mapping", "instance"],
)
def test_every_way_to_say_it(slot):
    made = guidance_for(slot)
    assert isinstance(made, ClassifierFree) and made.scale == 2.0


def test_several():
    made = guidance_for([("cfg", {"scale": 2}), "dynamic-threshold", None])
    assert [type(one) for one in made] == [ClassifierFree, DynamicThreshold]
    assert guidance_for(None) is None and guidance_for([]) == []
    assert system_of().sample(2, steps=1, guidance=guidance_for([]), y=[0, 1], progress=False).shape == (2, 3, 4, 4)


def test_every_name_has_a_class():
    for name in NAMES:
        assert guidance_class(name).__name__ == NAMES[name]


BAD = [
    ("cgf", "no guidance named 'cgf'; did you mean 'cfg'? (known: autoguidance, cfg, classifier, dynamic_threshold"),
    ("cfg", "guidance 'cfg' cannot be made with these options"),
    (("cfg", {"scal": 2}), "guidance 'cfg' has no option 'scal'; did you mean 'scale'? (options: scale, interval"),
    (("cfg", {"scale": "x"}), "guidance 'cfg': scale must be a number, got 'x'"),
    ({"scale": 2}, "guidance as a mapping needs a 'name', got {'scale': 2}"),
]


@pytest.mark.parametrize(("slot", "text"), BAD, ids=[t[:30] for _, t in BAD])
def test_wrong_names_and_options(slot, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        guidance_for(slot)


def test_looking_at_the_names_does_not_import_torch():
    code = "import sys, diffkit.guidance as g; print(sorted(g.NAMES)[0], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["autoguidance", "False"]
