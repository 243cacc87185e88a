"""Imports point down the layers, parts never import each other, and importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffkit
from diffkit.registry import KINDS, registry

ROOT = Path(diffkit.__file__).parent
PARTS = set(KINDS.values())
LAYERS = [
    {"_errors", "_elsewhere", "_installed", "_lazy", "_strict", "options", "output", "registry"},
    {"progress", "files", "finite", "folders", "pictures", "publishing", "ranks", "temporaries"},
    {"table", "spacing"},
    {"protocols", "_contracts", "steering"},
    {"gaussian", "decoders", "numerics", "tensors"},
    PARTS | {"slots"},
    {
        "building",
        "calls",
        "columns",
        "compiling",
        "conditions",
        "denoiser",
        "derivatives",
        "keeping",
        "modes",
        "noise",
        "null_conditions",
        "objective",
        "sampling",
        "signatures",
        "bound",
        "spec",
        "system",
    },
    {"composer", "saving"},
    {"guidance", "tasks", "likelihood", "presets", "weights", "sizing", "_sizing_trace"},
    {"data", "training", "evaluation", "explain", "_explain_text", "_explain_plot", "plugin_check"},
    {"cli", "testing", "demo", "__main__", "__init__"},
]
LAYER = {name: i for i, layer in enumerate(LAYERS) for name in layer}
PART_MAY_IMPORT = {"_errors", "options", "registry", "table", "protocols", "gaussian", "tensors"}
FILES = sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Modules of diffkit imported at run time: what stands under TYPE_CHECKING does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diffkit."):
            found.add(node.module.removeprefix("diffkit."))
        if isinstance(node, ast.Import):
            found.update(a.name.removeprefix("diffkit.") for a in node.names if a.name.startswith("diffkit."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = LAYER[top(path)]
    for name in imports_of(path):
        package = name.split(".")[0]
        assert LAYER[package] <= own, f"{path.name} (layer {own}) imports diffkit.{name} (layer {LAYER[package]})"


@pytest.mark.parametrize("path", [p for p in FILES if top(p) in PARTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_parts_import_only_the_contracts_and_their_own_folder(path):
    own = top(path)
    for name in imports_of(path):
        package, _, module = name.partition(".")
        assert package in PART_MAY_IMPORT or (package == own and module.startswith("_")), f"{path} imports {name}"


@pytest.mark.parametrize("kind", KINDS)
def test_file_stem_is_registered_name(kind):
    for name in registry(kind).built_in_names():
        part = registry(kind).get(name)
        assert registry(kind).provenance(registry(kind).create(name)).name == name
        assert part.__module__ == f"diffkit.{KINDS[kind]}.{name}"


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
parts = 'schedules means variances losses timesteps samplers backbones'.split()
print([m for m in sys.modules if m.startswith('diffkit.') and m.count('.') == 2], 'torch' in sys.modules)
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
