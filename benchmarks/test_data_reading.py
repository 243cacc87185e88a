"""Images per second of a folder in the order of training: decoded, kept in memory, and from the cache.

There is no model: batches are scaled and thrown away. "zeros" is all that without anything to read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from measuring import interleaved, ratio

import diffkit
from diffkit.data.base import Data, scale_images
from diffkit.training.data_order import DataOrder

EXAMPLES, BATCH, SIDE, STEPS = 1000, 64, 64, 12


def test_reading(record, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("sklearn")
    pieces = diffkit.data.loading.load("photographs", size=SIDE, pieces="random", examples=EXAMPLES)
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(pieces.images):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "photos" / f"{i}.png")

    def folder(**options: object) -> Data:
        return diffkit.data.loading.load(tmp_path / "photos", size=SIDE, **options)

    cases = {
        "decoded at every use": reader(folder(check=False)),
        "kept in memory": reader(folder()),
        "cache": reader(folder(cache=tmp_path / "cache.npy")),
        "zeros": reader(diffkit.data.from_array(np.zeros_like(pieces.images))),
    }
    seconds = interleaved(cases, rounds=7)
    rows = [
        {
            "case": case,
            "images_per_cpu_s": float(f"{BATCH * STEPS / sorted(taken)[len(taken) // 2]:.3g}"),
            "times_faster_than_decoding": ratio(seconds["decoded at every use"], taken),
        }
        for case, taken in seconds.items()
    ]
    record("data_reading", "PNGs of 64x64 in the order of training", rows, batch=BATCH, shape=[3, SIDE, SIDE])


def reader(data: Data) -> Callable[[], None]:
    """What reads a dozen batches, in the order of training."""
    order = DataOrder(len(data), BATCH, 0)

    def read() -> None:
        for indices in map(order.batch, range(STEPS)):
            scale_images(data.batch(indices).images, data.bins)

    return read
