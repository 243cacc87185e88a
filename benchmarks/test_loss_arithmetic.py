"""What a training loss costs beside the network, forward and backward: hybrid against simple, diffkit against others.

denoising-diffusion-pytorch's hybrid loss does the same work with other numbers: it weighs the bound's term 0.001
whatever T is, and has another floor under the first variance.
"""

from __future__ import annotations

import pytest
import torch
from measuring import interleaved, ratio
from peers import denoising_diffusion_loss
from plain import PlainDiffusion
from published import PublishedLoss, checkout

import diffkit
from diffkit.system.draws import count_first


@pytest.mark.parametrize(("batch", "side"), [(16, 32), (64, 32), (32, 64)])
def test_loss_arithmetic(batch, side, record):
    shape = (3, side, side)
    simple = diffkit.compose(schedule="cosine", backbone=None, data_shape=shape)
    hybrid = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid", backbone=None, data_shape=shape)
    plain = PlainDiffusion(simple.table.beta[1:])
    x_start, noise = torch.rand(batch, *shape) * 2 - 1, torch.randn(batch, *shape)
    narrow = torch.randn(batch, *shape, requires_grad=True)
    wide = torch.randn(batch, 6, side, side, requires_grad=True)
    generator = torch.Generator().manual_seed(0)

    def ours(system, leaf):
        def run():
            level, _ = system.draw_levels(batch, generator=generator)
            rows = count_first(level)
            system.loss_terms(lambda x, t: leaf, x_start, level, noise, decoder_rows=rows)["loss"].mean().backward()
            leaf.grad = None

        return run

    def theirs(loss, leaf):
        def run():
            t = torch.randint(0, 1000, (batch,), generator=generator)
            loss(lambda x, time: leaf, x_start, t, noise).mean().backward()
            leaf.grad = None

        return run

    def with_its_own_network(loss, leaf):
        def run():
            loss(x_start, torch.randint(0, 1000, (batch,), generator=generator), noise).backward()
            leaf.grad = None

        return run

    cases = {
        "simple": ours(simple, narrow),
        "hybrid": ours(hybrid, wide),
        "plain_simple": theirs(plain.simple, narrow),
        "plain_hybrid": theirs(plain.hybrid, wide),
    }
    if checkout():
        published = PublishedLoss(simple.table.beta[1:])
        level = torch.linspace(2, 1000, batch).long()  # not the first: its tails are lost in float32 there
        for system, loss, leaf in ((simple, published.simple, narrow), (hybrid, published.hybrid, wide)):
            mine = system.loss_terms(lambda x, t, leaf=leaf: leaf, x_start, level, noise)["loss"]
            torch.testing.assert_close(
                loss(lambda x, t, leaf=leaf: leaf, x_start, level - 1, noise), mine, rtol=1e-3, atol=0
            )
        cases["improved-diffusion_simple"] = theirs(published.simple, narrow)
        cases["improved-diffusion_hybrid"] = theirs(published.hybrid, wide)
    for kind, leaf in {"simple": narrow, "hybrid": wide}.items():
        if loss := denoising_diffusion_loss(leaf, shape[0]):
            cases[f"denoising-diffusion-pytorch_{kind}"] = with_its_own_network(loss, leaf)
    torch.empty(31 << 18).fill_(0)  # as a network's activations do: after one such block glibc keeps smaller ones
    seconds = interleaved(cases, rounds=25)
    row = {"batch": batch, "side": side} | {f"{n}_us": round(sorted(s)[len(s) // 2] * 1e6) for n, s in seconds.items()}
    row["hybrid_over_simple"] = ratio(seconds["hybrid"], seconds["simple"])
    row["plain_hybrid_over_simple"] = ratio(seconds["plain_hybrid"], seconds["plain_simple"])
    for name in cases:
        peer, _, kind = name.rpartition("_")
        if peer:
            row[f"{kind}_times_faster_than_{peer}"] = ratio(seconds[name], seconds[kind])
    about = "Losses beside the network, forward and backward"
    record(f"loss_arithmetic_b{batch}_{side}", about, [row], dtype="float32", shape=[batch, *shape])
