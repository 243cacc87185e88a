"""Checks, their results, and how a result is printed."""

from __future__ import annotations

import functools
import inspect
import re
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from attrs import evolve, field, frozen

from diffkit.registry import KINDS

Law = Callable[[Any], str | None]
F = TypeVar("F", bound=Callable[..., str | None])


@frozen
class Where:
    """Place where a law was found broken: path, number of steps, level.

    Attributes:
        path: "vp", "ve" or "linear", with what is special about it; "" where no table is involved.
        num_steps: T of the table.
        level: Level of the table, 1..T.
        detail: Anything else: shape of the data, options tried.
    """

    path: str = ""
    num_steps: int | None = None
    level: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        parts = [
            f"{self.path} path" if self.path else "",
            f"T = {self.num_steps}" if self.num_steps is not None else "",
            f"level {self.level}" if self.level is not None else "",
            self.detail,
        ]
        return ", ".join(filter(None, parts))


Given = Mapping[str, Any] | Callable[..., Mapping[str, Any]]
"""Conditions of a network as a caller of the kit gives them: tensors with a row an example, or a function of n."""

_NO_EXCEPTION = "no exception"
"""What a law expects that stopped at an exception it is not about."""

_GIVEN: ContextVar[Given | None] = ContextVar("conditions of the caller", default=None)


def given_conditions() -> Given | None:
    """Return the caller's conditions for networks, if any."""
    return _GIVEN.get()


_HERE = [Where()]


def record_where(where: Where) -> Where:
    """Record the place that a check has reached, to locate unexpected exceptions; returns ``where``."""
    _HERE[0] = where
    return where


def recorded_where() -> Where:
    """Return the place that the running check recorded last."""
    return _HERE[0]


class LawError(AssertionError):
    """Error of the conformance kit: a part breaks a law of its kind.

    Attributes:
        expected, found: In words or numbers.
        where: Path, number of steps, level.
        cause: What usually causes it; the check's own text if empty.
    """

    def __init__(self, expected: str, found: str, where: Where | None = None, cause: str = ""):
        super().__init__(f"expected {expected}, found {found}" + (f" ({where})" if where and str(where) else ""))
        self.expected = expected
        self.found = found
        self.where = where or Where()
        self.cause = cause


class StoppedError(LawError):
    """Error of the conformance kit: a check stopped at an exception of the part that the law is not about.

    Attributes:
        place: What was raised, and where: the same for every check that stops there.
    """

    def __init__(self, found: str, where: Where, cause: str, place: str):
        super().__init__(_NO_EXCEPTION, found, where, cause)
        self.place = place


class NotApplicableError(Exception):
    """Exception of the conformance kit: a law does not apply to this part, with the reason."""


@frozen
class CheckResult:
    """Result of one check of the conformance kit on one part.

    Attributes:
        check: Name of the check.
        kind: Kind of the part.
        part: The part, as it prints itself.
        status: "passed", "failed", "expected" (failed, as the caller declared) or "skipped" (not applicable).
        law: What must hold.
        where, expected, found, cause: Of a failure; see `LawError`.
        reason: Of "expected" and "skipped".
        note: What was measured, where a number is of interest.
        stopped: Of a failure by an exception: what was raised, and where.
        seconds: How long it took.
    """

    check: str
    kind: str
    part: str
    status: str
    law: str
    where: Where = field(factory=Where)
    expected: str = ""
    found: str = ""
    cause: str = ""
    reason: str = ""
    note: str = ""
    stopped: str = ""
    seconds: float = field(default=0.0, eq=False)

    @property
    def ok(self) -> bool:
        """Whether the check passed, was skipped, or failed as declared."""
        return self.status != "failed"

    def __str__(self) -> str:
        """Print like a review: law, where, expected, found, usual cause."""
        if self.status != "failed":
            return f"{self.kind} {self.part}: {self.check} {self.status}" + (f" ({self.reason})" if self.reason else "")
        lines = {
            "law": self.law,
            "where": str(self.where),
            "expected": self.expected,
            "found": self.found,
            "usually": self.cause,
        }
        body = [f"  {name + ':':10}{_indented(text)}" for name, text in lines.items() if text]
        return "\n".join([f"{self.kind} {self.part} fails {self.check!r}", *body])


@frozen
class Check:
    """Conformance check: one law of one kind of part.

    Calling it with a part returns a note (mostly an empty one), or raises `LawError` (or `NotApplicableError`).

    Attributes:
        name: How it is referred to.
        kind: Kind of part it is about.
        law: What must hold, one sentence.
        cause: What usually breaks it.
        run: The function that checks.
    """

    name: str
    kind: str
    law: str
    cause: str
    run: Law = field(repr=False, eq=False)

    def __call__(self, part: Any, conditions: Given | None = None) -> str:
        """Check a part on its own random numbers, numeric warnings being errors.

        Args:
            part: An instance.
            conditions: Conditions to call a backbone with; see `check_component`.
        """
        token = _GIVEN.set(conditions)
        try:
            return self._checked(part)
        finally:
            _GIVEN.reset(token)

    def _checked(self, part: Any) -> str:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            torch.manual_seed(0)
            record_where(Where())
            try:
                return self.run(part) or ""
            except (LawError, NotApplicableError):
                raise
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) or type(error).__module__.startswith("_pytest"):
                    raise
                raise _stopped_error(part, error) from error

    def result(self, part: Any, expected_failure: str | None = None, conditions: Given | None = None) -> CheckResult:
        """Check a part and return what was found.

        Args:
            part: An instance.
            expected_failure: Why it is known to fail; passing is then a failure.
            conditions: Conditions to call a backbone with; see `check_component`.
        """
        begun = time.perf_counter()
        found: dict[str, Any] = {"status": "passed"}
        try:
            found["note"] = self(part, conditions)
        except NotApplicableError as error:
            found = {"status": "skipped", "reason": str(error)}
        except LawError as error:
            found = {"status": "failed", "where": error.where, "expected": error.expected, "found": error.found}
            found |= {"cause": error.cause or self.cause, "stopped": _place_of(part, error)}
        if expected_failure is not None:
            found = _expect_failure(found, expected_failure)
        seconds = time.perf_counter() - begun
        return CheckResult(self.name, self.kind, part_text(part), law=self.law, seconds=seconds, **found)


def _expect_failure(found: dict[str, Any], reason: str) -> dict[str, Any]:
    if found["status"] == "failed":
        return found | {"status": "expected", "reason": reason}
    return {
        "status": "failed",
        "expected": f"a failure: {reason}",
        "found": "none; the check " + found["status"],
        "cause": "what was known to be wrong is fixed; take the check out of expected_failures",
    }


_RECIPES = tuple(kind.name for kind in KINDS.values() if kind.recipe)
SOLVER = "solver"
"""What is no kind of part, and has laws: a solver of anybody's."""

_OF_ALL: dict[str, list[Check]] = {kind: [] for kind in (*KINDS, SOLVER)}
_OF_ONE: dict[str, list[Check]] = {kind: [] for kind in (*KINDS, SOLVER)}


def check(kind: str | None = None) -> Callable[[F], F]:
    """Return a decorator that makes a function a check of one kind, or of every kind of recipe (then an argument).

    Its name is the check's, the first line of its docstring the law, and what follows "Usually:" what causes a failure.
    """

    def decorate(function: F) -> F:
        text = inspect.cleandoc(function.__doc__ or "")
        law, _, rest = text.partition("\n")
        cause = " ".join(rest.partition("Usually:")[2].split())
        for each in _RECIPES if kind is None else (kind,):
            run = functools.partial(function, kind=each) if kind is None else function
            made = Check(function.__name__, each, law.rstrip("."), cause.rstrip("."), run)
            (_OF_ALL if kind is None else _OF_ONE)[each].append(made)
        return function

    return decorate


def checks_of(kind: str) -> tuple[Check, ...]:
    """Return every conformance check of a kind, those of all kinds first, in the order they are written."""
    return (*_OF_ALL[kind], *_OF_ONE[kind])


def part_text(part: Any) -> str:
    """Return a part's repr, or the name of its class if the repr fails or takes several lines."""
    try:
        text = repr(part)
    except Exception:  # a repr is the part's own code
        return f"<{type(part).__name__}, which cannot be printed>"
    return text if "\n" not in text else type(part).__name__


def skip_repeated_stop(result: CheckResult, seen: dict[str, str]) -> CheckResult:
    """Return the result of a check; as skipped if an earlier check reports the exception that it stopped at.

    Args:
        result: What a check found.
        seen: Exceptions of this part so far, and the check that reports each; the result's is added.
    """
    if result.status != "failed" or not result.stopped:
        return result
    first = seen.setdefault(result.stopped, result.check)
    if first == result.check or result.expected != _NO_EXCEPTION:
        return result
    return evolve(result, status="skipped", reason=f"it stops at the exception that {first} reports")


def _stopped_error(part: Any, error: BaseException) -> StoppedError:
    """Return a `StoppedError` for an exception, with the innermost line of the part's own file, if any."""
    if isinstance(error.__cause__, ArithmeticError | MemoryError):
        error = error.__cause__  # the core tells users of it in an error of its own
    frames = traceback.extract_tb(error.__traceback__)
    own = _file_of(part)
    mine = [frame for frame in frames if frame.filename == own]
    at = (mine or frames)[-1]
    line, kind = f"{at.filename.rpartition('/')[2]}, line {at.lineno}", type(error).__name__
    found = f"{kind}: {_text_of(error)}"
    raised = kind if mine else re.sub(r"\(?\d[\d, ]*\)?", "N", found)  # numbers and shapes differ from law to law
    whose = f"{at.name}() of the part" if mine else f"{at.name}(), which was given what the part returned"
    why = "; ".join(getattr(error, "__notes__", ())) or f"an error in {whose}"
    cause = f"{why}; other laws that stop there are skipped, and may fail too once it is corrected"
    where = evolve(_HERE[0], detail=", ".join(filter(None, (_HERE[0].detail, line))))
    return StoppedError(found, where, cause, f"{raised} at {line}")


def _place_of(part: Any, error: LawError) -> str:
    """Return what was raised and where, of a law that stopped at an exception or reports one; else nothing."""
    if isinstance(error, StoppedError):
        return error.place
    return _stopped_error(part, error.__cause__).place if error.__cause__ else ""


def _file_of(part: Any) -> str | None:
    try:
        return inspect.getsourcefile(type(part))
    except TypeError:  # a class that is in no file
        return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of the part's own
        return "(which cannot be printed)"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 12)
