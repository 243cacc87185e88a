"""Golden networks, and a way to give a network weights that show wrong wiring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffkit.guidance.classifier import Classifier
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.mlp import MLP
from diffkit.parts.backbones.unet import UNet

NETS = Path(__file__).parents[2] / "golden" / "nets"


class Golden(NamedTuple):
    """A network of a reference implementation: what it was built from and the arrays it gave."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays["in__x"].shape[1:]

    @property
    def state(self) -> dict[str, Tensor]:
        arrays = {key[4:]: array for key, array in self.arrays.items() if key.startswith("sd__")}
        return {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}

    @property
    def arguments(self) -> dict[str, Tensor]:
        given = {key[4:]: torch.from_numpy(array) for key, array in self.arrays.items() if key.startswith("in__")}
        given["time"] = given.pop("timesteps")
        return given

    def options(self) -> dict[str, Any]:
        """Options of `UNet` and `Classifier` that say the same as the reference's arguments."""
        given, side = self.about["kwargs"], min(self.shape[1:])
        names = ("num_res_blocks", "channel_mult", "num_heads", "num_heads_upsample", "num_head_channels")
        names += ("num_classes", "resblock_updown", "conv_resample", "pool")
        return {
            **{name: given[name] for name in names if name in given},
            "channels": given["model_channels"],
            "attention_resolutions": [side // factor for factor in given["attention_resolutions"]],
            "scale_shift_norm": given.get("use_scale_shift_norm", False),
            "num_heads": given.get("num_heads", 1),
            "attention_order": "new" if given.get("use_new_attention_order") else "legacy",
        }

    def load(self, network: nn.Module) -> nn.Module:
        """Load the weights, strictly, after comparing keys and shapes with the reference's."""
        found = {key: list(value.shape) for key, value in network.state_dict().items()}
        assert list(found.items()) == list(self.about["state_dict"].items())
        network.load_state_dict(self.state, strict=True)
        return network.eval()

    def check(self, network: nn.Module) -> None:
        """Compare output and gradient norms; tolerances as stated next to the numbers."""
        out = network(**self.arguments)
        close(out, self.arrays["out"])
        (out * torch.from_numpy(self.arrays["probe"])).sum().backward()
        norms = {key: value.grad.norm().item() for key, value in network.named_parameters()}
        wanted = dict(zip(self.about["param_order"], self.arrays["grad_norms"].tolist(), strict=True))
        wanted = {key: norm for key, norm in wanted.items() if norm >= 0}
        assert norms.keys() == wanted.keys()
        small = 1e-5 * max(wanted.values())
        assert norms == pytest.approx(wanted, rel=1e-3, abs=small)


def close(got: Tensor, want: np.ndarray | Tensor, relative: float = 1e-4) -> None:
    """Compare elementwise, relative to the largest magnitude."""
    want = torch.as_tensor(want)
    assert got.shape == want.shape
    assert (got.float() - want).abs().max() <= relative * want.abs().max()


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight, those that start at zero too; of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(parameter[0].numel(), 4)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return network


def golden(name: str) -> Golden:
    """Read a golden network."""
    with np.load(NETS / f"{name}.npz") as arrays:
        return Golden(json.loads((NETS / f"{name}.json").read_text()), dict(arrays))


def param_counts() -> dict[str, Any]:
    """Read the sizes of the published configurations."""
    return json.loads((NETS / "param_counts.json").read_text())


def size(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())


def inputs(shape: tuple[int, ...], batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Data and times, drawn with a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *shape), generator=generator), torch.linspace(3.5, 900.0, batch)


SMALL = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2), "num_head_channels": 4}
IMAGE = (2, 8, 8)
NETWORKS = {
    "unet": (UNet(**SMALL, attention_resolutions=(8, 4), num_classes=3), IMAGE),
    "unet without scale and shift": (
        UNet(**SMALL, attention_order="new", scale_shift_norm=False, conv_resample=False, low_res_channels=2),
        IMAGE,
    ),
    "unet resampling in its blocks": (UNet(**SMALL, resblock_updown=True, checkpoint=True, dropout=0.1), IMAGE),
    "unet of sequences": (UNet(**SMALL, num_classes=3, null_class=True), (2, 8)),
    "unet of one level": (UNet(**SMALL | {"channel_mult": (1,)}, num_classes=3), (2, 4)),
    "unet of volumes": (UNet(**SMALL), (2, 3, 4, 4)),
    "dit": (DiT(depth=2, hidden=16, heads=2, num_classes=3), IMAGE),
    "dit without classes": (DiT(depth=1, hidden=16, heads=2, checkpoint=True), IMAGE),
    "dit with context": (DiT(depth=1, hidden=16, heads=2, patch=4, context=3), IMAGE),
    "mlp": (MLP(hidden=16, depth=2, num_classes=3, null_class=True), (2,)),
    **{f"classifier, {pool}": (Classifier(**SMALL, pool=pool), IMAGE) for pool in ("adaptive", "attention", "spatial")},
    "classifier, spatial_v2": (Classifier(**SMALL, pool="spatial_v2", resblock_updown=True), (2, 8)),
}
"""Every built-in network, in every way that it is put together: recipe and shape of the data."""


class Case:
    """A network with random weights, and what it is called with."""

    def __init__(self, name: str):
        self.recipe, self.shape = NETWORKS[name]
        self.network = randomize(self.recipe.build(self.shape, 2)).eval()
        self.x, self.time, self.conditions = self.arguments(2)

    def arguments(self, batch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Data, times and conditions of a batch."""
        conditions = {"y": torch.arange(batch) % 3} if getattr(self.network, "num_labels", 0) else {}
        if getattr(self.recipe, "low_res_channels", 0):
            conditions["low_res"] = inputs((2, 4, 4), batch, seed=3)[0]
        if getattr(self.recipe, "context", 0):
            conditions |= {
                "context": inputs((4, 3), batch, seed=4)[0],
                "context_mask": torch.arange(4).expand(batch, 4),
            }
        return *inputs(self.shape, batch), conditions

    def __call__(self) -> Tensor:
        return self.network(self.x, self.time, **self.conditions)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """Modules that have parameters of their own."""
        return {n: m for n, m in self.network.named_modules() if any(True for _ in m.parameters(recurse=False))}

    def replace(self, make: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
        """Put something else in the place of every layer that is a leaf; return it by name."""
        made = {}
        for name, layer in self.layers.items():
            if not any(True for _ in layer.children()):
                parent, _, own = name.rpartition(".")
                made[name] = make(layer)
                setattr(self.network.get_submodule(parent), own, made[name])
        return made
