"""What a system does with what it is given: seeds, batches, conditions, modes, and bad input."""

from __future__ import annotations

import copy
import re
import threading

import attrs
import pytest
import torch
from networks import Tiny

import diffkit
from diffkit.errors import OptionError
from diffkit.registry import registry


def make(channels: int = 3, *, learned: bool = True, **more) -> diffkit.System:
    parts = dict(var="learned_range", loss="hybrid") if learned else {}
    settings = dict(schedule="cosine", data_shape=(channels, 8, 8), num_steps=12) | parts | more
    return diffkit.compose(backbone=Tiny(channels, channels * (2 if learned else 1)), **settings)


@pytest.fixture
def system():
    return make()


@pytest.fixture
def x():
    return torch.rand(5, 3, 8, 8) * 2 - 1


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", ("ddim", {"eta": 1.0})])
def test_a_seed_gives_sample_i_whatever_the_batch(system, sampler):
    whole = system.sample(5, seed=3, sampler=sampler, progress=False)
    parts = system.sample(5, seed=3, sampler=sampler, batch_size=2, progress=False)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    fewer = system.sample(2, seed=3, sampler=sampler, progress=False)
    torch.testing.assert_close(whole[:2], fewer, rtol=1e-5, atol=1e-5)
    other = system.sample(5, seed=4, sampler=sampler, progress=False)
    assert not torch.allclose(whole, other, atol=1e-3)


@pytest.mark.parametrize(
    "steps", [None, 1, 3, 12, "3", "2,2", "ddim4", "trailing5", "leading5", "linspace5", [2, 7, 12]]
)
def test_every_spacing_samples(system, steps):
    assert system.sample(2, steps=steps, seed=0, progress=False).isfinite().all()


def test_sampling_switches_dropout_off_and_back(system):
    system.train()
    seen = []
    system.sample(
        1, steps=1, model=lambda x, time: (seen.append(system.training), system.network(x, time))[1], progress=False
    )
    assert seen == [False] and system.training and system.network.training
    seen.clear()

    def watching(x, time):
        seen.append(system.training)
        return system.network(x, time)

    system.sample_from(watching, torch.zeros(1, *system.data_shape), None, system.table_for(2), sampler="ddim")
    assert seen == [False, False] and system.training and system.network.training


def test_a_trajectory_does_not_leak_no_grad(system):
    for _ in system.trajectory(1, steps=3):
        assert torch.is_grad_enabled()
    moments = list(system.trajectory(2, steps=[3, 7, 12], seed=0))
    assert [m.level for m in moments] == [7, 3, 0] and [m.step for m in moments] == [1, 2, 3]
    torch.testing.assert_close(moments[-1].x, system.sample(2, steps=[3, 7, 12], seed=0, progress=False))
    assert moments[0].x_start.abs().max() <= 1


def test_the_transform_comes_before_clipping(system):
    seen = list(system.trajectory(2, steps=2, seed=0, x_transform=lambda x: 0 * x + 100))
    assert all(m.x_start.eq(1).all() for m in seen)


def test_clipping_never_touches_training(system, x):
    level, noise = torch.full((5,), 12), torch.randn(5, 3, 8, 8)
    clipped = system.loss_terms(None, x, level, noise)["loss"]
    free = make(clip_x_start=False)
    free.load_state_dict(system.state_dict())
    torch.testing.assert_close(clipped, free.loss_terms(None, x, level, noise)["loss"])


def test_conditions_are_cut_with_the_batch():
    system = make(learned=False)
    whole = system.sample(4, seed=0, y=[0, 1, 2, 3], progress=False)
    cut = system.sample(4, seed=0, y=torch.tensor([0, 1, 2, 3]), batch_size=3, progress=False)
    torch.testing.assert_close(whole, cut)
    one = system.sample(4, seed=0, y=2, progress=False)
    torch.testing.assert_close(one[2], whole[2])


def test_encode_then_sample_comes_back():
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(1, 4, 4), num_steps=1000)

    def model(x, time):  # the exact noise estimate if data are N(0, 1/4): smooth, so the path can be followed back
        k = (time[0] * 1).long() + 1
        alpha, sigma = float(system.table.alpha[k]), float(system.table.sigma[k])
        return x * sigma / (alpha**2 / 4 + sigma**2)

    x = torch.randn(2, 1, 4, 4).clamp(-1, 1) * 0.5
    z = system.encode(x, model=model)
    back = system.sample(2, start=z, sampler="ddim", model=model, progress=False)
    assert (back - x).square().mean().sqrt() < 0.02


def test_forward_is_the_pure_form_with_draws(system, x):
    generator = torch.Generator().manual_seed(7)
    terms = system(x, generator=generator)
    generator = torch.Generator().manual_seed(7)
    level, weight = system.draw_levels(5, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    pure = system.loss_terms(None, x, level, noise)
    torch.testing.assert_close(terms["loss"], pure["loss"] * weight)
    torch.testing.assert_close(terms["vb"], pure["vb"])
    assert torch.equal(terms["level"], level)


def test_a_loss_is_taken_for_many_noises_at_once(x):
    """torch.func maps noise over data, which an operation in place on what is made of data alone refuses."""
    system, level, noises = make(learned=False), torch.full((5,), 7), torch.randn(3, *x.shape)

    def loss(noise):
        return system.loss_terms(lambda x, time: 0.3 * x, x, level, noise)["loss"]

    wanted = torch.stack([loss(noise) for noise in noises])
    torch.testing.assert_close(torch.func.vmap(loss)(noises), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["simple", "hybrid", "vlb"])
def test_a_loss_is_taken_for_many_networks_at_once(x, loss):
    """torch.func maps an ensemble's weights, level 1 among the levels."""
    system = diffkit.compose(
        schedule="cosine",
        var="fixed_small" if loss == "simple" else "learned_range",
        loss=loss,
        backbone=None,
        data_shape=tuple(x.shape[1:]),
        num_steps=10,
    )
    level, noise = torch.arange(1, 6), torch.randn_like(x)
    outputs = 3 if loss == "simple" else 6
    weights = torch.randn(4, outputs, 3) * 0.3

    def mean_loss(weight):
        def model(x, time):
            return torch.einsum("oc,bchw->bohw", weight, x)

        return system.loss_terms(model, x, level, noise)["loss"].mean()

    wanted = torch.stack([mean_loss(weight) for weight in weights])
    torch.testing.assert_close(torch.func.vmap(mean_loss)(weights), wanted, rtol=1e-5, atol=1e-6)
    gradients = torch.func.vmap(torch.func.grad(mean_loss))(weights)
    torch.testing.assert_close(gradients[0], torch.func.grad(mean_loss)(weights[0]), rtol=1e-4, atol=1e-6)


def test_a_loss_is_taken_for_each_example_by_itself(x):
    """torch.func maps over examples with their levels, which have no value to look at then."""
    system, level, noise = make(learned=False), torch.arange(1, 6), torch.randn_like(x)
    weight = torch.randn(3, 3) * 0.3

    def loss(weight, x, level, noise):
        def model(x, time):
            return torch.einsum("oc,bchw->bohw", weight, x)

        return system.loss_terms(model, x[None], level[None], noise[None])["loss"].sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(weight, x, level, noise)
    wanted = torch.stack([torch.func.grad(loss)(weight, *each) for each in zip(x, level, noise, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", registry("sampler").built_in_names())
def test_gradients_flow_through_all_steps_with_grad(sampler):
    torch.manual_seed(0)
    backbone = ("mlp", {"hidden": 8, "depth": 1})
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(2,), bins=None, num_steps=30).double()
    for weight in system.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    table, noise, x = system.table_for(5), torch.full((1, 2), 0.3, dtype=torch.float64), torch.randn(1, 2).double()

    def end(x, grad=True):
        return system.sample_from(None, x, lambda: noise, table, sampler=sampler, grad=grad)

    backwards = torch.func.jacrev(end)(x)
    small = 1e-6 * torch.eye(2, dtype=torch.float64)
    differences = torch.cat([end(x + d) - end(x - d) for d in small]).T / 2e-6
    torch.testing.assert_close(backwards[0, :, 0], differences, rtol=1e-4, atol=1e-6)
    assert end(x).requires_grad and not end(x, grad=False).requires_grad
    with torch.no_grad():
        assert not end(x).requires_grad


def test_float64_stays_float64(system, x):
    doubled = copy.deepcopy(system).double()
    level, noise = torch.arange(1, 6), torch.randn(5, 3, 8, 8).double()
    terms = doubled.loss_terms(None, x.double(), level, noise)
    assert terms["loss"].dtype == torch.float64
    short = system.loss_terms(None, x, level, noise.float())["loss"]
    torch.testing.assert_close(terms["loss"].float(), short, rtol=1e-4, atol=1e-5)


def test_tables_do_not_follow_the_weights(system):
    before = system.table.alpha_bar.copy()
    system.half()
    assert (system.table.alpha_bar == before).all() and not list(system.buffers())
    assert all(c.dtype == "float64" for block in system.objective.columns.blocks.values() for c in block.values())


def test_state_dict_is_the_networks(system):
    assert set(system.state_dict()) == {f"network.{k}" for k in system.network.state_dict()}


def test_backbone_is_another_name_of_the_network(system):
    """To read and to set; state dicts of before hold the network's weights by it, whatever holds the system."""
    assert system.backbone is system.network
    wanted = {name: value + 1 for name, value in system.network.state_dict().items()}
    system.load_state_dict({f"backbone.{name}": value for name, value in wanted.items()})
    assert all(torch.equal(value, wanted[name]) for name, value in system.network.state_dict().items())
    holder = torch.nn.ModuleDict({"system": system})
    holder.load_state_dict({f"system.backbone.{name}": value - 1 for name, value in wanted.items()})
    assert all(torch.equal(value, wanted[name] - 1) for name, value in system.network.state_dict().items())
    system.backbone = torch.nn.Identity()
    assert system.network is system.backbone and isinstance(system.network, torch.nn.Identity)
    assert [name for name, _ in system.named_children()] == ["network", "learned", "frozen"]


def test_bound_does_not_depend_on_how_it_is_cut(system, x):
    a = system.bits_per_dim(x, seed=0, rows_per_call=1)
    b = system.bits_per_dim(x, seed=0, rows_per_call=13)
    torch.testing.assert_close(a.total, b.total)
    torch.testing.assert_close(a.terms, b.terms)
    assert a.levels.tolist() == list(range(1, 13))
    torch.testing.assert_close(a.total, a.terms.sum(1) + a.prior)
    assert "bits/dim over 5 examples" in str(a)
    fewer = system.bits_per_dim(x[:2], seed=0)
    torch.testing.assert_close(fewer.total, a.total[:2])


def test_threads_share_a_system(system):
    system.eval()
    alone = [system.sample(1, seed=i, progress=False) for i in range(8)]
    together: list[torch.Tensor | None] = [None] * 8

    def work(i: int) -> None:
        together[i] = system.sample(1, seed=i, progress=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_training_learns_a_constant():
    system = make(1, learned=False, data_shape=(1, 8, 8))
    optimizer = torch.optim.Adam(system.parameters(), lr=0.01)
    data = torch.full((32, 1, 8, 8), 0.5)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = system(data, generator=generator)["loss"].mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


BAD_DATA = [
    (
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "x_start must be floating point in [-1, 1], got torch.uint8; for 8-bit",
    ),
    (torch.full((2, 3, 8, 8), 2.0), "x_start must lie in [-1, 1], got values in [2, 2]"),
    (torch.full((2, 3, 8, 8), float("nan")), "x_start is not finite: examples 0, 1 hold NaN or infinity"),
    (torch.zeros(2, 1, 8, 8), "x_start must have shape (B, 3, 8, 8), got (2, 1, 8, 8)"),
    ([1, 2], "x_start must be a tensor (B, 3, 8, 8), got list; a data set is scored by"),
    (torch.zeros(3, 8, 8), "x_start must have shape (B, 3, 8, 8), got (3, 8, 8)"),
]


@pytest.mark.parametrize(("data", "text"), BAD_DATA, ids=[t[:30] for _, t in BAD_DATA])
@pytest.mark.parametrize("call", ["forward", "bits_per_dim", "encode"])
def test_bad_data(system, data, text, call):
    with pytest.raises(OptionError, match=re.escape(text)):
        getattr(system, call)(data)


BAD_CALLS = [
    (dict(n=0), "n must be >= 1, got 0"),
    (dict(n=2, steps=0), "steps must be >= 1, got 0"),
    (dict(n=2, steps=13), "steps must be <= 12, the number of levels of the table, got 13"),
    (dict(n=2, steps=[0, 3]), "levels must lie in 1..12, got 0..3"),
    (dict(n=2, steps=[3, 3]), "levels must be ascending, each at most once"),
    (dict(n=2, steps="fast"), "spacing 'fast' has no known form"),
    (dict(n=2, steps="ddim7"), "no whole stride gives exactly 7 of 12 levels; use 'leading7' or 'trailing7'"),
    (dict(n=2, batch_size=0), "batch_size must be >= 1, got 0"),
    (dict(n=2, sampler="dddim"), "no sampler named 'dddim'; did you mean 'ddim'?"),
    (dict(n=2, start=torch.zeros(1, 3, 8, 8)), "start must have shape (2, 3, 8, 8), got (1, 3, 8, 8)"),
    (dict(n=2, y=[1, 2, 3]), "condition 'y' must have one value for each of 2 examples, got 3"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD_CALLS, ids=[t[:30] for _, t in BAD_CALLS])
def test_bad_sampling_calls(system, arguments, text):
    calls = []
    with pytest.raises(Exception, match=re.escape(text)) as caught:
        system.sample(**arguments, model=lambda *a, **k: calls.append(a), progress=False)
    assert isinstance(caught.value, diffkit.DiffkitError) and not calls


def test_encoding_needs_a_deterministic_sampler(system, x):
    with pytest.raises(OptionError, match="encode needs a deterministic sampler"):
        system.encode(x, sampler="ancestral")
    with pytest.raises(OptionError, match="start must be 'clean' or 'level1', got 'raw'"):
        system.encode(x, start="raw")


def test_levels_out_of_range_are_refused(system, x):
    for bad in (0, 13):
        with pytest.raises(OptionError, match=re.escape(f"level must lie in 1..12, got values in {bad}..{bad}")):
            system.loss_terms(None, x, torch.full((5,), bad), torch.randn_like(x))


@attrs.frozen
class DrawsLogSNR:
    """All members of a timestep sampler, without saying that its levels are log_snr."""

    def problems(self, composition):
        return ()

    def init(self, table):
        return ()

    def sample(self, state, u, num_steps):
        return 4 * u, torch.ones(len(u))

    def update(self, state, t, losses):
        return state


def test_log_snr_where_levels_are_integers_is_refused(x):
    how = dict(schedule="log_linear", backbone=Tiny(3, 3), data_shape=tuple(x.shape[1:]))
    system = diffkit.compose(timesteps=DrawsLogSNR(), **how)
    with pytest.raises(OptionError, match=r"has to inherit from diffkit\.protocols\.ContinuousTimestepSampler"):
        system(x)


def test_there_is_one_level_and_one_noise_for_each_example(system, x):
    noise = torch.randn_like(x)
    with pytest.raises(OptionError, match=re.escape("level must have shape (5,), got (1,)")):
        system.loss_terms(None, x, torch.tensor([3]), noise)
    with pytest.raises(
        OptionError, match=re.escape("noise must have shape (5, 3, 8, 8), as x_start, got (1, 3, 8, 8)")
    ):
        system.loss_terms(None, x, torch.full((5,), 3), noise[:1])


EXPLODING = ("log_linear", {"path": "ve", "log_snr_max": 12.0, "log_snr_min": -8.0})


def at_one_point(x, time):
    """The noise in x where data is 0.7, on the path of EXPLODING."""
    sigma = (-(12.0 - time.double() / 1000 * 20.0) / 2).exp()
    return (x - 0.7) / sigma.view(-1, 1)


@pytest.mark.parametrize("steps", [1, 9, 18, 40])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_any_table_of_a_continuous_schedule_samples(steps, sampler):
    """A coarser or finer one: what the network means there was taken from rows of the training table."""
    system = diffkit.compose(schedule=EXPLODING, backbone=None, data_shape=(1,), num_steps=18, bins=None)
    x = 55 * torch.randn(4, 1, dtype=torch.float64)
    seen = []

    def model(x, time):
        seen.append(at_one_point(x, time))
        return seen[-1]

    found = system.sample_from(model, x, None, system.parts.schedule.table(steps), sampler=sampler)
    torch.testing.assert_close(found, torch.full_like(x, 0.7), rtol=0, atol=1e-5)
    assert len(seen) >= steps and all((noise - seen[0]).abs().max() < 1e-5 for noise in seen)


def test_a_table_that_the_network_does_not_know_is_refused():
    settings = dict(backbone=None, data_shape=(1,), num_steps=18, bins=None)
    x = torch.zeros(1, 1)
    for parts in (dict(schedule="cosine"), dict(schedule="log_linear", mean="x_prev")):
        system = diffkit.compose(**settings | parts)
        for steps in (9, 40):
            text = f"the table of {steps} steps has levels that are not in the training table"
            with pytest.raises(OptionError, match=re.escape(text) + ".*make it by System.table_for"):
                system.sample_from(at_one_point, x, None, system.parts.schedule.table(steps), sampler="ddim")
    system = diffkit.compose(**settings, schedule=EXPLODING)
    for table, name in (
        (diffkit.ProcessTable.from_sigmas([0.1, 1.0, 10.0]), "time"),
        (system.parts.schedule.table(9).with_time(range(10)), "time"),
        (diffkit.ProcessTable.from_betas([0.1, 0.5]), "total_std"),
    ):
        with pytest.raises(OptionError, match=f"has another {name} than schedule 'log_linear' at its noise levels"):
            system.sample_from(at_one_point, x, None, table, sampler="ddim")


def test_half_precision_data_meets_tables_in_float32(x):
    """A table in float16 has 11 bits, which at 4,000 levels is not one for each."""
    system = make(learned=True, num_steps=400)
    half, level, noise = x.half(), torch.full((5,), 399), torch.randn_like(x).half()
    seen = []

    def model(x, time):
        seen.append((x.dtype, time.dtype))
        return torch.cat([x.tanh(), x.sin()], 1)

    want = system.loss_terms(model, half.float(), level, noise.float())
    got = system.loss_terms(model, half, level, noise)
    assert all(torch.equal(got[name], want[name]) for name in want)
    table = system.table_for(5)
    walks = [system.sample_from(model, start, None, table, sampler="ddim") for start in (half, half.float())]
    assert torch.equal(*walks)
    assert set(seen) == {(torch.float32, torch.float32)}


def test_progress_goes_to_standard_error(system, capsys):
    system.sample(1, steps=2, progress=True)
    captured = capsys.readouterr()
    assert not captured.out and "sampling 1" in captured.err and "ETA" in captured.err
