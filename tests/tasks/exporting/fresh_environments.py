"""Virtual environments that have some of the packages that are installed here, and not diffkit."""

from __future__ import annotations

import os
import re
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def fresh_environment(home: Path, *packages: str) -> Path:
    """Make an environment of packages and those that they require, as links, and return its Python."""
    venv.create(home, symlinks=os.name != "nt")
    (site,) = home.glob("[Ll]ib/**/site-packages")
    for name in _with_required(packages):
        package = metadata.distribution(name)
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(str(package.locate_file(top)))
    return home / ("Scripts" if os.name == "nt" else "bin") / "python"


def _with_required(packages: Iterable[str]) -> set[str]:
    """Packages and those that they require, as far as they are installed."""
    todo, found = list(packages), set[str]()
    while todo:
        name = todo.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            todo += [re.split(r"[^\w.-]", each)[0] for each in required if "extra ==" not in each]
    return found
