"""The teacher of a loss that calls one: the running mean of the weights in training, or another system."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.protocols import NetworkLoss
from diffkit.runtime.files import weights_digest
from diffkit.system.loading import load_system
from diffkit.system.loss_network import NetworkCall, teacher_problems
from diffkit.system.module import System
from diffkit.training.config import TrainConfig
from diffkit.training.ema import Ema, ema_label
from diffkit.training.precision import in_precision
from diffkit.training.trainable import Trainable

SYSTEM = "system"
"""The teacher of a loss that is given to `diffkit.train`."""


def network_loss(system: Trainable) -> NetworkLoss | None:
    """Return the loss of a system if it calls the network again; None otherwise."""
    loss = system.parts.loss
    return loss if isinstance(system, System) and isinstance(loss, NetworkLoss) else None


def is_running_mean(teacher: str | None) -> bool:
    """Whether a loss's teacher is a running mean of the weights in training."""
    return teacher is not None and (teacher == "ema" or teacher.startswith("ema_"))


def find_teacher(system: Trainable, config: TrainConfig, given: System | str | Path | None) -> System | None:
    """Return the system that teaches, loaded from its folder if that is what the loss names; None for running means.

    Raises:
        OptionError: The loss has no such teacher, or it does not fit the system.
        CheckpointError, SpecError: As `diffkit.load`.
    """
    loss, label = network_loss(system), system.parts.label("loss")
    wanted = None if loss is None else loss.teacher
    if wanted is None or is_running_mean(wanted):
        if given is not None:
            what = "no teacher" if wanted is None else "its own running mean"
            raise OptionError(f"teacher was given, but {label} learns from {what}; leave it out")
        if wanted is not None:
            _check_mean(label, wanted, config)
        return None
    if given is None and wanted == SYSTEM:
        raise OptionError(f"{label} learns from another system; give diffkit.train teacher= a system or its folder")
    found = wanted if given is None else given
    teacher = found if isinstance(found, System) else load_system(found)
    if problems := list(teacher_problems(teacher, system.parts)):
        raise OptionError("\n  ".join([f"the teacher of {label} does not fit:", *problems]))
    own = copy.deepcopy(teacher.network)  # the system in training may have this very network
    assert own is not None, "one of the problems"
    return teacher.with_network(own.to(system.device).requires_grad_(False)).eval()


def _check_mean(label: str, wanted: str, config: TrainConfig) -> None:
    """Raise `OptionError` unless training computes the running mean that a loss learns from."""
    means = [ema_label(rate) for rate in config.ema]
    if not means or wanted not in ("ema", *means):
        raise OptionError(
            f"{label} learns from the running mean {wanted!r}, which training does not compute (means: "
            f"{', '.join(means) or 'none'})",
            fix={"ema": (0.9999,)} if wanted == "ema" else (),
        )


def teacher_record(teacher: System | None, system: Trainable, given: object) -> dict[str, Any]:
    """Return the teacher as a run's spec names it: its folder, if it was read from one, and a digest of its weights."""
    loss = network_loss(system)
    if teacher is None or loss is None or teacher.network is None:
        return {}
    path = given if isinstance(given, str | Path) else loss.teacher if given is None else None
    return {
        "teacher": {
            "path": None if path is None else str(path),
            "digest": weights_digest(teacher.network.state_dict(), shapes=True),
        }
    }


class RunningMean:
    """A network that has the running mean of the weights in training as its own, in eval mode.

    Args:
        network: A copy of the network in training, prepared by the engine.
        like: The network in training, whose buffers it shares.
        ema: The running means.
        label: Which of them.
    """

    def __init__(self, network: nn.Module, like: nn.Module, ema: Ema, label: str):
        self.network = network.requires_grad_(False).eval()
        own = dict(network.named_parameters())
        means = ema.means[ema.labels.index(label)]
        self._copied: list[tuple[Tensor, Tensor]] = []
        for name, mean in zip(ema.names, means, strict=True):
            if type(mean) is Tensor and own[name].dtype == mean.dtype:
                own[name].data = mean  # the same memory: an update of the mean is one of this network
            else:
                self._copied.append((own[name], mean))
        for theirs, module in zip(like.modules(), network.modules(), strict=True):
            module._buffers.update(theirs._buffers)

    @torch.no_grad()
    def renew(self) -> None:
        """Take the present means, where they have memory of their own."""
        for weight, mean in self._copied:
            weight.copy_(mean)


def teacher_call(network: nn.Module, system: System, config: TrainConfig, device: torch.device) -> NetworkCall:
    """Return a teacher as `System.loss_terms` takes it, in the precision of training."""
    model = in_precision(network, config.precision, device)
    return NetworkCall(model, system.parts, system.objective.scales_input, {})
