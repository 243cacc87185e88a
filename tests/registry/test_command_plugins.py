"""Commands of other packages: listed and helped unimported, run by name, and none stands in the way of others."""

from __future__ import annotations

from textwrap import dedent

import pytest
from registry_support import Site

from diffkit.__main__ import main
from diffkit.registry import refresh, registry

GREET = '''
    """Greet somebody, several times.

    A second paragraph.
    """
    from attrs import frozen
    from diffkit.cli.parsing.spec import CommandSpec
    from diffkit.options import integer
    from diffkit.runtime.output import show

    @frozen
    class Options:
        """Options.

        Attributes:
            times: How often.
        """

        times: int = integer(1, ge=1)

    SPEC = CommandSpec({"Options": Options}, slots={"schedule": "cosine"})

    def run(parsed):
        for _ in range(parsed.make(Options).times):
            show(f"hello {parsed.parts['schedule'][0]}")
'''


@pytest.fixture
def acme(site: Site) -> Site:
    for name, source in {"greet": GREET, "broken": "1 / 0", "partial": "def run(): pass"}.items():
        site.module(f"acme_{name}", source)
    site.distribution("acme", {"command": {
        "say_hello": "acme_greet", "train": "acme_greet", "twice": "acme_greet", "import": "acme_greet",
        "broken": "acme_broken", "partial": "acme_partial", "classy": "acme_greet:Options",
    }})  # fmt: skip
    site.distribution("acme-two", {"command": {"twice": "acme_greet"}})
    refresh()
    return site


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]):
    """A function that runs a command line, and returns its exit code and all that it printed, on one line."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(words)
        return code, " ".join("".join(capsys.readouterr()).replace("│", " ").split())

    return run


def test_they_are_listed_and_helped_unimported(acme: Site, typed):
    code, out = typed("list", "command")
    assert code == 0 and "say-hello acme 1.0 Greet somebody, several times" in out and "data check diffkit" in out
    code, out = typed("--help")
    assert code == 0 and "say-hello Greet somebody, several times" in out and "acme:train Greet somebody" in out
    assert acme.imported() == []


def test_one_is_run_by_name_with_options_and_parts(acme: Site, typed):
    assert typed("say-hello", "--times", "2") == (0, "hello cosine hello cosine")
    assert acme.imported() == ["acme_greet"]
    assert typed("say-hello", "--schedule", "linear") == (0, "hello linear")
    code, out = typed("say-hello", "--help")
    assert code == 0 and "Greet somebody, several times. A second paragraph." in out and "How often" in out
    code, out = typed("say-hello", "--tmies", "2")
    assert code == 2 and "--times" in out


@pytest.mark.parametrize("name", ["train", "import"])
def test_a_built_in_is_never_replaced_and_the_full_name_reaches_the_other(acme: Site, typed, name):
    code, out = typed(name, "--help")
    assert code == 0 and "Greet" not in out and acme.imported() == []
    assert typed(f"acme:{name}") == (0, "hello cosine")


def test_of_two_with_one_name_neither_has_it(acme: Site, typed):
    assert typed("twice")[0] == 2
    assert typed("acme-two:twice") == (0, "hello cosine")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken", "cannot load command 'broken' of acme 1.0 (acme_broken): ZeroDivisionError: division by zero"),
        ("partial", "command 'partial' of acme 1.0 (acme_partial) does not honour the CommandModule contract: "
                    "run: expected run(parsed), found run() SPEC: expected CommandSpec, found nothing"),
        ("classy", "the entry point's value 'acme_greet:Options' is not the name of a module"),
    ],
)  # fmt: skip
def test_a_broken_one_breaks_only_itself(acme: Site, typed, name, text):
    code, out = typed(name)
    assert code == 2 and text in out
    assert typed("say-hello") == (0, "hello cosine")


def test_they_can_be_left_out(acme: Site, typed, monkeypatch):
    monkeypatch.setenv("DIFFKIT_PLUGINS", "")
    code, out = typed("say-hello")
    assert code == 2 and "say-hello" in out
    assert typed("list", "schedule")[0] == 0


def test_commands_of_diffkit_are_in_the_registry():
    found = registry("command")
    assert found.get("train").run and found.get("diffkit:data__check").SPEC


def test_what_a_part_is_stands_in_its_source(site: Site, typed):
    """The first line of the class, also where the package imports it from a module; else the distribution's."""
    site.module("acme.levels", 'class Ramp:\n    """A ramp.\n\n    More."""\n')
    (site.path / "acme" / "__init__.py").write_text("from .levels import Ramp as Part\nfrom acme import Other\n")
    points = {"a": "acme:Part", "b": "acme.levels:Ramp", "c": "acme:Other", "d": "acme_gone:Part", "e": "acme.odd:X"}
    info = site.distribution("acme-lines", {"schedule": points})
    (site.path / "acme" / "odd.py").write_text(dedent("class X(:"))
    with (info / "METADATA").open("a") as file:
        file.write("Summary: Parts of acme\n")
    refresh()
    _, out = typed("list", "schedule")
    for name, text in dict(a="A ramp", b="A ramp", c="Parts of acme", d="Parts of acme", e="Parts of acme").items():
        assert f" {name} acme-lines 1.0 {text}" in out, name
    assert site.imported() == []
