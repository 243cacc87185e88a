"""Couplings: straighter paths in two dimensions, noise that stays with its class, pairs of a teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import CompositionError, OptionError, ProtocolError
from diffkit.parts.couplings.immiscible import Immiscible
from diffkit.parts.couplings.minibatch_ot import MinibatchOT
from diffkit.protocols import Coupling, Pairing
from diffkit.tasks import reflow_pairs

pytest.importorskip("scipy")


def point_system(coupling=None, **more):
    parts = dict(schedule="cosine", backbone=("mlp", {"hidden": 8, "depth": 1}), num_steps=20, bins=None)
    return diffkit.compose(**{"sampler": "ddim"} | parts | more, data_shape=(2,), coupling=coupling)


def pair(coupling, x, noise, **conditions):
    return coupling.pair(x, noise, conditions, torch.Generator().manual_seed(0)).noise


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two far clusters, and noise."""
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([-2.0, 2.0]).repeat(64)[:, None]
    return side + 0.1 * torch.randn(128, 2, generator=generator), torch.randn(128, 2, generator=generator)


@pytest.mark.parametrize("coupling", [MinibatchOT(), MinibatchOT(method="sinkhorn"), Immiscible()], ids=str)
def test_paths_get_shorter(coupling, batch):
    x, noise = batch
    length = (x - noise).norm(dim=1).mean()
    assert (x - pair(coupling, x, noise)).norm(dim=1).mean() < 0.85 * length


def test_the_exact_pairs_cost_least_and_the_entropic_ones_tend_to_them(batch):
    x, noise = batch

    def cost(coupling):
        return float((x - pair(coupling, x, noise)).square().sum())

    exact = cost(MinibatchOT())
    near, far = (cost(MinibatchOT(method="sinkhorn", entropy=e, iterations=2000)) for e in (1e-3, 100.0))
    assert exact == pytest.approx(near, rel=0.02)
    assert far == pytest.approx(float((x - noise).square().sum()), rel=0.15) and far > 1.2 * exact
    order = pair(MinibatchOT(), x, noise)
    assert torch.equal(order.sort(0).values, noise.sort(0).values)


def test_noise_stays_independent_of_the_class(batch):
    x, noise = batch
    y = (x[:, 0] > 0).long()

    def mean_of_class(**options):
        found = pair(MinibatchOT(**options), x, noise, y=y)
        return float(found[y == 1].mean(0)[0])

    assert mean_of_class() == pytest.approx(float(noise[y == 1].mean(0)[0]))
    assert mean_of_class(by_class=False) > 0.5


def test_independent_noise_is_no_coupling():
    plain, named = point_system(), point_system("independent")
    assert named.settings.coupling is None and named.spec() == plain.spec()


@pytest.mark.parametrize("coupling", ["minibatch_ot", ("minibatch_ot", {"method": "sinkhorn"}), "immiscible"], ids=str)
def test_a_loss_of_one_s_own_loop_is_coupled(coupling, batch):
    x, _ = batch
    seen = []

    def model(x_t, time):
        seen.append(x_t)
        return torch.zeros_like(x_t)

    system = point_system(coupling, timesteps="uniform", schedule="log_linear")
    for one in (system, point_system(schedule="log_linear")):
        one(x, generator=torch.Generator().manual_seed(1), model=model)
    assert not torch.equal(*seen)
    assert diffkit.from_spec(system.spec()).settings == system.settings


def test_only_deterministic_samplers_lead_back_to_the_data():
    """Where noise depends on the data, noise that a sampler adds is not what the network was trained on."""
    with pytest.raises(
        CompositionError, match=r"sampler 'ancestral' adds noise, but with coupling 'minibatch_ot' .*use"
    ):
        point_system("minibatch_ot", sampler="ancestral")
    system = point_system("minibatch_ot")
    assert "coupling='minibatch_ot'" in str(system)
    for stochastic in ("euler_ancestral", ("ddim", {"eta": 0.5})):
        with pytest.raises(CompositionError, match="adds noise, but with coupling"):
            system.sample(2, sampler=stochastic, steps=3)
    assert system.sample(2, sampler="heun", steps=3, progress=False).shape == (2, 2)


def test_noise_of_another_shape_is_refused():
    class Flat(Coupling):
        def pair(self, x_start, noise, conditions, generator):
            return Pairing(noise[:, 0])

    with pytest.raises(ProtocolError, match=r"coupling 'Flat' must return noise \(4, 2\) and weights \(4,\) or None"):
        point_system(Flat())(torch.zeros(4, 2))


def test_weights_of_a_coupling_weigh_the_loss():
    class Heavy(Coupling):
        def pair(self, x_start, noise, conditions, generator):
            return Pairing(noise, torch.full((len(noise),), 2.0))

    losses = [
        point_system(c)(torch.zeros(4, 2), generator=torch.Generator().manual_seed(0), model=lambda x, time: x)["loss"]
        for c in (None, Heavy())
    ]
    torch.testing.assert_close(2 * losses[0], losses[1])


def test_pairs_of_a_teacher_are_its_samples(tmp_path):
    teacher = point_system(num_steps=50)
    path = reflow_pairs(teacher, 40, tmp_path / "pairs.npz", seed=3, steps=5, progress=False)
    data = diffkit.data.load(path)
    example = data.batch(range(40))
    assert example.conditions["noise"].shape == (40, 2) and abs(float(example.conditions["noise"].std()) - 1) < 0.2
    start = example.conditions["noise"] * float(teacher.table_for(5).total_std[-1])
    again = teacher.sample(40, start=start, steps=5, sampler="ddim", progress=False)
    torch.testing.assert_close(example.images, again)
    with pytest.raises(OptionError, match="pairs need a deterministic sampler"):
        reflow_pairs(teacher, 4, tmp_path / "pairs.npz", sampler="ancestral")


def test_reflow_takes_the_noise_of_the_data_and_hides_it_from_the_network(tmp_path):
    student = point_system("reflow")
    x = torch.zeros(4, 2)
    with pytest.raises(OptionError, match=r"coupling 'reflow' needs a condition 'noise' of shape \(4, 2\).*got none"):
        student(x)
    own = torch.arange(8.0).view(4, 2)
    seen = []

    def model(x_t, time):
        seen.append(x_t)
        return x_t

    student(x, model=model, noise=own)
    ratio = seen[0] / own
    assert math.isclose(float(ratio[1, 0]), float(ratio[1, 1]), rel_tol=1e-5)
    path = reflow_pairs(point_system(), 24, tmp_path / "pairs.npz", steps=4, progress=False)
    options = dict(batch_size=8, steps=4, progress=False, log_every=2)
    diffkit.train(student, path, out=tmp_path / "run", val=path, **options)
    assert np.isfinite([line["loss"] for line in diffkit.training.read_metrics(tmp_path / "run")]).all()
    with pytest.raises(diffkit.DataError, match="noise"):
        diffkit.train(point_system(), path, out=tmp_path / "other", **options)
