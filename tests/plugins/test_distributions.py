"""The plugins in this repository: whole distributions, side by side, none meeting a built-in, none reaching inside.

Their own tests live with them and need their sources on the path, which ``plugins/conftest.py`` sees to:
``pytest plugins`` runs them all, ``pytest -c pyproject.toml plugins/diffkit-edm`` those of one. Here they are run as
part of the whole, in a process of their own, so that nothing of them reaches the other tests.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import diffkit
from diffkit.registry import KINDS, registry
from diffkit.registry.kinds import FOUND

ROOT = Path(diffkit.__file__).parents[1]
FOLDERS = sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))
PROJECTS: dict[str, dict[str, Any]] = {
    folder.name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS
}


def offers(project: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Kind, name and value of each part a project's metadata offers."""
    return [
        (group.removeprefix("diffkit."), name, value)
        for group, points in project["entry-points"].items()
        for name, value in points.items()
    ]


EVERY = [(folder, *offer) for folder, project in PROJECTS.items() for offer in offers(project)]


WORDS = {
    "diffkit-adopt": {"azula", "deepinv", "edm", "flow_matching", "k_diffusion", "physicsnemo", "sbi", "torchebm"},
    "diffkit-flow": {"velocity"},
    "diffkit-flowmap": {"consistency", "mean_flow", "shortcut", "distill", "flow_map"},
}
"""Names without the family: the words of the papers, by which a method is looked for, and packages that are read."""

QUICK = {"diffkit-minsnr"}
"""Plugins of which the tests take a few seconds."""


def test_there_are_plugins():
    assert {"diffkit-minsnr", "diffkit-edm", "diffkit-flow", "diffkit-flowmap"} <= set(PROJECTS)
    assert {"diffkit-diffusers", "diffkit-kernels"} <= set(PROJECTS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_built_in_has_the_name_of_a_plugin_and_no_two_plugins_share_one(kind: str):
    published = [name for _, k, name, _ in EVERY if k == kind]
    assert not set(published) & set(registry(kind).built_in_names())
    assert len(published) == len(set(published))


@pytest.mark.parametrize(("folder", "kind", "name", "value"), EVERY)
def test_a_name_carries_its_family_and_its_value_is_a_class_or_module_of_the_plugin(
    folder: str, kind: str, name: str, value: str
):
    family = folder.removeprefix("diffkit-")
    assert kind in FOUND
    assert name == family or name.startswith(f"{family}_") or name in WORDS.get(folder, ())
    module, _, attribute = value.partition(":")
    assert module.split(".")[0] == f"diffkit_{family}"
    base = ROOT / "plugins" / folder / "src" / module.replace(".", "/")
    file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if FOUND[kind].module:
        assert not attribute and file.is_file()
        return
    classes = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    assert attribute in classes


@pytest.mark.parametrize("folder", PROJECTS)
def test_a_distribution_is_whole(folder: str):
    project, place = PROJECTS[folder], ROOT / "plugins" / folder
    package = place / "src" / folder.replace("-", "_")
    assert project["name"] == folder
    assert (place / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (package / "py.typed").is_file()
    assert list((place / "tests").glob("test_*.py"))
    assert any(line.startswith("diffkit>=") and "<" in line for line in project["dependencies"])
    readme = (place / "README.md").read_text()
    assert f"pip install {folder}" in readme
    for _, name, _ in offers(project):
        assert f"`{name}`" in readme


SOURCES = [file for folder in FOLDERS for file in sorted(folder.glob("src/**/*.py"))]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_a_plugin_uses_only_what_is_public(file: Path):
    own = file.relative_to(ROOT / "plugins").parts[2]
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.split(".")[0] != own:
                assert not any(part.startswith("_") for part in name.split(".") if part != "__future__"), name


def run(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "DIFFKIT_PLUGINS" and not k.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.mark.parametrize(
    "folder", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow(minutes=1)) for name in PROJECTS]
)
def test_the_tests_of_a_plugin_pass(folder: str):
    place = f"plugins/{folder}"
    done = run("pytest", "-c", "pyproject.toml", place, "-q", "-p", "no:cacheprovider", "-m", "not slow", timeout=300)
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "could not import" in done.stdout:
        pytest.skip(f"{folder} needs a library that is not installed here")
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow(minutes=4)
def test_the_slow_tests_of_every_plugin_pass():
    done = run("pytest", "plugins", "-q", "-p", "no:cacheprovider", "-m", "slow", timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("folder", PROJECTS)
def test_types_are_strict(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mypy")
    monkeypatch.setenv("MYPYPATH", os.pathsep.join([str(ROOT), str(ROOT / "plugins" / folder / "src")]))
    package, config = f"plugins/{folder}/src", f"plugins/{folder}/pyproject.toml"
    done = run(
        "mypy", "--config-file", config, "--follow-imports=silent", "--cache-dir", str(tmp_path), package, timeout=600
    )
    assert done.returncode == 0, done.stdout
