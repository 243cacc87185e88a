"""Steps per second with a network: whole calls of `System.sample`, at batch 1, 16 and 256."""

from __future__ import annotations

import pytest
import torch
from configurations import SMALL, system_of
from measuring import DEVICE, interleaved, median, ratio

GPU = DEVICE.type == "cuda"
BATCHES = (1, 16, 256)
NAMES = (SMALL,) if not GPU else ("iddpm/cifar10-uncond", "iddpm/imagenet64-uncond", "dit/xl2-256")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_sampling(name, batch, full, record):
    if batch > 16 and not GPU and not full:
        pytest.skip("a minute on a CPU; add --full")
    system = system_of(name).eval()
    steps = 20 if GPU else max(1, 4 // batch)
    classes = system.parts.classes
    given = {"y": 0} if classes else {}

    def walk(compile=False, bf16=False):
        def run():
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
                system.sample(batch, steps=steps, compile=compile, progress=False, **given)

        return run

    cases = {"fp32": walk(), "bf16": walk(bf16=True)}
    if GPU:
        cases |= {"bf16 compiled": walk(True, True), "bf16 CUDA graph": walk("cuda_graph", True)}
    elif full:
        cases["bf16 compiled"] = walk(True, True)
    seconds = interleaved(cases, rounds=5)
    rows = [
        {
            "case": case,
            "steps_per_s": float(f"{steps / median(taken):.4g}"),
            "image_steps_per_s": float(f"{batch * steps / median(taken):.4g}"),
            "times_faster_than_fp32": ratio(seconds["fp32"], taken),
        }
        for case, taken in seconds.items()
    ]
    record(
        f"sampling_{name.replace('/', '_')}_b{batch}",
        f"Sampling steps with {'the small U-Net' if name == SMALL else name}, ancestral, whole calls",
        rows,
        shape=[batch, *system.data_shape],
        steps=steps,
    )
