"""What processes send each other in an update: bytes and calls, whatever the number of processes.

Torch's fake process group stands in for the others: this process is one of 2, 8 or 64, and nothing is sent. All of it
is done in a process of its own: torch remembers what it worked out for a mesh of processes, also of ones not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from counters import Operations
from forks import forked, forking
from torch import nn

import diffkit
from diffkit.data.base import Batch
from diffkit.runtime.distributed import Ranks
from diffkit.training.config import TrainConfig
from diffkit.training.engines.replicated import Replicated
from diffkit.training.engines.sharded import Sharded, sharding_blocks
from diffkit.training.trainer import Trainer

pytestmark = [
    forking,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WORLDS = (2, 8, 64)
OLD = torch.__version__.split(".")[:2] == ["2", "6"]
SHAPE, PER_PROCESS = (3, 4, 4), 2


class Network(nn.Module):
    """One convolution, which computes in the precision of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, time):
        return self.convolution(x.to(self.convolution.weight.dtype)).to(x.dtype)


@contextmanager
def one_of(world: int) -> Iterator[Ranks]:
    """Be rank 0 of so many processes that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield Ranks(0, world)
    finally:
        dist.destroy_process_group()


def sent(world: int, engine: type[Replicated] = Replicated) -> tuple[list[int], int, int]:
    """What `_sent` finds in a process of its own."""
    return forked(1, lambda rank: _sent(world, engine))[0]


def sent_in_shares(world: int, engine: type[Sharded] = Sharded) -> tuple[int, int, int]:
    """What `_sent_in_shares` finds in a process of its own."""
    return forked(1, lambda rank: _sent_in_shares(world, engine))[0]


def _sent(world: int, engine: type[Replicated]) -> tuple[list[int], int, int]:
    """Bytes of each bucket of gradients, calls that exchange other things, and the number of weights."""
    network = Network()
    system = diffkit.compose(schedule="cosine", backbone=network, data_shape=SHAPE)
    batch = Batch(torch.arange(PER_PROCESS), torch.zeros(PER_PROCESS, *SHAPE, dtype=torch.uint8), {})
    buckets: list[int] = []

    def note(state, bucket):
        buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    with one_of(world) as ranks:
        config = TrainConfig(steps=9, batch_size=PER_PROCESS * world)
        trainer = Trainer(system, network, config, engine(torch.device("cpu"), ranks))
        trainer.engine.model.register_comm_hook(None, note)
        for _ in range(2):  # in the second update DDP agrees on the order of its buckets
            trainer.update(batch)
        buckets.clear()
        with Operations() as counter:
            trainer.update(batch)
    calls = sum(count for name, count in counter.by_name.items() if is_exchange(name))
    return buckets, calls, sum(p.numel() for p in network.parameters())


def _sent_in_shares(world: int, engine: type[Sharded]) -> tuple[int, int, int]:
    """All-gathers and reduce-scatters of an update whose weights are shared out, and in how many units they are."""
    options = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "num_heads": 2}
    system = diffkit.compose(schedule="cosine", backbone=("unet", options), data_shape=SHAPE)
    batch = Batch(torch.arange(PER_PROCESS), torch.zeros(PER_PROCESS, *SHAPE, dtype=torch.uint8), {})
    with one_of(world) as ranks:
        config = TrainConfig(steps=9, batch_size=PER_PROCESS * world, strategy="fsdp")
        trainer = Trainer(system, system.network, config, engine(torch.device("cpu"), ranks))
        for _ in range(2):
            trainer.update(batch)
        with Operations() as counter:
            trainer.update(batch)
        units = 1 + sum(1 for _ in sharding_blocks(trainer.network))  # what is in no block is the last one
    return counter.by_name["_allgather_base_"], counter.by_name["_reduce_scatter_base_"], units


def is_exchange(name: str) -> bool:
    words = ("allgather", "allreduce", "reduce_scatter", "broadcast", "scatter_", "gather_", "barrier", "alltoall")
    return any(name.lstrip("_").startswith(word) for word in words)


@pytest.mark.parametrize("world", WORLDS)
def test_an_update_sends_its_gradients_once(world):
    buckets, _, weights = sent(world)
    assert sum(buckets) == 4 * weights


def test_calls_do_not_grow_with_the_processes():
    """One all-gather of the terms of the loss; running means and metrics send nothing."""
    assert [sent(world)[1] for world in WORLDS] == [1, 1, 1]


@pytest.mark.skipif(OLD, reason="FSDP2 of torch 2.6 does not run on a CPU")
@pytest.mark.parametrize("world", WORLDS)
def test_shared_weights_are_gathered_twice_and_gradients_scattered_once(world):
    gathers, scatters, units = sent_in_shares(world)
    assert scatters == units
    assert gathers <= 2 * units


class Chatty(Replicated):
    """Exchanges one more thing in every update."""

    def gather(self, tensors, size):
        dist.all_reduce(torch.zeros(1))
        return super().gather(tensors, size)


class Forgetful(Sharded):
    """Exchanges gradients one more time."""

    def gradient_norm(self, network):
        dist.reduce_scatter_tensor(torch.zeros(1), torch.zeros(self.ranks.size))
        return super().gradient_norm(network)


class Wide(Replicated):
    """Exchanges gradients in float64."""

    def wrap(self, network):
        return super().wrap(network.double())


def test_a_further_exchange_is_caught():
    assert sent(2, Chatty)[1] == 2


def test_longer_gradients_are_caught():
    buckets, _, weights = sent(2, Wide)
    assert sum(buckets) == 8 * weights


@pytest.mark.skipif(OLD, reason="FSDP2 of torch 2.6 does not run on a CPU")
def test_a_further_exchange_of_shares_is_caught():
    _, scatters, units = sent_in_shares(2, Forgetful)
    assert scatters == units + 1
