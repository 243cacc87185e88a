"""Training of an adapter: attached before the first update, its base checked, or stored in the folder of the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.runtime.files import weights_digest
from diffkit.runtime.run_layout import BASE
from diffkit.system.attached import Attached, adapter_of, attach, base_digest, forget_adapter, read_weights_at
from diffkit.system.module import System
from diffkit.system.saving import write
from diffkit.training.config import TrainConfig
from diffkit.training.trainable import Trainable


class StoredBase:
    """The system beside which an adapter is trained, to be stored in the folder of the run.

    Args:
        system: The system, before the adapter is attached.
    """

    def __init__(self, system: System):
        assert system.network is not None
        self.spec = system.spec()
        self.weights: dict[str, Tensor] = {name: t.detach() for name, t in system.network.state_dict().items()}

    def write(self, folder: Path) -> None:
        """Write it, unless it is there already."""
        if not (folder / BASE).exists():
            write(self.spec, self.weights, folder / BASE)


@contextmanager
def adapter_attached(
    system: Trainable, config: TrainConfig, base: str | Path | None, out: str | Path
) -> Iterator[StoredBase | None]:
    """Context for the checks of a run with the adapter attached, in place; an error in it removes the adapter again."""
    had = adapter_of(system.network)
    trained = [] if system.network is None else [p for p in system.network.parameters() if p.requires_grad]
    stored = attach_adapter(system, config, base, out)
    try:
        yield stored
    except BaseException:
        attached = adapter_of(system.network)
        if attached is not None and had is None and system.network is not None:
            attached.adapter.merge(system.network)  # which changes nothing yet
            forget_adapter(system.network)
            for parameter in trained:
                parameter.requires_grad_(True)
        raise


def attach_adapter(
    system: Trainable, config: TrainConfig, base: str | Path | None, out: str | Path
) -> StoredBase | None:
    """Attach the adapter of a run to the network of its system, in place.

    Args:
        system: The system.
        config: Options of training; its seed decides the adapter's first values.
        base: Folder or file with the weights of the system; None to store them in the folder of the run.
        out: Folder of the run.
    Returns:
        What is to be stored in that folder, if anything.
    Raises:
        OptionError: The adapter does not fit, or the base has other weights than the system.
    """
    part = config.adapter_part
    if part is None:
        if base is not None:
            raise OptionError("base is where the weights beside an adapter are; give an adapter, or leave it out")
        if adapter_of(system.network) is not None:
            raise OptionError(
                "the system has an adapter; train that by the same adapter=..., or merge it first: "
                "system = diffkit.weights.merged(system)"
            )
        return None
    if not isinstance(system, System) or system.network is None:
        raise OptionError(
            "an adapter needs a system with a network; a classifier is trained whole", fix={"adapter": None}
        )
    if config.strategy != "ddp":
        raise OptionError(
            "has no shards of an adapter's layers", option="strategy", value=config.strategy, fix={"strategy": "ddp"}
        )
    if (attached := adapter_of(system.network)) is not None:
        _check_same(attached, part)
        return None
    place = os.path.abspath(Path(out) / BASE if base is None else base)  # noqa: PTH100 - no link is resolved
    stored, digest = (StoredBase(system), None) if base is None else (None, _checked_digest(system, Path(place)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        attach(system.network, part, place, digest)
    return stored


def _check_same(attached: Attached, part: Any) -> None:
    if attached.adapter != part:
        raise OptionError(
            f"the system has the adapter {attached.adapter!r} already, not {part!r}; merge it first: "
            "system = diffkit.weights.merged(system)"
        )


def _checked_digest(system: System, place: Path) -> str:
    assert system.network is not None
    own = base_digest(system.network)
    if not place.exists():
        raise OptionError(f"base {str(place)!r} is not there; name the folder that the system was loaded from")
    if weights_digest(read_weights_at(place), shapes=True) != own:
        raise OptionError(f"base {str(place)!r} has other weights than the system; load the system from there")
    return own
