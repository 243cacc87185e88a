"""Images per second of whole training updates: loss, backward, gradient norm, AdamW, running mean, metrics.

On a CPU the small U-Net; on a GPU the published configurations, with the share of the device's matrix rate that the
network's counted operations come to (MFU), and the peak of its memory.

"plain" is the published update written plainly, around azula's copy of the published network; "improved-diffusion" the
same update around a checkout's own network and loss.
"""

from __future__ import annotations

import gc

import published
import pytest
import torch
from configurations import SMALL, Case, cases, size_of, system_of
from measuring import DEVICE, interleaved, median, peak_flops, ratio
from test_networks import azulas
from updates import our_update, plain_update

GPU = DEVICE.type == "cuda"


def the_updates(case: Case, full: bool):
    """Name -> update, each with weights of its own."""
    found = {precision: our_update(system_of(case.name), case.batch, precision) for precision in ("fp32", "bf16")}
    if GPU or full:
        found["bf16 compiled"] = our_update(system_of(case.name), case.batch, "bf16", compile=True)
    if not case.name.startswith("dit"):
        system = system_of(case.name)
        if not system.parts.classes:
            network, recipe, size = system.network, system.parts.backbone, system.data_shape[1]
            peer = azulas(network, recipe, size, recompute=False) or network
            found["plain"] = plain_update(system, peer.to(DEVICE), case.batch)
            if theirs := published.unet(network, recipe, size):
                found["improved-diffusion"] = plain_update(system, theirs.to(DEVICE), case.batch, published=True)
    return found


def measure(case: Case, full: bool, rounds: int) -> list[dict[str, object]]:
    size, peak, updates = size_of(case.name, case.batch), peak_flops(), the_updates(case, full)
    seconds = interleaved(updates, rounds)
    rows = []
    for name, taken in seconds.items():
        speed = case.batch / median(taken)
        row = {"update": name, "ms": median(taken, 1e-3), "images_per_s": float(f"{speed:.4g}")}
        row["gflops_per_s"] = round(speed * size.training_flops / 1e9, 1)
        if peak is not None:
            row["mfu"] = round(speed * size.training_flops / peak, 3)
        for peer in ("plain", "improved-diffusion"):
            if peer in seconds and name != peer:
                row[f"times_faster_than_{peer}"] = ratio(seconds[peer], taken)
        rows.append(row)
    return rows


def peak_memory(case: Case, precision: str) -> float | None:
    """Peak of one update in GB, network and optimizer included; None on a CPU, where torch does not count."""
    if not GPU:
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    update = our_update(system_of(case.name), case.batch, precision)
    for _ in range(2):
        update()
    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


@pytest.mark.parametrize("number", range(7))
def test_training_step(number, full, record):
    listed = cases(full=full)
    if number >= len(listed):
        pytest.skip("fewer cases here; --full and a GPU have more")
    case = listed[number]
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rows = measure(case, full, rounds=7 if not GPU else 20)
    memory = {row["update"]: peak_memory(case, row["update"]) for row in rows if row["update"] in ("fp32", "bf16")}
    for row in rows:
        if memory.get(row["update"]) is not None:
            row["peak_gb"] = memory[row["update"]]
    size = size_of(case.name, case.batch)
    about = f"Training updates of {'the small U-Net' if case.name == SMALL else case.name}, whole"
    name = f"training_{case.name.replace('/', '_')}_b{case.batch}"
    facts = dict(parameters=size.num_parameters, training_gflops=round(size.training_flops / 1e9, 2))
    record(name, about, rows, batch=case.batch, shape=list(system_of(case.name, device="meta").data_shape), **facts)
