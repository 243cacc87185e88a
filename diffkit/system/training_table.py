"""The training table of a schedule; of one with weights, by its present weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from diffkit.errors import Message, OptionError, ProtocolError, Setting
from diffkit.protocols import ContinuousSchedule, LearnedSchedule
from diffkit.spacing import levels
from diffkit.system.numerics import computing
from diffkit.system.settings import Settings
from diffkit.table import ProcessTable, respace

_TIMES_AT_ONCE = 4096
"""So that a table of many levels takes little memory."""


def training_table(schedule: Any, settings: Settings, module: nn.Module | None = None) -> ProcessTable:
    """Return the table of the levels that training uses.

    Args:
        schedule: The schedule.
        settings: The system's.
        module: The schedule's own, if it has weights.
    Raises:
        ProtocolError: The schedule returns something else than a table.
        OptionError: The spacing does not fit.
    """
    if isinstance(schedule, LearnedSchedule):
        with computing(f"the table of schedule {type(schedule).__name__}"):
            return _learned_table(schedule, module, settings)
    with computing(f"the table of schedule {type(schedule).__name__}"):
        table = schedule.table(settings.num_steps)
    if not isinstance(table, ProcessTable):
        name = type(schedule).__name__
        raise ProtocolError(f"schedule {name}.table must return a ProcessTable, got {type(table).__name__}")
    if settings.rescale_time and not isinstance(schedule, ContinuousSchedule):
        table = table.with_time(table.time * (1000 / settings.num_steps))
    if settings.train_spacing is not None:
        try:
            table = respace(table, levels(settings.num_steps, settings.train_spacing, table))
        except OptionError as error:
            raise OptionError(Message(Setting("train_spacing"), f": {error}")) from error
    return table


@torch.no_grad()
def _learned_table(schedule: LearnedSchedule, module: nn.Module | None, settings: Settings) -> ProcessTable:
    """The table at times 0, 1 / (T - 1), ..., 1; a single level is the noisiest."""
    name, num_steps = type(schedule).__name__, settings.num_steps
    if settings.train_spacing is not None:
        raise OptionError(f"train_spacing is of levels, and schedule {name} is trained by times; leave it out")
    assert module is not None, "it is built before the table"
    place = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    time = torch.linspace(0, 1, num_steps, dtype=torch.float64) if num_steps > 1 else torch.ones(1).double()
    pieces = torch.split(time.to(place), _TIMES_AT_ONCE)
    log_snr = torch.cat([schedule.log_snr_at(module, some)[0] for some in pieces])
    total_std, conditioning = schedule.level(log_snr)
    found = [each.cpu().numpy().astype(np.float64) for each in (log_snr, total_std, conditioning)]
    if not np.all(np.diff(found[0]) < 0):
        raise ProtocolError(f"schedule {name}.log_snr_at must fall with time, for any weights; it does not for these")
    return ProcessTable.from_log_snr(*found)


def state_of(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what changes whenever weights of a module are written to; nothing is read from a device."""
    return tuple((id(parameter), parameter._version) for parameter in module.parameters())
