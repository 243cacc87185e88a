"""Benchmarks record, they never assert a time. Results go to ``--results`` (default benchmarks/results) as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import HERE, machine
from peers import versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the costly cases too: larger networks, compilation")
    parser.addoption("--results", default=str(HERE / "results"), help="folder for the JSON files")


def pytest_configure(config: pytest.Config) -> None:
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):  # what peers and torch's compiler say
        config.addinivalue_line("filterwarnings", f"ignore::{kind}")
    try:
        versions()  # a checkout named wrongly is better said now
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header() -> str:
    return "peers: " + ", ".join(f"{name} {version or 'left out'}" for name, version in versions().items())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the costly cases are asked for."""
    return bool(request.config.getoption("--full"))


Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Write the rows of one benchmark, and print them: ``record(name, about, rows, dtype=..., shape=...)``."""

    def write(name: str, about: str, rows: list[dict[str, Any]], **setup: Any) -> None:
        folder = Path(request.config.getoption("--results"))
        folder.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": name, "about": about, "setup": setup, "machine": machine(), "rows": rows}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{name}")
            for row in rows:
                print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))

    return write
