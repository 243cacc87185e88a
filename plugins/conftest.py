"""Makes the plugins importable and known by name without installing them.

``pytest plugins`` from the repository runs every plugin's tests against the sources next to them: each ``src`` folder
is put on sys.path, and the metadata an installer would write is written to a temporary folder. A plugin that is
installed is left as it is, so an author may also run ``pytest`` in the plugin's own folder after ``pip install -e .``.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
_folder = tempfile.TemporaryDirectory(prefix="diffkit-plugins-")


def pytest_configure() -> None:
    """Put what is not installed on the path, before any test module is imported."""
    torch.set_num_threads(1)
    for file in sorted(HERE.glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        try:
            metadata.distribution(project["name"])
        except metadata.PackageNotFoundError:
            sys.path.insert(0, str(file.parent / "src"))
            write_metadata(project, Path(_folder.name))
    sys.path.insert(0, _folder.name)


def pytest_unconfigure() -> None:
    """Remove the temporary metadata."""
    sys.path.remove(_folder.name)
    _folder.cleanup()


def write_metadata(project: dict[str, Any], folder: Path) -> None:
    """Write the .dist-info folder that installing a project would leave."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    header = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    header += [f"Requires-Dist: {line}" for line in project["dependencies"]]
    (info / "METADATA").write_text("\n".join(header) + "\n", encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project.get("entry-points", {}).items()
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that forgets to pass randomness in is at least repeatable."""
    torch.manual_seed(0)
