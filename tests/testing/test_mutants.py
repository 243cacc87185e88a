"""The kit catches every mutant by the check that is about its mistake, and lets its twin pass."""

from __future__ import annotations

import pytest
from lanes import some_by_default
from mutants import (
    adapters,
    backbones,
    codecs,
    couplings,
    data,
    decoders,
    extractors,
    flow_maps,
    guidance,
    hooks,
    learned,
    losses_and_timesteps,
    lr_schedules,
    one_step,
    optimizers,
    options,
    samplers,
    schedules_and_means,
    spacings,
    variances,
)

from diffkit.registry import KINDS
from diffkit.testing import checks_for, report

_FILES = (
    adapters,
    backbones,
    codecs,
    couplings,
    data,
    decoders,
    extractors,
    flow_maps,
    guidance,
    hooks,
    learned,
    losses_and_timesteps,
    lr_schedules,
    one_step,
    optimizers,
    options,
    samplers,
    schedules_and_means,
    spacings,
    variances,
)
MUTANTS = [mutant for file in _FILES for mutant in file.MUTANTS]
OF_ALL = set.intersection(*({check.name for check in checks_for(kind)} for kind in KINDS if KINDS[kind].recipe))
"""Checks of options, which the unusual parts here need not pass."""
WITH_LAWS = [kind for kind in KINDS if {check.name for check in checks_for(kind)} - OF_ALL]
"""Kinds with laws of their own."""

RIGHT = [part for file in _FILES for part in getattr(file, "RIGHT", [])]


def _check(mutant):
    (found,) = [check for check in checks_for(mutant.kind) if check.name == mutant.caught_by]
    return found


DEAR = [mutant for mutant in MUTANTS if mutant.caught_by == "least_at_the_exact_flow_map"]
"""Mutants of a law that takes seconds, tried in the slow lane only."""
CHEAP = [mutant for mutant in MUTANTS if mutant not in DEAR]


@pytest.mark.parametrize(
    "mutant",
    [*some_by_default(CHEAP, 2), *[pytest.param(mutant, marks=pytest.mark.slow) for mutant in DEAR]],
    ids=lambda mutant: mutant.label,
)
def test_mutant_is_caught_and_its_twin_passes(mutant):
    check = _check(mutant)
    twin = check.result(mutant.twin)
    assert twin.status == "passed", str(twin)
    result = check.result(mutant.broken)
    assert result.status == "failed"
    assert result.expected and result.found and result.cause
    assert mutant.found_at in str(result)


@pytest.mark.parametrize(("kind", "part"), RIGHT, ids=lambda value: str(value))
def test_an_unusual_part_that_is_right_passes(kind, part):
    left_out = {*OF_ALL, "steps_have_a_density"}  # which is for noise of each element's own, as `log_prob` needs it
    results = [check.result(part) for check in checks_for(kind) if check.name not in left_out]
    assert all(result.ok for result in results), report(results)


def test_there_are_mutants_of_every_kind():
    assert {mutant.kind for mutant in MUTANTS} == set(WITH_LAWS)


@pytest.mark.parametrize("kind", WITH_LAWS)
def test_every_check_catches_something(kind):
    """A law that no mutant breaks is not proven to bite."""
    of_all = {check.name for check in checks_for("sampler")} & {check.name for check in checks_for("schedule")}
    caught = {mutant.caught_by for mutant in MUTANTS if mutant.kind == kind}
    caught |= {mutant.caught_by for mutant in (*options.MUTANTS, *learned.MUTANTS)}
    inactive_at = {check.name for check in checks_for(kind)} - caught - {"spec_round_trip"}
    assert not inactive_at - of_all, inactive_at
