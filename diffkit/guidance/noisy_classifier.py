"""Training of a classifier of noisy data, whose gradient classifier guidance uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from diffkit._version import __version__
from diffkit.errors import OptionError
from diffkit.guidance.classifier import Classifier
from diffkit.options import check_integer
from diffkit.parts.guidance._labels import checked_labels
from diffkit.protocols import Composition, Model
from diffkit.runtime.files import unwrap_module
from diffkit.system.checks import check_draws
from diffkit.system.codec import to_latents
from diffkit.system.module import System, read_backbone
from diffkit.system.saving import FORMAT, is_built_by, part_spec, settings_spec, write, written
from diffkit.table import ProcessTable
from diffkit.tensors import device_of, precision_of

TOP = 5
"""k of the top-k accuracy, as is usual for ImageNet."""


class NoisyClassifier(nn.Module):
    """A network that classifies data at any noise level, and the levels that it is trained on.

        noisy = NoisyClassifier(system, Classifier(channels=64), num_classes=10)
        diffkit.train(noisy, data, out="runs/classifier", steps=20_000, lr=3e-4, weight_decay=0.05, ema=())
        images = system.sample(16, guidance=ClassifierGuidance(noisy, scale=1.0), y=labels)

    Training minimizes the cross entropy of ``x_t = alpha x_start + sigma eps``, at levels that the timestep sampler
    draws. The network is called with x_t and the time, as in guidance.

    Attributes:
        parts: Those of the system whose samples it guides; its schedule, table and timestep sampler are used.
        settings: The settings of that system; the data must fit them.
        network: The network, ``forward(x, time)``: (B, C, *S), (B,) -> logits (B, num_classes).
        recipe: The part that the network was built from, or None for a network of your own.
        num_classes: Number of classes.
        noised: False to train on clean data only, given as level 1.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.
    """

    def __init__(
        self,
        system: System,
        network: Classifier | nn.Module,
        num_classes: int,
        *,
        noised: bool = True,
        device: str | torch.device | None = None,
    ):
        """Build or wrap a network for the levels of a system.

        Args:
            system: The system to guide, or one of the same levels; its own network (which may be None) is not
                used.
            network: The part to build it from, or a network of your own.
            num_classes: Classes of the data, >= 1.
            noised: False to train on clean data only.
            device: Where the network is built, or moved to; by default where the system is.
        Raises:
            OptionError: The options do not fit the shape of the system's data, or each other.
        """
        super().__init__()
        count = check_integer("num_classes", num_classes, ge=1)
        self.parts: Composition = attrs.evolve(system.parts, classes=count, null_conditions=None)
        self.settings = attrs.evolve(system.settings, coupling=None)
        self.objective = system.objective
        self.num_classes = count
        self.noised = noised
        if not noised and self.parts.continuous_time:
            raise OptionError(
                f"needs discrete levels, but {self.parts.label('timesteps')} draws others", option="noised", value=False
            )
        where = system.device if device is None else torch.device(device)
        self.recipe = network if isinstance(network, Classifier) else None
        self.network: nn.Module = _built(network, self.parts.data_shape, num_classes, where)
        read_backbone(self)

    # ---- what it is ------------------------------------------------------------------------------------------------

    @property
    def table(self) -> ProcessTable:
        """Noise levels that training uses."""
        return self.parts.table

    @property
    def num_steps(self) -> int:
        """T of the training table."""
        return self.parts.table.num_steps

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one example, (C, *S)."""
        return self.settings.data_shape

    @property
    def device(self) -> torch.device:
        """Where the network's first parameter or buffer is; the CPU if there is none."""
        return device_of(self.network) or torch.device("cpu")

    def with_network(self, network: nn.Module) -> NoisyClassifier:
        """Return this classifier with another network of the same kind in place of its own."""
        found = NoisyClassifier.__new__(NoisyClassifier)
        nn.Module.__init__(found)
        found.parts, found.settings, found.objective = self.parts, self.settings, self.objective
        found.num_classes, found.noised, found.recipe = self.num_classes, self.noised, self.recipe
        found.network = network
        read_backbone(found)
        return found

    def spec(self) -> dict[str, Any]:
        """Return its description without weights, as plain JSON data.

        Raises:
            SpecError: The schedule or timestep sampler has no registered name.
        """
        settings = settings_spec(self.settings)
        kept = ("num_steps", "train_spacing", "rescale_time", "bins")
        network, recipe = unwrap_module(self.network), self.recipe
        own: dict[str, Any] = {"class": type(network).__name__}
        if recipe is not None and is_built_by(lambda: recipe.build(self.parts.data_shape, self.num_classes), network):
            own = written("the network", attrs.asdict(recipe))
        return {
            "format": FORMAT,
            "diffkit": __version__,
            "classifier": own,
            "data_shape": list(self.parts.data_shape),
            "num_classes": self.num_classes,
            "parts": {kind: part_spec(kind, getattr(self.parts, kind)) for kind in ("schedule", "timesteps")},
            "settings": {name: settings[name] for name in kept if name in settings} | {"noised": self.noised},
        }

    def save(self, folder: str | Path) -> Path:
        """Write spec and weights into a folder, which `diffkit.weights.load_classifier` reads."""
        return write(self.spec(), unwrap_module(self.network).state_dict(), folder)

    # ---- training and use ------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return logits (B, num_classes) of data (B, C, *S) at times (B,)."""
        logits: Tensor = self.network(x, time)
        return logits

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
        """Return per-example terms of the loss at given levels and noise: a pure function, with no host read.

        Args:
            model: The network to call; its own by default.
            x_start: Clean data, (B, C, *S), float32 or float64.
            level: As in `System.loss_terms`; with ``noised=False`` it is not used and level 1 is taken.
            noise: Standard normal, of the shape of the latents, (B, C, *S).
            encoded: As in `System.loss_terms`.
            decoder_rows, level_to, estimates: Not used.
            conditions: "y", the classes, (B,) integers; there must be no other.
        Returns:
            "loss", the cross entropy in nats; "acc1" and, if there are more than 5 classes, "acc5": 1 where the class
            is the likeliest, or among the five likeliest, else 0. Each (B,).
        Raises:
            OptionError: There are other conditions, or the network returns another shape than one logit for each class.
        """
        if conditions.keys() != {"y"}:
            raise OptionError(f"a classifier learns from the condition 'y' alone, got {sorted(conditions)}")
        x_start = x_start if encoded else to_latents(self.parts, x_start)
        check_draws(x_start, level, noise, self.parts, level_to)
        at = self.objective.level(level if self.noised else torch.ones_like(level), x_start)
        x_t = (at.alpha * x_start).addcmul(at.sigma, noise) if self.noised else x_start
        network = self.network if model is None else model
        precision = precision_of(network)
        given = x_t if precision is None else x_t.to(precision)
        logits = network(given, at.time.expand(x_t.shape[0])).to(x_t.dtype)
        if logits.shape != (x_t.shape[0], self.num_classes):
            raise OptionError(
                f"the classifier returned shape {tuple(logits.shape)}, {self.num_classes} classes need "
                f"{(x_t.shape[0], self.num_classes)}"
            )
        y = checked_labels("y", conditions["y"], logits)
        return {"loss": nn.functional.cross_entropy(logits, y, reduction="none"), **_accuracies(logits.detach(), y)}

    def extra_repr(self) -> str:
        """Return the number of classes, and the levels."""
        levels = f"{self.num_steps} levels of {self.parts.label('schedule')}" if self.noised else "clean data"
        return f"num_classes={self.num_classes}, {levels}"


def _built(
    network: Classifier | nn.Module, data_shape: tuple[int, ...], num_classes: int, device: torch.device
) -> nn.Module:
    if isinstance(network, nn.Module):
        return network.to(device)
    if not isinstance(network, Classifier):
        raise OptionError("must be a diffkit.guidance.Classifier or a torch module", option="network", value=network)
    with device:
        return network.build(data_shape, num_classes)


def _accuracies(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Whether the class is the likeliest, and whether few are likelier, as 1 or 0, each (B,)."""
    found = {"acc1": _among(logits, y, 1)}
    return found | {"acc5": _among(logits, y, TOP)} if logits.shape[1] > TOP else found


def _among(logits: Tensor, y: Tensor, count: int) -> Tensor:
    return (logits.topk(count, dim=1).indices == y[:, None]).any(1).to(logits.dtype)
