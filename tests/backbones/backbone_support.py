"""Golden networks, and a way to give a network weights that show wrong wiring."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

NETS = Path(__file__).parents[1] / "golden" / "nets"


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
