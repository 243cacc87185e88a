"""Everything of interest on one GPU, in four stages of at most three minutes; writes benchmarks/results/gpu_*.json.

    python benchmarks/gpu_lane.py --stage 1       # needs a GPU: training images/s, MFU and sampling steps/s
    python benchmarks/gpu_lane.py                 # all stages, one after the other
    python benchmarks/gpu_lane.py --cpu-smoke     # the same code on a CPU with tiny networks; its figures mean nothing

Stage 1 has the usual first figures, stage 2 large networks and the bound, stage 3 what takes long to compile, stage 4
requests that arrive at random. Each case is written as soon as it is done, so that a run that is cut short still
reports. A case that no longer fits its stage is skipped and said to be; one that fails is recorded with its error, and
the others go on. So is each thing that a case compares: a graph that cannot be captured costs nobody else's figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from configurations import size_of, system_of
from measuring import DEVICE, HERE, interleaved, machine, median, peak_flops, ratio
from peers import versions
from plain import PlainDiffusion
from serving import network_costs, serving
from test_networks import azulas, diffusers_unet
from torch.profiler import ProfilerActivity, profile
from updates import a_batch, as_data, diffusers_update, our_update, plain_update

import diffkit
from diffkit.system.sampling import sampling_program

GPU = DEVICE.type == "cuda"
DIFFUSERS = versions()["diffusers"] is not None
TINY = ("unet", {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)})
STEPS = 20
"""Of a walk whose steps are timed."""
STAGES = (1, 2, 3, 4)
STAGE_SECONDS = 180
Rows = list[dict[str, Any]]


@frozen
class Case:
    """One entry of the lane.

    Attributes:
        name: Of its file, behind "gpu_".
        about: What it is.
        stage: 1 to 4.
        seconds: What it may take at most; it is skipped if less is left.
        run: Returns its rows.
    """

    name: str
    about: str
    stage: int
    seconds: float
    run: Callable[[], Rows]


# ---- the device ------------------------------------------------------------------------------------------------------


def ceilings() -> Rows:
    """What the device itself reaches: large products, and copies."""
    size = 8192 if GPU else 256
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        taken = interleaved({"product": lambda a=a, b=b: a @ b}, rounds=20)["product"]
        rows.append({"what": f"product in {str(dtype)[6:]}", "tflops": round(2e-12 * size**3 / median(taken), 1)})
    source = torch.randn(2**28 if GPU else 2**16, device=DEVICE)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda: target.copy_(source)}, rounds=20)["copy"]
    rows.append({"what": "copy, read and written", "gb_per_s": round(8e-9 * len(source) / median(taken), 1)})
    return rows


# ---- training --------------------------------------------------------------------------------------------------------


def system_for(name: str) -> diffkit.System:
    """The configuration; in the smoke run a tiny network in its place."""
    return system_of(name) if GPU else tiny(name)


def tiny(name: str) -> diffkit.System:
    """A system like the configuration, small enough for anything."""
    classes = {"num_classes": 10} if name.startswith("dit") else {}
    return diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=(TINY[0], TINY[1] | classes),
        data_shape=(3, 16, 16),
        device=str(DEVICE),
    )


def training(name: str, batch: int, *, compiled: bool, peers: bool) -> Rows:
    """Updates per second in turn: ours in bfloat16, also compiled, and peers' on the same or the nearest network."""
    batch = batch if GPU else 2
    updates = {"bf16": our_update(system_for(name), batch, "bf16")}
    if compiled and GPU:
        updates["bf16 compiled"] = our_update(system_for(name), batch, "bf16", compile=True)
    updates |= peers_updates(name, batch) if peers else {}
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    updates, failed = running(updates)
    seconds = interleaved(updates, rounds=15 if GPU else 2)
    flops, peak = size_of(name, batch).training_flops if GPU else 0.0, peak_flops()
    rows: Rows = []
    for update, taken in seconds.items():
        speed = batch / median(taken)
        row: dict[str, Any] = {"update": update, "ms": median(taken, 1e-3), "images_per_s": float(f"{speed:.4g}")}
        if peak is not None:
            row["mfu"] = round(speed * flops / peak, 3)
            row["floor_ms"] = round(batch * flops / peak * 1e3, 2)
        for peer in PEERS & seconds.keys():
            row[f"times_faster_than_{peer}"] = ratio(seconds[peer], taken)
        rows.append(row)
    if GPU and rows:
        rows[0]["peak_gb_of_all"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if "bf16" in updates:
        rows[0]["launches"] = tried(lambda: launches(updates["bf16"]))
    return rows + failed


PEERS = {"plain fp32", "plain TF32", "plain fp16", "diffusers bf16", "diffusers bf16 compiled"}


def peers_updates(name: str, batch: int) -> dict[str, Callable[[], None]]:
    """The published scripts' update around azula's copy of their network, and diffusers' around its nearest."""
    found = {}
    for label, tf32, half in (("plain fp32", False, False), ("plain TF32", True, False), ("plain fp16", True, True)):
        system = system_for(name)
        found[label] = with_tf32(tf32, plain_update(system, published_network(system), batch, half=half))
    if DIFFUSERS:
        shape = system.data_shape
        x = as_data(a_batch(system, batch))
        for label, compiled in (("diffusers bf16", False), ("diffusers bf16 compiled", True)):
            if GPU or not compiled:
                network = diffusers_unet(system.parts.backbone, shape[1], 2 * shape[0])
                found[label] = diffusers_update(first_channels(network, shape[0]), x, compiled=compiled)
    return found


def published_network(system: diffkit.System) -> torch.nn.Module:
    """azula's copy of the published network with the system's weights, or ours where there is none."""
    peer = azulas(system.network, system.parts.backbone, system.data_shape[1], recompute=False) if GPU else None
    return (peer or system.network).to(DEVICE)


def first_channels(network: torch.nn.Module, channels: int) -> torch.nn.Module:
    """diffusers' network with as many outputs as ours, of which its loss sees the first."""
    forward = network.forward

    def call(*given: Any, **more: Any) -> tuple[torch.Tensor]:
        return (forward(*given, **more)[0][:, :channels],)

    network.forward = call  # type: ignore[method-assign]
    return network


def with_tf32(wanted: bool, run: Callable[[], None]) -> Callable[[], None]:
    """The same call with or without TF32 in float32 products and convolutions."""

    def call() -> None:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
        try:
            run()
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    return call


def running(cases: dict[str, Callable[[], None]]) -> tuple[dict[str, Callable[[], None]], Rows]:
    """Return the cases that run, each tried once, and a row for each that does not."""
    found, failed = {}, []
    for name, case in cases.items():
        try:
            case()
        except Exception as error:  # what else is compared shall still be measured
            failed.append({"case": name, "error": said(error)})
        else:
            found[name] = case
    return found, failed


def tried(do: Callable[[], Any]) -> Any:
    """Return what a call returns, or its error in words."""
    try:
        return do()
    except Exception as error:
        return said(error)


def said(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {str(error)[:500]}"


def launches(run: Callable[[], object]) -> int | None:
    """Kernels that one call starts; None without a GPU."""
    if not GPU:
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return sum(1 for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA)


# ---- sampling --------------------------------------------------------------------------------------------------------


def sampling(name: str, batch: int) -> Rows:
    """Steps per second of whole calls: float32, bfloat16, and a whole step as a CUDA graph."""
    batch, steps = (batch, STEPS) if GPU else (1, 2)
    system = system_for(name).eval()
    given = {"y": 0} if system.parts.classes else {}

    def walk(bf16: bool, compile: bool | str = False) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
                system.sample(batch, steps=steps, compile=compile, progress=False, **given)

        return run

    cases: dict[str, Callable[[], None]] = {"fp32": walk(False), "bf16": walk(True)}
    if GPU:
        cases["bf16 CUDA graph"] = walk(True, "cuda_graph")
    if not given:
        cases["plain TF32"] = plain_walk(system, batch, steps)
    cases, failed = running(cases)
    seconds = interleaved(cases, rounds=7 if GPU else 2)
    rows: Rows = [
        {
            "case": case,
            "steps_per_s": float(f"{steps / median(taken):.4g}"),
            "image_steps_per_s": float(f"{batch * steps / median(taken):.4g}"),
            **{f"times_faster_than_{other}": ratio(seconds[other], taken) for other in BASES & seconds.keys()},
        }
        for case, taken in seconds.items()
    ]
    return rows + failed


BASES = {"fp32", "plain TF32"}


def plain_walk(system: diffkit.System, batch: int, steps: int) -> Callable[[], None]:
    """The published loop over as many steps, around the published network."""
    plain, network = PlainDiffusion(system.table_for(steps).beta[1:]), published_network(system).eval()
    start = torch.randn(batch, *system.data_shape, device=DEVICE)

    def run() -> None:
        plain.loop(plain.ancestral, network, start)

    return run


def bound(name: str, steps: int = 256) -> Rows:
    """The bound of one image at so many levels: the published loop, one (example, level) pair per call, and many."""
    steps = steps if GPU else 4
    system = system_for(name).eval()
    x = torch.rand(1, *system.data_shape, device=DEVICE) * 2 - 1

    def walk(rows: int) -> Callable[[], object]:
        return lambda: system.bits_per_dim(x, steps=steps, seed=0, rows_per_call=rows)

    plain, network = PlainDiffusion(system.table_for(steps).beta[1:]), published_network(system).eval()
    noise = torch.randn(steps, *x.shape, device=DEVICE)
    cases: dict[str, Callable[[], object]] = {"plain loop": lambda: plain.bound(network, x, noise)}
    seconds = interleaved(cases | {f"{rows} pairs a call": walk(rows) for rows in (1, 16, 64, 256)}, rounds=3)
    return [
        {"case": case, "s": median(taken), "times_faster_than_plain": ratio(seconds["plain loop"], taken)}
        for case, taken in seconds.items()
    ]


def requests(name: str) -> Rows:
    """Ways to serve requests of a configuration, from what its calls take here; see `serving.py`."""
    system = system_for(name).eval()
    costs = network_costs(system, (1, 2, 4, 8, 16, 32, 64) if GPU else (1, 2))
    return serving(system, costs, 200 if GPU else 4)


def host_reads() -> Rows:
    """A training update and a walk under torch's own watch for host reads, which raises at the first one."""
    system = system_for("iddpm/cifar10-uncond")
    update = our_update(system, 4, "bf16")
    program = sampling_program(system.parts, system.parts.sampler, system.table_for(4))
    x = torch.randn(2, *system.data_shape, device=DEVICE)
    denoiser = system.denoiser()

    def walk() -> None:
        program.finish(denoiser, x, lambda: torch.randn_like(x))

    watch = {"update": update, "walk": walk}
    return [{"what": what, "host_reads": tried(lambda run=run: watched(run))} for what, run in watch.items()]


def watched(run: Callable[[], object]) -> str:
    """Return "none", or the first complaint."""
    run()
    if not GPU:
        return "not watched on a CPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


# ---- the lane --------------------------------------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """Yield what is measured, stage by stage and the most telling first; no stage has more than three minutes."""
    small, large, latent = "iddpm/cifar10-uncond", "iddpm/imagenet64-uncond", "dit/xl2-256"
    yield _training(1, small, 128, 60, peers=True)
    yield Case("sampling_cifar10_b1", f"Sampling steps of {small}", 1, 60, lambda: sampling(small, 1))
    yield Case("ceilings", "What the device itself reaches", 1, 10, ceilings)
    yield _training(1, "dit/b2-256", 256, 30)
    yield Case("host_reads", "Host reads in an update and in a walk of four steps", 1, 15, host_reads)
    yield _training(2, large, 128, 45, peers=True)
    yield Case("bound_cifar10", f"Bound of one image, {small}", 2, 30, lambda: bound(small))
    yield _training(2, latent, 128, 40)
    yield Case("sampling_cifar10_b64", f"Sampling steps of {small}", 2, 40, lambda: sampling(small, 64))
    yield _training(2, "adm/imagenet64", 64, 20)
    yield _training(3, small, 128, 90, compiled=True)
    yield _training(3, "dit/b2-256", 256, 50, compiled=True)
    yield Case("sampling_dit_xl2_b64", f"Sampling steps of {latent}", 3, 40, lambda: sampling(latent, 64))
    yield Case("serving_cifar10", f"Requests of {small} that arrive at random", 4, 120, lambda: requests(small))


def _training(
    stage: int, name: str, batch: int, seconds: float, *, compiled: bool = False, peers: bool = False
) -> Case:
    label = f"training_{name.replace('/', '_')}_b{batch}{'_compiled' if compiled else ''}"
    about = f"Training updates of {name} with {batch} examples"
    return Case(label, about, stage, seconds, lambda: training(name, batch, compiled=compiled, peers=peers))


def lane(folder: Path, stage: int, seconds: float) -> Counter[str]:
    """Run the cases of a stage that fit, write each one's file, and return how many were done, skipped and failed."""
    begun, counts = time.perf_counter(), Counter[str]()
    for case in (case for case in cases() if case.stage == stage):
        left = seconds - (time.perf_counter() - begun)
        if left < case.seconds:
            counts["skipped"] += 1
            print(f"skipped  {case.name}: {left:.0f} s are left, it may take {case.seconds:.0f}", flush=True)
            continue
        start = time.perf_counter()
        try:
            rows, outcome = case.run(), "done"
        except Exception as error:  # the other cases shall still be measured
            rows, outcome = [{"error": said(error)}], "failed"
        counts[outcome] += 1
        content = {
            "benchmark": f"gpu_{case.name}",
            "about": case.about,
            "setup": {},
            "machine": machine(),
            "rows": rows,
        }
        (folder / f"gpu_{case.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{outcome:8} {case.name}: {time.perf_counter() - start:.1f} s", *rows, sep="\n    ", flush=True)
        tried(clean_up)
    return counts


def clean_up() -> None:
    """Give back what a case leaves behind; after an error of the device that fails as well."""
    gc.collect()
    torch._dynamo.reset()
    if GPU:
        torch.cuda.empty_cache()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-smoke", action="store_true", help="prove on a CPU that everything executes")
    parser.add_argument("--stage", type=int, choices=STAGES, help="run this stage only")
    parser.add_argument("--seconds", type=float, default=STAGE_SECONDS, help="time for each stage (default: 180)")
    parser.add_argument("--results", type=Path, help="folder for the JSON files (default: benchmarks/results)")
    arguments = parser.parse_args()
    if not GPU and not arguments.cpu_smoke:
        parser.error("there is no GPU here; --cpu-smoke runs the same code on a CPU with tiny networks")
    if arguments.cpu_smoke and arguments.results is None:
        parser.error("--cpu-smoke needs --results: its figures mean nothing, and must not lie among the others")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    if not GPU:
        torch.set_num_threads(1)
    folder = arguments.results or HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter[str]()
    for stage in (arguments.stage,) if arguments.stage else STAGES:
        print(f"stage {stage}", flush=True)
        counts += lane(folder, stage, arguments.seconds)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


if __name__ == "__main__":
    main()
