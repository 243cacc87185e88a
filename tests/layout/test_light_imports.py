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
for kind in KINDS:
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


def test_every_public_name_is_there():
    for name in diffkit.__all__:
        assert getattr(diffkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = diffkit.nonsense


@pytest.mark.parametrize("package", ["data", "evaluation", "explain", "guidance", "likelihood", "tasks", "training"])
def test_every_public_name_of_a_package_is_there(package):
    module = importlib.import_module(f"diffkit.{package}")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
