"""Where a name leads: built-ins, this process, plugins, full names, collisions, the allow-list."""

from __future__ import annotations

import importlib
import sys

import pytest
from registry_support import Site, schedule

import diffkit
from diffkit.errors import (
    AmbiguousComponentError,
    DuplicateComponentError,
    OptionError,
    UnknownComponentError,
)
from diffkit.registry import KINDS, OFFERED, Provenance, describe, faults, refresh, registry
from diffkit.registry.resolve import resolve_several

schedules = registry("schedule")


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_name_of_a_built_in_is_its_registered_name(kind: str):
    found = registry(kind)
    for name in found.built_in_names():
        part = found.get(name)
        assert found._provenance[part] == Provenance(name, "diffkit", diffkit.__version__)
        assert part.__module__ == f"{KINDS[kind].package}.{name}"
        assert found.get(f"diffkit:{name}") is part


def test_a_plugin_is_found_by_its_name_and_listed_unimported(site: Site):
    module = site.plugin("acme-parts", "acme_ramp", version="2.3")
    entry = next(e for e in schedules.entries() if e.name == "acme_ramp")
    assert (entry.origin, entry.version, entry.value) == ("acme-parts", "2.3", "acme_parts:Part")
    assert (entry.shadowed, entry.loaded, entry.qualified) == (False, False, "acme-parts:acme_ramp")
    assert "acme_ramp" in schedules.names()
    assert "acme-parts" in describe("schedule")
    assert site.imported() == []
    part = schedules.create("acme_ramp", end=0.3)
    assert site.imported() == [module]
    assert schedules.provenance(part) == Provenance("acme_ramp", "acme-parts", "2.3")
    assert next(e for e in schedules.entries() if e.name == "acme_ramp").loaded


@pytest.mark.parametrize(
    "asked",
    ["acme_ramp", "acme-ramp", " acme_ramp ", "acme-parts:acme_ramp", "ACME_Parts:acme-ramp", "acme.parts:acme_ramp"],
)
def test_spellings_that_mean_the_same_part(site: Site, asked: str):
    site.plugin("acme-parts", "acme_ramp")
    assert schedules.get(asked).__name__ == "Part"


def test_asking_for_one_plugin_imports_no_other(site: Site):
    first = site.plugin("acme-one", "acme_first")
    site.plugin("acme-two", "acme_second")
    schedules.get("acme_first")
    assert site.imported() == [first]


def test_a_plugin_never_shadows_a_built_in(site: Site):
    site.plugin("acme-cosine", "cosine")
    assert schedules.get("cosine").__module__ == "diffkit.parts.schedules.cosine"
    assert site.imported() == []
    mine, theirs = (e for e in schedules.entries() if e.name == "cosine")
    assert (mine.origin, mine.shadowed, theirs.origin, theirs.shadowed) == ("diffkit", False, "acme-cosine", True)
    assert "shadowed; use acme-cosine:cosine" in describe("schedule")
    assert schedules.get("acme-cosine:cosine").__module__ == "acme_cosine"
    assert schedules.get("cosine").__module__ == "diffkit.parts.schedules.cosine"


def test_two_plugins_with_one_name_are_both_named(site: Site):
    site.plugin("acme-one", "ramp")
    site.plugin("acme-two", "ramp")
    assert [e.origin for e in schedules.entries() if e.name == "ramp"] == ["acme-one", "acme-two"]
    with pytest.raises(AmbiguousComponentError) as caught:
        schedules.get("ramp")
    assert str(caught.value) == (
        "schedule 'ramp' is offered by 'acme-one:ramp' and 'acme-two:ramp'; use one of these full names"
    )
    assert site.imported() == []
    assert schedules.get("acme-two:ramp").__module__ == "acme_two"
    with pytest.raises(AmbiguousComponentError):  # loading one of them does not make the bare name mean it
        schedules.get("ramp")


def test_one_name_twice_in_one_distribution_names_both_values(site: Site):
    site.distribution("acme", "[diffkit.schedule]\nramp = acme:One\nramp = acme:Two\n")
    with pytest.raises(AmbiguousComponentError) as caught:
        schedules.get("acme:ramp")
    assert str(caught.value) == (
        "acme registers schedule 'ramp' twice, as acme:One and acme:Two; it has to remove one of these entry points"
    )
    with pytest.raises(AmbiguousComponentError, match="twice, as acme:One and acme:Two"):
        schedules.get("ramp")


def test_duplicate_metadata_of_an_editable_install_is_one_plugin(site: Site):
    site.plugin("acme-parts", "acme_ramp", version="2.0")
    content = {"schedule": {"acme_ramp": "acme_parts:Part"}}
    site.distribution("acme-parts", content, folder="acme_parts.egg-info", version="1.0")
    site.distribution("acme.parts", content, folder="acme.parts-2.0.dist-info", version="2.0")
    assert [e.origin.replace(".", "-") for e in schedules.entries() if e.name == "acme_ramp"] == ["acme-parts"]
    assert schedules.get("acme_ramp").__name__ == "Part"


def test_of_two_folders_the_first_on_the_path_counts(site: Site, tmp_path, monkeypatch: pytest.MonkeyPatch):
    later = Site(tmp_path / "later")
    later.path.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(later.path)])
    later.distribution("acme", {"schedule": {"acme_old": "acme:Old"}}, version="0.9")
    site.distribution("acme", {"schedule": {"acme_new": "acme:New"}}, version="1.0")
    refresh()
    assert [(e.name, e.version) for e in schedules.entries() if e.origin == "acme"] == [("acme_new", "1.0")]


def test_a_newer_install_without_parts_hides_an_older_one(site: Site, tmp_path, monkeypatch: pytest.MonkeyPatch):
    later = Site(tmp_path / "later")
    later.path.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(later.path)])
    later.distribution("acme", {"schedule": {"acme_old": "acme:Old"}}, version="0.9")
    site.distribution("acme", "", version="1.0")
    refresh()
    assert "acme_old" not in schedules.names()


@pytest.mark.parametrize("allowed", [None, "acme-one,acme-two", " ACME_one , acme.two", "acme-two,nobody"])
def test_the_allow_list_admits(site: Site, monkeypatch: pytest.MonkeyPatch, allowed: str | None):
    site.plugin("acme-one", "first")
    site.plugin("acme-two", "second")
    if allowed is not None:
        monkeypatch.setenv("DIFFKIT_PLUGINS", allowed)
    assert "second" in schedules.names()
    assert schedules.get("second").__module__ == "acme_two"
    assert ("first" in schedules.names()) == (allowed != "acme-two,nobody")


@pytest.mark.parametrize("allowed", ["", "acme-one", ",", "acme-tw"])
@pytest.mark.parametrize("asked", ["second", "acme-two:second"])
def test_a_part_outside_the_allow_list_is_an_error_that_names_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, allowed: str, asked: str
):
    site.plugin("acme-one", "first")
    site.plugin("acme-two", "second")
    monkeypatch.setenv("DIFFKIT_PLUGINS", allowed)
    assert "second" not in schedules.names()
    with pytest.raises(UnknownComponentError) as caught:
        schedules.get(asked)
    text = str(caught.value)
    assert text.startswith(f"no schedule named {asked!r}")
    assert text.endswith("; acme-two offers it, but DIFFKIT_PLUGINS does not list that distribution")
    assert site.imported() == []


def test_an_unknown_name_gets_the_nearest_and_all(site: Site):
    site.plugin("acme-parts", "acme_ramp")
    with pytest.raises(UnknownComponentError) as caught:
        schedules.get("cosin")
    known = ", ".join(schedules.names())
    assert "acme_ramp" in known
    assert str(caught.value) == f"no schedule named 'cosin'; did you mean 'cosine'? (known: {known})"
    assert isinstance(caught.value, LookupError)
    with pytest.raises(UnknownComponentError, match="no schedule named 'diffkit:acme_ramp'"):
        schedules.get("diffkit:acme_ramp")
    with pytest.raises(UnknownComponentError, match="no schedule named 'acme-parts:linear'; did you mean"):
        schedules.get("acme-parts:linear")
    assert site.imported() == []


def test_an_unknown_kind_gets_the_nearest():
    with pytest.raises(OptionError) as caught:
        registry("samplers")
    assert str(caught.value) == f"no kind 'samplers'; did you mean 'sampler'? (kinds: {', '.join(OFFERED)})"


@pytest.mark.parametrize("name", [3, None, ("cosine", {})])
def test_a_name_must_be_a_string(name: object):
    with pytest.raises(OptionError, match="schedule must be a name, a \\(name, options\\) pair or an instance, got"):
        schedules.get(name)  # type: ignore[arg-type]


def test_a_plugin_installed_while_running_is_seen_after_refresh(site: Site):
    assert "late_ramp" not in schedules.names()
    site.plugin("acme-late", "late_ramp")
    with pytest.raises(UnknownComponentError):
        schedules.get("late_ramp")
    refresh()
    assert schedules.get("late_ramp").__module__ == "acme_late"


def test_a_plugin_removed_while_running_is_gone_after_refresh(site: Site):
    site.plugin("acme-late", "late_ramp")
    part = schedules.create("late_ramp")
    for file in (site.path / "acme_late-1.0.dist-info").iterdir():
        file.unlink()
    (site.path / "acme_late-1.0.dist-info").rmdir()
    refresh()
    with pytest.raises(UnknownComponentError):
        schedules.get("late_ramp")
    assert schedules.provenance(part) == Provenance("late_ramp", "acme-late", "1.0")


def test_names_of_ours_cannot_be_a_distributions(site: Site):
    site.distribution("local", {"schedule": {"mine": "local_parts:Part"}})
    assert "mine" not in schedules.names()
    assert any("cannot be called 'local'; that name is ours" in fault for fault in faults())


def test_foreign_text_cannot_reach_the_terminal(site: Site):
    site.distribution("acme", {"schedule": {"ramp": "acme:\x1b[31mPart"}}, version="1.0\x1b[2J")
    assert "\x1b" not in describe("schedule")
    entry = next(e for e in schedules.entries() if e.name == "ramp")
    assert (entry.version, entry.value) == ("1.0\\x1b[2J", "acme:\\x1b[31mPart")


class TestRegister:
    """Parts registered in this process."""

    def test_a_local_part_is_found_and_listed(self, site: Site):
        @schedules.register("my-ramp")
        class Ramp:
            pass

        assert schedules.get("my_ramp") is Ramp
        assert schedules.get("local:my_ramp") is Ramp
        entry = next(e for e in schedules.entries() if e.name == "my_ramp")
        assert (entry.origin, entry.version, entry.loaded) == ("local", "", True)
        assert schedules.provenance(Ramp()) == Provenance("my_ramp", "local", "")

    @pytest.mark.parametrize("name", ["", "Ramp", "2fast", "a b", "a:b", "_hidden", "é", "ramp!"])
    def test_a_name_has_a_form(self, site: Site, name: str):
        with pytest.raises(OptionError) as caught:
            schedules.register(name)
        assert str(caught.value) == f"schedule name {name!r} cannot be used; use lower-case words joined by '_'"

    def test_only_a_class_or_a_function_is_a_part(self, site: Site):
        with pytest.raises(OptionError, match="schedule 'ramp' must be a class or a function, got 3"):
            schedules.register("ramp")(3)  # type: ignore[type-var]

    def test_a_built_in_is_not_taken(self, site: Site):
        with pytest.raises(DuplicateComponentError) as caught:
            schedules.register("cosine")(lambda: None)
        assert str(caught.value) == (
            "schedule 'cosine' is taken by the built-in diffkit.parts.schedules.cosine; "
            "choose another name or pass replace=True"
        )

    def test_a_plugin_is_not_taken(self, site: Site):
        site.plugin("acme", "ramp")
        with pytest.raises(DuplicateComponentError) as caught:
            schedules.register("ramp")(lambda: None)
        assert str(caught.value) == (
            "schedule 'ramp' is taken by the plugin 'acme:ramp'; choose another name or pass replace=True"
        )

    def test_another_local_part_is_not_taken(self, site: Site):
        @schedules.register("ramp")
        class One:
            pass

        with pytest.raises(DuplicateComponentError) as caught:

            @schedules.register("ramp")
            class Two:
                pass

        assert str(caught.value) == (
            f"schedule 'ramp' is taken by {__name__}:{One.__qualname__} (registered in this process); "
            "choose another name or pass replace=True"
        )
        assert schedules.get("ramp") is One

    @pytest.mark.parametrize("name", ["cosine", "ramp", "mine"])
    def test_replace_takes_anything(self, site: Site, name: str):
        site.plugin("acme", "ramp")
        schedules.register("mine")(lambda: None)

        @schedules.register(name, replace=True)
        class Mine:
            pass

        assert schedules.get(name) is Mine
        shadowed = [e.origin for e in schedules.entries() if e.name == name and e.shadowed]
        assert shadowed == {"cosine": ["diffkit"], "ramp": ["acme"], "mine": []}[name]
        if name == "cosine":
            assert schedules.get("diffkit:cosine").__module__ == "diffkit.parts.schedules.cosine"

    def test_running_a_cell_again_is_silent_and_counts(self, site: Site):
        def cell() -> type:
            @schedules.register("ramp")
            class Ramp:
                pass

            return Ramp

        cell()
        again = cell()
        assert schedules.get("ramp") is again


class TestPluginClass:
    """The class of a plugin, reached otherwise than by its name."""

    def test_an_imported_class_is_known_by_its_entry_point(self, site: Site):
        site.plugin("acme", "ramp", version="3.1")
        part = importlib.import_module("acme").Part()
        assert schedules.provenance(part) == Provenance("ramp", "acme", "3.1")

    def test_a_class_offered_through_its_package_is_known(self, site: Site):
        site.module("acme.parts", schedule())
        site.module("acme.__init__", "from acme.parts import Part as Part")
        site.distribution("acme", {"schedule": {"ramp": "acme:Part"}})
        part = importlib.import_module("acme").Part()
        assert schedules.provenance(part) == Provenance("ramp", "acme", "1.0")

    def test_a_system_of_instances_can_be_saved(self, site: Site):
        site.plugin("acme", "ramp")
        part = importlib.import_module("acme").Part(end=0.4)
        system = diffkit.compose(schedule=part, backbone=None, num_steps=5)
        spec = system.spec()["parts"]["schedule"]
        assert spec == {"name": "ramp", "options": {"end": 0.4}, "origin": "acme", "version": "1.0"}
        assert diffkit.from_spec(system.spec()).parts.schedule == part

    @pytest.mark.parametrize("value", ["acme.parts:Part", "acme:Part"])
    def test_decorating_it_as_built_ins_are_changes_nothing(self, site: Site, value: str):
        source = "from diffkit.registry import registry\n" + schedule()
        source = source.replace("@frozen", '@registry("schedule").register("ramp")\n@frozen')
        site.module("acme.parts", source)
        site.module("acme.__init__", "from acme.parts import Part as Part")
        site.distribution("acme", {"schedule": {"ramp": value}})
        part = schedules.create("ramp")
        assert schedules.provenance(part) == Provenance("ramp", "acme", "1.0")
        assert [e.origin for e in schedules.entries() if e.name == "ramp"] == ["acme"]


class TestOptions:
    """Options are checked against the part's own fields."""

    def test_an_unknown_option_gets_the_nearest(self):
        with pytest.raises(OptionError) as caught:
            schedules.create("cosine", max_bta=0.9)
        assert str(caught.value) == (
            "schedule 'cosine' has no option 'max_bta'; did you mean 'max_beta'? (options: s, max_beta)"
        )

    def test_an_option_for_a_part_without_options_is_an_error(self):
        with pytest.raises(OptionError, match=r"mean 'eps' has no option 'x' \(options: none\)"):
            registry("mean").create("eps", x=1)

    def test_a_wrong_value_names_the_part(self):
        with pytest.raises(OptionError, match=r"schedule 'cosine': s must be >= 0, got -1.0"):
            schedules.create("cosine", s=-1)

    def test_a_plugins_own_validator_is_an_option_error(self, site: Site):
        source = """
            import attrs
            from diffkit.protocols import NoiseSchedule

            @attrs.frozen
            class Part(NoiseSchedule):
                end: float = attrs.field(default=0.5, validator=attrs.validators.lt(1))

                def table(self, num_steps): ...
        """
        site.plugin("acme", "ramp", source)
        with pytest.raises(OptionError, match=r"schedule 'ramp' cannot be made with these options: .*must be < 1: 2"):
            schedules.create("ramp", end=2)

    def test_a_dataclass_has_options_too(self, site: Site):
        source = """
            from dataclasses import dataclass
            from diffkit.protocols import NoiseSchedule
            from diffkit.table import ProcessTable

            @dataclass(frozen=True)
            class Part(NoiseSchedule):
                end: float = 0.5

                def table(self, num_steps):
                    return ProcessTable.from_betas([self.end] * num_steps)
        """
        site.plugin("acme", "ramp", source)
        with pytest.raises(OptionError, match="did you mean 'end'"):
            schedules.create("ramp", ende=0.2)
        system = diffkit.compose(schedule=("ramp", {"end": 0.2}), backbone=None, num_steps=3)
        assert diffkit.from_spec(system.spec()).parts.schedule.end == 0.2

    def test_a_function_is_called_and_judged_by_what_it_takes(self, site: Site):
        @schedules.register("ramp")
        def ramp(end: float = 0.1):
            return schedules.create("cosine", max_beta=end)

        assert schedules.create("ramp", end=0.3).max_beta == 0.3
        with pytest.raises(OptionError, match=r"schedule 'ramp' cannot be made with these options: .*unexpected"):
            schedules.create("ramp", ende=0.3)
        system = diffkit.compose(schedule="ramp", backbone=None, num_steps=3)
        assert system.spec()["parts"]["schedule"]["name"] == "cosine"


@pytest.mark.parametrize(
    "slots",
    [
        [("cfg", {"scale": 2.0}), ("dynamic_threshold", {})],
        [{"name": "cfg", "scale": 2.0}, {"name": "dynamic_threshold"}],
        [("cfg", {"scale": 2.0}), {"name": "dynamic_threshold"}],
        ["static_threshold", {"name": "dynamic_threshold"}],
    ],
    ids=str,
)
def test_two_parts_are_not_a_part_with_options(slots):
    assert [type(part).__name__ for part, _ in resolve_several("guidance", slots)][1] == "DynamicThreshold"
    assert [name for _, name in resolve_several("guidance", ("cfg", {"scale": 2.0}))] == ["cfg"]
