"""The content of an explanation, against the behaviour of the parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from companions import with_companions
from numpy.testing import assert_allclose

import diffkit
from diffkit.errors import OptionError
from diffkit.explain import explain
from diffkit.explain.describe import loss_weights
from diffkit.registry import registry

T = 40


def composition(**keywords: object) -> dict:
    return {"num_steps": T, "data_shape": (1, 4, 4), "backbone": ("mlp", {"hidden": 8}), **keywords}


@pytest.mark.parametrize("mean", ["eps", "x_start", "v", "score", "x_prev"])
def test_simple_loss_weighs_x_start_by_the_inverse_square_of_c_out(mean: str):
    e = explain(composition(mean=mean, schedule="cosine"))
    assert_allclose(e.weight, 1 / e.gain**2, rtol=1e-9)


def test_known_weights():
    """Of eps: the SNR. Of v: the SNR + 1 (Salimans & Ho 2022, section 4)."""
    eps, v = (explain(composition(mean=mean, schedule="cosine")) for mean in ("eps", "v"))
    assert_allclose(eps.weight, eps.snr, rtol=1e-9)
    assert_allclose(v.weight, v.snr + 1, rtol=1e-9)


def test_hybrid_weighs_the_mean_as_simple_does():
    hybrid = explain(composition(loss="hybrid", var="learned_range", schedule="cosine"))
    simple = explain(composition(loss="simple", schedule="cosine"))
    assert_allclose(hybrid.weight, simple.weight, rtol=1e-9)


def test_the_bound_as_loss_weighs_as_the_bound():
    e = explain(composition(loss="vlb", var="fixed_small", schedule="cosine", bins=None))
    assert_allclose(e.weight, e.bound_weight, rtol=1e-9)
    half = explain(composition(loss=("vlb", {"scale_by_steps": False}), var="fixed_small", schedule="cosine"))
    assert_allclose(half.weight[1:] * T, e.bound_weight[1:], rtol=1e-9)


def test_weights_are_what_training_does():
    """The gradient of the mean loss, from the network's side, on real shapes."""
    system = diffkit.compose(**composition(schedule="cosine", loss="vlb", var="fixed_small"))
    level = torch.tensor([1, 7, T])
    x, noise = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    c_out = torch.tensor(explain(system).gain[level.numpy() - 1], dtype=torch.float32).view(3, 1, 1, 1)
    out = (1e-3 / -c_out).expand(3, 1, 4, 4).clone().requires_grad_()
    loss = system.loss_terms(lambda x, time: out, x, level, noise)["loss"].sum()
    (gradient,) = torch.autograd.grad(loss, out)
    found = (gradient / (2 * 1e-3 * -c_out)).sum((1, 2, 3))
    assert_allclose(found.numpy(), explain(system).weight[level.numpy() - 1], rtol=2e-4)  # float32 cancels in the KL


@pytest.mark.parametrize("name", registry("schedule").built_in_names())
def test_text_of_every_schedule(name: str):
    text = str(explain(composition(**with_companions({"schedule": name, "mean": "v"}), num_steps=20)))
    assert all(heading in text for heading in ("PARTS", "LEVELS", "SAMPLING", f"schedule  {name} ("))


def test_text_and_plot(command: Command, tmp_path: Path):
    plot = tmp_path / "e.png"
    found = command("explain", "--schedule", "cosine", "--mean", "v", "--num-steps", "20", "--plot", plot)
    assert found.code == 0, found.err
    text = str(explain(schedule="cosine", mean="v", num_steps=20))
    assert found.out == f"writing {plot}\n{text}\n"
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 20_000


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_edge_sizes(tmp_path: Path, steps: int):
    e = explain(schedule="cosine", num_steps=steps, backbone="mlp", data_shape=(2,), bins=None)
    assert len(e.level) == len(e.weight) == steps and np.all(np.isfinite(e.weight))
    assert "SAMPLING" in str(e)
    assert steps > 1 or e.plot(tmp_path / "e.png").exists()


def test_every_part_is_described():
    e = explain(composition())
    assert [part.kind for part in e.parts] == [
        "schedule", "mean", "var", "loss", "timesteps", "sampler", "backbone",
    ]  # fmt: skip
    for part in e.parts:
        assert part.text and part.source and part.origin == f"diffkit {diffkit.__version__}"
    assert "beta_k = " in e.parts[0].text and "Ho et al. 2020" in e.parts[0].source
    assert e.parts[0].options == {"start": 1e-4, "end": 0.02}


def test_grid_and_sampler():
    e = explain(composition(), steps="trailing4", sampler=("ddim", {"eta": 0.5}))
    assert e.grid == (10, 20, 30, 40)
    assert (e.sampler.name, e.sampler.options) == ("ddim", {"eta": 0.5, "clipped_eps": True})
    assert "ddim (eta=0.5, clipped_eps=True): 4 of 40 levels: 10, 20, 30, 40" in str(e)


def test_columns_are_those_of_the_table():
    system = diffkit.compose(**composition(train_spacing="10"))
    e = explain(system)
    table = system.table
    assert_allclose(e.alpha_bar, table.alpha_bar[1:], rtol=0)
    assert_allclose(e.snr, table.alpha_bar[1:] / table.one_minus_alpha_bar[1:], rtol=1e-12)
    assert_allclose(e.posterior_std**2, table.posterior().variance[1:], rtol=1e-12)
    assert list(e.level) == list(table.index[1:]) and e.level[-1] == T
    assert loss_weights(system.parts, system.decoder).shape == (10,)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"num_steps": 1000}, "33% of the levels"),
        ({"schedule": ("linear", {"start": 1e-5, "end": 1e-4}), "num_steps": 1000}, "still has alpha_bar"),
        ({"var": "learned_range", "loss": "hybrid"}, "two ends of the learned variance"),
        ({"var": "learned_range", "loss": "hybrid", "train_spacing": "10"}, "training is on 10 of 40 levels"),
        ({"schedule": "cosine", "bins": None}, "an error of the network is enlarged"),
    ],
)
def test_remarks(keywords: dict, words: str):
    remarks = explain(composition(**keywords)).remarks
    assert any(words in " ".join(remark.split()) for remark in remarks), remarks


def test_spacing_that_ends_below_the_last_level_is_remarked_on():
    remarks = explain(composition(), steps="leading4").remarks
    assert any("sampling starts at level 31, not 40" in remark for remark in remarks), remarks
    assert not any("sampling starts" in remark for remark in explain(composition(), steps="trailing4").remarks)


def test_a_good_composition_has_no_remarks():
    assert explain(composition(schedule="cosine", mean="v")).remarks == ()


def test_a_system_a_folder_and_keywords_say_the_same(saved: Path):
    system = diffkit.load(saved)
    from_folder = explain(saved)
    assert str(explain(system)) == str(from_folder)
    assert from_folder.num_parameters is None
    counted = explain(saved, network=True).num_parameters
    assert counted == explain(system, network=True).num_parameters == sum(p.numel() for p in system.parameters())
    assert f"network of {counted:,} parameters" in str(explain(saved, network=True))


def test_no_network_is_built(monkeypatch: pytest.MonkeyPatch):
    from diffkit.parts.backbones.unet import UNet

    def refuse(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(UNet, "build", refuse)
    assert explain().num_parameters is None


def test_a_foreign_network_is_named_by_its_class():
    network = torch.nn.Conv2d(1, 1, 1)
    e = explain(composition(backbone=network))
    assert [part.kind for part in e.parts][-1] == "sampler"


def test_command_for_a_saved_system(command: Command, saved: Path):
    found = command("explain", "--spec", saved, "--steps", "3", "--sampler", "ddim", "--network")
    assert found.code == 0
    assert "schedule  cosine" in found.out and "ddim (eta=0.0, clipped_eps=True): 3 of 12 levels" in found.out
    assert "network of " in found.out


def test_refusals(refused: Refused, command: Command, saved: Path, tmp_path: Path):
    assert refused("explain", "--spec", saved, "--var", "learned", "--num-steps", "3") == (
        "--spec names a system that has its parts, so leave out --num-steps, --var"
    )
    assert "is not there; a saved system is a folder with" in refused("explain", "--spec", tmp_path / "no")
    assert refused("explain", "--plot", tmp_path / "no" / "e.png").endswith("is in a folder that is not there")
    assert refused("explain", "--plot", tmp_path / "e").startswith("cannot write the plot")
    assert refused("explain", "--plot", tmp_path) == f"--plot {tmp_path} is a folder; name a file"
    assert refused("explain", "--steps", "3000").startswith("--steps must be <= 1000")
    assert command("explain", "--plot", tmp_path / "e.xyz").err.startswith("error: cannot write ")
    with pytest.raises(diffkit.DiffkitError, match="a system is given, so 'var' cannot be changed"):
        explain(saved, var="learned")


def test_plot_needs_matplotlib(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert refused("explain", "--plot", tmp_path / "e.png").endswith(
        "a plot needs the 'plot' extra; run: pip install \"diffkit[plot]\""
    )


def test_what_is_chosen_of_training(command: Command, refused: Refused):
    words = ("explain", "--backbone", "mlp", "--backbone.hidden", "8", "--backbone.depth", "1", "--data-shape", "2")
    assert "TRAINING" not in command(*words).out
    words += (
        "--num-steps",
        "20",
        "--schedule",
        "cosine",
        "--optimizer",
        "muon",
        "--lr-schedule",
        "cosine",
        "--hook",
        "gradient_norms",
    )
    words += ("--param-groups", "*.bias:lr=0.1", "--freeze")
    lines = command(*words, "first.*", "--network").out.partition("TRAINING\n")[2].splitlines()
    assert [line.split()[:2] for line in lines if line[2] != " "][:-2] == [
        ["optimizer", "muon"],
        ["lr_schedule", "cosine"],
        ["hook", "gradient_norms"],
    ]
    assert lines[-2].startswith("  group     *.bias:lr=0.1  ") and lines[-2].endswith(" parameters")
    assert lines[-1] == "  frozen    first.*  24 parameters"
    assert "  frozen    first.*\n" in command(*words, "first.*").out
    assert "matches no parameter of the network" in refused(*words, "frist.*", "--network")
    with pytest.raises(OptionError, match="train has no option 'frozen'"):
        explain(composition(), training={"frozen": "first.*"})
