"""The listing of parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Command, Refused

from diffkit.presets import names
from diffkit.registry import KINDS, refresh, registry


def test_every_part_has_a_line_that_reports_what_it_is(command: Command):
    lines = command("list").out.splitlines()
    for kind in KINDS:
        assert kind in lines
        for name in registry(kind).built_in_names():
            found = [line for line in lines if line.split()[:2] == [name, "diffkit"]]  # two kinds may share a name
            assert found and all(len(line.split()) > 4 for line in found), found


def test_one_kind(command: Command):
    found = command("list", "schedule").out.splitlines()
    assert found[0] == "schedule"
    assert [line.split()[0] for line in found[1:]] == list(registry("schedule").names())


def test_unknown_kind(refused: Refused):
    assert refused("list", "vars").startswith("no kind 'vars'; did you mean 'var'? (kinds: schedule, mean, var")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution whose module cannot be imported; listing must not try."""
    folder = tmp_path / "diffkit_waves-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: diffkit-waves\nVersion: 1.2\nSummary: Two waves\n")
    (folder / "entry_points.txt").write_text(
        "[diffkit.schedule]\ncosine = diffkit_waves.no:Cosine\nsine = diffkit_waves.no:Sine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DIFFKIT_PLUGINS", "diffkit-waves")
    refresh()
    yield
    monkeypatch.undo()
    refresh()


@pytest.mark.usefixtures("plugin")
def test_plugins_are_listed_unimported_and_shadowed_ones_marked(command: Command):
    lines = command("list", "schedule").out.splitlines()
    (sine,) = [line for line in lines if line.split()[0] == "sine"]
    assert sine.split() == ["sine", "diffkit-waves", "1.2", "Two", "waves"]
    (shadowed,) = [line for line in lines if "shadowed" in line]
    assert shadowed.split()[:3] == ["cosine", "diffkit-waves", "1.2"]
    assert "[shadowed; use diffkit-waves:cosine] Two waves" in shadowed


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_cannot_be_loaded_reports_it_when_named(refused: Refused):
    assert refused("explain", "--schedule", "sine", "--help").startswith("cannot load schedule 'sine' of diffkit-waves")


def test_parts_registered_here_are_listed(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry("mean"), "_here", {})

    @registry("mean").register("halfway")
    class Halfway:
        """Between noise and data."""

    line = command("list", "mean").out.splitlines()[2]
    assert line.split() == ["halfway", "local", "Between", "noise", "and", "data"]


def test_lines_are_cut_to_the_width_of_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch):
    whole = command("list", "loss").out.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cut = command("list", "loss").out.splitlines()  # of 100 characters
    assert [line[:99] for line in whole] == [line[:99] for line in cut] and max(map(len, cut)) == 100


def test_published_configurations_are_listed(command: Command):
    found = command("list", "presets").out.splitlines()
    assert [line.split()[0] for line in found] == ["presets", *names(), "adm/imagenet64-256", "adm/imagenet128-512"]
    assert command("list").out.splitlines()[-len(found) :] == found


def test_check_names_what_does_not_load(tmp_path, monkeypatch, capsys):
    from diffkit.cli.commands.list import run
    from diffkit.cli.parsing.spec import ParsedOptions
    from diffkit.registry import refresh

    folder = tmp_path / "slow_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[diffkit.sampler]\nsleepy = slow_plugin:Sleepy\n")
    (tmp_path / "slow_plugin.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DIFFKIT_PLUGINS", raising=False)
    refresh()
    with pytest.raises(SystemExit) as caught:
        run(ParsedOptions(values={"kind": "sampler", "check": True, "timeout": 0.8}, parts={}))
    monkeypatch.undo()
    refresh()
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "sampler slow-plugin:sleepy 1.0: " in out and "still" in out
