"""An exception of a part is reported once, by the first law that it stops, and reads like a review."""

from __future__ import annotations

import subprocess
import sys

import pytest
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.parts.losses.simple import Simple
from diffkit.parts.means.eps import Eps
from diffkit.parts.samplers.ddim import DDIM
from diffkit.parts.schedules.cosine import Cosine
from diffkit.parts.timesteps.uniform import Uniform
from diffkit.parts.variances.fixed_small import FixedSmall
from diffkit.protocols import Backbone, Guidance
from diffkit.testing import check_component, parametrize_checks, report


@frozen
class Undeclared(DDIM):
    """Reads noise, but does not declare that it is stochastic."""

    stochastic = False

    def step(self, denoise, x, state, row, noise, last):
        after, state = super().step(denoise, x, state, row, None, last)
        return after + 0.1 * noise, state


class Ending(BaseException):
    """As parts may raise that end a process."""


@frozen
class FailingCosine(Cosine):
    def table(self, num_steps):
        return super().table(num_steps) / 0


@frozen
class FailingEps(Eps):
    def scalings(self, at, prev):
        raise RuntimeError(f"at {len(at.alpha)} levels")


@frozen
class FailingVariance(FixedSmall):
    def log_variance(self, raw, cols):
        return cols["no such column"]


@frozen
class FailingLoss(Simple):
    def __call__(self, at):
        raise SystemExit(3)


@frozen
class FailingTimesteps(Uniform):
    def sample(self, state, u, num_steps):
        raise Ending


@frozen
class FailingSampler(DDIM):
    def plan(self, steps):
        return {"x": 1 / [].pop()}


@frozen
class FailingBackbone(Backbone):
    def build(self, data_shape, out_channels):
        raise ValueError("no network today")


@frozen
class FailingGuidance(Guidance):
    def guide(self, evaluate, x, level, conditions):
        raise ValueError("no guidance today")


FAILING = {
    "schedule": FailingCosine(),
    "mean": FailingEps(),
    "var": FailingVariance(),
    "loss": FailingLoss(),
    "timesteps": FailingTimesteps(),
    "sampler": FailingSampler(),
    "backbone": FailingBackbone(),
    "guidance": FailingGuidance(),
}
CAUSE = "of the part; other laws that stop there are skipped, and may fail too once it is corrected"
FEW = {"schedule": 1, "mean": 1, "var": 1, "loss": 1, "timesteps": 1, "sampler": 1, "backbone": 2, "guidance": 1}
"""Failures of each; the network's is that, and that no OptionError is raised for a shape of data."""


@pytest.mark.parametrize("kind", FAILING)
def test_one_exception_fails_one_law(kind):
    results = check_component(kind, FAILING[kind], expected_failures={})
    stopped = [result for result in results if result.expected == "no exception" and result.status == "failed"]
    assert len(stopped) == 1, report(results)
    assert stopped[0].cause.endswith(CAUSE) and "test_stopped.py, line " in str(stopped[0].where)
    failed = [result.check for result in results if not result.ok]
    assert len(failed) <= FEW[kind], report(results)
    reason = f"it stops at the exception that {stopped[0].check} reports"
    assert sum(result.reason == reason for result in results) >= 2


def test_in_pytest_the_first_fails_and_the_rest_are_skipped():
    cases = [case.values[0] for case in parametrize_checks("sampler", FailingSampler()).mark.args[1]]
    failed = []
    for case in cases:
        try:
            case()
        except pytest.skip.Exception as skipped:
            assert failed or "exception" not in str(skipped)
        except AssertionError as error:
            failed.append(error)
    assert len(failed) == 1
    assert str(failed[0]).startswith("sampler FailingSampler(eta=0.0, clipped_eps=True) fails ")
    assert failed[0].__suppress_context__ and failed[0].__cause__ is None  # pytest prints the review alone


def test_a_part_that_cannot_be_printed_is_checked():
    @frozen(repr=False)
    class Mute(DDIM):
        def __repr__(self):
            raise RuntimeError

    results = {result.check: result for result in check_component("sampler", Mute())}
    assert results["plan_is_finite"].ok
    assert results["plan_is_finite"].part == "<Mute, which cannot be printed>"


def test_the_user_can_still_stop_the_kit():
    @frozen
    class Stopped(DDIM):
        def plan(self, steps):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_component("sampler", Stopped())


@pytest.mark.slow
def test_what_pytest_prints_is_the_review(tmp_path):
    (tmp_path / "test_part.py").write_text(
        "from diffkit.parts.samplers.ddim import DDIM\n"
        "from diffkit.testing import parametrize_checks\n\n"
        "class Failing(DDIM):\n"
        "    def plan(self, steps):\n"
        "        return {'x': 1 / 0}\n\n"
        "@parametrize_checks('sampler', Failing())\n"
        "def test_part(check):\n"
        "    check()\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.count("ZeroDivisionError: division by zero") <= 2, done.stdout
    assert "1 failed" in done.stdout and "direct cause" not in done.stdout and "During handling" not in done.stdout


def test_unknown_checks_are_still_refused():
    with pytest.raises(OptionError, match="no check 'x' of kind 'sampler'"):
        check_component("sampler", FailingSampler(), expected_failures={"x": "y"})


def test_noise_that_is_read_but_not_declared_is_named():
    failed = [result for result in check_component("sampler", Undeclared()) if not result.ok]
    assert [result.cause.partition("; ")[0] for result in failed if result.stopped] == [
        "noise is None, as `stochastic` of the sampler is False"
    ]
