"""A written package conforms as it is; bad names and taken folders are refused before anything is written."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib

import pytest

from diffkit import DiffkitError
from diffkit.cli.commands.new_plugin import run
from diffkit.cli.parsing import commands as _commands
from diffkit.cli.parsing.request import look, resolve
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.templates import kinds
from diffkit.registry import KINDS, SLOTS, refresh


def new(**values):
    run(ParsedOptions(values=values, parts={}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_written_and_the_example_of_its_readme_runs(folder, monkeypatch, kind, capsys):
    new(name=f"diffkit-made-{kind}", kind=kind)
    made = folder / f"diffkit-made-{kind}"
    package = f"diffkit_made_{kind}"
    assert f"put your formula into {made.name}" in capsys.readouterr().out
    texts = {path: path.read_text() for path in made.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if re.search(r"(?i)\bmy[_-]|MyPart", f"{path}{text}")]
    project = tomllib.loads(texts[made / "pyproject.toml"])["project"]
    assert project["dependencies"][0] == "diffkit>=0.1,<0.2"
    (points,) = project["entry-points"].values()
    assert points == {f"made_{kind}": f"{package}:Made{kind.title()}"}

    info = made / "src" / f"{package}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {made.name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{KINDS[kind].group}]\nmade_{kind} = {package}:Made{kind.title()}\n")
    monkeypatch.syspath_prepend(str(made / "src"))
    monkeypatch.setenv("DIFFKIT_PLUGINS", made.name)
    refresh()
    try:
        scope: dict[str, object] = {}
        exec(re.search(r"```python\n(.*?)```", texts[made / "README.md"], re.S)[1], scope)
        if kind in SLOTS:
            assert scope["system"].spec()["parts"][kind]["name"] == f"made_{kind}"
    finally:
        monkeypatch.undo()
        refresh()
        sys.modules.pop(package)


@pytest.mark.parametrize("kind", kinds())
def test_the_commands_of_its_readme_can_be_typed(folder, kind):
    new(name="diffkit-made", kind=kind)
    commands = re.findall(r"`diffkit ([^`]+)`", (folder / "diffkit-made" / "README.md").read_text())
    assert [line.split()[0] for line in commands] == ["check"]
    for line in commands:
        name, *words = line.split()
        parsed, _ = resolve(look(name, _commands.table()[name].load().SPEC, words))
        assert parsed.values["name"] == "made"


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_every_kind_conforms_at_once(folder, monkeypatch, kind):
    from diffkit.testing import check_component

    new(name=f"diffkit-kept-{kind}", kind=kind)
    monkeypatch.syspath_prepend(str(folder / f"diffkit-kept-{kind}" / "src"))
    part = getattr(importlib.import_module(f"diffkit_kept_{kind}"), f"Kept{kind.title()}")
    failed = [result for result in check_component(kind, part()) if result.status == "failed"]
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (dict(name="Bad Name", kind="loss"), "'Bad Name' cannot name a package; use lower-case words joined by '-'"),
        (dict(name="diffkit-x", kind="los"), "no kind 'los'; did you mean 'loss'?"),
        (dict(name="diffkit-ddim", kind="sampler"), "sampler 'ddim' is built in"),
        (dict(name="taken", kind="loss"), "taken is there already"),
        (dict(name="lambda", kind="loss"), "'lambda' cannot name a package: that is a word of Python"),
        (dict(name="diffkit-in", kind="loss"), "that is a word of Python; choose another, such as diffkit-in-parts"),
        (dict(name="json", kind="loss"), "'json' cannot name a package: there is one of that name"),
        (dict(name="attrs", kind="loss"), "there is one of that name"),
        (dict(name="local", kind="loss"), "there is one of that name"),
        (dict(name="diffkit", kind="loss"), "there is one of that name"),
    ],
)
def test_refusals_write_nothing(folder, values, text):
    (folder / "taken").mkdir()
    with pytest.raises(DiffkitError, match=text.replace("?", r"\?")):
        new(**values)
    assert [path.name for path in folder.rglob("*")] == ["taken"]


def test_a_kind_without_a_template_is_refused(folder, monkeypatch):
    monkeypatch.setattr("diffkit.cli.commands.new_plugin.kinds", lambda: ["loss", "mean"])
    assert set(kinds()) <= set(KINDS)
    with pytest.raises(DiffkitError, match="there is no template of a sampler; there are some of loss, mean"):
        new(name="diffkit-made", kind="sampler")
