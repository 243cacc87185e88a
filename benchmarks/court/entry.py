"""One solver of one library on one path, and the means to bring a library here without what it does not need."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from attrs import field, frozen
from torch import Tensor

from benchmarks.court.rules import COUNTS, FLOOR
from diffkit.testing import CheckResult, ExactModel, TimePath, check_solver, solver_times

Solve = Callable[[ExactModel, Tensor, Any], Tensor]
Grid = Callable[[int], list[float]]


@frozen
class Entry:
    """One solver of one library on one path.

    Attributes:
        solver: As its library names it, with options.
        solve: ``solve(model, x, times)`` returns x at the last time.
        path: The path of time that it runs on.
        order: What the library, or the method's paper, says.
        grid, to_clean: Times of n steps, where the solver decides on them.
        counts: Numbers of steps.
        precision: Of the library's tables.
    """

    solver: str
    solve: Solve = field(repr=False)
    path: TimePath
    order: int = 1
    grid: Grid | None = None
    to_clean: Grid | None = None
    counts: tuple[int, ...] = COUNTS
    precision: str = "float64"

    def check(self, counts: Iterable[int] | None = None) -> list[CheckResult]:
        """Return what the laws say."""
        return check_solver(
            self.solve,
            order=self.order,
            path=self.path,
            grid=self.grid,
            to_clean=self.to_clean,
            counts=tuple(counts or self.counts),
            floor=FLOOR[self.precision],
            label=self.solver,
        )


def even_in_time(path: TimePath) -> Grid:
    """Return a grid whose times are evenly spaced between log_snr -4 and 4, for solvers that allow nothing else."""
    top, bottom = path.time_at(torch.tensor([-4.0, 4.0], dtype=torch.float64)).tolist()
    return lambda n: torch.linspace(top, bottom, n + 1, dtype=torch.float64).tolist()


def to_almost_clean(path: TimePath) -> Grid:
    """Return a grid that ends at log_snr 9, for solvers that are not defined at clean data."""
    return lambda n: [*solver_times(path, n, to_clean=True)[:-1], float(path.time_at(torch.tensor(9.0)))]


def import_alone(module: str, stand_ins: Iterable[str]) -> ModuleType:
    """Import a module of a library, with stand-ins for what no solver of it uses.

    A package is stood in for if it is not installed, a module within one (with a dot) in any case.
    """
    inner, whole = (_StandIns(frozenset(n for n in stand_ins if ("." in n) == dotted)) for dotted in (True, False))
    sys.meta_path[:] = [inner, *sys.meta_path, whole]
    try:
        return importlib.import_module(module)
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in (inner, whole)]


@frozen(eq=False)
class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    names: frozenset[str]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = any(name == known or name.startswith(known + ".") for known in self.names)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        """A stand-in holds nothing."""
