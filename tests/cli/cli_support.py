"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_pre_hook


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
Refused = Callable[..., str]


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
