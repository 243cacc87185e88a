"""Options are the keywords of the Python calls, with the same defaults."""

from __future__ import annotations

import inspect

import attrs

import diffkit
from diffkit.cli.shared.composition import PARTS, Composition

NOT_OPTIONS = {"time_argument", "time_to_argument", "null_conditions", "modules", "sampling", "device"}
"""Four are for networks of one's own, one is --sampling-steps and --guidance, the last is of each command."""


def test_composition_options_are_those_of_compose():
    parameters = inspect.signature(diffkit.compose).parameters
    assert set(parameters) - NOT_OPTIONS == {*PARTS, *(field.name for field in attrs.fields(Composition))}
    for kind, default in PARTS.items():
        assert parameters[kind].default == default
    for field in attrs.fields(Composition):
        assert parameters[field.name].default == field.default, field.name


def test_options_have_no_name_twice():
    from diffkit.cli.parsing import commands
    from diffkit.cli.parsing.request import look

    for name in commands.table():
        flags = [option.flag for option in look(name, commands.load(commands.table()[name]).SPEC, []).options]
        assert len(flags) == len(set(flags)), name
