"""One torch thread per worker, derandomized Hypothesis, long tests first."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that take minutes first, the longest ahead, so that at the end no worker waits for one of them."""

    def minutes(item: pytest.Item) -> float:
        return max((mark.kwargs.get("minutes", 0) for mark in item.iter_markers("slow")), default=0)

    items.sort(key=minutes, reverse=True)


@pytest.fixture(autouse=True)
def _seeded():
    """A test that forgets to pass randomness in is at least repeatable."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch):
    """What is installed beside diffkit must not change what the tests see; tests of plugins lift this."""
    if "DIFFKIT_PLUGINS" not in os.environ:
        monkeypatch.setenv("DIFFKIT_PLUGINS", "")
