"""Golden networks as files, as the reference implementations would have written them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NETS = Path(__file__).parents[1] / "golden" / "nets"
UNETS = ["unet_uncond", "unet_cond_sigma", "unet_deep_ds4", "unet_superres"]
UNETS += ["adm_legacyattn_avgpool", "adm_updown_newattn"]
CLASSIFIERS = ["classifier_adaptive_pool", "classifier_attention_pool"]
TRAINED = {"schedule": "cosine", "num_steps": 4000, "mean": "eps", "loss": "hybrid", "rescale_time": True}
FIXED = TRAINED | {"loss": "simple", "var": "fixed_large"}


class Golden(NamedTuple):
    """A network of a reference implementation: arguments, weights, inputs and what it returned."""

    kwargs: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def state(self) -> dict[str, Tensor]:
        arrays = {key[4:]: array for key, array in self.arrays.items() if key.startswith("sd__")}
        return {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}

    @property
    def arguments(self) -> dict[str, Tensor]:
        given = {key[4:]: torch.from_numpy(array) for key, array in self.arrays.items() if key.startswith("in__")}
        given["time"] = given.pop("timesteps")
        return given

    @property
    def unseen(self) -> dict[str, Any]:
        """What shapes cannot show, from the reference's arguments."""
        heads = {name: self.kwargs[name] for name in ("num_heads_upsample",) if self.kwargs.get(name, -1) > 0}
        if self.kwargs.get("num_head_channels", -1) > 0:
            heads = {"num_head_channels": self.kwargs["num_head_channels"]}
        else:
            heads["num_heads"] = self.kwargs.get("num_heads", 1)
        order = "new" if self.kwargs.get("use_new_attention_order") else "legacy"
        return {"data_shape": self.arrays["in__x"].shape[1:], "attention_order": order, **heads}

    def check(self, network: Any) -> None:
        """Compare the output; tolerance as stated next to the numbers."""
        with torch.no_grad():
            out = network(**self.arguments)
        want = torch.from_numpy(self.arrays["out"])
        assert (out - want).abs().max() <= 1e-4 * want.abs().max()


def golden(name: str) -> Golden:
    with np.load(NETS / f"{name}.npz") as arrays:
        return Golden(json.loads((NETS / f"{name}.json").read_text())["kwargs"], dict(arrays))


def written(folder: Path, name: str, ending: str = ".pt", wrapped: Any = None) -> Path:
    """Write a golden network's weights and return the file."""
    path, state = folder / f"{name}{ending}", golden(name).state
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state if wrapped is None else wrapped(state), path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """True if names, their order, types and bits are the same."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
