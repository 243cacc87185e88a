"""The door itself: results, reports, expected failures, pytest parameters, and what is imported when."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attrs import frozen
from mutants.backbones import Context, FirstContextForAll, Recipe
from mutants.samplers import CurrentAlpha, HiddenHistory, Linear, OrderTwoInName

import diffkit.testing
from diffkit.errors import MissingExtraError, OptionError
from diffkit.parts.samplers.ddim import DDIM
from diffkit.parts.schedules.cosine import Cosine
from diffkit.protocols import Backbone
from diffkit.registry import KINDS, SLOTS
from diffkit.testing import LawError, NotApplicableError, check_component, checks_for, parametrize_checks, report
from diffkit.training import Hook


def found(check, part, kind="sampler"):
    (one,) = [each for each in checks_for(kind) if each.name == check]
    return one.result(part)


@pytest.mark.parametrize("factory", [Cosine(s=0.01), Cosine, lambda: Cosine(s=0.01)])
def test_an_instance_a_class_or_a_function_is_taken(factory):
    results = check_component("schedule", factory)
    assert {result.status for result in results} == {"passed", "skipped"}
    assert [result.check for result in results] == [check.name for check in checks_for("schedule")]
    assert all(result.ok for result in results)


def test_a_failure_reads_like_a_review():
    result = found("keeps_the_marginals", CurrentAlpha())
    assert not result.ok
    assert result.where.path == "vp" and result.where.num_steps == 1 and result.where.level == 1
    lines = str(result).splitlines()
    assert lines[0] == "sampler CurrentAlpha(eta=0.0) fails 'keeps_the_marginals'"
    assert lines[1].startswith("  law:      With the exact denoiser of a single data point, every step keeps")
    assert lines[2] == "  where:    vp path, T = 1, level 1, step from level 1 to 0"
    assert lines[3].startswith("  expected: mean 0.7 ")
    assert lines[4].startswith("  found:    0.007")
    assert lines[5].startswith("  usually:  alpha or sigma of the wrong end of the step")


def test_the_order_that_was_measured_is_reported():
    assert found("order_as_declared", Linear()).note == "order 1 declared; 1.00 on vp, 1.00 on ve, 1.00 on linear"
    assert found("order_as_declared", OrderTwoInName()).found.startswith("order 1.00 (errors ")


def test_an_exception_is_placed_in_the_parts_own_file():
    result = found("plan_is_finite", _Fails())
    assert result.expected == "no exception"
    assert result.found == "ZeroDivisionError: division by zero"
    assert str(result.where).startswith("vp path, T = 1, test_kit.py, line ")


class _Fails(DDIM):
    def plan(self, steps):
        return {"x": 1 / (len(steps.t.alpha) - 1)}


def test_every_check_is_documented_and_callable():
    for kind in KINDS:
        names = [check.name for check in checks_for(kind)]
        assert len(names) == len(set(names)) >= (14 if kind in SLOTS else 9 if KINDS[kind].recipe else 5)
        for check in checks_for(kind):
            assert check.kind == kind and check.law and check.cause
    order = next(check for check in checks_for("sampler") if check.name == "order_as_declared")
    order(Linear())
    with pytest.raises(LawError, match=r"at least 1\.8"):
        order(OrderTwoInName())
    encode = next(check for check in checks_for("sampler") if check.name == "encodes_at_its_order")
    with pytest.raises(NotApplicableError, match="adds noise"):
        encode(Linear(1.0))


def test_an_expected_failure_is_recognized_apart_and_is_strict():
    known = {"no_hidden_state": "history is kept in the module", "picklable": "no such check"}
    with pytest.raises(OptionError, match="no check 'picklable' of kind 'sampler'"):
        check_component("sampler", HiddenHistory(), expected_failures=known)
    results = {
        r.check: r for r in check_component("schedule", Cosine(), expected_failures={"copies": "it is not known how"})
    }
    assert not results["copies"].ok
    assert results["copies"].cause.startswith("what was known to be wrong is fixed")
    (check,) = [check for check in checks_for("sampler") if check.name == "no_hidden_state"]
    result = check.result(HiddenHistory(), known["no_hidden_state"])
    assert result.ok and result.status == "expected" and result.reason == "history is kept in the module"


def test_a_report_has_a_line_for_each_check_and_a_review_of_each_failure():
    results = [found("keeps_the_marginals", part) for part in (Linear(), CurrentAlpha())]
    lines = report(results).splitlines()
    assert lines[0].startswith("passed    keeps_the_marginals")
    assert lines[1].startswith("failed    keeps_the_marginals")
    assert lines[2:4] == ["", "sampler CurrentAlpha(eta=0.0) fails 'keeps_the_marginals'"]


def test_unknown_kind():
    with pytest.raises(OptionError, match="no kind 'samplers'; did you mean 'sampler'"):
        checks_for("samplers")


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    check_component("timesteps", diffkit.registry.registry("timesteps").create("uniform"))
    assert torch.equal(torch.rand(3), wanted)


@parametrize_checks("schedule", Cosine(), Cosine(s=0.1))
def test_parametrized(check):
    check()


@parametrize_checks("sampler", CurrentAlpha, expected_failures=dict.fromkeys(
    ("point_is_reached", "keeps_the_marginals", "elements_on_their_own", "order_as_declared", "encodes_at_its_order",
     "refuses_nonsense"),
    "the mean takes the wrong alpha, and eta is not checked",
))  # fmt: skip
def test_parametrized_with_expected_failures(check):
    check()


def test_parameters_are_named_and_fail_like_a_review():
    mark = parametrize_checks("sampler", CurrentAlpha()).mark
    ids = [case.id for case in mark.args[1]]
    assert "CurrentAlpha(eta=0.0)-keeps_the_marginals" in ids
    (case,) = [case for case in mark.args[1] if case.id.endswith("-keeps_the_marginals")]
    with pytest.raises(AssertionError, match="usually:  alpha or sigma of the wrong end"):
        case.values[0]()
    with pytest.raises(OptionError, match="no check 'oder_as_declared' of kind 'sampler'; did you mean"):
        parametrize_checks("sampler", Linear(), expected_failures={"oder_as_declared": "typo"})


def results_of(part, conditions=None):
    """What the laws of backbones alone say, by check."""
    of_all = {check.name for check in checks_for("schedule")}
    found = check_component("backbone", part, conditions=conditions)
    return {result.check: result for result in found if result.check not in of_all}


def in_rows(n):
    return {"context": torch.eye(6)[:n]}


def of_shape(n, data_shape):
    assert len(data_shape) in (2, 3)
    return in_rows(n)


@pytest.mark.parametrize("conditions", [{"context": torch.eye(6)}, {"context": torch.eye(6)[:2]}, in_rows, of_shape])
def test_conditions_that_no_kit_can_guess_are_given(conditions):
    results = results_of(Recipe(0, Context), conditions)
    assert all(result.ok for result in results.values()), report(results.values())
    of_other_networks = {"labels_are_used", "second_time_is_read", "second_time_starts_at_nothing"}
    assert {name for name, result in results.items() if result.status == "skipped"} == of_other_networks
    caught = results_of(Recipe(0, FirstContextForAll), conditions)["conditions_are_used"]
    assert caught.found == "[False, False, False]" and "context of example 1 changed" in str(caught.where)


def test_a_condition_that_is_missing_is_reported_once():
    results = results_of(Recipe(0, Context))
    failed = [result for result in results.values() if not result.ok]
    assert [result.check for result in failed] == ["conditions_are_known"]
    assert failed[0].found.startswith("TypeError: ") and "'context'" in failed[0].found
    assert "conditions={name: tensor}" in failed[0].cause
    skipped = {result.reason for result in results.values() if result.status == "skipped"}
    assert skipped == {"it does not answer; see conditions_are_known", "its network takes one time"}


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ({"contxt": torch.eye(3)}, "unexpected keyword argument 'contxt'"),
        (lambda n: {"context": 1 / 0}, "ZeroDivisionError: division by zero"),
    ],
)
def test_given_conditions_that_do_not_fit_are_reported_once(conditions, text):
    failed = [result for result in results_of(Recipe(0, Context), conditions).values() if not result.ok]
    assert [result.check for result in failed] == ["conditions_are_known"]
    assert text in failed[0].found and failed[0].cause.startswith("conditions that are not what the network takes")


def test_given_rows_that_are_alike_tell_nothing_of_their_use():
    results = results_of(Recipe(0, Context), {"context": torch.ones(3, 6)})
    assert results["conditions_are_used"].reason == "no other value is known of context"


def test_a_single_check_takes_conditions_and_forgets_them():
    (check,) = [check for check in checks_for("backbone") if check.name == "uses_time"]
    check(Recipe(0, Context), conditions=in_rows)
    with pytest.raises(NotApplicableError, match="it does not answer"):
        check(Recipe(0, Context))


@pytest.mark.parametrize(
    ("kind", "conditions", "text"),
    [
        (
            "sampler",
            {"y": torch.zeros(3)},
            "conditions are for calls of a backbone or a guidance; a sampler takes none",
        ),
        ("backbone", torch.zeros(3), "a mapping of names to tensors, or a function of n that returns one, got Tensor"),
        ("backbone", {"y": 3}, "condition 'y' must be a tensor with a row for each example, got 3"),
        ("backbone", {"y": torch.zeros(0)}, "condition 'y' must be a tensor with a row for each example"),
    ],
)
def test_conditions_of_another_form_are_refused(kind, conditions, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        check_component(kind, Recipe(), conditions=conditions)
    with pytest.raises(OptionError, match=re.escape(text)):
        parametrize_checks(kind, Recipe(), conditions=conditions)


@frozen
class ContextRecipe(Backbone):
    def build(self, data_shape, out_channels):
        return Recipe(0, Context).build(data_shape, out_channels)

    def problems(self, composition):
        return Recipe().problems(composition)


@parametrize_checks("backbone", ContextRecipe, conditions=in_rows)
def test_parametrized_with_conditions(check):
    check()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(MissingExtraError, match=r"parametrize_checks needs the 'testing' extra; run: pip install"):
        parametrize_checks("schedule", Cosine())
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "diffkit.testing.strategies", raising=False)
    with pytest.raises(MissingExtraError, match=r"diffkit\.testing\.strategies needs the 'testing' extra"):
        importlib.import_module("diffkit.testing.strategies")


def test_checks_need_neither_pytest_nor_hypothesis():
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from diffkit.testing import check_component\n"
        "from diffkit.parts.timesteps.uniform import Uniform\n"
        "assert all(result.ok for result in check_component('timesteps', Uniform))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_lists_every_law():
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    kinds = (*KINDS, "solver")
    laws = {f"| `{check.name}` | {check.law} |": None for kind in kinds for check in checks_for(kind)}
    assert set(rows) == set(laws)


@frozen
class OutOfInk(Hook):
    """Fails after an update, when there is something to save."""

    def after_update(self, facts, state):
        raise RuntimeError("out of ink")


def test_a_hook_that_fails_is_reported_by_its_results_alone(capsys):
    (found,) = check_component("hook", OutOfInk(), only=["returns_plain_results"])
    assert not found.ok and "out of ink" in found.found
    assert capsys.readouterr() == ("", "")
