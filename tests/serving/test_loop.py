"""A loop of requests: samples are those of `System.sample`, and no request disturbs another."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from lanes import in_lanes
from serving_support import SAMPLERS, random_request, row_wise_system, run_schedule

import diffkit
from diffkit.errors import OptionError, QueueFullError, UnknownComponentError
from diffkit.serving import FixedRows, Loop, load_point, save_point


@pytest.fixture(scope="module")
def system():
    return row_wise_system()


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(0)
    found = diffkit.compose(schedule="cosine", mean="x_start", backbone="mlp", data_shape=(2,), num_steps=60)
    for parameter in found.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()


def same(request, system, n, **given):
    return torch.equal(request.result(10), system.sample(n, progress=False, **given))


# ---- the same samples ------------------------------------------------------------------------------------------------


@in_lanes(default=30, slow=200)
def test_random_schedules(system, chosen):
    assert sum(run_schedule(system, seed)[1] for seed in chosen(range(2000))) == 0


def test_all_samplers_share_each_call(system):
    loop = Loop(system, rows_per_call=len(SAMPLERS))
    given = [{"sampler": name, "steps": 4, "seed": i} for i, name in enumerate(SAMPLERS)]
    requests = [loop.submit(1, **each) for each in given]
    counts = []
    for each in given:
        system.network.calls.clear()
        system.sample(1, progress=False, **each)
        counts.append(len(system.network.calls))
    loop.close()
    assert loop.calls == max(counts)
    assert loop.rows == sum(counts)
    assert loop.peak_rows == len(SAMPLERS)
    assert all(same(request, system, 1, **each) for request, each in zip(requests, given, strict=True))


def test_rows_of_other_requests_change_rounding_only(mlp):
    with Loop(mlp, rows_per_call=8) as loop:
        requests = [loop.submit(1, steps=5, seed=seed) for seed in range(8)]
    for seed, request in enumerate(requests):
        expected = mlp.sample(1, steps=5, seed=seed, progress=False)
        torch.testing.assert_close(request.result(0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_batch_invariant_is_the_same_to_the_bit_with_any_network(mlp, sampler):
    given = {"sampler": sampler, "steps": 5}
    with Loop(mlp, rows_per_call=8, batch_invariant=True) as loop:
        requests = [loop.submit(1 + seed % 3, seed=seed, **given) for seed in range(8)]
    for seed, request in enumerate(requests):
        assert same(request, mlp, 1 + seed % 3, seed=seed, **given)


def test_fixed_rows_make_a_batch_of_any_size_the_same(mlp):
    given = {"model": FixedRows(mlp.network, 4), "steps": 5, "seed": 0, "progress": False}
    whole = mlp.sample(7, **given)
    assert torch.equal(mlp.sample(7, batch_size=2, **given), whole)
    with Loop(mlp, rows_per_call=8) as loop:
        del given["progress"]
        requests = [loop.submit(n, **given) for n in (7, 3, 1)]
    assert all(torch.equal(request.result(0), whole[: request.n]) for request in requests)


@pytest.mark.parametrize("kind", ["gradient", "autoguidance"])
def test_guidance_that_is_not_shared(system, kind):
    def log_prob(x, time, conditions):
        return -x.square().flatten(1).sum(1)

    other = row_wise_system().network
    guidance = {
        "gradient": ("gradient", {"log_prob": log_prob}),
        "autoguidance": ("autoguidance", {"model": other, "scale": 2.0}),
    }
    given = {"sampler": "dpmpp_2s", "steps": 4, "seed": 1, "guidance": guidance[kind]}
    with Loop(system) as loop:
        plain = loop.submit(2, steps=6, seed=0)
        guided = loop.submit(2, **given)
    assert same(guided, system, 2, **given)
    assert same(plain, system, 2, steps=6, seed=0)


def test_a_saved_request_goes_on_in_another_loop(system, tmp_path):
    given = {"sampler": "dpmpp_sde", "steps": 5, "seed": 2, "guidance": ("cfg", {"scale": 2.0}), "y": 3}
    loop = Loop(system)
    request = loop.submit(2, **given)
    for _ in range(4):
        loop.tick()
    path = save_point(request.point, tmp_path / "request.safetensors")
    request.cancel()
    loop.close()
    with Loop(system) as loop:
        again = loop.submit(2, after=load_point(path), **given)
    assert same(again, system, 2, **given)
    assert loop.calls == again.num_steps - 4


# ---- requests --------------------------------------------------------------------------------------------------------


def test_previews_and_cancelling(system):
    loop = Loop(system)
    first, second = (loop.submit(1, sampler="ddim", steps=5, seed=seed) for seed in (0, 1))
    assert first.point is None
    loop.tick()
    loop.tick()
    points = list(system.trajectory(1, sampler="ddim", steps=5, seed=0))
    assert first.point.step == 2
    assert torch.equal(first.point.x_start, points[1].x_start)
    assert first.cancel()
    loop.close()
    assert first.cancelled()
    assert wait([first, second], timeout=1).not_done == set()
    assert same(second, system, 1, sampler="ddim", steps=5, seed=1)


def test_priority_goes_first_and_none_waits_for_ever(system):
    loop = Loop(system, rows_per_call=1, patience=4)
    low = loop.submit(1, steps=4, seed=0)
    while not low.done() and loop.calls < 100:
        loop.submit(1, steps=1, seed=1, priority=2)
        loop.tick()
    assert 4 * 2 * 4 <= loop.calls < 100  # each of its steps waits for two priorities
    loop.close(cancel=True)


def test_requests_of_another_form_take_turns(system):
    other = row_wise_system().network
    loop = Loop(system, rows_per_call=8)
    many = [loop.submit(1, steps=9, seed=seed) for seed in range(5)]
    alone = loop.submit(1, steps=9, seed=0, model=other)
    for _ in range(10):
        loop.tick()
    assert alone.point.step >= 4
    assert all(request.point.step >= 4 for request in many)
    loop.close(cancel=True)
    assert loop.waiting == 0


def test_in_a_coroutine(system):
    async def main(loop):
        requests = [loop.submit(1, steps=4, seed=seed) for seed in range(3)]
        slow = asyncio.ensure_future(asyncio.wait_for(loop.submit(1, steps=50, seed=9), 60))
        slow.cancel()
        return await asyncio.gather(*requests), await asyncio.gather(slow, return_exceptions=True)

    with Loop(system) as loop:
        samples, (cancelled,) = asyncio.run(main(loop))
    assert isinstance(cancelled, asyncio.CancelledError)
    for seed, found in enumerate(samples):
        assert torch.equal(found, system.sample(1, steps=4, seed=seed, progress=False))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n": 5}, OptionError, r"n must be at most rows_per_call=4, got 5; submit several requests, or make the loop"),
        ({"n": 0}, OptionError, "n must be >= 1, got 0"),
        ({"sampler": "ddmi"}, UnknownComponentError, "no sampler named 'ddmi'; did you mean 'ddim'"),
        ({"label": 3}, OptionError, "label"),
        ({"n": 2, "y": [1, 2, 3]}, OptionError, "y.* 2"),
        ({"start": torch.zeros(1, 5)}, OptionError, r"start must have shape \(1, 1, 2, 3\), got \(1, 5\)"),
        (
            {"compile": True},
            OptionError,
            r"shares calls of the network, not steps; pass model=torch.compile\(network\)",
        ),
        ({"after": 3}, OptionError, "after must be a point of a trajectory, got int"),
        ({"priority": 0.5}, OptionError, "priority must be an integer"),
    ],
)
def test_wrong_arguments_are_refused_at_once(system, given, error, message):
    loop = Loop(system, rows_per_call=4)
    fine = loop.submit(2, steps=3, seed=0)
    with pytest.raises(error, match=message):
        loop.submit(**given)
    loop.close()
    assert same(fine, system, 2, steps=3, seed=0)


def test_a_full_queue_and_a_closed_loop(system):
    loop = Loop(system, queue=2)
    requests = [loop.submit(1, steps=3, seed=seed) for seed in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are as many as the loop holds; submit again once one is done"):
        loop.submit(1)
    loop.close()
    assert all(request.done() for request in requests)
    with pytest.raises(OptionError, match="the loop is closed; make another one"):
        loop.submit(1)
    with pytest.raises(OptionError, match="the loop is closed; make another one"), loop:
        pass


class Failing(torch.nn.Module):
    """Fails for rows of label 3, as an index out of range would."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time, y):
        if (y == 3).any():
            raise IndexError("label 3 is out of range")
        return self.network(x, time, y)


def test_a_request_that_fails_fails_alone(system):
    model = Failing(system.network)
    with Loop(system) as loop:
        requests = [loop.submit(1, steps=3, seed=y, y=y, model=model) for y in range(5)]
        shapeless = loop.submit(1, steps=3, seed=0, y=0, model=lambda x, time, y: x[:, :, :1])
    with pytest.raises(IndexError, match="label 3"):
        requests[3].result(0)
    with pytest.raises(OptionError, match="the network returned shape"):
        shapeless.result(0)
    for y in (0, 1, 2, 4):
        assert same(requests[y], system, 1, steps=3, seed=y, y=y)


# ---- many clients ----------------------------------------------------------------------------------------------------


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
@pytest.mark.parametrize(
    "seconds", [pytest.param(3, marks=pytest.mark.slow, id="3s"), pytest.param(60, marks=pytest.mark.soak, id="60s")]
)
def test_eight_clients_at_once(system, seconds):
    errors: list[object] = []
    done = [0] * 8
    end = time.monotonic() + seconds

    def client(number, loop):
        draw = random.Random(number)
        while time.monotonic() < end:
            given = random_request(draw, 4)
            request = loop.submit(**given, priority=draw.randrange(2))
            if draw.random() < 0.1:
                request.cancel()
                continue
            expected = system.sample(given.pop("n"), progress=False, **given)
            if not torch.equal(request.result(30), expected):
                errors.append(given)
            done[number] += 1

    def guarded(number, loop):
        try:
            client(number, loop)
        except BaseException as error:
            errors.append(error)

    with Loop(system, rows_per_call=8) as loop:
        threads = [threading.Thread(target=guarded, args=(number, loop)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 3)  # caches are full by then
        before = resident()
        for thread in threads:
            thread.join()
        after = resident()
    assert errors == []
    assert min(done) > 0
    assert loop.waiting == 0
    assert after - before < 24 * 2**20
