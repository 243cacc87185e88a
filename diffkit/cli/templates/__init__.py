"""What ``diffkit new-plugin`` writes: a package around working parts, one file for each kind.

A part's file is named as its kind is and takes along the files of this folder that it imports. The first line of its
docstring is its summary, and its usage an example for the README. ``package/`` is everything else; what mentions the
kind there, a file in its name or a paragraph between two blank lines, is written for each kind, and the tests of a kind
that is a module are in a file of their own. Names of files and their texts hold ``my_part``, ``MyPart`` and the other
words of `_words`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import dedent

from diffkit._version import __version__
from diffkit.registry import COMMAND, OFFERED

_HERE = Path(__file__).parent
_OF_A_KIND = re.compile("my_(kind|group|summary|language|example)")
"""What differs from kind to kind."""
_MODULES = tuple(name for name, kind in OFFERED.items() if kind.module)
"""Kinds that are modules, which have no laws."""


def package_files(kinds: Sequence[str], distribution: str, part: str) -> dict[str, str]:
    """Return path -> text of every file of a new package.

    Args:
        kinds: Kinds of its parts, each once; "command" and "adopter" may be among them.
        distribution: Name of the distribution, words joined by "-".
        part: Registered name of each, words joined by "_".
    """
    title = _summary(kinds[0]) if len(kinds) == 1 else f"For diffkit: {', '.join(kinds)}."
    words = [_words(kind, distribution, part) | {"my_title": title} for kind in kinds]
    found: dict[str, str] = {}
    for path, text in _around().items():
        if of_kind := re.search(f"my_(kind|{'|'.join(_MODULES)})", path):
            of = [each for each in words if (each["my_kind"] if each["my_kind"] in _MODULES else "kind") == of_kind[1]]
            found |= {_filled(path, each): _filled(text, each) for each in of}
        else:
            found[_filled(path, words[0])] = "\n\n".join(_paragraphs(text, words)) + "\n" if text else ""
    for each in words:
        module = _read(f"{each['my_kind']}.py")
        texts = {"src/my_package/my_kind.py": module, **_imported(module)}
        found |= {_filled(path, each): _filled(text, each) for path, text in texts.items()}
    return found


def _words(kind: str, distribution: str, part: str) -> dict[str, str]:
    """What the words of templates stand for."""
    major, minor = __version__.split(".")[:2]
    name, package = "".join(word.title() for word in part.split("_")), distribution.replace("-", "_")
    words = {
        "my-package": distribution,
        "my_package": package,
        "my_part": part,
        **{f"my_{module}": module for module in _MODULES},
        "my-command": part.replace("_", "-"),
        "MyPart": name,
        "my_group": OFFERED[kind].group,
        "my_target": f"{package}.{kind}" if OFFERED[kind].module else f"{package}.{kind}:{name}",
        "my_kind": kind,
        "my_summary": _summary(kind),
        "my_language": "sh" if kind == COMMAND.name else "python",
        # the contracts of parts may change with the second number
        "diffkit>=0": f"diffkit>={major}.{minor},<{major}.{int(minor) + 1}",
    }
    usage = _filled(dedent(_docstring(kind).partition("\n\nUsage:\n")[2]).strip(), words)
    return words | {"my_example": usage if kind == COMMAND.name else f"import diffkit\n\n{usage}"}


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub("|".join(words), lambda word: words[word[0]], text)


def _paragraphs(text: str, words: Sequence[Mapping[str, str]]) -> Iterable[str]:
    """The paragraphs of a text, filled: those of a kind for each, consecutive ones together; a module has no laws."""
    parts = any(each["my_kind"] not in _MODULES for each in words)
    paragraphs = [each for each in text.strip().split("\n\n") if parts or "diffkit check" not in each]
    own = [bool(_OF_A_KIND.search(paragraph)) for paragraph in paragraphs]
    i = 0
    while i < len(paragraphs):
        end = next((j for j in range(i, len(own)) if own[j] != own[i]), len(own))
        for each in words if own[i] else words[:1]:
            yield from (_filled(paragraph, each) for paragraph in paragraphs[i:end])
        i = end


def _summary(kind: str) -> str:
    return _docstring(kind).partition("\n")[0]


def _docstring(kind: str) -> str:
    return ast.get_docstring(ast.parse(_read(f"{kind}.py"))) or ""


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _imported(module: str) -> dict[str, str]:
    """Files of this folder that a part's file imports."""
    names = re.findall(r"from \.(\w+) import", module)
    return {f"src/my_package/{name}.py": _read(f"{name}.py") for name in names}


def _around() -> dict[str, str]:
    """All of a package but its modules."""
    files = [path for path in (_HERE / "package").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(_HERE / "package").as_posix(): path.read_text(encoding="utf-8") for path in files}
