"""Another schedule, rescaled so that no signal is left at its last level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.protocols import ContinuousSchedule, NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable

Options = tuple[tuple[str, Any], ...]


def _as_pairs(options: Any) -> Any:
    """A mapping or a list of pairs (as JSON has it) as a tuple of pairs, which can be hashed."""
    pairs = options.items() if isinstance(options, Mapping) else options
    if not isinstance(pairs, tuple | list) and not isinstance(options, Mapping):
        return options
    return tuple((p[0], _plain(p[1])) if isinstance(p, tuple | list) and len(p) == 2 else p for p in pairs)


def _plain(value: Any) -> Any:
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value


def _check_pairs(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in value):
        raise OptionError(f"{attribute.name} must be a mapping of options, got {value!r}")


@registry("schedule").register("zero_snr")
@frozen
class ZeroSNR(NoiseSchedule):
    """``sqrt(alpha_bar_k)`` shifted to 0 at T and stretched so that level 1 is unchanged.

    Sampling starts from pure noise, so training should end in it: otherwise the signal left at T biases the
    brightness of samples. Without signal eps does not determine x_start; mean='v' or 'x_start' does.

    Attributes:
        of: Name of the schedule that is rescaled.
        of_options: Its options, as a mapping.
    Source: Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    Deviates: on a path whose total_std is not 1, total_std is unchanged.
    """

    of: str = attrs.field(default="linear")
    of_options: Options = attrs.field(default=(), converter=_as_pairs, validator=_check_pairs)

    def __attrs_post_init__(self) -> None:
        self._inner()

    def table(self, num_steps: int) -> ProcessTable:
        """Return the rescaled table; `OptionError` names the smallest num_steps that works."""
        inner = self._inner()
        table = inner.table(max(num_steps, 2))  # at 2 it raises if it needs more than that
        root = np.sqrt(table.alpha_bar[1:])
        if num_steps < 2:
            raise OptionError(
                f"schedule 'zero_snr' needs num_steps >= 2, got {num_steps}: one level would be first and last"
            )
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        total_std = table.total_std[1:]
        time = None if isinstance(inner, ContinuousSchedule) else table.time[1:]
        return ProcessTable.from_alpha_sigma(total_std * root, total_std * np.sqrt((1 - root) * (1 + root)), time)

    def _inner(self) -> NoiseSchedule:
        schedule: NoiseSchedule = registry("schedule").create(self.of, **dict(self.of_options))
        return schedule
