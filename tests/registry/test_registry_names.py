"""What an author of parts needs is public."""

from __future__ import annotations

import pytest

import diffkit
from diffkit import errors

ERRORS = [n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_can_be_imported_from_diffkit(name: str):
    assert getattr(diffkit, name) is getattr(errors, name)
    assert name in diffkit.__all__
