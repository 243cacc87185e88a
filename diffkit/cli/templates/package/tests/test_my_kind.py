"""The laws of every my_kind."""

from __future__ import annotations

from my_package.my_kind import MyPart

from diffkit.testing import parametrize_checks


@parametrize_checks("my_kind", MyPart())
def test_it_conforms(check):
    check()
