"""A network is in eval mode until the last call that uses it has ended, in any thread, and then in its mode before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import Tiny
from torch import nn

import diffkit
from diffkit.runtime.eval_mode import eval_mode

SHAPE = (3, 4, 4)


class Dropping(Tiny):
    """A network with dropout, and a part that is never trained."""

    def __init__(self):
        super().__init__(3, 3)
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
        self.meanwhile = lambda: None

    def forward(self, x, time):
        self.meanwhile()
        return self.dropout(self.frozen(super().forward(x, time)))


def system_of():
    torch.manual_seed(0)
    return diffkit.compose(schedule="cosine", backbone=Dropping(), data_shape=SHAPE, num_steps=20)


def draw(system, steps=4):
    return system.sample(2, steps=steps, seed=1, progress=False)


def modes(system):
    return {name: module.training for name, module in system.named_modules()}


def test_the_last_thread_to_finish_switches_dropout_back():
    """The short walk begins first and ends while the long one, which began meanwhile, is under way."""
    system = system_of()
    short, long, before = draw(system, 2), draw(system, 10), modes(system)
    both, ended, thread_of_short = threading.Barrier(2), threading.Event(), []
    waited = set()

    def meanwhile():
        own = threading.get_ident()
        if own not in waited:
            waited.add(own)
            both.wait(10)
            if own not in thread_of_short:
                assert ended.wait(10)

    def begin_first():
        thread_of_short.append(threading.get_ident())
        found = draw(system, 2)
        ended.set()
        return found

    system.network.meanwhile = meanwhile
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(begin_first), pool.submit(draw, system, 10)
        assert torch.equal(first.result(), short) and torch.equal(second.result(), long)
    assert modes(system) == before and system.training


def test_a_trajectory_leaves_the_network_alone_between_steps():
    system = system_of()
    before, whole = modes(system), draw(system)
    walk = system.trajectory(2, steps=4, seed=1)
    assert modes(system) == before
    next(walk)
    assert modes(system) == before
    assert torch.equal(list(walk)[-1].x, whole)
    assert modes(system) == before


def test_a_failure_puts_everything_back():
    system = system_of()
    before = modes(system)

    def fail():
        raise RuntimeError("of the network")

    system.network.meanwhile = fail
    for call in (lambda: draw(system), lambda: next(system.trajectory(2, steps=4))):
        with pytest.raises(RuntimeError, match="of the network"):
            call()
        assert modes(system) == before


def test_a_network_that_is_listed_twice_is_put_back_once():
    network = Dropping()
    with eval_mode(network, network):
        assert not network.training
        with eval_mode(network.dropout):
            assert not network.dropout.training
        assert not network.dropout.training
    assert network.training and network.dropout.training and not network.frozen.training
