"""What the tests of the command line share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_pre_hook


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Refusal(str):
    """The text of an error, and what it means to whoever reads it."""

    @property
    def flags(self) -> list[str]:
        """The options that it names."""
        return re.findall(r"(?<![\w-])--?[a-z][\w.-]*\w|-n", self.partition("; ")[0])

    @property
    def fix(self) -> str:
        """What would work: all that follows the first semicolon."""
        return self.partition("; ")[2]


Command = Callable[..., Outcome]
Refused = Callable[..., Refusal]


@contextmanager
def seen_dtypes() -> Iterator[set[torch.dtype | None]]:
    """Yield the dtypes of autocast in modules meanwhile, None without autocast."""
    found: set[torch.dtype | None] = set()

    def look(*_: object) -> None:
        found.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    hook = register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()
