"""The built-in parts, through the same door as everybody's, with one exception: an option made to break a law."""

from __future__ import annotations

import attrs
import pytest
from builtins_of_diffkit import cases, checked_names, conditions_for, known_failures, values_of

from diffkit.registry import KINDS, registry
from diffkit.testing import check_component, measured_orders, report


@pytest.mark.parametrize(("kind", "name", "options"), cases())
def test_built_in_part_conforms(kind, name, options):
    part = registry(kind).create(name, **options)
    failures, conditions = known_failures(kind, name, options), conditions_for(kind, part)
    results = check_component(kind, part, expected_failures=failures, conditions=conditions)
    assert all(result.ok for result in results), report(results)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_takes_more_than_one_value(kind):
    for name in checked_names(kind):
        part = registry(kind).get(name)
        for option in (field for field in (attrs.fields(part) if attrs.has(part) else ()) if field.init):
            tried = {repr(options.get(option.name, option.default)) for options in values_of(kind, name)}
            names_files = option.name == "folder"
            assert len(tried) > 1 or names_files, f"{kind} {name!r}: add values of {option.name!r} to the builtins"


@pytest.mark.slow
@pytest.mark.parametrize("name", registry("sampler").built_in_names())
def test_measured_order_is_near_the_declared_one_on_every_path(name):
    sampler = registry("sampler").create(name)
    orders = measured_orders(sampler)
    assert set(orders) == {"vp", "ve", "linear"}
    assert all(sampler.order - 0.2 <= order <= sampler.order + 1.2 for order in orders.values()), orders
