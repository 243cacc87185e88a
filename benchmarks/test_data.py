"""Batches per second of one reader: 8-bit arrays in memory and mapped from a file, and a folder of pictures.

"plain" is the published loader's work: one picture at a time, decoded, halved, resized and turned to float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measuring import interleaved, ratio

import diffkit
from diffkit.data.base import scale_images

BATCH, SIDE = 128, 64


def test_arrays(record, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2048, 3, SIDE, SIDE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    memory, mapped = diffkit.data.loading.load(images), diffkit.data.loading.load(tmp_path / "images.npy")
    picked = np.random.default_rng(1).permutation(len(images))[:BATCH]

    def plain() -> torch.Tensor:
        items = [images[i].astype(np.float32) / 127.5 - 1 for i in picked]
        return torch.utils.data.default_collate(items)

    cases = {
        "array": lambda: memory.batch(picked),
        "array, scaled": lambda: scale_images(memory.batch(picked).images, 256),
        "mapped file": lambda: mapped.batch(picked),
        "plain, from memory": plain,
    }
    report("data_arrays", "Batches of 8-bit images from arrays", cases, "plain, from memory", record)


def test_folder(record, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for i in range(BATCH):
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)  # smooth, as photographs are
        Image.fromarray(coarse).resize((500, 375), Image.BICUBIC).save(tmp_path / f"{i}.jpg", quality=90)
    paths = sorted(tmp_path.glob("*.jpg"))
    seen = diffkit.data.loading.load(tmp_path, size=SIDE)

    def plain() -> torch.Tensor:
        items = []
        for path in paths:
            picture = Image.open(path)
            picture.load()
            while min(*picture.size) >= 2 * SIDE:
                picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.BOX)
            scale = SIDE / min(*picture.size)
            picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.BICUBIC)
            pixels = np.array(picture.convert("RGB"))
            top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
            pixels = pixels[top : top + SIDE, left : left + SIDE].astype(np.float32) / 127.5 - 1
            items.append(np.transpose(pixels, [2, 0, 1]))
        return torch.utils.data.default_collate(items)

    cases = {
        "folder, first time": lambda: diffkit.data.loading.load(tmp_path, size=SIDE).batch(range(BATCH)),
        "folder, again": lambda: seen.batch(range(BATCH)),
        "plain": plain,
    }
    report("data_folder", "Batches of 64x64 from JPEGs of 500x375", cases, "plain", record, rounds=5)


def report(name, about, cases, against, record, rounds=15):
    seconds = interleaved(cases, rounds)
    rows = [
        {
            "case": case,
            "images_per_cpu_s": float(f"{BATCH / sorted(taken)[len(taken) // 2]:.3g}"),
            f"times_faster_than_{against}": ratio(seconds[against], taken),
        }
        for case, taken in seconds.items()
    ]
    record(name, about, rows, batch=BATCH, shape=[3, SIDE, SIDE])
