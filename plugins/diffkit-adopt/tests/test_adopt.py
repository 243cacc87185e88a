"""Each library's models as systems: every deterministic sampler, the library's own numbers, and other tasks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from adopt_support import HOMES, MODELS, SHAPE, Tiny
from torch import nn

import diffkit
from diffkit import OptionError
from diffkit.likelihood import ode_likelihood
from diffkit.registry import registry
from diffkit.tasks.inverse import masked, solve

DETERMINISTIC = [
    name for name in registry("sampler").built_in_names() if not registry("sampler").create(name).stochastic
]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


def adopted(name):
    make, options, shape = MODELS[name]
    obj = make()
    return obj, diffkit.adopt(obj, data_shape=shape, **options)


def noise(system, n=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *system.data_shape, generator=generator, dtype=torch.float64)
    return x * float(system.table.total_std[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_of_diffkit_runs_on_an_adopted_model(name, tmp_path):
    _, system = adopted(name)
    x = noise(system)
    for sampler in DETERMINISTIC:
        found = system.sample(2, start=x, steps=6, sampler=sampler, progress=False)
        assert bool(found.isfinite().all()), sampler
    clean = system.sample(2, start=x, steps=6, progress=False)
    assert bool(system.encode(clean, steps=6).isfinite().all())
    score = ode_likelihood(system, clean.float(), seed=0, rtol=1e-2, atol=1e-2)
    assert bool(score.bits.isfinite().all())
    observed = torch.ones(system.data_shape)
    observed[0] = 0
    method = ("pigdm", {"operator": masked(observed), "noise_std": 0.1})
    restored = solve(system, clean.float() * observed, method, steps=4, seed=0, progress=False)
    assert bool(restored.isfinite().all())
    system.save(tmp_path / "saved")
    again = diffkit.load(tmp_path / "saved", backbone=system.network)
    assert torch.equal(again.sample(2, start=x, steps=6, progress=False), clean)


LEVELS = [10, 25, 40, 55, 70, 85]


def ours(system, x, sampler, **how):
    """x at the lowest of the levels, from the highest."""
    *_, before, _ = system.trajectory(len(x), start=x, steps=LEVELS, sampler=sampler, clip=False, **how)
    return before.x


def start(system):
    """x at the highest of the levels, and the times of all of them."""
    times = torch.from_numpy(system.table.time[[*reversed(LEVELS)]].copy())
    return noise(system) / float(system.table.total_std[-1]) * float(system.table.total_std[LEVELS[-1]]), times


def assert_same(ours, theirs, tolerance):
    """They differ by a share of the largest value only."""
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize(("name", "sampler"), [(name, sampler) for name in HOMES for sampler in HOMES[name].samplers])
def test_it_samples_as_its_own_library(name, sampler, guidance):
    obj, system = adopted(name)
    home = HOMES[name]
    estimate, run = home.of(obj, sampler)
    how = {}
    if guidance:
        system = diffkit.recompose(system, backbone=system.network, null_conditions={home.label: None})
        how = {"guidance": ("cfg", {"scale": 3.0, "joint": False}), home.label: torch.ones(2, dtype=torch.float64)}
    x, times = start(system)

    def guided(x, t):
        plain = estimate(x, t)
        return plain + 3.0 * (estimate(x, t, **{home.label: how[home.label]}) - plain) if guidance else plain

    with torch.no_grad():
        theirs = run(guided, x, times)
    assert_same(ours(system, x, sampler, **how), theirs, home.tolerance)


def test_a_reading_that_is_wrong_is_named():
    make, options, shape = MODELS["azula"]
    with pytest.raises(
        OptionError, match=r"from that of azula by .*, so predicts='eps' is in doubt; use predicts='x_start'"
    ):
        diffkit.adopt(make(), data_shape=shape, predicts="eps", **options)


def test_nothing_is_imported_before_a_model_is_read():
    code = (
        "import diffkit, sys\n"
        "try:\n    diffkit.adopt(lambda x, t: x, data_shape=(1, 2, 2))\n"
        "except diffkit.OptionError as error:\n    print(error)\n"
        f"assert not set({sorted(MODELS)}) & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no reader for function" in said and "use predicts='eps'" in said


def test_a_model_of_the_wrong_form_is_refused():
    for name, obj in (
        ("azula", Tiny()),
        ("sbi", Tiny()),
        ("edm", Tiny()),
        ("torchebm", Tiny()),
        ("physicsnemo", Tiny()),
    ):
        try:
            with pytest.raises(OptionError, match=r"; |adopt"):
                diffkit.adopt(obj, data_shape=SHAPE, reader=name)
        except ImportError:
            continue


EDM_TIMES = [0.1, 1.0, 10.0]


@pytest.mark.parametrize("written", ["{}", "model.{}", "unet.{}"])
def test_edm_weights_are_read_beside_a_network(written):
    """Those of the whole, of EDM's and of EDM2's; the preconditioning is EDM's by default."""
    trained, network = Tiny(), Tiny()
    with torch.no_grad():
        trained.mix.weight.mul_(2)
    weights = {written.format(name): value for name, value in trained.state_dict().items()}
    if "unet" in written:
        weights["logvar_linear.weight"] = torch.ones(1)
    system = diffkit.adopt((network, weights), data_shape=SHAPE, reader="edm", times=EDM_TIMES)
    x, sigma = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    at = sigma.view(-1, 1, 1, 1)
    inner = trained(x / (at**2 + 0.25).sqrt(), sigma.log() / 4)
    wanted = 0.25 / (at**2 + 0.25) * x + 0.5 * at / (at**2 + 0.25).sqrt() * inner
    assert torch.allclose(system.network(x, sigma), wanted, rtol=1e-12, atol=1e-14)
    other = diffkit.adopt(trained, data_shape=SHAPE, reader="edm", times=EDM_TIMES, sigma_data=0.25)
    assert not torch.allclose(other.network(x, sigma), wanted)


def test_edm_labels_have_a_null_of_zeros():
    class Labelled(Tiny):
        def forward(self, x, noise, class_labels):
            return super().forward(x, noise, y=class_labels.sum(1))

    how = dict(data_shape=SHAPE, reader="edm", times=EDM_TIMES, sigma_data=0.5)
    system = diffkit.adopt(Labelled(), label_dim=4, **how)
    x, plain = torch.zeros(2, *SHAPE, dtype=torch.float64), diffkit.adopt(Tiny(), **how)
    ones = torch.eye(4, dtype=torch.float64)[:2]
    drawn, labelled = (system.sample(2, start=x, steps=3, progress=False, **y) for y in ({}, {"class_labels": ones}))
    assert torch.equal(drawn, plain.sample(2, start=x, steps=3, progress=False)) and not torch.equal(drawn, labelled)


@pytest.mark.parametrize(
    ("obj", "says"),
    [
        (lambda: Tiny().state_dict(), r"a state dict of 2 tensors has no network; give \(network, state_dict\)"),
        (Tiny, r"Tiny has no sigma_data, .* or give sigma_data=0\.5 for EDM's"),
        (lambda: (Tiny(), {"a": 1}), "the weights are dict, not a state dict; give name -> tensor"),
        (lambda: (Tiny(), nn.Linear(2, 2).state_dict()), r"it lacks \['mix\.\w+'\], and has \['\w+'\] in addition"),
        (lambda: (Tiny(), Tiny(shape=(3, 4, 4)).state_dict()), "the state dict does not fit Tiny: .*size mismatch"),
    ],
)
def test_edm_weights_that_are_not_enough_are_refused(obj, says):
    with pytest.raises(OptionError, match=f"(?s){says}"):
        diffkit.adopt(obj(), data_shape=SHAPE, reader="edm")


def test_times_are_those_that_are_given():
    make, _, shape = MODELS["edm"]
    system = diffkit.adopt(make(), data_shape=shape, reader="edm", times=EDM_TIMES)
    assert np.allclose(system.table.sigma[1:], EDM_TIMES, rtol=1e-12)
