"""Stops when a metric has not improved for some time, by default the loss on held-out data."""

from __future__ import annotations

from attrs import frozen

from diffkit.errors import Message, OptionError, Setting, did_you_mean
from diffkit.options import flag, integer, number, word
from diffkit.registry import registry
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState


@registry("hook").register("early_stopping")
@frozen
class EarlyStopping(Hook):
    """Stops when a metric has not improved on its best value in some number of its readings.

    A run that it stopped stops again at once when it is resumed, unless with more patience.

    Attributes:
        metric: Name of a metric in RUN/metrics.jsonl: "val_loss" is read at every validation, "loss" and others at
            every line of metrics.
        patience: Readings in a row that may bring no improvement, >= 1.
        min_delta: Smallest difference that is an improvement, >= 0.
        maximize: The metric is better if it is larger.
    Source: Prechelt 1998, "Early stopping - but when?", doi:10.1007/3-540-49430-8_3.
    """

    metric: str = word("val_loss")
    patience: int = integer(5, ge=1)
    min_delta: float = number(0.0, ge=0)
    maximize: bool = flag(False)

    def init(self) -> HookState:
        """Return the best value, its step, and the readings since."""
        return {"best": None, "best_step": 0, "waited": 0}

    def at_begin(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Refuse a metric that is never measured; stop at once if the run has waited long enough before."""
        if self.metric.startswith("val_") and not facts.validates:
            raise OptionError(
                Message(
                    f"hook 'early_stopping': it reads {self.metric!r}, which this run never measures; pass ",
                    Setting("val"),
                    ", or ",
                    Setting("metric", "loss", "hook"),
                )
            )
        return HookResult(stop=self._reason(state)) if state["waited"] >= self.patience else None

    def after_validation(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Read a metric of held-out data."""
        return self._read(facts, state) if self.metric.startswith("val_") else None

    def after_line(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Read any other metric."""
        return None if self.metric.startswith("val_") else self._read(facts, state)

    def _read(self, facts: HookFacts, state: HookState) -> HookResult | None:
        if self.metric not in facts.metrics:
            self._check_may_come(facts)
            return None
        value = facts.metrics[self.metric]
        best, sign = state["best"], -1.0 if self.maximize else 1.0
        if value is not None and (best is None or sign * (best - value) > self.min_delta):
            return HookResult({"best": value, "best_step": facts.step, "waited": 0})
        waited = {**state, "waited": state["waited"] + 1}
        return HookResult(waited, stop=self._reason(waited) if waited["waited"] >= self.patience else "")

    def _check_may_come(self, facts: HookFacts) -> None:
        """Raise if a reading lacks the metric, and no hook of the user's own may add it to another line."""
        validated, built_in = self.metric.startswith("val_"), registry("hook").built_in_names()
        others = any(name.partition("#")[0] not in built_in for name in facts.hooks)
        if not validated and (others or not facts.logs):
            return
        where = "no validation has" if validated else f"the line of step {facts.step} does not have"
        near, known = did_you_mean(self.metric, facts.metrics), ", ".join(facts.metrics)
        raise OptionError(f"hook 'early_stopping': it reads {self.metric!r}, which {where}{near} (known: {known})")

    def _reason(self, state: HookState) -> str:
        best = "never finite" if state["best"] is None else f"best {state['best']:.6g} at step {state['best_step']}"
        return f"{self.metric} has not improved in {state['waited']} readings ({best})"
