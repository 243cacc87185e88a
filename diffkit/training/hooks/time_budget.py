"""Stops when the time of this call is used up, with a checkpoint; the same command goes on."""

from __future__ import annotations

from attrs import frozen

from diffkit.options import duration
from diffkit.registry import registry
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState


@registry("hook").register("time_budget")
@frozen
class TimeBudget(Hook):
    """Stops after the update at which the time since the call began is used up.

    Each call has the whole budget: a job that is limited to 4 hours trains with "3h50m" again and again.

    Attributes:
        seconds: Such as 7200, or a text such as "2h", "90m", "1h30m" or "45s"; > 0.
    """

    seconds: float | str = duration(7200.0)

    def after_update(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Stop if the time is over."""
        limit = float(self.seconds)
        return HookResult(stop=f"{limit:g} seconds are over") if facts.seconds() >= limit else None
