"""A written package conforms as it is; bad names and taken folders are refused before anything is written."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from diffkit import DiffkitError
from diffkit.__main__ import main
from diffkit.cli import templates
from diffkit.cli.commands.new_plugin import run
from diffkit.cli.parsing import commands as _commands
from diffkit.cli.parsing.request import look, resolve
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.registry import KINDS, OFFERED, SLOTS, refresh, registry


def new(**values):
    run(ParsedOptions(values=values, parts={}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    """A function that makes a written package importable and known, as installing it would."""

    def install(made):
        project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
        info = made / "src" / f"{made.name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {made.name}\nVersion: 0.1.0\n")
        groups = ((group, *points.items()) for group, points in project["entry-points"].items())
        lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points) for group, *points in groups]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(str(made / "src"))
        monkeypatch.setenv("DIFFKIT_PLUGINS", made.name)
        refresh()
        return project

    before = set(sys.modules)
    yield install
    monkeypatch.undo()
    refresh()
    for name in set(sys.modules) - before:
        if name.startswith("diffkit_made"):
            del sys.modules[name]


def shell_words(readme):
    return [line.split()[1:] for block in re.findall(r"```sh\n(.*?)```", readme, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("kind", OFFERED)
def test_every_kind_is_written_and_the_example_of_its_readme_runs(folder, installed, kind, capsys):
    name = f"diffkit-made-{kind.replace('_', '-')}"
    new(name=name, kind=(kind,))
    made = folder / name
    assert f"put your formula into {made.name}" in capsys.readouterr().out
    texts = {path: path.read_text() for path in made.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if re.search(r"(?i)\bmy[_-]|MyPart", f"{path}{text}")]
    project = installed(made)
    assert project["dependencies"][0] == "diffkit>=0.1,<0.2"
    value = f"diffkit_made_{kind}.{kind}" + ("" if OFFERED[kind].module else f":Made{kind.title().replace('_', '')}")
    assert project["entry-points"] == {OFFERED[kind].group: {f"made_{kind}": value}}
    assert registry(kind).get(f"made_{kind}").__doc__.splitlines()[0] == project["description"]

    readme = texts[made / "README.md"]
    scope: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", readme, re.S):
        exec(example, scope)
    for words in shell_words(readme):
        assert main(words) == 0 and "level 10" in capsys.readouterr().out
    assert bool(scope) == (kind != "command")
    if kind in SLOTS:
        assert scope["system"].spec()["parts"][kind]["name"] == f"made_{kind}"


def test_a_package_of_every_kind(folder, installed, capsys):
    """Several kinds in one package, each in a file of its own; kinds given twice count once."""
    new(name="diffkit-made", kind=(*OFFERED, "loss"))
    made = folder / "diffkit-made"
    project = installed(made)
    assert project["entry-points"].keys() == {kind.group for kind in OFFERED.values()}
    assert {path.stem.removeprefix("test_") for path in (made / "tests").iterdir()} == OFFERED.keys()
    readme = (made / "README.md").read_text()
    for kind in OFFERED:
        assert getattr(registry(kind).get("made"), {"command": "run", "adopter": "read"}.get(kind, "__module__"))
        assert readme.count(f"**{kind} `made`**: ") == 1
    for line in re.findall(r"`diffkit (check[^`]+)`", readme):
        name, *words = line.split()
        parsed, _ = resolve(look(name, _commands.load(_commands.table()[name]).SPEC, words))
        assert parsed.values["name"] == "made"
    assert main(["list", "guidance"]) == 0
    assert "Move the mean of each example towards a value" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_conforms_at_once(folder, installed, kind):
    from diffkit.testing import check_component

    name = f"diffkit-made-{kind.replace('_', '-')}"
    new(name=name, kind=(kind,))
    installed(folder / name)
    failed = [r for r in check_component(kind, registry(kind).get(f"made_{kind}")) if r.status == "failed"]
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (dict(name="Bad Name", kind=("loss",)), "'Bad Name' cannot name a package; use lower-case words joined by '-'"),
        (dict(name="diffkit-x", kind=("los",)), "no kind 'los'; did you mean 'loss'?"),
        (dict(name="diffkit-ddim", kind=("sampler",)), "sampler 'ddim' is built in"),
        (dict(name="taken", kind=("loss",)), "taken is there already"),
        (dict(name="lambda", kind=("loss",)), "'lambda' cannot name a package: that is a word of Python"),
        (dict(name="diffkit-in", kind=("loss",)), "that is a word of Python; choose another, such as diffkit-in-parts"),
        (dict(name="json", kind=("loss",)), "'json' cannot name a package: there is one of that name"),
        (dict(name="attrs", kind=("loss",)), "there is one of that name"),
        (dict(name="local", kind=("loss",)), "there is one of that name"),
        (dict(name="diffkit", kind=("loss",)), "there is one of that name"),
    ],
)
def test_refusals_write_nothing(folder, values, text):
    (folder / "taken").mkdir()
    with pytest.raises(DiffkitError, match=text.replace("?", r"\?")):
        new(**values)
    assert [path.name for path in folder.rglob("*")] == ["taken"]


def test_there_is_a_template_of_every_kind():
    assert {path.stem for path in Path(templates.__file__).parent.glob("[!_]*.py")} == set(OFFERED)
