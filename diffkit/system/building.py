"""Building a network within the memory of the machine: options from a file may need more than there is."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from diffkit.errors import OptionError

MOST_TENSORS = 20_000
"""Largest number of weights and buffers of a network; the largest published ones have two thousand."""
_TOO_LARGE = re.compile(r"overflow|allocate|out of memory|too large", re.IGNORECASE)


@contextmanager
def bounded(device: torch.device | None) -> Iterator[None]:
    """Raise `OptionError` within the block as soon as the networks built there exceed the machine's memory.

    Each weight is counted when a module registers it: its memory is reserved then, but not yet written to.

    Args:
        device: Device of the networks; None is the CPU. Other devices raise their own out-of-memory errors.
    """
    memory = _memory() if device is None or device.type == "cpu" else None
    thread, tensors, size = threading.get_ident(), 0, 0

    def count(owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, size
        if tensor is None or threading.get_ident() != thread:
            return
        tensors, size = tensors + 1, size + tensor.nbytes
        if tensors > MOST_TENSORS:
            raise OptionError(f"the network has more than {MOST_TENSORS} weights; use one that is less deep")
        if memory is not None and size > memory:
            raise OptionError(
                f"the network needs {size} bytes and more for its weights, this machine has {memory}; use one that is "
                "smaller"
            )

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    except OptionError:
        raise
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:
        if isinstance(error, MemoryError | OverflowError) or _TOO_LARGE.search(str(error)):
            raise OptionError("the network needs more memory than there is; use one that is smaller") from error
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _memory() -> int | None:
    """Bytes of memory of the machine; None if the operating system does not report them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
