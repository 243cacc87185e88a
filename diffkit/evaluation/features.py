"""Features of images: the protocol of an extractor, and the features of a data set with a digest of the data."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.data.base import Data, scale_images
from diffkit.data.finite import find_not_finite
from diffkit.errors import DataError
from diffkit.options import check_integer
from diffkit.runtime.progress import progress as show_progress


@frozen(eq=False)
class Features:
    """An extractor's features of N images.

    Attributes:
        pool: One vector per image, (N, D) float32.
        spatial: A second vector per image, with positions, (N, E) float32; None if the extractor has none.
        logits: Logits of the classes that its network was trained for, (N, K) float32; None if there are none.
    """

    pool: Tensor
    spatial: Tensor | None = field(default=None, repr=False)
    logits: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return N."""
        return len(self.pool)


@runtime_checkable
class Extractor(Protocol):
    """What computes features of images for metrics: the contract of a feature network."""

    @property
    def name(self) -> str:
        """Name of the extractor in results."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain data that identifies the features: weights, resizing, versions."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Return the features of images (B, C, *S), float32, in [-1, 1] if the data is on bins.

        Raises:
            DataError: The extractor cannot read images of this kind.
        """


@frozen(eq=False)
class ExtractedFeatures:
    """Features of a data set, and facts of the data.

    Attributes:
        features: Features of every example, on the CPU.
        data: Facts of the data: source, count, shape, bins and the SHA-256 over all examples.
    """

    features: Features
    data: Mapping[str, Any]


@torch.no_grad()
def extract(
    extractor: Extractor,
    data: Data,
    *,
    count: int | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = False,
    what: str = "data",
) -> ExtractedFeatures:
    """Return the features of the first ``count`` examples of data (all by default), read batch by batch.

    Args:
        extractor: The feature network.
        data: The data.
        count: Number of examples.
        batch_size, device: Batch size and device of the network.
        progress: Show a progress bar.
        what: Name of the data in the bar and in errors, such as "samples".
    Raises:
        DataError: There are fewer than ``count`` or two examples, or the extractor cannot read them.
    """
    batch_size = check_integer("batch_size", batch_size, ge=1)
    total = len(data) if count is None else check_integer("count", count, ge=1)
    if total > len(data):
        raise DataError(f"is more than the {len(data)} examples in the {what}", option="count", value=total)
    if total < 2:
        raise DataError(f"the {what}: {total} example has no spread to compare; give two or more")
    digest, found = hashlib.sha256(), list[Features]()
    with show_progress(total, f"features of the {what}", progress) as advance:
        for start in range(0, total, batch_size):
            index = np.arange(start, min(start + batch_size, total), dtype=np.int64)
            batch = data.batch(index)
            for fault in find_not_finite(batch):
                raise DataError(f"the {what}: {fault}")
            images = batch.images
            digest.update(np.ascontiguousarray(images.numpy()).tobytes())
            found.append(extractor(scale_images(images, data.bins).to(device)))
            advance(len(index))
    facts = {**_data_facts(data), "count": total, "sha256": digest.hexdigest()}
    return ExtractedFeatures(Features(*map(_concatenate, zip(*map(_feature_tensors, found), strict=True))), facts)


def _data_facts(data: Data) -> dict[str, Any]:
    source = data.describe().get("source", type(data).__name__)
    return {"source": source, "shape": list(data.shape), "bins": data.bins}


def _feature_tensors(features: Features) -> tuple[Tensor | None, ...]:
    return tuple(
        None if part is None else part.float().cpu() for part in (features.pool, features.spatial, features.logits)
    )


def _concatenate(parts: tuple[Tensor | None, ...]) -> Any:
    whole = [part for part in parts if part is not None]
    return torch.cat(whole) if len(whole) == len(parts) else None
