"""What help shows, what it imports, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cli_support import Command

from diffkit.cli.parsing import commands
from diffkit.registry import registry
from diffkit.registry.listing import summary_of
from diffkit.spacing.files import GRIDS

PROBE = """
import json, sys, time
begun = time.process_time()
from diffkit.__main__ import main
code = main(sys.argv[1:])
seconds = time.process_time() - begun
print(json.dumps({"code": code, "seconds": seconds, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def fresh(*words: str) -> dict:
    """Run a command line in a fresh interpreter, and say what was imported for it."""
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1]) | {"out": done.stdout}


def parts_among(modules: list[str]) -> set[str]:
    kinds = ("schedules", "means", "variances", "losses", "timesteps", "samplers", "backbones")
    found = {m.removeprefix("diffkit.parts.") for m in modules if m.startswith("diffkit.parts.")}
    return {m for m in found if m.count(".") == 1 and m.partition(".")[0] in kinds and "._" not in m}


@pytest.mark.parametrize("words", [["--help"], ["sample", "--help"], ["list"]])
def test_help_and_list_import_no_torch_and_no_part(words: list[str]):
    found = fresh(*words)
    assert found["code"] == 0
    assert "torch" not in found["modules"] and "numpy" not in found["modules"]
    assert parts_among(found["modules"]) == set()


def test_help_of_train_is_fast_and_imports_the_default_parts_only():
    """Half a second on an idle machine; twice that of CPU time here, so that a busy one does not fail."""
    found, again = fresh("train", "--help"), fresh("train", "--help")
    assert min(found["seconds"], again["seconds"]) < 1.0
    assert "torch" not in found["modules"]
    assert parts_among(found["modules"]) == {
        "schedules.linear",
        "means.eps",
        "variances.fixed_large",
        "losses.simple",
        "timesteps.uniform",
        "samplers.ancestral",
        "backbones.unet",
    }


def test_help_imports_the_named_part_in_place_of_the_default():
    found = fresh("explain", "--schedule", "cosine", "--backbone=mlp", "--help")
    assert "torch" not in found["modules"]
    names = parts_among(found["modules"])
    assert {"schedules.cosine", "backbones.mlp"} <= names
    assert not {"schedules.linear", "backbones.unet"} & names
    assert "--schedule.s" in found["out"] and "Offset that prevents the first" in found["out"]
    assert "--schedule.start" not in found["out"] and "--backbone.hidden" in found["out"]


def test_overview_lists_every_command(command: Command):
    found = command("--help")
    assert found.code == 0
    for name in commands.table():
        assert name in found.out
    assert command() == found
    assert "Exit codes: 0" in " ".join(found.out.split())


def test_version(command: Command):
    import diffkit

    assert command("--version").out.strip() == diffkit.__version__


@pytest.mark.parametrize("name", commands.table())
def test_every_option_of_every_command_is_explained(name: str):
    from diffkit.cli.parsing.request import look

    assert summary_of(commands.table()[name])
    for option in look(name, commands.load(commands.table()[name]).SPEC, []).options:
        assert option.about(), f"{name}: {option.flag} has no help"


def test_every_option_of_every_part_is_explained():
    from diffkit.cli.parsing.parts import part_options
    from diffkit.cli.shared.guidance import FOLDERS
    from diffkit.options import python_objects
    from diffkit.registry import KINDS, registry

    for kind in KINDS:
        known = registry(kind)
        for name in known.built_in_names():
            if python_objects(known.get(name)) and name not in FOLDERS:
                continue  # made in Python only
            for option in part_options(kind, name):
                assert option.about(), f"{kind} {name}: {option.flag} has no help"


def test_help_shows_defaults_and_what_is_required(command: Command):
    text = " ".join(command("train", "--help").out.replace("│", " ").split())
    assert "[default: 1000]" in text and "[required]" in text and "[default: that of the data]" in text
    assert "--no-rescale-time" in text


def test_help_shows_every_character_of_a_text(command: Command):
    from diffkit.cli.parsing.request import look

    texts = "".join(
        option.about() for option in look("train", commands.load(commands.table()["train"]).SPEC, []).options
    )
    shown = command("train", "--help").out
    assert {c: shown.count(c) for c in "*{"} == {c: texts.count(c) for c in "*{"}
    assert '"*.bias:weight_decay=0,out.*:lr=1e-5"' in shown


@pytest.mark.parametrize("name", ["sample", "edit", "interpolate", "invert", "explain"])
def test_help_of_steps_names_every_clock_and_grids(command: Command, name: str):
    shown = command(name, "--help").out
    names = [name for name in registry("spacing").built_in_names() if name != "sections"]
    assert all(f'"{name}' in shown for name in names) and '"grid.json"' in shown
    assert any(f'"{grid}"' in shown for grid in GRIDS)
