"""Networks that read their previous estimate of x_start: in training, in every sampler, and where there is none."""

from __future__ import annotations

import pytest
import torch

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.gaussian import mean_flat
from diffkit.protocols import NetworkLoss
from diffkit.registry import registry

RECIPE = {"hidden": 16, "depth": 1, "self_condition": True}


def composed(recipe=RECIPE, **more):
    torch.manual_seed(0)
    settings = dict(backbone=("mlp", recipe), data_shape=(2,), bins=None, num_steps=20, schedule="cosine")
    system = diffkit.compose(**(settings | more))
    with torch.no_grad():
        for p in system.network.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return system


@pytest.mark.parametrize("sampler", registry("sampler").built_in_names())
def test_every_sampler_gives_each_call_the_estimate_of_the_one_before(sampler):
    system, read = composed(), []

    def model(x, time, previous_x_start):
        read.append(previous_x_start)
        return system.network(x, time, previous_x_start=previous_x_start)

    options = dict(steps=4, sampler=sampler, seed=0, clip=False)
    points = list(system.trajectory(3, model=model, **options))
    assert read[0].abs().max() == 0 and all(each.abs().max() > 0 for each in read[1:])
    for point in points[:-1]:
        assert any(torch.equal(point.x_start, each) for each in read)
    assert torch.equal(points[-1].x, system.sample(3, progress=False, **options))


def test_guidance_and_compiled_steps_carry_it():
    recipe = RECIPE | {"num_classes": 2, "null_class": True}
    system, y = composed(recipe), torch.tensor([0, 1])
    options = dict(steps=3, sampler="ddim", seed=0, progress=False, y=y, guidance=("cfg", {"scale": 2.0}))
    plain = system.sample(2, **options)
    forgets = system.sample(2, model=lambda x, time, y, previous_x_start: system.network(x, time, y), **options)
    assert not torch.allclose(plain, forgets, atol=1e-4)


def test_training_gives_half_of_the_examples_their_own_estimate():
    """By another pass without gradient; the others get zeros."""
    system, calls = composed(loss="simple", mean="x_start"), []

    def model(x, time, previous_x_start=None):
        calls.append((previous_x_start, torch.is_grad_enabled()))
        return system.network(x, time, previous_x_start=previous_x_start)

    x = torch.randn(64, 2)
    terms = system(x, model=model, generator=torch.Generator().manual_seed(0))
    (first, without), (second, with_gradient) = calls
    assert first is None and not without and with_gradient
    given = second.abs().amax(1) > 0
    assert 20 <= int(given.sum()) <= 44
    terms["loss"].mean().backward()
    assert system.network.first.weight.grad[:, 2:].abs().max() > 0


def test_a_run_with_it_is_the_same_in_microbatches_and_resumes(tmp_path):
    data = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    options = dict(batch_size=8, lr=1e-2, save_every=2, progress=False)
    once = diffkit.train(composed(), data, out=tmp_path / "once", steps=6, microbatch=4, **options)
    for steps in (2, 6):
        again = diffkit.train(composed(), data, out=tmp_path / "again", steps=steps, microbatch=4, **options)
    for one, other in zip(once.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert diffkit.load(tmp_path / "once").parts.self_conditioned


def test_the_bound_is_without_estimates_and_says_so(capsys):
    system = composed()
    x = torch.randn(3, 2)
    found = system.bits_per_dim(x, seed=0)
    assert "without previous estimates, which are zeros here" in capsys.readouterr().err
    plain = system.bits_per_dim(
        x, seed=0, model=lambda x, time: system.network(x, time, previous_x_start=torch.zeros_like(x))
    )
    assert torch.equal(found.total, plain.total)


class Squared(NetworkLoss):
    def __call__(self, at, network):
        return {"loss": mean_flat(at.out.square())}


def test_what_does_not_go_with_it():
    with pytest.raises(CompositionError, match=r"reads its previous estimate; use self_condition=False"):
        composed(loss=Squared())
    with pytest.raises(OptionError, match="the network reads none; build with self_condition=True"):
        composed({"hidden": 8}).network(torch.ones(1, 2), torch.ones(1), previous_x_start=torch.ones(1, 2))
    with pytest.raises(OptionError, match=r"previous_x_start must have shape \(1, 2\), as x, got \(1, 3\)"):
        composed().network(torch.ones(1, 2), torch.ones(1), previous_x_start=torch.ones(1, 3))
