"""Where commands compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit._errors import OptionError

if TYPE_CHECKING:
    import torch


def device(name: str | None) -> torch.device:
    """Return the device of that name; by default a CUDA device if there is one, else the CPU.

    Raises:
        OptionError: There is no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others, by device
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {name!r} cannot be used here: {reason}; 'cpu' always can") from error
    return found


def device_of_rank(name: str | None) -> torch.device:
    """Return the device of that name for this process of a launcher: each takes a GPU of its own.

    Raises:
        OptionError: There is no such device here.
    """
    import torch

    from diffkit.ranks import launched, local_rank

    if launched().size > 1 and name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank() % torch.cuda.device_count()}"
    return device(name)
