"""Plugins really installed with pip in a throw-away environment, one broken among them; nothing is downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registry_support import schedule

import diffkit

pytestmark = pytest.mark.slow
ROOT = Path(diffkit.__file__).parents[1]
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "1.2"
dependencies = ["diffkit"]
[project.entry-points."diffkit.schedule"]
{part} = "{module}:Part"
[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A new virtual environment with diffkit and what it needs, and a function that runs its Python."""
    pytest.importorskip("hatchling")
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    (site,) = home.glob("[Ll]ib/**/site-packages")
    # What is installed here is seen there; what is installed there is not seen here.
    here = dict.fromkeys([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))])
    (site / "here.pth").write_text("\n".join(here) + "\n")
    outer = {k: v for k, v in os.environ.items() if k not in ("DIFFKIT_PLUGINS", "PYTHONPATH")}

    def run(*arguments: str, status: int = 0, **more: str) -> str:
        done = subprocess.run(
            [str(python), *arguments], env=outer | more, capture_output=True, text=True, check=False, cwd=home
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    run("-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "-q", str(ROOT))
    yield run


def project(folder: Path, name: str, part: str, source: str) -> str:
    module = name.replace("-", "_")
    package = folder / name / "src" / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    (folder / name / "pyproject.toml").write_text(PYPROJECT.format(name=name, part=part, module=module))
    return str(folder / name)


def install(run: Callable[..., str], *arguments: str) -> None:
    run("-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "-q", *arguments)


COMPOSE = """
import diffkit
system = diffkit.compose(schedule={name!r}, backbone=None, num_steps=4)
print(system.spec()["parts"]["schedule"])
"""


def test_an_installed_plugin_works_with_no_edit_anywhere(environment: Callable[..., str], tmp_path: Path):
    assert "acme-ramp" not in environment("-c", "import diffkit; print(diffkit.describe('schedule'))")
    install(environment, project(tmp_path, "acme-ramp", "ramp", schedule()))
    listing = environment("-c", "import diffkit; print(diffkit.describe('schedule'))")
    assert next(line.split()[:3] for line in listing.splitlines() if "ramp" in line) == ["ramp", "acme-ramp", "1.2"]
    spec = environment("-c", COMPOSE.format(name="ramp"))
    assert spec.strip() == "{'name': 'ramp', 'options': {'end': 0.5}, 'origin': 'acme-ramp', 'version': '1.2'}"


def test_an_editable_install_is_found_once(environment: Callable[..., str], tmp_path: Path):
    pytest.importorskip("editables", reason="hatchling needs it for editable installs")
    install(environment, "-e", project(tmp_path, "acme-editable", "editable_ramp", schedule()))
    listing = environment("-c", "import diffkit; print(diffkit.describe('schedule'))")
    assert sum("editable_ramp" in line for line in listing.splitlines()) == 1
    assert "acme-editable" in environment("-c", COMPOSE.format(name="editable_ramp"))


def test_two_plugins_with_one_name_and_one_that_hangs(environment: Callable[..., str], tmp_path: Path):
    install(environment, project(tmp_path, "acme-left", "twin", schedule()))
    install(environment, project(tmp_path, "acme-right", "twin", schedule()))
    install(environment, project(tmp_path, "acme-hang", "hang", "import time\ntime.sleep(600)\n"))
    assert "acme-right" in environment("-c", COMPOSE.format(name="acme-right:twin"))
    code = """
import diffkit
try:
    diffkit.compose(schedule="twin", backbone=None)
except diffkit.AmbiguousComponentError as error:
    print(error)
"""
    assert "'acme-left:twin' and 'acme-right:twin'" in environment("-c", code)
    code = """
from diffkit.registry.check_plugins import check_plugins
for report in check_plugins(["schedule"], timeout=5):
    print(report)
"""
    lines = environment("-c", code).splitlines()
    assert any(line.startswith("schedule acme-hang:hang 1.2: 5.") and "still loading" in line for line in lines)
    assert all(line.endswith("s, ok") for line in lines if "acme-hang" not in line)


def test_a_plugin_installed_while_running_is_seen_after_refresh(environment: Callable[..., str], tmp_path: Path):
    folder = project(tmp_path, "acme-late", "late_ramp", schedule())
    code = f"""
import subprocess, sys
import diffkit
from diffkit.registry import registry
assert "late_ramp" not in registry("schedule").names()
pip = [sys.executable, "-m", "pip"]
subprocess.run([*pip, "install", "--no-index", "--no-build-isolation", "--no-deps", "-q", {folder!r}], check=True)
diffkit.refresh()
print(registry("schedule").get("late_ramp").__module__)
subprocess.run([*pip, "uninstall", "-y", "-q", "acme-late"], check=True)
diffkit.refresh()
print("late_ramp" in registry("schedule").names())
"""
    assert environment("-c", code).split() == ["acme_late", "False"]


def test_the_plugins_of_this_repository_live_side_by_side(environment: Callable[..., str]):
    folders = [str(f.parent) for f in sorted(ROOT.glob("plugins/*/pyproject.toml"))]
    install(environment, *folders)
    listing = environment("-c", "import diffkit; print(diffkit.describe())")
    for name in ("minsnr", "edm_heun", "flow_euler"):
        assert sum(f" {name} " in line for line in listing.splitlines()) == 1
    assert "shadowed" not in listing
    code = """
import diffkit
system = diffkit.compose(schedule="edm_karras", mean="flow", loss="minsnr", timesteps="edm_lognormal",
                         sampler="edm_heun", backbone=("mlp", {"hidden": 8}), data_shape=(2,), bins=None, num_steps=4)
print(tuple(system.sample(3, progress=False).shape))
"""
    assert environment("-c", code).strip() == "(3, 2)"
