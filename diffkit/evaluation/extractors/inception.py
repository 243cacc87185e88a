"""The Inception network of published FIDs, by torch-fidelity; its weights are downloaded at first use."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import DataError, MissingExtraError
from diffkit.evaluation.features import Features
from diffkit.registry import registry
from diffkit.runtime.files import weights_digest

_SPATIAL_CHANNELS = 7
"""Channels of the 17 x 17 maps of mixed_6/conv; Nash et al. 2021, arXiv:2103.03841, section 3.2 (2023 features)."""


@registry("extractor").register("inception")
class Inception:
    """Extractor by Inception v3 of 2015-12-05, with which FID, sFID, KID and the inception score are published.

    Args:
        weights: File of its weights, ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's releases; by
            default downloaded, and cached by torch.hub.
        device: Device of the network.
    Source: Heusel et al. 2017, arXiv:1706.08500; network and resizing as in TensorFlow, by torch-fidelity.
    """

    name = "inception"

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu"):
        self._network, self._sha256, self._version = _load_inception(weights)
        self._network.to(device)
        self._spatial: list[Tensor] = []
        self._network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: self._spatial.append(out))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Identity of Inception's features: weights, library and resizing."""
        return {
            "extractor": self.name,
            "weights_sha256": self._sha256,
            "torch_fidelity": self._version,
            "resize": "299x299 bilinear as in TensorFlow 1, no antialiasing",
        }

    def __call__(self, images: Tensor) -> Features:
        """Return Inception's pool (B, 2048), spatial (B, 2023) and logits (B, 1008); grey images are taken as RGB."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"inception reads images of 1 or 3 channels, got shape {tuple(images.shape[1:])}; pass an extractor of "
                "your own, see diffkit.evaluation.ModuleExtractor"
            )
        rgb = images.expand(-1, 3, -1, -1)
        pixels = ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        self._spatial.clear()
        pool, logits = self._network(pixels)
        (maps,) = self._spatial
        return Features(pool, maps[:, :_SPATIAL_CHANNELS].flatten(1), logits)


def _load_inception(weights: str | Path | None) -> tuple[Any, str, str]:
    """Return the Inception network, the digest of its weights and the version of the library."""
    try:
        import torch_fidelity  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from torch_fidelity import feature_extractor_inceptionv3 as library  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise MissingExtraError("inception", f"the Inception network (importing torch-fidelity: {error})") from error
    state = _load_state(library.URL_INCEPTION_V3, weights)
    with tempfile.TemporaryDirectory() as folder:  # torch-fidelity unpickles its argument; this file is our own
        path = Path(folder) / "weights.pth"
        torch.save(state, path)
        network = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    return network, weights_digest(state, shapes=True), str(torch_fidelity.__version__)


def _load_state(url: str, weights: str | Path | None) -> dict[str, Tensor]:
    name = url.rpartition("/")[2]
    try:
        if weights is None:
            found = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        else:
            found = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # the network, the disk and the unpickler each raise their own
        where = f"{url} cannot be fetched" if weights is None else f"{str(weights)!r} cannot be read"
        raise DataError(
            f"{where}: {error}; without network access, put {name} into {torch.hub.get_dir()}/checkpoints, or pass its "
            "path as weights, or choose another extractor"
        ) from error
    return dict(found)
