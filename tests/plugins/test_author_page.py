"""The page for plugin authors, carried out: every file written, every command and example run, in order."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import diffkit

ROOT = Path(diffkit.__file__).parents[1]
PAGE = (ROOT / "plugins" / "README.md").read_text()
BLOCK = re.compile(r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(m["file"], m["language"], m["text"]) for m in BLOCK.finditer(PAGE)]


def test_the_page_is_understood():
    files = [file for file, _, _ in BLOCKS if file]
    assert [Path(f).name for f in files] == ["pyproject.toml", "__init__.py", "test_acme_euler.py", "README.md"]
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {language for file, language, _ in BLOCKS if not file} == {"sh", "python", "text"}


def test_every_plugin_is_on_the_page():
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        assert f"[{file.parent.name}]({file.parent.name})" in PAGE


@pytest.fixture
def do(tmp_path: Path) -> Callable[[list[str]], str]:
    """Run a command in an empty folder, in a new environment that has diffkit and may download nothing."""
    pytest.importorskip("hatchling")
    pytest.importorskip("cyclopts")
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    (site,) = home.glob("[Ll]ib/**/site-packages")
    here = dict.fromkeys([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))])
    (site / "here.pth").write_text("\n".join(here) + "\n")
    # pytest is found through the line above, but its command is not.
    (scripts / "pytest").write_text(f"#!{scripts / 'python'}\nimport sys, pytest\nsys.exit(pytest.main())\n")
    (scripts / "pytest").chmod(0o755)
    outer = {k: v for k, v in os.environ.items() if k not in ("DIFFKIT_PLUGINS", "PYTHONPATH")}
    outer |= {"PATH": os.pathsep.join([str(scripts), os.environ["PATH"]]), "COLUMNS": "120"}
    # What pip calls "no build isolation" is switched on by a "no"; see pip issue 5735.
    outer |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "no"}
    folder = tmp_path / "work"
    folder.mkdir()

    def run(command: list[str]) -> str:
        done = subprocess.run(command, env=outer, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    run([str(scripts / "python"), "-m", "pip", "install", "-q", str(ROOT)])
    return run


@pytest.mark.slow
def test_everything_on_the_page_works(do: Callable[[list[str]], str], tmp_path: Path):
    said = []
    for file, language, text in BLOCKS:
        if file:
            path = tmp_path / "work" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif language == "sh":
            said.append(do(["bash", "-euc", text]))
        elif language == "python":
            said.append(do(["python", "-W", "error", "-c", text]))
    listing, example, tests = said[2], said[3], said[4]
    assert (tmp_path / "work" / "acme-loss" / "pyproject.toml").is_file()
    assert re.search(r"acme_euler\s.*acme-euler", listing)
    assert re.search(r"^sampler acme-euler:acme_euler 0\.1\.0: .* s, ok$", listing, re.MULTILINE)
    assert "'name': 'acme_euler', 'options': {'eta': 0.0}, 'origin': 'acme-euler', 'version': '0.1.0'" in example
    assert re.search(r"\d+ passed", tests)
    assert "failed" not in tests
    assert list((tmp_path / "work" / "dist").glob("acme_euler-0.1.0-*.whl"))


def test_the_mistake_shown_is_found_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diffkit.testing import checks_for

    source = next(text for file, _, text in BLOCKS if file and file.endswith("__init__.py"))
    (tmp_path / "page_right.py").write_text(source)
    (tmp_path / "page_wrong.py").write_text(source.replace("s.alpha - keep * t.alpha", "t.alpha - keep * t.alpha"))
    monkeypatch.syspath_prepend(str(tmp_path))
    right, wrong = (importlib.import_module(name).AcmeEuler() for name in ("page_right", "page_wrong"))
    (law,) = (check for check in checks_for("sampler") if check.name == "keeps_the_marginals")
    assert law.result(right).ok
    found = law.result(wrong)
    shown = next(text for _, language, text in BLOCKS if language == "text")
    assert str(found).startswith(shown.rstrip())
