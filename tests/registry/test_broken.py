"""Plugins and metadata that are broken in every way we know: they fail by name, alone, and only when asked for."""

from __future__ import annotations

import re
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import pytest
from registry_support import Site, schedule

import diffkit
from diffkit.errors import PluginLoadError, ProtocolError, SpecError, UnknownComponentError
from diffkit.protocols import MultistageSampler, RoutedSampler
from diffkit.registry import KINDS, faults, refresh, registry
from diffkit.registry.contracts import check_contract, check_protocol

if TYPE_CHECKING:
    from torch import Tensor

schedules = registry("schedule")

BROKEN = {
    "broken import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "missing dependency": (
        "import acme_missing.core",
        "ModuleNotFoundError: No module named 'acme_missing'; acme needs 'acme_missing', which is not installed",
    ),
    "missing name in a dependency": (
        "from math import acme_missing",
        "ImportError: cannot import name 'acme_missing' from 'math' (",
    ),
    "missing module of its own": ("import acme.parts", "ModuleNotFoundError: No module named 'acme.parts'"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "exit without a word": ("import sys; sys.exit()", "SystemExit"),
    "missing attribute": ("", "AttributeError: module 'acme' has no attribute 'Part'"),
    "syntax error": ("def", "SyntaxError: invalid syntax (acme.py, line 1)"),
    "null byte": ("x = '\0'", "SyntaxError: source code string cannot contain null bytes"),
    "recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "a warning made an error": ("import warnings\nwarnings.warn('acme is old')", "UserWarning: acme is old"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plugin_that_cannot_be_imported_names_itself_and_the_cause(site: Site, case: str):
    source, cause = BROKEN[case]
    site.plugin("acme", "ramp", source, version="2.0")
    site.plugin("acme-good", "good")
    assert {"ramp", "good"} <= set(schedules.names())
    assert schedules.get("good").__name__ == "Part"
    for _ in range(2):  # the second time is no different: nothing is half loaded
        with pytest.raises(PluginLoadError) as caught:
            schedules.get("ramp")
        assert str(caught.value).startswith(f"cannot load schedule 'ramp' of acme 2.0 (acme:Part): {cause}")
        assert isinstance(caught.value, ImportError)
        assert type(caught.value.__cause__).__name__ == cause.partition(":")[0]
    assert not next(e for e in schedules.entries() if e.name == "ramp").loaded


def test_control_c_during_an_import_is_obeyed(site: Site):
    site.plugin("acme", "ramp", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        schedules.get("ramp")


@pytest.mark.parametrize("value", ["acme.Part", "acme:", ":Part", "acme:Part()", "acme Part", "", "a-b:Part", "acme:1"])
def test_a_value_that_names_nothing_is_a_load_error(site: Site, value: str):
    site.distribution("acme", {"schedule": {"ramp": value}})
    site.plugin("acme-good", "good")
    assert "good" in schedules.names()
    with pytest.raises(PluginLoadError) as caught:
        schedules.get("ramp")
    assert str(caught.value) == (
        f"cannot load schedule 'ramp' of acme 1.0 ({value}): "
        f"SyntaxError: the entry point's value {value!r} is not of the form 'module:Class'"
    )


@pytest.mark.parametrize("name", ["Ramp", "2fast", "a b", ""])
def test_a_name_that_cannot_be_used_is_skipped_and_listed(site: Site, name: str):
    site.distribution("acme", f"[diffkit.schedule]\n{name} = acme:Part\ngood = acme:Part\n")
    assert "good" in schedules.names()
    assert faults() == (f"acme offers a schedule as {name!r}; a name is made of lower-case words joined by '_'",)
    with pytest.raises(UnknownComponentError, match="; note: acme offers a schedule as "):
        schedules.get("ramp")


@pytest.mark.parametrize("line", ["ramp", "ramp : acme:Part"])
def test_a_line_that_is_no_entry_point_costs_its_own_distribution_alone(site: Site, line: str):
    info = site.distribution("acme", f"[diffkit.schedule]\n{line}\nlost = acme:Part\n")
    site.plugin("acme-good", "good")
    assert "good" in schedules.names() and "lost" not in schedules.names()
    assert faults() == (f"{info} has an entry point that is not of the form 'name = module:Class'",)


def test_a_group_of_an_unknown_kind_is_listed(site: Site):
    site.distribution("acme", "[diffkit.parts.samplers]\nramp = acme:Part\n[other.samplers]\nx = y:z\n")
    assert faults() == ("acme offers parts under 'diffkit.parts.samplers'; did you mean 'diffkit.sampler'?",)


def test_feature_networks_are_no_parts(site: Site):
    site.distribution("acme", "[diffkit.extractors]\nnet = acme:Net\n")
    assert not faults()


def test_comments_blanks_and_spaces_are_read_as_usual(site: Site):
    site.module("acme", schedule())
    site.distribution("acme", "# ours\n\n[ diffkit.schedule ]\n  ramp=acme : Part\n\n[console_scripts]\nx = y:z\n")
    assert schedules.get("ramp").__name__ == "Part"
    assert faults() == ()


GARBAGE = {
    "not text": b"[diffkit.schedule]\nramp = acme:Part\xff\xfe\n",
    "no section": b"ramp = acme:Part\n",
    "half a section": b"[diffkit.schedule\nramp = acme:Part\n",
    "null bytes": b"\0" * 100,
    "no value": b"[console_scripts]\nramp\n",
    "empty": b"",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_in_a_foreign_distribution_hides_no_part(site: Site, case: str):
    site.distribution("aaa-foreign", GARBAGE[case])
    site.plugin("acme", "ramp")
    assert schedules.get("ramp").__name__ == "Part"
    assert diffkit.compose(schedule="ramp", backbone=None, num_steps=3).num_steps == 3
    assert len(faults()) == (1 if case == "not text" else 0)
    if faults():
        assert re.fullmatch(
            r"the metadata in .*aaa_foreign-1\.0\.dist-info cannot be read: UnicodeDecodeError: .*", *faults()
        )


METADATA = {
    "missing": (None, "does not name its distribution"),
    "empty": (b"", "does not name its distribution"),
    "no name": (b"Metadata-Version: 2.1\nVersion: 1\n", "does not name its distribution"),
    "not text": (b"Name: acme\xff\n", "cannot be read: UnicodeDecodeError"),
    "a hostile name": (b"Name: \x1b[31macme\n", "does not name its distribution"),
    "another's name": (b"Name: somebody\n", "cannot be read: PackageNotFoundError"),
}


@pytest.mark.parametrize("case", METADATA)
def test_a_plugin_without_readable_metadata_is_listed_and_hides_no_part(site: Site, case: str):
    content, fault = METADATA[case]
    info = site.distribution("aaa-bad", {"schedule": {"bad": "acme:Part"}})
    (info / "METADATA").unlink()
    if content is not None:
        (info / "METADATA").write_bytes(content)
    site.plugin("acme", "ramp")
    assert "ramp" in schedules.names()
    assert "bad" not in schedules.names()
    assert len(faults()) == 1
    assert fault in faults()[0]
    assert "aaa_bad-1.0.dist-info" in faults()[0]


def test_a_version_may_be_missing(site: Site):
    info = site.distribution("acme", {"schedule": {"ramp": "acme:Part"}})
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\n")
    assert next(e for e in schedules.entries() if e.name == "ramp").version == "?"


def test_folders_that_cannot_be_entered_are_passed_over(site: Site):
    closed = site.distribution("acme-closed", {"schedule": {"closed": "acme:Part"}})
    site.plugin("acme", "ramp")
    (site.path / "acme_file-1.0.dist-info").write_text("a file where a folder should be")
    (site.path / "link-1.0.dist-info").symlink_to(site.path / "link-1.0.dist-info")
    closed.chmod(0)
    refresh()
    try:
        assert "ramp" in schedules.names()
    finally:
        closed.chmod(stat.S_IRWXU)


def test_a_finder_of_others_that_fails_stops_nothing(site: Site, monkeypatch: pytest.MonkeyPatch):
    class Finder:
        @staticmethod
        def find_spec(*_):
            return None

        @staticmethod
        def find_distributions(*_):
            raise RuntimeError("no network")

    import sys

    site.plugin("acme", "ramp")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    refresh()
    assert "ramp" in schedules.names()
    assert faults() == ("installed distributions cannot all be listed: RuntimeError: no network",)


def part(body: str, base: str = "NoiseSchedule", lines: str = "") -> str:
    """A module whose class Part has this body."""
    return (
        f"from attrs import frozen\nfrom diffkit.protocols import {base}\nfrom diffkit.table import ProcessTable\n"
        f"{lines}\n@frozen\nclass Part({base}):\n    {body}\n"
    )


CONTRACTS = {
    "schedule": (
        "@frozen\nclass Part:\n    def table(self): ...\n    def level(self, log_snr): ...",
        [
            "problems: expected problems(composition), found nothing",
            "table: expected table(num_steps), found table(self)",
            "level: belongs to diffkit.protocols.ContinuousSchedule; inherit from it, or rename this member",
        ],
    ),
    "mean": (
        "@frozen\nclass Part:\n    problems = 3\n    continuous_time = 1\n    def scalings(self, at): ...",
        [
            "problems: expected problems(composition), found int",
            "scalings: expected scalings(at, prev), found scalings(self, at)",
            "continuous_time: expected bool, found 1",
        ],
    ),
    "var": (
        "@frozen\nclass Part(VarianceParameterization):\n    extra_outputs = True",
        [
            "log_variance: expected log_variance(raw, cols), found nothing",
            "extra_outputs: expected int, found True",
        ],
    ),
    "loss": (
        "@frozen\nclass Part:\n    needs_transition = {'transition'}\n    def problems(self, composition): ...\n"
        "    def columns(self, table): ...",
        [
            "__call__: expected __call__(at), found nothing",
            "needs_learned_variance: expected bool, found nothing",
            "needs_transition: expected bool, found {'transition'}",
        ],
    ),
    "timesteps": (
        "@frozen\nclass Part(TimestepSampler):\n    def sample(self, state, u): ...",
        ["sample: expected sample(state, u, num_steps), found sample(self, state, u)"],
    ),
    "sampler": (
        "@frozen\nclass Part:\n    def problems(self, composition): ...\n    def plan(self, table, *, order): ...\n"
        "    def step(self, x, t): ...",
        [
            "plan: expected plan(steps), found plan(self, table, *, order)",
            "init: expected init(x), found nothing",
            "step: expected step(denoise, x, state, row, noise, last), found step(self, x, t)",
            "order: expected int, found nothing",
            "stochastic: expected bool, found nothing",
        ],
    ),
    "backbone": (
        "class Part(Backbone):\n    def __init__(self, width=3): ...\n    def build(self, *args): ...",
        [
            "options: expected fields of a frozen attrs class, found a class with its own __init__, whose options no "
            "saved system could hold",
        ],
    ),
}


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_violated_member_of_a_protocol_is_listed(site: Site, kind: str):
    source, faulty = CONTRACTS[kind]
    site.module(
        "acme",
        "from attrs import frozen\nfrom diffkit.protocols import *\nfrom diffkit.protocols import "
        "VarianceParameterization, TimestepSampler, Backbone\n" + source,
    )
    site.distribution("acme", {kind: {"odd": "acme:Part"}})
    assert "odd" in registry(kind).names()
    with pytest.raises(ProtocolError) as caught:
        registry(kind).get("odd")
    first, *lines, last = str(caught.value).split("\n")
    protocol = KINDS[kind].contract.__name__
    assert first == f"{kind} 'odd' of acme 1.0 (acme:Part) does not honour the {protocol} contract:"
    found = [line.strip() for line in lines]
    assert [line for line in found if line in faulty] == faulty
    # Members with a default may be added to a contract; they too are told.
    assert all(line.endswith(", found nothing") for line in found if line not in faulty), found
    assert last == f"inherit from diffkit.protocols.{protocol} for the defaults"
    assert isinstance(caught.value, TypeError)
    assert not next(e for e in registry(kind).entries() if e.name == "odd").loaded


def test_every_contract_that_a_class_inherits_is_checked():
    class Odd(RoutedSampler, MultistageSampler):
        uses_last = "yes"
        order = True

        def plan(self): ...

    with pytest.raises(ProtocolError) as caught:
        check_contract("sampler", Odd)
    assert str(caught.value).split("\n") == [
        "sampler 'Odd' does not honour the RoutedSampler and MultistageSampler contract:",
        "  plan: expected plan(steps), found plan(self)",
        "  step: expected step(denoise, x, state, row, noise, last), found nothing",
        "  route: expected route(log_snr), found nothing",
        "  order: expected int, found True",
        "  uses_last: expected bool, found 'yes'",
        "inherit from diffkit.protocols.RoutedSampler and diffkit.protocols.MultistageSampler for the defaults",
    ]


class Paired(Protocol):
    scope: ClassVar[Literal["row", "batch"]] = "row"

    @property
    def tensor(self) -> Tensor: ...


def test_a_word_of_a_contract_is_one_of_those_its_annotation_names():
    with pytest.raises(ProtocolError, match="scope: expected 'row' or 'batch', found 'rows'"):
        check_protocol(Paired, SimpleNamespace(scope="rows", tensor=3), "coupling 'odd'")
    check_protocol(Paired, SimpleNamespace(scope="batch", tensor=3), "coupling 'even'")


def test_the_error_of_a_plugin_contains_its_required_version(site: Site):
    site.module("acme", part("def sample(self, state, u): ...", "TimestepSampler"))
    site.distribution(
        "acme",
        {"timesteps": {"old": "acme:Part"}},
        version="0.4",
        requires=("torch", "Diffkit<0.1,>=0.0.3", "diffkit-x"),
    )
    with pytest.raises(ProtocolError) as caught:
        registry("timesteps").get("old")
    assert str(caught.value).endswith(
        "  sample: expected sample(state, u, num_steps), found sample(self, state, u)\n"
        "inherit from diffkit.protocols.TimestepSampler for the defaults\n"
        f"acme 0.4 requires Diffkit<0.1,>=0.0.3; this is diffkit {diffkit.__version__}"
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Part = 3", "an instance of int"),
        ("import math as Part", "a module"),
        ("Part = object()", "an instance of object"),
    ],
)
def test_an_entry_point_must_name_a_class(site: Site, source: str, found: str):
    site.plugin("acme", "ramp", source)
    with pytest.raises(ProtocolError) as caught:
        schedules.get("ramp")
    assert str(caught.value) == f"schedule 'ramp' of acme 1.0 (acme:Part) is {found}; an entry point must name a class"


def test_what_a_function_returns_is_checked_when_composing(site: Site):
    site.plugin("acme", "ramp", "def Part(end=0.1): return end")
    with pytest.raises(ProtocolError, match="schedule 'float' does not honour the NoiseSchedule contract"):
        diffkit.compose(schedule="ramp", backbone=None, num_steps=3)


def test_an_instance_of_a_class_with_its_own_init_composes_but_cannot_be_saved(site: Site):
    class Ramp:
        def __init__(self, end: float = 0.3):
            self.end = end

        def table(self, num_steps):
            return diffkit.ProcessTable.from_betas([self.end] * num_steps)

        def problems(self, composition):
            return ()

    schedules.register("ramp")(Ramp)
    system = diffkit.compose(schedule=Ramp(0.2), backbone=None, num_steps=3)
    with pytest.raises(SpecError, match="schedule 'ramp' is made by a class with its own __init__"):
        system.spec()


# ---- parts that fail later -------------------------------------------------------------------------------------------


def test_a_part_that_cannot_be_made_is_named(site: Site):
    fails = "\n    def __attrs_post_init__(self):\n        raise RuntimeError('no licence')\n"
    site.plugin("acme", "ramp", schedule().rstrip() + "\n" + fails)
    with pytest.raises(PluginLoadError, match="schedule 'ramp' cannot be made: RuntimeError: no licence"):
        diffkit.compose(schedule="ramp", backbone=None, data_shape=(2,))


def test_no_option_is_called_name(site: Site):
    """In TOML files, JSON and mappings, "name" stands for the part."""
    site.plugin("acme", "ramp", schedule().replace("end: float = 0.5", "end: float = 0.5\n    name: str = 'square'"))
    with pytest.raises(ProtocolError, match="options: expected any name but 'name'"):
        diffkit.compose(schedule="ramp", backbone=None, data_shape=(2,))


def test_a_plugin_that_is_not_let_in_is_not_called_missing(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.plugin("acme", "ramp", schedule())
    spec = diffkit.compose(schedule="ramp", backbone=None, data_shape=(2,), num_steps=4).spec()
    monkeypatch.setenv("DIFFKIT_PLUGINS", "")
    refresh()
    with pytest.raises(SpecError, match=r"'ramp' of acme 1\.0, which DIFFKIT_PLUGINS does not list; add acme to it"):
        diffkit.from_spec(spec)
