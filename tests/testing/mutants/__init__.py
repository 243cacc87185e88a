"""Parts with one realistic mistake each, with correct twins, and the check that must catch it."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Mutant:
    """A wrong part.

    Attributes:
        kind: Its kind.
        broken: An instance with the mistake.
        twin: An instance without.
        caught_by: The check that must fail for the one and pass for the other.
        found_at: Words that the finding must contain, such as the path or what is named as wrong.
    """

    kind: str
    broken: Any
    twin: Any
    caught_by: str
    found_at: str = ""

    @property
    def label(self) -> str:
        return f"{self.kind}-{type(self.broken).__name__}-{self.caught_by}"
