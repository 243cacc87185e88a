"""One torch thread per worker, derandomized Hypothesis."""

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


@pytest.fixture(autouse=True)
def _seeded():
    """A test that forgets to pass randomness in is at least repeatable."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch):
    """What is installed beside diffkit must not change what the tests see; tests of plugins lift this."""
    if "DIFFKIT_PLUGINS" not in os.environ:
        monkeypatch.setenv("DIFFKIT_PLUGINS", "")
