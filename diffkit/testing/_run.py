"""The public functions: all checks of a kind on a part, as results, as a report, or as pytest parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from diffkit.errors import MissingExtraError, OptionError, did_you_mean
from diffkit.registry import registry
from diffkit.testing import (  # noqa: F401  each module's checks are known once it is imported
    _adapter,
    _backbone,
    _codec,
    _coupling,
    _data,
    _decoder,
    _extractor,
    _flow_map,
    _guidance,
    _hook,
    _learned,
    _loss,
    _lr_schedule,
    _mean,
    _network_loss,
    _optimizer,
    _parts,
    _sampler,
    _sampler_order,
    _schedule,
    _solver,
    _spacing,
    _timesteps,
    _var,
)
from diffkit.testing._check import SOLVER, Check, CheckResult, Given, checks_of, part_text, skip_repeated_stop
from diffkit.testing._conditions import check_conditions

_NONE: Mapping[str, str] = {}


def checks_for(kind: str) -> tuple[Check, ...]:
    """Return every conformance check of a kind, each with its law and cause (`Check.law`, `Check.cause`).

    Args:
        kind: Kind of part, such as "sampler"; or "solver", for the laws of `check_solver`.
    Raises:
        OptionError: No such kind.
    """
    return checks_of(kind if kind == SOLVER else registry(kind).kind)


def check_component(
    kind: str,
    factory: Any,
    *,
    expected_failures: Mapping[str, str] = _NONE,
    conditions: Given | None = None,
    only: Sequence[str] = (),
) -> list[CheckResult]:
    """Run every conformance check of a kind on a part and return the results; a failure raises nothing.

    Args:
        kind: Kind of the part.
        factory: An instance; or a class or function that makes one.
        expected_failures: Check -> why the part is known to fail it. Passing it is then a failure.
        conditions: Conditions to call a backbone with, if the kit cannot find them: name -> tensor with a
            row for each example (three that differ are best; fewer begin again), or a function of n, or of n and the
            shape of one example, that returns such a mapping.
        only: Names of checks to run; all of the kind if empty.
    Raises:
        OptionError: No such kind, no check of a name in expected_failures or only, or conditions of another form.
    """
    checks = checks_for(kind)
    _check_names(kind, checks, (*expected_failures, *only))
    check_conditions(kind, conditions)
    checks = tuple(check for check in checks if not only or check.name in only)
    part, seen = _create_part(factory), dict[str, str]()
    results = (check.result(part, expected_failures.get(check.name), conditions) for check in checks)
    return [skip_repeated_stop(result, seen) for result in results]


def parametrize_checks(
    kind: str, *instances: Any, expected_failures: Mapping[str, str] = _NONE, conditions: Given | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that runs a test for every conformance check of every instance, as its argument ``check``.

        @parametrize_checks("sampler", Heun(), Heun(churn=10))
        def test_heun(check): check()

    Args:
        kind: Kind of the parts.
        instances: Instances, or classes or functions that make one.
        expected_failures: Check -> why; marked as a strict expected failure of every instance.
        conditions: Conditions to call every instance of a backbone with; see `check_component`.
    Raises:
        MissingExtraError: pytest is not installed.
        OptionError: No such kind, no check of a name in expected_failures, or conditions of another form.
    """
    try:
        import pytest
    except ImportError as error:
        raise MissingExtraError("testing", "parametrize_checks") from error
    checks = checks_for(kind)
    _check_names(kind, checks, expected_failures)
    check_conditions(kind, conditions)
    cases = []
    for instance in map(_create_part, instances):
        seen: dict[str, str] = {}
        for each in checks:
            reason = expected_failures.get(each.name)
            marks = [] if reason is None else [pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError)]
            bound = BoundCheck(each, instance, conditions, {} if marks else seen)
            cases.append(pytest.param(bound, marks=marks, id=f"{part_text(instance)}-{each.name}"))
    return pytest.mark.parametrize("check", cases)


@frozen
class BoundCheck:
    """Conformance check with the part it is about, and conditions if the part is a backbone; calling it runs it.

    Checks of one part share ``seen``, so that an exception which stops several is reported by the first of them.
    """

    check: Check
    part: Any
    conditions: Given | None = field(default=None, repr=False)
    seen: dict[str, str] = field(factory=dict, repr=False)

    def __call__(self) -> None:
        """Return None, raise `AssertionError` that reads like a review, or skip the test if the law does not apply."""
        __tracebackhide__ = True
        import pytest

        result = skip_repeated_stop(self.check.result(self.part, conditions=self.conditions), self.seen)
        if result.status == "skipped":
            pytest.skip(result.reason)
        if not result.ok:
            raise AssertionError(str(result)) from None


def report(results: Iterable[CheckResult]) -> str:
    """Return results of conformance checks as text: a line for each check, then a review of each failure."""
    results = list(results)
    width = max((len(result.check) for result in results), default=0)
    lines = [f"{r.status:8}  {r.check:{width}}  {r.seconds:6.2f} s  {r.reason or r.note or r.law}" for r in results]
    failed = [str(result) for result in results if not result.ok]
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def _create_part(factory: Any) -> Any:
    if isinstance(factory, type | functools.partial) or inspect.isroutine(factory):
        return factory()
    return factory


def _check_names(kind: str, checks: Sequence[Check], names: Iterable[str]) -> None:
    known = [check.name for check in checks]
    for name in names:
        if name not in known:
            raise OptionError(f"no check {name!r} of kind {kind!r}{did_you_mean(name, known)} ({', '.join(known)})")
