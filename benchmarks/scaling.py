"""What an update costs on 1 to 1024 GPUs, on paper: counted operations and bytes, assumed speeds. Writes SCALING.md.

    python benchmarks/scaling.py

Operations, parameters and bytes are counted; every speed is an assumption, named in `Cluster` and in the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from attrs import frozen
from configurations import size_of

from diffkit.explain.network_size import SizeReport

WORLDS = tuple(2**k for k in range(11))
HERE = Path(__file__).parent


@frozen
class Cluster:
    """The machine that is assumed; rates in bytes or operations per second, times in seconds.

    Attributes:
        gpus: GPUs of one node.
        peak: Dense bfloat16 matrix rate that large products reach on an H200 (0.80 of its data sheet's 989e12).
        inside: What a GPU sends within its node: NVLink 4, 450e9 each way on the data sheet, 0.8 of it.
        between: What a GPU sends to another node: one 400 Gbit/s port each, 50e9, 0.8 of it.
        hop_inside, hop_between: Delay of one hop of a collective.
        overhead: Of an eager update beside its kernels that no amount of GPUs shortens: launches, Python, data.
        start: From a launch to the first sample: processes, imports, weights.
    """

    gpus: int = 8
    peak: float = 790e12
    inside: float = 360e9
    between: float = 40e9
    hop_inside: float = 5e-6
    hop_between: float = 15e-6
    overhead: float = 15e-3
    start: float = 30.0


@cache
def counted(name: str) -> SizeReport:
    """Return what is counted of a configuration."""
    return size_of(name, 1)


@frozen
class Network:
    """A configuration: what is counted, and the utilisation that is assumed.

    Attributes:
        name: Of the preset.
        batch: Examples per GPU, where the batch grows with the GPUs.
        total: Examples of the published batch, where it does not.
        mfu: Share of the peak that training reaches; the project's goals, not measurements.
        steps: Evaluations per sample.
    """

    name: str
    batch: int
    total: int
    mfu: float
    steps: int = 250

    @property
    def parameters(self) -> int:
        """Trained values."""
        return counted(self.name).num_parameters

    @property
    def flops(self) -> tuple[float, float]:
        """Of a forward pass, and of a training update, per example."""
        return counted(self.name).forward_flops, counted(self.name).training_flops


NETWORKS = (
    Network("iddpm/cifar10-uncond", 128, 128, 0.30),
    Network("iddpm/imagenet64-uncond", 128, 128, 0.35),
    Network("adm/imagenet64", 64, 2048, 0.40),
    Network("dit/s2-256", 256, 256, 0.25),
    Network("dit/b2-256", 256, 256, 0.42),
    Network("dit/xl2-256", 128, 256, 0.52),
)
BUCKET = 25e6
"""Bytes that DDP sends at a time; the last one cannot hide behind the backward pass."""
BACKWARD = 2 / 3
"""Share of an update's operations that is the backward pass."""


def ring(size: float, world: int, cluster: Cluster) -> float:
    """Seconds in which every GPU sends ``size (W - 1) / W`` bytes around a ring: one all-gather or reduce-scatter.

    Hops within a node and between nodes differ; beyond a node the slowest link sets the pace, and the delay is that of
    a tree over nodes, which is what libraries choose there.
    """
    if world == 1:
        return 0.0
    nodes = math.ceil(world / cluster.gpus)
    pace = cluster.inside if nodes == 1 else cluster.between
    delay = min(world, cluster.gpus) * cluster.hop_inside + math.ceil(math.log2(nodes)) * cluster.hop_between
    return size * (world - 1) / world / pace + delay


def compute(network: Network, batch: float, cluster: Cluster) -> float:
    """Seconds of an update's kernels on one GPU."""
    return network.flops[1] * batch / (network.mfu * cluster.peak)


def ddp(network: Network, batch: float, world: int, cluster: Cluster) -> float:
    """Seconds of an update with gradients summed bucket by bucket during the backward pass: 2 rings of 4 P bytes."""
    kernels = max(compute(network, batch, cluster), cluster.overhead)
    size = 4.0 * network.parameters
    sent = 2 * ring(size, world, cluster)
    last = 2 * ring(min(BUCKET, size), world, cluster)
    return kernels + max(last, sent - BACKWARD * kernels)


def fsdp(network: Network, batch: float, world: int, cluster: Cluster) -> float:
    """Seconds of an update with weights gathered forwards and backwards and gradients scattered: 3 rings of 4 P bytes.

    Each overlaps with the neighbouring block's kernels; the first gather and the last scatter do not.
    """
    kernels = max(compute(network, batch, cluster), cluster.overhead)
    size, blocks = 4.0 * network.parameters, 30
    sent = 3 * ring(size, world, cluster) + 3 * (blocks - 1) * ring(0.0, world, cluster)
    ends = 2 * ring(size / blocks, world, cluster)
    return kernels + max(ends, sent - kernels)


def samples(network: Network, world: int, cluster: Cluster, count: int = 50_000, batch: int = 256) -> float:
    """Seconds of the job that shares ``count`` samples out; nothing is exchanged, the slowest process decides.

    A batch that is not full takes as long as its rows; below 64 rows a GPU is not filled, and is taken for no faster.
    """
    mine = math.ceil(count / world)
    full, rest = divmod(mine, batch)
    rows = full * batch + (max(rest, 64) if rest else 0)
    return cluster.start + rows * network.steps * network.flops[0] / (network.mfu * cluster.peak)


# ---- the page --------------------------------------------------------------------------------------------------------


INTRODUCTION = """# Scaling, on paper

Written by `python benchmarks/scaling.py`. **Nothing here was measured on a GPU.** Operations, parameters and bytes are
counted; the following is assumed, for H200s in nodes of eight:

* bfloat16 products reach {peak:.0f} TFLOP/s, and training the share of it in the table (MFU), which are this
  project's goals;
* a GPU sends {inside:.0f} GB/s within its node and {between:.0f} GB/s beyond it; a hop takes {hop_inside:.0f} and
  {hop_between:.0f} microseconds;
* an eager update takes at least {overhead:.0f} ms, however small its batch;
* {start:.0f} s pass from the launch of a sampling job to its first step.

## What is counted
"""

SENT = """Sent is what one GPU sends as the number of GPUs grows: gradients are float32 and go around a ring twice
(DDP), or weights twice and gradients once (FSDP2). Metrics and the timestep sampler add one all-gather of some numbers
per example, running means nothing. `tests/gates` holds DDP to 4 bytes per parameter and update.

## A batch that grows with the GPUs

Images per second and GPU, as a share of one GPU's. DDP:
"""

CONCLUSIONS = """\
* **A growing batch**: within a node nothing is felt. Beyond it DDP has to send 8 bytes per parameter while the
  backward pass lasts: the table says how long an update, and how many images per GPU, just hide that. A smaller batch
  leaves the GPU waiting for the network. More nodes cost hardly more: in a ring every GPU sends the same bytes, and
  only delays grow, with the logarithm of the nodes.
* **A fixed batch** stops where a GPU's share takes less than the fixed cost of an eager update, or no longer hides the
  exchange: between 4 and 8 GPUs for the batches of 128 and 256, and leaving the node then costs more than it brings.
  A whole update as a CUDA graph would lower the fixed cost; gradients in bfloat16 would halve what is sent.
* **FSDP2** sends 1.5 times as much and waits at every block. It is for networks whose weights, gradients, moments and
  means (20 bytes per parameter) do not fit one GPU, which all of these do.
* **Samples** are shared out without any exchange, so the job scales until a GPU has fewer images than fill it (64
  here: from 782 GPUs on), and its start-up takes longer than its work long before that for the small networks.
"""


def page(cluster: Cluster) -> Iterator[str]:
    """Yield the parts of SCALING.md."""
    yield INTRODUCTION.format(
        peak=cluster.peak / 1e12,
        inside=cluster.inside / 1e9,
        between=cluster.between / 1e9,
        hop_inside=cluster.hop_inside * 1e6,
        hop_between=cluster.hop_between * 1e6,
        overhead=cluster.overhead * 1e3,
        start=cluster.start,
    )
    yield from grid(
        ("network", "parameters", "GFLOP per image", "DDP sends per update", "FSDP sends per update", "MFU assumed"),
        (facts(network) for network in NETWORKS),
    )
    yield SENT
    yield from efficiency(ddp, cluster)
    yield "FSDP2:\n"
    yield from efficiency(fsdp, cluster)
    yield "## The published batch, shared out\n"
    yield "Milliseconds per update with DDP; an empty field has less than one image per GPU:\n"
    yield from grid(
        ("network", "batch", *map(str, WORLDS)),
        ((n.name, str(n.total), *(strong(n, world, cluster) for world in WORLDS)) for n in NETWORKS),
    )
    yield "## 50,000 samples, shared out\n"
    yield "Minutes of the whole job, 250 evaluations per image without guidance, batches of 256:\n"
    yield from grid(
        ("network", *map(str, WORLDS)),
        ((n.name, *(f"{samples(n, world, cluster) / 60:.3g}" for world in WORLDS)) for n in NETWORKS),
    )
    yield "## Where it stops, and why\n"
    yield from grid(
        ("network", "update that hides DDP's exchange between nodes", "images per GPU"),
        (hiding(network, cluster) for network in NETWORKS),
    )
    yield CONCLUSIONS


def hiding(network: Network, cluster: Cluster) -> tuple[str, ...]:
    needed = 8 * network.parameters / cluster.between / BACKWARD
    images = needed * network.mfu * cluster.peak / network.flops[1]
    return network.name, f"{needed * 1e3:.0f} ms", str(math.ceil(images))


def facts(network: Network) -> tuple[str, ...]:
    size, flops = network.parameters, network.flops[1]
    sent = gigabytes(8 * size), gigabytes(12 * size)
    return network.name, f"{size / 1e6:.1f} M", f"{flops / 1e9:.1f}", *sent, f"{network.mfu:.0%}"


def efficiency(update, cluster: Cluster) -> Iterator[str]:
    def shares(network: Network) -> Iterator[str]:
        alone = update(network, network.batch, 1, cluster)
        return (f"{alone / update(network, network.batch, world, cluster):.0%}" for world in WORLDS)

    yield from grid(("network", "per GPU", *map(str, WORLDS)), ((n.name, str(n.batch), *shares(n)) for n in NETWORKS))


def strong(network: Network, world: int, cluster: Cluster) -> str:
    if network.total < world:
        return ""
    return f"{ddp(network, network.total / world, world, cluster) * 1e3:.0f}"


def grid(head: Sequence[str], rows) -> Iterator[str]:
    """Yield a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" + " ---: |" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


if __name__ == "__main__":
    (HERE / "SCALING.md").write_text("\n".join(page(Cluster())).rstrip() + "\n", encoding="utf-8")
