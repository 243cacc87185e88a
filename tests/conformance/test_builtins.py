"""The built-in parts, through the same door as everybody's, with no list of exceptions."""

from __future__ import annotations

import attrs
import pytest
from builtins_of_diffkit import instances, values_of

from diffkit.registry import KINDS, registry
from diffkit.testing import check_component, measured_orders, report

PARTS = instances()


@pytest.mark.parametrize(("kind", "part"), PARTS.values(), ids=PARTS)
def test_built_in_part_conforms(kind, part):
    results = check_component(kind, part)
    assert all(result.ok for result in results), report(results)


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_is_here_with_every_option_varied(kind):
    for name in registry(kind).built_in_names():
        for option in attrs.fields(registry(kind).get(name)):
            tried = {repr(options.get(option.name, option.default)) for options in values_of(kind, name)}
            assert len(tried) > 1, f"{kind} {name!r}: add values of {option.name!r} to builtins_of_diffkit.py"


@pytest.mark.parametrize("name", registry("sampler").built_in_names())
def test_declared_order_is_the_order_measured(name):
    sampler = registry("sampler").create(name)
    orders = measured_orders(sampler, (40, 80, 160, 320))
    assert set(orders) == {"vp", "ve", "linear"}
    assert all(sampler.order - 0.2 <= order <= sampler.order + 0.5 for order in orders.values()), orders
