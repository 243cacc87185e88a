"""Requests that arrive at random: served by one loop, one after the other, and in static batches.

    python benchmarks/serving.py               # measures the small U-Net, serves 1,000 requests -> results/serving.json
    python benchmarks/serving.py --network     # serves fewer with the network itself, to check the first

Half of the requests take 10 steps, half 50, each of one row; they arrive as a Poisson process at 80 % of what one after
the other can serve. Time is virtual: it advances by what a call of the network takes, as measured by its number of
rows, and by the CPU time of the code around it, and jumps where there is nothing to do. So the figures hardly depend on
what else runs on the machine, and thousands of requests take a minute or two.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from configurations import SMALL, system_of
from measuring import HERE, clock, interleaved, machine
from torch import Tensor, nn

import diffkit
from diffkit.serving import Loop

STEPS = (10, 50)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
LOAD = 0.8
Rows = list[dict[str, Any]]


@define
class VirtualTime:
    """Seconds so far, and what calls of the network would have taken by the real clock."""

    now: float = 0.0
    calls: list[int] = field(factory=list)


class Timed(nn.Module):
    """A network that does nothing, and lets time pass as a real one would."""

    def __init__(self, time: VirtualTime, cost: Callable[[int], float], channels: int):
        super().__init__()
        self.time, self.cost, self.channels = time, cost, channels

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.time.now += self.cost(len(x))
        self.time.calls.append(len(x))
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


@define
class Arrival:
    """A request: when it comes, its steps, and when it is done."""

    at: float
    steps: int
    done: float = 0.0


def arrivals(count: int, rate: float, seed: int = 0) -> list[Arrival]:
    """A Poisson process of requests; all at once for an infinite rate."""
    draw, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(rate) if rate < float("inf") else 0.0
        found.append(Arrival(at, draw.choice(STEPS)))
    return found


def network_costs(system: diffkit.System, sizes: Sequence[int] = ROWS, rounds: int = 3) -> dict[int, float]:
    """Least seconds of a call of the network, by its rows."""
    x = torch.randn(max(sizes), *system.data_shape, device=system.device)
    time = torch.full((len(x),), 500.0, device=system.device)

    def call(rows: int) -> Callable[[], Tensor]:
        return lambda: system.network(x[:rows], time[:rows])

    with torch.no_grad():
        return {
            int(rows): min(taken)
            for rows, taken in interleaved({str(rows): call(rows) for rows in sizes}, rounds, warm_ups=1).items()
        }


def between(costs: Mapping[int, float]) -> Callable[[int], float]:
    """The cost of any number of rows, on straight lines through those that were measured."""
    known = sorted(costs)

    def cost(rows: int) -> float:
        above = next(each for each in known if each >= rows)
        below = max((each for each in known if each <= rows), default=above)
        share = (rows - below) / (above - below) if above > below else 0.0
        return costs[below] + share * (costs[above] - costs[below])

    return cost


# ---- ways to serve ---------------------------------------------------------------------------------------------------


def passed(time: VirtualTime, run: Callable[[], object]) -> None:
    """Let the time of a run's own code pass, beside that of its calls of the network."""
    begun = clock()
    run()
    time.now += clock() - begun


def in_turn(system: diffkit.System, time: VirtualTime, requests: list[Arrival]) -> None:
    """First come, first served: one request at a time."""
    for i, request in enumerate(requests):
        time.now = max(time.now, request.at)
        passed(time, lambda i=i, steps=request.steps: system.sample(1, steps=steps, seed=i, progress=False))
        request.done = time.now


def in_batches(system: diffkit.System, time: VirtualTime, requests: list[Arrival], rows: int) -> None:
    """Static batches: the first that waits, with others of as many steps, up to ``rows`` of them."""
    left = list(requests)
    while left:
        time.now = max(time.now, left[0].at)
        batch = [each for each in left if each.at <= time.now and each.steps == left[0].steps][:rows]
        given = {"steps": left[0].steps, "seed": 0, "progress": False}
        passed(time, lambda batch=batch, given=given: system.sample(len(batch), **given))
        for each in batch:
            each.done = time.now
        chosen = set(map(id, batch))
        left = [each for each in left if id(each) not in chosen]


def in_loop(system: diffkit.System, time: VirtualTime, requests: list[Arrival], rows: int, **options: Any) -> None:
    """One loop: requests join and leave at any step."""
    loop = Loop(system, rows_per_call=rows, queue=len(requests), **options)
    todo, served = list(reversed(requests)), {}
    while todo or served:
        if not served:
            time.now = max(time.now, todo[-1].at)
        while todo and todo[-1].at <= time.now:
            request = todo.pop()
            passed(time, lambda r=request: served.update({id(r): (r, loop.submit(1, steps=r.steps, seed=len(todo)))}))
        passed(time, loop.tick)
        for key, (request, found) in list(served.items()):
            if found.done():
                found.result()
                request.done = time.now
                del served[key]


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(case: str, requests: list[Arrival], time: VirtualTime) -> dict[str, Any]:
    """One row: latencies and throughput of a way to serve."""
    taken = sorted(each.done - each.at for each in requests)
    short = sorted(each.done - each.at for each in requests if each.steps == STEPS[0])
    return {
        "case": case,
        "p50_s": _digits(statistics.median(taken)),
        "p95_s": _digits(taken[int(0.95 * len(taken))]),
        f"p95_of_{STEPS[0]}_steps_s": _digits(short[int(0.95 * len(short))]) if short else None,
        "row_steps_per_s": _digits(sum(each.steps for each in requests) / (time.now - requests[0].at)),
        "mean_rows": _digits(statistics.mean(time.calls)),
        "peak_rows": max(time.calls),
    }


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def serving(system: diffkit.System, costs: Mapping[int, float], count: int, *, real: bool = False) -> Rows:
    """Rows of each way to serve: Poisson arrivals, then all at once for the throughput."""
    cost, rows = between(costs), max(costs)
    rate = LOAD / (statistics.mean(STEPS) * cost(1))
    ways: dict[str, Callable[[diffkit.System, VirtualTime, list[Arrival]], None]] = {
        "one after the other": in_turn,
        f"static batches of {rows}": lambda *given: in_batches(*given, rows),
        f"loop of {rows}": lambda *given: in_loop(*given, rows),
        f"loop of {rows // 2}": lambda *given: in_loop(*given, rows // 2),
    }
    invariant: dict[str, Callable[[diffkit.System, VirtualTime, list[Arrival]], None]] = {
        f"loop of {rows}, batch_invariant": lambda *given: in_loop(*given, rows, batch_invariant=True),
    }
    found: Rows = []
    for arriving, at in (("80 % load", rate), ("all at once", float("inf"))):
        for case, way in (ways | invariant).items():
            time = VirtualTime()
            timed = Timed(time, cost, system.parts.out_channels)
            network = system.network if real else timed
            requests = arrivals(count if at == rate else count // 4, at)
            if real:
                handle = system.network.register_forward_pre_hook(
                    lambda _, given, t=time: t.calls.append(len(given[0]))
                )
            way(system.with_network(network).eval(), time, requests)
            if real:
                handle.remove()
            found.append({"arrivals": arriving, **figures(case, requests, time)})
        # a network that is always called with as many rows costs that much
        if not real:
            time = VirtualTime()
            requests = arrivals(count if at == rate else count // 4, at)
            timed = Timed(time, lambda _: cost(rows // 2), system.parts.out_channels)
            in_loop(system.with_network(timed).eval(), time, requests, rows // 2)
            found.append({"arrivals": arriving, **figures(f"loop of {rows // 2}, FixedRows", requests, time)})
    for row in found:
        same = [each for each in found if each["arrivals"] == row["arrivals"]]
        row["p95_over_one_after_the_other"] = _digits(row["p95_s"] / same[0]["p95_s"])
        row["throughput_over_static"] = _digits(row["row_steps_per_s"] / same[1]["row_steps_per_s"])
    return found


def main() -> None:
    """Measure, serve, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="store_true", help="serve with the network itself, and write nothing")
    parser.add_argument("--count", type=int, default=None, help="number of requests (default: 1000; 24 with --network)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    system = system_of(SMALL).eval()
    costs = network_costs(system)
    rows = serving(system, costs, arguments.count or (24 if arguments.network else 1000), real=arguments.network)
    for row in rows:
        print(row)
    if not arguments.network:
        content = {
            "benchmark": "serving",
            "about": "Poisson arrivals of requests of 10 and 50 steps, the small U-Net, by one thread",
            "setup": {"seconds_of_a_call_by_rows": {rows: _digits(cost) for rows, cost in costs.items()}},
            "machine": machine(),
            "rows": rows,
        }
        (HERE / "results" / "serving.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
