"""The device of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffkit.errors import OptionError
from diffkit.runtime.output import log

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


def check_device(name: str | None) -> None:
    """Raise `OptionError` unless a device of that name is here; nothing is put on it. None is the default."""
    if name is None:
        return
    import torch

    here = _here()
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name} is not the name of a device; there is {', '.join(here)}") from error
    if found.type != "cpu" and str(found) not in here:
        raise OptionError(f"--device {name} is not here{_why_not(found.type)}; there is {', '.join(here)}")


def _here() -> tuple[str, ...]:
    """Names of all devices of this machine that PyTorch can use."""
    import torch

    if not torch.accelerator.is_available():
        return ("cpu",)
    kind = str(torch.accelerator.current_accelerator()).partition(":")[0]
    return ("cpu", kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count())))


def _why_not(kind: str) -> str:
    import torch

    if kind != "cuda" or torch.cuda.is_available():
        return ""
    built: bool = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    return " (PyTorch sees no GPU)" if built else " (this PyTorch is built without CUDA)"


def device(name: str | None) -> torch.device:
    """Return the device of that name, after `check_device`; by default a CUDA device if there is one, else the CPU.

    Raises:
        OptionError: It cannot be used.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others, by device
        reason = str(error).splitlines()[0]
        raise OptionError(f"--device {name} cannot be used: {reason}; cpu always can") from error
    return found


def device_of_rank(name: str | None) -> torch.device:
    """Return the device of that name for this process of a launcher: each takes a GPU of its own."""
    import torch

    from diffkit.runtime.distributed import launched, local_rank

    if launched().size > 1 and name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank() % torch.cuda.device_count()}"
    return device(name)


def warn_of_emulation(precision: Precision, device: torch.device) -> None:
    """Log if a CPU only emulates a precision, so that it is slower than float32."""
    from diffkit.training.precision import emulation_warning

    if remark := emulation_warning(precision, device):
        log(f"note: {remark}")
