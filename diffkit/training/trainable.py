"""Protocol of what can be trained: a system, or a classifier of noisy data."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from diffkit.protocols import Composition, Model
from diffkit.system.settings import Settings
from diffkit.table import ProcessTable


class Trainable(Protocol):
    """The members that training uses of a model; `System` and `diffkit.guidance.NoisyClassifier` have them.

    A model that trains more than its network, or is saved with modules that are not trained, has ``trained`` and
    ``frozen`` too, as `System` has them: see `trained_of` and `frozen_of`.

    Attributes:
        parts: The composition; its timestep sampler draws the levels.
        settings: The settings it was composed with; shape and bins are those of the data.
    """

    parts: Composition
    settings: Settings

    @property
    def network(self) -> nn.Module | None:
        """Return the network, or None if there is none."""

    @property
    def table(self) -> ProcessTable:
        """Return the noise levels."""

    @property
    def num_steps(self) -> int:
        """Return T."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Return the shape of one example, (C, *S)."""

    @property
    def device(self) -> torch.device:
        """Return where the network is."""

    @abstractmethod
    def loss_terms(
        self,
        model: Model | None,
        x_start: Tensor,
        level: Tensor,
        noise: Tensor,
        *,
        decoder_rows: int | None = None,
        level_to: Tensor | None = None,
        estimates: Tensor | None = None,
        encoded: bool = False,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """Return "loss" and metrics, each (B,), given all randomness; see `System.loss_terms`."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> Self:
        """Return the same with another network of the same kind, or others of the modules that are trained."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return its description without weights, as plain JSON data: "parts", "settings" and more."""

    @abstractmethod
    def eval(self) -> Self:
        """Put the network into evaluation mode, and return this."""


def trained_of(system: Trainable) -> nn.Module | None:
    """Return what is trained of a model: its network, or a `diffkit.system.learned.Trained` with more modules."""
    found: nn.Module | None = getattr(system, "trained", system.network)
    return found


def frozen_of(system: Trainable) -> nn.ModuleDict:
    """Return the modules of parts of a model, by kind, that are saved with it and not trained."""
    found: nn.ModuleDict = getattr(system, "frozen", None) or nn.ModuleDict()
    return found
