"""What is measured: one thing varies, at five points, and everything else stays.

Times are CPU time with one thread, the best of some rounds in which all points of a case are run in turn; bytes,
operations and exchanges are counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import diffkit
from diffkit.data.base import Batch
from diffkit.explain.network_size import size_report
from diffkit.parts.backbones._blocks import AttentionBlock
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer

POINTS: dict[str, tuple[int, ...]] = {
    "resolution": (8, 16, 32, 48, 64),
    "channels": (16, 32, 48, 64, 96),
    "levels": (250, 500, 1000, 2000, 4000),
    "batch": (1, 4, 16, 64, 256),
    "processes": (1, 2, 4, 8, 16),
}
SIDE, CHANNELS, BATCH, ROUNDS = 32, 32, 8, 2
Row = dict[str, Any]


def system_of(side: int = SIDE, channels: int = CHANNELS, **more: Any) -> diffkit.System:
    """A U-Net with two blocks at each of three resolutions, attention at a quarter of the side, learned variance."""
    options = dict(channels=channels, num_res_blocks=2, channel_mult=(1, 2, 2), attention_resolutions=(side // 4,))
    options |= dict(num_heads=4, groups=8) | more.pop("options", {})
    settings = dict(schedule="cosine", var="learned_range", loss="hybrid", data_shape=(3, side, side)) | more
    return diffkit.compose(backbone=("unet", options), **settings)


def trainer_of(system: diffkit.System, batch: int) -> tuple[Trainer, Batch]:
    """A trainer, and a batch of random 8-bit images for it."""
    config = TrainConfig(steps=10**9, batch_size=batch)
    images = torch.randint(0, 256, (batch, *system.data_shape), dtype=torch.uint8)
    return Trainer(system.train(), system.network, config, Engine(system.device)), Batch(
        torch.arange(batch), images, {}
    )


def update_of(system: diffkit.System, batch: int) -> Callable[[], None]:
    """An update of a system, metrics not collected."""
    trainer, data = trainer_of(system, batch)

    def run() -> None:
        trainer.update(data)
        trainer.window.rows.clear()

    return run


def best(cases: Mapping[Any, Callable[[], object]], rounds: int = ROUNDS) -> dict[Any, float]:
    """Seconds of CPU time of each case: the least of some rounds, after one that warms up."""
    found: dict[Any, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(seconds(case))
    return {name: min(taken) for name, taken in found.items()}


def seconds(case: Callable[[], object]) -> float:
    """Seconds of CPU time of one call."""
    gc.collect()
    begun = time.process_time()
    case()
    return time.process_time() - begun


def by_network(points: Mapping[int, diffkit.System]) -> list[Row]:
    """Counted and measured cost of a network at each point, per image."""
    updates = {point: update_of(system, BATCH) for point, system in points.items()}

    def evaluation(system: diffkit.System) -> Callable[[], object]:
        x, t = torch.randn(BATCH, *system.data_shape), torch.full((BATCH,), 500.0)

        def run() -> None:
            with torch.no_grad():
                system.network(x, t)

        return run

    forward = best({point: evaluation(system) for point, system in points.items()})
    training = best(updates)
    rows = []
    for point, system in points.items():
        size = size_of(system)
        rows.append(
            {
                "point": point,
                "gflop": round(size.forward_flops / 1e9, 3),
                "parameters_m": round(size.num_parameters / 1e6, 2),
                "forward_ms": ms(forward[point] / BATCH),
                "update_ms": ms(training[point] / BATCH),
                "saved_mb": round(size.activation_bytes / 1e6, 2),
            }
        )
    return rows


def size_of(system: diffkit.System, batch: int = 1) -> Any:
    """`size_report` of a system's network."""
    return size_report(system.parts.backbone, system.data_shape, system.parts.out_channels, batch_size=batch)


def by_resolution() -> list[Row]:
    """Side of the images, in pixels."""
    return by_network({side: system_of(side=side) for side in POINTS["resolution"]})


def by_channels() -> list[Row]:
    """Width of the network at full resolution."""
    return by_network({channels: system_of(channels=channels) for channels in POINTS["channels"]})


def by_levels() -> list[Row]:
    """T: composing, an update, and a step of sampling with a small network at a small size."""

    def small(levels: int) -> diffkit.System:
        return system_of(side=8, channels=16, num_steps=levels)

    systems = {levels: small(levels).eval() for levels in POINTS["levels"]}
    composed = best({levels: lambda levels=levels: small(levels) for levels in POINTS["levels"]})
    walks = {n: lambda s=s: s.sample(8, steps=50, seed=0, progress=False) for n, s in systems.items()}
    sampled = best(walks)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    systems[POINTS["levels"][0]].bits_per_dim(x, seed=0, progress=False)
    bounds = {n: seconds(lambda s=s: s.bits_per_dim(x, seed=0, progress=False)) for n, s in systems.items()}
    updates = best({n: update_of(small(n), BATCH) for n in POINTS["levels"]})
    return [
        {
            "point": n,
            "compose_ms": ms(composed[n]),
            "update_ms": ms(updates[n] / BATCH),
            "sample_50_steps_ms": ms(sampled[n] / 8),
            "bound_ms": ms(bounds[n]),
        }
        for n in POINTS["levels"]
    ]


def by_batch() -> list[Row]:
    """Examples of a call: a forward pass, and an update, which stops at 64."""
    system, trained = system_of().eval(), [n for n in POINTS["batch"] if n <= 64]

    def evaluation(batch: int) -> Callable[[], object]:
        x, t = torch.randn(batch, *system.data_shape), torch.full((batch,), 500.0)

        def run() -> None:
            with torch.no_grad():
                system.network(x, t)

        return run

    forward = best({n: evaluation(n) for n in POINTS["batch"]})
    training = best({n: update_of(system_of(), n) for n in trained}, rounds=2)
    rows = []
    for n in POINTS["batch"]:
        row: Row = {"point": n, "forward_ms": ms(forward[n] / n)}
        if n in training:
            row["update_ms"] = ms(training[n] / n)
        rows.append(row | {"training_mb": round(size_of(system, n).training_bytes / 1e6, 1)})
    return rows


# ---- processes: torch's fake group stands in for the others, and nothing is sent -------------------------------------


@contextmanager
def one_of(world: int) -> Iterator[Any]:
    """Be rank 0 of so many processes that are not there."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from diffkit.runtime.distributed import Ranks

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield Ranks(0, world)
    finally:
        dist.destroy_process_group()


def processes(world: int) -> Row:
    """Memory and exchange of one of so many processes; to be called in a process of its own."""
    row: Row = {"point": world}
    system = system_of(side=16)
    weights = sum(p.numel() for p in system.network.parameters())
    row["weights_mb"] = round(4 * weights / 1e6, 2)
    row["ddp_sent_mb"] = round(2 * (world - 1) / world * 4 * weights / 1e6, 2)
    row["fsdp_sent_mb"] = round(3 * (world - 1) / world * 4 * weights / 1e6, 2)
    if world == 1:
        return row | {"ddp_exchanges": 0, "fsdp_exchanges": 0, "fsdp_share_mb": row["weights_mb"]}
    row["ddp_exchanges"], _ = exchanges(world, "ddp")
    row["fsdp_exchanges"], row["fsdp_share_mb"] = exchanges(world, "fsdp")
    return row


def exchanges(world: int, strategy: str) -> tuple[int, float]:
    """Collective calls of the second update, and the megabytes of weights that this process has."""
    from counting import Operations

    from diffkit.training.engines.replicated import Replicated
    from diffkit.training.engines.sharded import Sharded

    engine = {"ddp": Replicated, "fsdp": Sharded}[strategy]
    system = system_of(side=16)
    batch = Batch(torch.arange(2), torch.zeros(2, *system.data_shape, dtype=torch.uint8), {})
    with one_of(world) as ranks:
        config = TrainConfig(steps=9, batch_size=2 * world, strategy=strategy)
        trainer = Trainer(system, system.network, config, engine(torch.device("cpu"), ranks))
        buckets: list[int] = []
        if strategy == "ddp":  # the fake group has no result to wait for
            trainer.engine.model.register_comm_hook(buckets, _count_bucket)
        trainer.update(batch)
        buckets.clear()
        with Operations() as counter:
            trainer.update(batch)
        own = sum(getattr(p, "_local_tensor", p).numel() for p in trainer.network.parameters())
    words = ("allgather", "allreduce", "reduce_scatter", "broadcast", "scatter_", "gather_")
    calls = sum(n for name, n in counter.found.items() if name.lstrip("_").startswith(words))
    return calls + len(buckets), round(4 * own / 1e6, 2)


def _count_bucket(buckets, bucket):  # torch checks annotations, if there are any
    """Note a bucket of gradients, and send nothing."""
    buckets.append(bucket.buffer().numel())
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


# ---- memory of an image, and the price of less -----------------------------------------------------------------------


def saved_by_layer(system: diffkit.System) -> dict[str, float]:
    """Megabytes that an image's forward pass saves for the backward pass, by the kind of layer that saves first."""
    names = {nn.Conv2d: "convolutions", nn.GroupNorm: "norms", nn.SiLU: "activations", nn.Linear: "embedding"}
    names |= {AttentionBlock: "attention"}
    inside: list[str] = []
    seen: dict[int, Tensor] = {}
    found: dict[str, float] = {}
    own = {p.untyped_storage().data_ptr() for p in system.network.parameters()}
    handles = []
    for module in system.network.modules():
        if kind := next((name for layer, name in names.items() if isinstance(module, layer)), None):
            handles.append(module.register_forward_pre_hook(lambda *_, kind=kind: inside.append(kind)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in own and key not in seen:
            seen[key] = tensor  # alive, so that no other tensor comes to lie there
            place = "attention" if "attention" in inside else inside[-1] if inside else "scale, shift, sums, joins"
            found[place] = found.get(place, 0) + tensor.untyped_storage().nbytes()
        return tensor

    x, time_ = torch.randn(1, *system.data_shape), torch.full((1,), 500.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = system.network(x, time_)
    del out
    for handle in handles:
        handle.remove()
    return {name: round(size / 1e6, 2) for name, size in sorted(found.items(), key=lambda pair: -pair[1])}


def ways() -> list[Row]:
    """An update as it is, with activations recomputed, and with activations copied away and back."""
    plain, recomputing = system_of(), system_of(options={"checkpoint": True})
    copied = [0]

    def pack(tensor: Tensor) -> Tensor:
        copied[0] += tensor.numel() * tensor.element_size()
        return tensor.clone()

    run = update_of(system_of(), BATCH)

    def offloading() -> None:
        copied[0] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
            run()

    taken = best({"plain": update_of(plain, BATCH), "checkpoint": update_of(recomputing, BATCH), "copied": offloading})
    one, many = size_of(plain, 64), size_of(plain, 128)
    memory = {"plain": many.training_bytes - one.training_bytes}
    memory["checkpoint"] = (many.recomputed_bytes or 0) - (one.recomputed_bytes or 0)
    return [
        {
            "way": name,
            "update_ms": ms(spent / BATCH),
            "times_plain": round(spent / taken["plain"], 2),
            **({"image_mb": round(memory[name] / 64 / 1e6, 2)} if name in memory else {}),
            **({"copied_mb": round(copied[0] / BATCH / 1e6, 2)} if name == "copied" else {}),
        }
        for name, spent in taken.items()
    ]


def ms(spent: float) -> float:
    """Milliseconds, to four digits."""
    return float(f"{spent * 1e3:.4g}")
