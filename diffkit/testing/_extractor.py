"""Laws of feature networks."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import DataError
from diffkit.evaluation import Extractor, extractor_for
from diffkit.evaluation.features import Features
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same

_SHAPES = ((3, 32, 32), (1, 8, 8), (1, 32, 32), (3, 64, 64), (2,))
"""Shapes of data that it is tried on, in this order."""


def _used(part: Any) -> tuple[Extractor, Tensor, Where]:
    """The extractor, three images that it reads, and their shape as a place."""
    extractor = extractor_for(part)
    for shape in _SHAPES:
        images = torch.linspace(-1, 1, 3 * torch.Size(shape).numel()).view(3, *shape).flip(0) ** 3
        where = record_where(Where(detail=f"images of shape {shape}"))
        try:
            _features(extractor, images)
        except (DataError, RuntimeError):  # modules refuse shapes by torch's own errors
            continue
        return extractor, images, where
    raise LawError("features of images", f"an error for each shape of {_SHAPES}", Where())


@torch.no_grad()
def _features(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    found = extractor(images)
    require(isinstance(found, Features), "diffkit.evaluation.Features", type(found).__name__)
    named = {"pool": found.pool, "spatial": found.spatial, "logits": found.logits}
    return {name: rows for name, rows in named.items() if rows is not None}


@check("extractor")
def a_row_for_each_image(part: Any) -> None:
    """An extractor returns finite features, (N, D) for N images.

    Usually: a mean over the batch, or maps that are not flattened.
    """
    extractor, images, where = _used(part)
    for name, rows in _features(extractor, images).items():
        right = rows.ndim == 2 and len(rows) == len(images) and rows.is_floating_point()
        require(right, f"{name} ({len(images)}, D), floating point", f"{tuple(rows.shape)} {rows.dtype}", where)
        require(bool(rows.isfinite().all()), f"finite {name}", "inf or nan", where)


@check("extractor")
def each_image_on_its_own(part: Any) -> None:
    """The features of an image do not depend on the other images of the batch.

    Usually: a network in train mode, whose normalization uses the batch.
    """
    extractor, images, where = _used(part)
    together = _features(extractor, images)
    for i in range(len(images)):
        for name, row in _features(extractor, images[i : i + 1]).items():
            size = together[name].abs().max().clamp_min(1e-6).item()
            require_close(together[name][i], row[0], 1e-4, f"{name} of image {i} alone", where, scale=size)


@check("extractor")
def same_images_same_features(part: Any) -> None:
    """The same images give the same features again, and are not changed.

    Usually: dropout in train mode, a random projection drawn at each call, or an operation in place.
    """
    extractor, images, where = _used(part)
    before = images.clone()
    first, again = _features(extractor, images), _features(extractor, images)
    require_same(images, before, "images unchanged", where)
    require_same(again, first, "the same features again", where)


@check("extractor")
def identity_is_plain(part: Any) -> None:
    """An extractor has a name, and an identity that JSON can hold, the same at each reading.

    Usually: a tensor, a device or a path object in the identity.
    """
    extractor = extractor_for(part)
    require(isinstance(extractor.name, str) and bool(extractor.name), "a name", repr(extractor.name))
    try:
        text = json.dumps(dict(extractor.identity), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LawError("an identity that JSON can hold", str(error)) from error
    again = json.dumps(dict(extractor.identity), sort_keys=True)
    require(text == again, text, again)


@check("extractor")
def identity_follows_the_weights(part: Any) -> None:
    """Other weights give another identity, so that stored statistics are compared with those of the same network only.

    Usually: a name or version alone; put a digest of the weights into the identity.
    """
    extractor = extractor_for(part)
    before = dict(extractor.identity)
    other = copy.deepcopy(extractor)
    vars(other).pop("identity", None)  # a cached_property
    networks = [value for value in vars(other).values() if isinstance(value, torch.nn.Module)]
    weights = [each for network in networks for each in network.parameters()]
    if not weights:
        raise NotApplicableError("no network with weights is an attribute of it")
    with torch.no_grad():
        weights[0].add_(1.0)
    require(dict(other.identity) != before, "another identity", "the same")
