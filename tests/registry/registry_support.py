"""Distributions written by hand: real metadata folders and modules, as an installer would leave them on sys.path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from attrs import frozen

SCHEDULE = """
    import numpy as np
    from attrs import frozen
    from diffkit.protocols import NoiseSchedule
    from diffkit.table import ProcessTable

    @frozen
    class {name}(NoiseSchedule):
        end: float = 0.5

        def table(self, num_steps):
            return ProcessTable.from_betas(np.linspace(0.1, self.end, num_steps))
"""
"""A whole schedule, to be formatted with the name of its class."""


def schedule(name: str = "Part") -> str:
    """Source of a module that holds one schedule."""
    return dedent(SCHEDULE).format(name=name)


@frozen
class Site:
    """A folder on sys.path that plays site-packages."""

    path: Path

    def module(self, name: str, source: str) -> Path:
        """Write a module, ``a.b`` as a package."""
        file = self.path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in file.relative_to(self.path).parents:
            if folder.name:
                (self.path / folder / "__init__.py").touch()
        file.write_text(dedent(source))
        return file

    def distribution(
        self,
        name: str,
        entry_points: Mapping[str, Mapping[str, str]] | str | bytes,
        *,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
        folder: str | None = None,
    ) -> Path:
        """Write the metadata folder of a distribution.

        Args:
            name: Its name.
            entry_points: Kind -> name -> value, or the file's whole content.
            version: Its version.
            requires: Requirement lines.
            folder: Name of the folder; as installers call it by default.
        """
        info = self.path / (folder or f"{name.replace('-', '_')}-{version}.dist-info")
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        if isinstance(entry_points, Mapping):
            entry_points = "".join(
                f"[diffkit.{kind}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items())
                for kind, points in entry_points.items()
            )
        content = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
        (info / "entry_points.txt").write_bytes(content)
        return info

    def plugin(self, name: str, part: str, source: str | None = None, **metadata: str) -> str:
        """Write a distribution with one schedule in a module of its own; returns the module's name."""
        module = name.replace("-", "_")
        self.module(module, schedule() if source is None else source)
        self.distribution(name, {"schedule": {part: f"{module}:Part"}}, **metadata)
        return module

    def imported(self) -> list[str]:
        """Modules of this folder that are imported."""
        return sorted(n for n, m in sys.modules.items() if str(self.path) in str(getattr(m, "__file__", None)))
