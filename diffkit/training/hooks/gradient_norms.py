"""Norms of the gradients by pattern of parameters, in the lines of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import integer, words
from diffkit.registry import registry
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState
from diffkit.training.parameter_groups import matching


@registry("hook").register("gradient_norms")
@frozen
class GradientNorms(Hook):
    """The norm of the gradients of each layer, or of all parameters that a pattern names, before clipping.

    Written where a line of metrics is, so that other updates cost nothing; every parameter counts for the first
    pattern that names it. Metrics are "grad_norm/PATTERN" or "grad_norm/LAYER".

    Attributes:
        patterns: Such as ("*.qkv.*", "*"); none gives one norm for each layer.
        depth: Words of a parameter's name that make a layer, >= 1: with 2 "blocks.3.attn.qkv.weight" is in "blocks.3".
    """

    patterns: tuple[str, ...] = words(())
    depth: int = integer(2, ge=1)

    def at_begin(self, facts: HookFacts, state: HookState) -> None:
        """Refuse patterns that name nothing."""
        try:
            for pattern in self.patterns:
                matching(pattern, facts.parameters, "patterns")
        except OptionError as error:
            raise error.in_part("hook", "gradient_norms") from error

    def after_backward(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Return the norms, which are on the device."""
        if not facts.logs:
            return None
        groups = self._groups(facts.gradients)
        return HookResult(metrics={f"grad_norm/{name}": facts.norm(group) for name, group in groups.items()})

    def _groups(self, gradients: Mapping[str, Tensor]) -> dict[str, Sequence[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for name, gradient in gradients.items():
            layer = ".".join(name.split(".")[:-1][: self.depth]) or name
            group = next((p for p in self.patterns if fnmatchcase(name, p)), None) if self.patterns else layer
            if group is not None:
                found.setdefault(group, []).append(gradient)
        return dict(found)
