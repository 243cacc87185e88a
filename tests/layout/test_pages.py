"""What pages say of the code is true: paths and functions exist, line counts are near, the layers are those tested."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_imports import ORDER

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

PATHS = sorted(set(re.findall(r"`((?:diffkit|tests|docs|plugins|benchmarks)/[\w./-]*)`", ARCHITECTURE)))
FUNCTIONS = sorted(set(re.findall(r"`([\w/.]+\.py):([\w.]+)`", ARCHITECTURE)))
READING = re.findall(r"^\| `([\w/.]+\.py)` \| (\d+) \| (.+) \|$", ARCHITECTURE, re.MULTILINE)
LINKS = [
    (page, target)
    for page in sorted(
        page
        for pattern in (
            "*.md",
            "docs/*.md",
            "docs/learn/*.md",
            "docs/from/*.md",
            "docs/proof/*.md",
            "plugins/**/README.md",
        )
        for page in ROOT.glob(pattern)
    )
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    if "repository/" not in target  # copied when the site is built, which checks them
]


def qualified_names(path: str) -> set[str]:
    """Functions and classes of a file, methods as ``Class.method``."""
    found: set[str] = set()
    todo = [("", ast.parse((ROOT / path).read_text(encoding="utf-8")).body)]
    while todo:
        prefix, body = todo.pop()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                todo.append((f"{prefix}{node.name}.", node.body))
    return found


def lines_in(path: str) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def entries_in(text: str) -> tuple[str, ...]:
    """Entries of the top level in the order a page names them: `table.py` is table, `parts/` parts."""
    return tuple(re.findall(r"`(\w+)(?:\.py|/)`", text))


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path: str):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("path", "name"), FUNCTIONS)
def test_function_exists(path: str, name: str):
    assert name in qualified_names(path)


def test_line_counts_are_near():
    assert len(READING) >= 10
    far = {path: lines_in(path) for path, said, _ in READING if abs(lines_in(path) - int(said)) > 0.15 * int(said)}
    assert not far, f"docs/architecture.md gives other line counts for {far}"


def test_the_reading_takes_an_afternoon():
    said = int(re.search(r"About (\d),(\d+) lines", ARCHITECTURE).expand(r"\1\2"))
    assert sum(lines_in(path) for path, _, _ in READING) == pytest.approx(said, rel=0.15)


def test_layers_in_contributing_are_those_tested():
    table = CONTRIBUTING.partition("| place | what |")[2].partition("\n\n")[0]
    assert entries_in("\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))) == ORDER


def test_layers_in_architecture_are_those_tested():
    assert entries_in("\n".join(re.findall(r"^\d+\. (`\S+`)$", ARCHITECTURE, re.MULTILINE))) == ORDER


def test_folders_of_tests_are_packages_or_named_in_contributing():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    named = set(re.findall(r"`tests/(\w+)/`", CONTRIBUTING))
    assert folders <= {*ORDER, *named}, "name the folder in CONTRIBUTING.md, or move its tests to that of a package"
    assert all((ROOT / "tests" / name).is_dir() for name in named)


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_link_leads_to_a_file(page: Path, target: str):
    assert (page.parent / target).exists()


def test_the_table_of_optimizers_is_that_of_its_results():
    results = (ROOT / "benchmarks" / "digits" / "results" / "optimizers.md").read_text(encoding="utf-8")
    assert results[results.index("| optimizer") :] in (ROOT / "docs" / "learn" / "optimizers.md").read_text(
        encoding="utf-8"
    )
