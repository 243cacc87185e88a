"""The bound of one image: all levels batched against one level after the other, as the published script runs it.

Both with the same noise, so that the numbers have to be the same too. `plain` is the published loop written plainly,
with its table look-ups; `one by one` is diffkit with one (example, level) pair to a call. `improved-diffusion`
is the published loop itself, from a checkout; it draws its noise, and computes two mean squared errors on the side.
"""

from __future__ import annotations

from unittest import mock

import published
import pytest
import torch
from measuring import DEVICE, interleaved, ratio
from plain import PlainDiffusion

import diffkit
from diffkit.system.randomness import example_seed

LEVELS = 64


def system_of(channels: int, size: int) -> diffkit.System:
    torch.manual_seed(0)
    network = ("unet", dict(channels=channels, num_res_blocks=1, channel_mult=(1, 2), num_heads=2, groups=8))
    system = diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=network,
        data_shape=(3, size, size),
        num_steps=LEVELS,
        device=str(DEVICE),
    )
    for parameter in system.parameters():  # the published initialization makes many terms equal
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return system.eval()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("channels", "size"), [(16, 16), (32, 32)])
def test_bound_of_one_image(channels, size, record, request):
    if size > 16 and not request.config.getoption("--full"):
        pytest.skip("add --full for the larger network")
    system = system_of(channels, size)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 2 - 1
    generator = torch.Generator(DEVICE).manual_seed(example_seed(0, 0))
    noise = [torch.randn(x.shape[1:], generator=generator, device=DEVICE)[None] for _ in range(LEVELS)]
    plain = PlainDiffusion(system.table.beta[1:])

    def network(x, time):
        return system.network(x, time)

    def ours(rows):
        return lambda: system.bits_per_dim(x, seed=0, rows_per_call=rows)

    cases = {f"{rows} pairs a call": ours(rows) for rows in (1, 4, 8, 16, 32, 64)}
    cases["plain loop"] = lambda: plain.bound(network, x, noise)
    one, batched, loop = (
        cases["1 pairs a call"]().terms,
        cases["16 pairs a call"]().terms,
        cases["plain loop"](),
    )
    apart = {"batched": difference(batched, one), "plain": difference(loop, one)}
    if theirs := published.bound(system.table.beta[1:], network):
        with mock.patch.object(torch, "randn_like", mock.Mock(side_effect=noise[::-1])):
            apart["improved-diffusion"] = difference(theirs(x), one)
        cases["improved-diffusion"] = lambda: theirs(x)
    assert apart["batched"] < 1e-5 and max(apart.values()) < 1e-3  # the published tables and tails are float32
    seconds = interleaved(cases, rounds=5, warm_ups=1)
    against = {"one_by_one": "1 pairs a call", "plain_loop": "plain loop"}
    against |= {name: name for name in seconds if name == "improved-diffusion"}
    rows = [
        {
            "case": name,
            "ms": round(sorted(taken)[len(taken) // 2] * 1e3, 1),
            **{f"times_faster_than_{short}": ratio(seconds[other], taken) for short, other in against.items()},
        }
        for name, taken in seconds.items()
    ]
    parameters = sum(p.numel() for p in system.parameters())
    record(
        f"bound_unet{channels}_{size}",
        "Variational bound of one image: (example, level) pairs per call of the network, the same noise",
        rows,
        dtype="float32",
        shape=[1, 3, size, size],
        levels=LEVELS,
        parameters=parameters,
        largest_difference=apart,
    )
