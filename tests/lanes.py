"""One test in several lanes: some of its cases by default, more of them with ``-m slow``, all of them with ``-m soak``.

    @in_lanes(default=2, slow=20)
    def test_every_write(chosen):
        for case in chosen(range(count)):
            ...

Which cases are chosen depends on a seed. It is part of the test's name, so a failure shows it;
``DIFFKIT_LANE_SEED=7 pytest ...`` chooses others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pytest
from attrs import frozen

Case = TypeVar("Case")
SEED = "DIFFKIT_LANE_SEED"


@frozen
class Chosen:
    """Chooses cases for one lane.

    Attributes:
        count: How many, or None for all.
        seed: Decides which.
        part, parts: Take every ``parts``-th of them only, from number ``part`` on, so that processes can share them.
    """

    count: int | None = None
    seed: int = 0
    part: int = 0
    parts: int = 1

    def __call__(self, cases: Sequence[Case]) -> list[Case]:
        """Return the chosen cases, in their order."""
        numbers: Sequence[int] = range(len(cases))
        if self.count is not None and self.count < len(cases):
            numbers = sorted(random.Random(self.seed).sample(numbers, self.count))
        return [cases[number] for number in numbers[self.part :: self.parts]]


def in_lanes(*, default: int = 0, slow: int, parts: int = 1) -> Callable[[Any], Any]:
    """Give a test the argument ``chosen``, a `Chosen` for each lane.

    Args:
        default: How many cases the default lane tries; 0 leaves the test out of it.
        slow: How many the slow lane tries.
        parts: How many tests share all the cases in the soak lane.
    """
    seed = int(os.environ.get(SEED, "0"))
    lanes = [pytest.param(Chosen(default, seed), id=f"{default}-of-seed-{seed}")] if default else []
    lanes.append(pytest.param(Chosen(slow, seed), id=f"{slow}-of-seed-{seed}", marks=pytest.mark.slow))
    lanes += [
        pytest.param(Chosen(part=part, parts=parts), id=f"all-{part + 1}-of-{parts}", marks=pytest.mark.soak)
        for part in range(parts)
    ]
    return pytest.mark.parametrize("chosen", lanes)


def some_by_default(cases: Iterable[Any], share: int) -> list[Any]:
    """Return the cases of a test, each of which is a test of its own; the default lane has one of ``share`` of them.

    Every block of ``share`` neighbours gives one, so that what they have in common is always tried.
    """
    draw = random.Random(int(os.environ.get(SEED, "0")))
    cases, quick = list(cases), set[int]()
    for start in range(0, len(cases), share):
        quick.add(min(start + draw.randrange(share), len(cases) - 1))
    return [case if i in quick else _slow(case) for i, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    """Return a case, plain, a tuple of arguments or made by `pytest.param`, marked slow."""
    if hasattr(case, "marks"):
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
