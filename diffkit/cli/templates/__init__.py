"""What ``diffkit new-plugin`` writes: a package around a working part, one file for each kind of part.

A part's file is named as its kind is and takes along the files of this folder that it imports. The first line of its
docstring is the summary of the package, and its usage an example for the README. ``package/`` is everything else.
Names of files and their texts hold ``my_part``, ``MyPart`` and the other words that `package_files` replaces.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from textwrap import dedent

from diffkit._version import __version__
from diffkit.registry import KINDS

_HERE = Path(__file__).parent


def package_files(kind: str, distribution: str, part: str) -> dict[str, str]:
    """Return path -> text of every file of a new package.

    Args:
        kind: Kind of the part.
        distribution: Name of the distribution, words joined by "-".
        part: Registered name, words joined by "_".
    """
    module = (_HERE / f"{kind}.py").read_text(encoding="utf-8")
    summary, _, usage = (ast.get_docstring(ast.parse(module)) or "").partition("\n\nUsage:\n")
    major, minor = __version__.split(".")[:2]
    words = {
        "my-package": distribution,
        "my_package": distribution.replace("-", "_"),
        "my_part": part,
        "MyPart": "".join(word.title() for word in part.split("_")),
        "my_group": KINDS[kind].group,
        "my_kind": kind,
        "my_summary": summary,
        "my_example": dedent(usage).strip().replace("my_part", part),
        # the contracts of parts may change with the second number
        "diffkit>=0": f"diffkit>={major}.{minor},<{major}.{int(minor) + 1}",
    }
    pattern = re.compile("|".join(words))

    def filled(text: str) -> str:
        return pattern.sub(lambda word: words[word[0]], text)

    texts = {"src/my_package/__init__.py": module, **_imported(module), **_around()}
    return {filled(path): filled(text) for path, text in texts.items()}


def kinds() -> list[str]:
    """Return the kinds that there is a template of."""
    return sorted(path.stem for path in _HERE.glob("[!_]*.py"))


def _imported(module: str) -> dict[str, str]:
    """Files of this folder that a part's file imports."""
    names = re.findall(r"from \.(\w+) import", module)
    return {f"src/my_package/{name}.py": (_HERE / f"{name}.py").read_text(encoding="utf-8") for name in names}


def _around() -> dict[str, str]:
    """All of a package but its modules."""
    files = [path for path in (_HERE / "package").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(_HERE / "package").as_posix(): path.read_text(encoding="utf-8") for path in files}
