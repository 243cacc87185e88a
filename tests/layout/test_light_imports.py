"""Importing is cheap: names are listed and parts read without torch, and composing needs no optional package."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import diffkit

ROOT = Path(diffkit.__file__).parent


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_a_part_does_not_import_torch():
    code = """
import sys
from diffkit.registry import KINDS, registry
for kind in KINDS.keys() - {'extractor', 'hook'}:  # a network is made at once, and hooks read tensors
    for name in registry(kind).built_in_names():
        registry(kind).get(name)
print('torch' in sys.modules)
"""
    assert run(code) == "False"


def test_listing_imports_no_part():
    code = """
import sys, diffkit
diffkit.describe()
print([m for m in sys.modules if m.startswith('diffkit.parts.') and m.count('.') == 3], 'torch' in sys.modules)
"""
    assert run(code) == "[] False"


def test_composing_needs_torch_numpy_and_attrs_only():
    code = """
import sys, diffkit
diffkit.compose(schedule='cosine', var='learned_range', loss='hybrid', backbone=None)
roots = {m.split('.')[0] for m in sys.modules}
print(sorted(roots & {'scipy', 'PIL', 'matplotlib', 'rich', 'cyclopts', 'cattrs', 'sklearn', 'hypothesis', 'pytest',
                      'safetensors', 'torchvision'}), 'torch._dynamo' in sys.modules)
"""
    assert run(code) == "[] False"


@pytest.mark.parametrize(
    "name", ["", ".data", ".evaluation", ".explain", ".guidance", ".likelihood", ".tasks", ".training"]
)
def test_every_public_name_is_there(name: str):
    package = importlib.import_module(f"diffkit{name}")
    for public in package.__all__:
        assert getattr(package, public) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


def test_submodules_are_there_too():
    assert run("import diffkit; print(diffkit.data.loading.load('digits').shape)") == "(1, 8, 8)"
