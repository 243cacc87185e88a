"""Spacings that look at noise levels, grids from files, and the best levels for a number of steps."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import OptionError
from diffkit.registry import registry
from diffkit.spacing import levels, nearest
from diffkit.spacing.files import GRIDS, grid, save_grid
from diffkit.spacing.optimal import chain_bits, optimal_levels
from diffkit.testing.oracles import MixtureOracle, network_of

EVEN = ("quad", "time", "logsnr", "karras")
TABLES = {
    "cosine": registry("schedule").create("cosine").table(1000),
    "linear": registry("schedule").create("linear").table(1000),
    "ve": registry("schedule").create("log_linear", path="ve", log_snr_min=-9.0).table(300),
    "no signal": registry("schedule").create("zero_snr").table(1000),
}


def spaced(name, table):
    return levels(table.num_steps, name, table)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", EVEN)
def test_named_spacings_have_as_many_levels_as_they_say(name, table):
    for count in (1, 2, 3, 10, 57, table.num_steps):
        found = spaced(f"{name}{count}", table)
        assert len(found) == count and all(np.diff(found) > 0)
        assert found[-1] == table.num_steps and found[0] == (1 if count > 1 else table.num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("name", EVEN)
def test_named_spacings_on_the_shortest_tables(name, num_steps):
    for table in (registry("schedule").create("cosine").table(num_steps),):
        for count in range(1, num_steps + 1):
            assert len(spaced(f"{name}{count}", table)) == count


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("quad", lambda t: np.sqrt(np.arange(len(t.alpha)))),
        ("time", lambda t: t.time),
        ("logsnr", lambda t: t.log_snr),
        ("karras", lambda t: np.exp(-t.log_snr / 14)),
        ("karras{}:rho=7", lambda t: np.exp(-t.log_snr / 14)),
        ("karras{}:rho=2.5", lambda t: np.exp(-t.log_snr / 5)),
        ("karras{}:rho=1", lambda t: np.exp(-t.log_snr / 2)),
    ],
)
def test_named_spacings_are_even_in_what_they_name(name, measure):
    table = registry("schedule").create("log_linear").table(20000)
    found = measure(table)[list(spaced(name.format(12) if "{}" in name else f"{name}12", table))]
    gaps = np.diff(found)
    finest = np.abs(np.diff(measure(table)[1:])).max()
    np.testing.assert_allclose(gaps, gaps.mean(), atol=2 * finest)


@pytest.mark.parametrize("rho", ["1", "3", "7", "40"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_karras_levels_of_any_rho_have_both_ends(table, rho):
    for count in (2, 10, table.num_steps):
        found = spaced(f"karras{count}:rho={rho}", table)
        assert len(found) == count and found[0] == 1 and found[-1] == table.num_steps


def test_karras_levels_are_the_sigmas_of_the_paper():
    """Karras et al. 2022, eq. 5, with sigma_max and sigma_min the table's own."""
    table = registry("schedule").create("log_linear", path="ve").table(30000)
    high, low = table.sigma[-1], table.sigma[1]
    for rho in (3.0, 5.0, 7.0):
        wanted = np.linspace(high ** (1 / rho), low ** (1 / rho), 18) ** rho
        found = table.sigma[list(spaced(f"karras18:rho={rho}", table))][::-1]
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
        assert spaced(f"karras18:rho={rho}", table) == nearest(table, wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("karras10:rho=0.5", "spacing 'karras10:rho=0.5': rho must be >= 1, got 0.5"),
        ("karras10:rho=five", "spacing 'karras10:rho=five': rho must be a number, got 'five'"),
        ("karras10:rho=nan", "rho must be finite, got nan"),
        ("logsnr10:rho=5", "spacing 'logsnr10:rho=5' has no option 'rho' .options: count"),
        ("karras10:5", "spacing 'karras10:5' has no known form"),
    ],
)
def test_other_things_behind_a_spacing(text, message):
    with pytest.raises(OptionError, match=message):
        spaced(text, TABLES["cosine"])


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_nearest_finds_the_levels_whose_noise_it_is_given(table):
    kept = np.array([1, 2, 40, 170, table.num_steps - 1])
    ratio = np.exp(-table.log_snr[kept] / 2)
    assert nearest(table, ratio[::-1]) == tuple(kept) == nearest(table, [*ratio, 0.0])
    assert nearest(table, torch.from_numpy(ratio)) == tuple(kept)
    assert nearest(table, [np.inf]) == (table.num_steps,)
    between = np.exp(-(0.6 * table.log_snr[100] + 0.4 * table.log_snr[101]) / 2)
    assert nearest(table, [between]) == (100,)


def test_values_that_ask_for_one_level_take_the_next_ones():
    table = TABLES["cosine"]
    (level,) = nearest(table, [1.0])
    assert nearest(table, [1.0, 1.0, 1.0]) == (level, level + 1, level + 2)
    assert nearest(table, [1e9, 1e9]) == (999, 1000)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "must hold a value above 0"),
        ([0.0], "must hold a value above 0, got"),
        ([1.0, -1.0], "must be a list of numbers >= 0, got"),
        ([float("nan")], "must be a list of numbers >= 0, got"),
        ([[1.0]], "must be a list of numbers >= 0, got"),
        (["much"], "must be a list of numbers, got"),
        ([1.0] * 1001, "steps must be <= 1000, the number of levels of the table, got 1001"),
    ],
)
def test_values_that_are_no_noise(sigmas, message):
    with pytest.raises(OptionError, match=message):
        nearest(TABLES["cosine"], sigmas)


def test_noise_in_place_of_levels_is_an_error_with_a_fix():
    with pytest.raises(OptionError, match=r"levels must be integers, got \[14.0, 3.0\]; .*diffkit.spacing.nearest"):
        levels(1000, [14.0, 3.0], TABLES["cosine"])
    for neither in ([], 2.5):
        with pytest.raises(OptionError, match="levels must be a non-empty list of integers, got"):
            levels(1000, neither, TABLES["cosine"])


def test_crowded_levels_give_way():
    """At the clean end of the linear schedule a level covers more log-SNR than a step of 300 does."""
    found = spaced("logsnr300", TABLES["linear"])
    assert found[:5] == (1, 2, 3, 4, 5) and len(set(found)) == 300


def test_spacings_that_need_the_table_say_so():
    with pytest.raises(OptionError, match="spacing 'karras10' depends on noise levels, so it needs the table"):
        levels(1000, "karras10")
    with pytest.raises(OptionError, match="steps must be <= 1000, the number of levels of the table, got 1001"):
        spaced("logsnr1001", TABLES["cosine"])
    with pytest.raises(
        OptionError, match=r"use a number, .*'karras50', .*, a file that ends in \.json, or one of 'ays_sd15'"
    ):
        spaced("karas10", TABLES["cosine"])


def test_systems_take_them():
    system = diffkit.compose(
        schedule="cosine", num_steps=100, data_shape=(1, 4, 4), train_spacing="logsnr40", backbone=None
    )
    assert system.num_steps == 40
    assert system.table_for("karras7").num_steps == 7
    assert system.table_for("karras7:rho=5").num_steps == 7
    assert system.table_for(nearest(system.table, [9.0, 1.0, 0.1])).num_steps == 3


# ---- grids ----------------------------------------------------------------------------------------------------------


def scaled_linear():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return type(TABLES["cosine"]).from_betas(betas)


def test_the_published_grids_are_near_their_published_timesteps():
    """Of the schedule they were found on; its sigmas are interpolated, so a level or two apart."""
    published = {
        "ays_sd15": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "ays_sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for name, timesteps in published.items():
        found = np.array(grid(name, scaled_linear()))[::-1]
        assert np.abs(found - 1 - timesteps).max() <= 2, (name, found)
        assert list(grid(f"{name}_timesteps", scaled_linear())) == [t + 1 for t in timesteps[::-1]]
    assert set(published) < set(GRIDS)


def test_grids_are_stretched_in_log_snr():
    table = registry("schedule").create("log_linear", log_snr_max=12.0, log_snr_min=-12.0).table(5000)
    short, long = (table.log_snr[list(grid(text, table))] for text in ("ays_sd15", "ays_sd15:19"))
    np.testing.assert_allclose(long[::2], short, atol=0.02)
    np.testing.assert_allclose(long[1::2], (short[1:] + short[:-1]) / 2, atol=0.02)
    assert len(grid("ays_sd15:1", table)) == 1


def test_grids_round_trip_through_files(tmp_path):
    table = TABLES["cosine"]
    kept = (1, 30, 500, 1000)
    path = save_grid(tmp_path / "best.json", kept, table, bits=1.25)
    assert levels(1000, str(path), table) == kept
    assert json.loads(path.read_text())["bits"] == 1.25
    (tmp_path / "sigma.json").write_text('{"sigma": [20, 1, 0.1, 0]}')
    found = levels(1000, str(tmp_path / "sigma.json"), table)
    np.testing.assert_allclose(np.exp(-table.log_snr[list(found)] / 2), [0.1, 1, 20], rtol=0.05)
    (tmp_path / "clock.json").write_text('{"log_snr": [-4, 0, 4]}')
    np.testing.assert_allclose(
        table.log_snr[list(levels(1000, str(tmp_path / "clock.json"), table))], [4, 0, -4], atol=0.1
    )
    save_grid(tmp_path / "faint.json", (1, 1000), TABLES["no signal"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1, 2]", "it holds a list, not an object"),
        ("{}", "is not a grid; it must hold one object with a list as one of levels, sigma, log_snr"),
        ('{"sigma": [1], "levels": [1]}', "is not a grid"),
        ('{"sigma": []}', "is not a grid"),
        ("{", "cannot read a grid from"),
        ('{"sigma": [1, "a"]}', "must be a number, got 'a'"),
        ('{"sigma": [1, -2]}', "must be >= 0, got -2"),
        ('{"levels": [1, 2], "num_steps": 50}', "holds levels of a table with 50 of them, this one has 1000"),
        ('{"levels": [2, 1]}', "levels must be ascending"),
        (json.dumps({"log_snr": list(range(1001))}), "has 1001 levels, more than the 1000 of the table"),
    ],
)
def test_files_that_are_no_grid(tmp_path, content, text):
    path = tmp_path / "grid.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=text):
        levels(1000, str(path), TABLES["cosine"])


def test_other_wrong_uses_of_grids(tmp_path):
    path = save_grid(tmp_path / "g.json", [1, 2], TABLES["cosine"])
    with pytest.raises(OptionError, match="holds levels, which cannot be stretched to 7"):
        levels(1000, f"{path}:7", TABLES["cosine"])
    with pytest.raises(OptionError, match=r"cannot read a grid from .*absent\.json"):
        levels(1000, str(tmp_path / "absent.json"), TABLES["cosine"])
    with pytest.raises(OptionError, match=r"must end in \.json, got"):
        save_grid(tmp_path / "g.txt", [1], TABLES["cosine"])
    with pytest.raises(OptionError, match="cannot write"):
        save_grid(tmp_path / "no" / "g.json", [1], TABLES["cosine"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_published_grids_against_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.schedulers import AysSchedules

    folder = grid.__globals__["_FOLDER"]
    for name, key in (("ays_sd15", "StableDiffusionSigmas"), ("ays_sdxl", "StableDiffusionXLSigmas")):
        assert json.loads((folder / f"{name}.json").read_text())["sigma"] == AysSchedules[key]
    svd = json.loads((folder / "ays_svd.json").read_text())["sigma"]
    assert svd == AysSchedules["StableDiffusionVideoSigmas"]


# ---- the best levels ------------------------------------------------------------------------------------------------

ORACLE = MixtureOracle([0.3, 0.7], [[-0.6, 0.1], [0.5, -0.3]], 0.2)


def measured(var="fixed_small", num_steps=60):
    """A system with an exact network, data, and its error of x_start at every level."""
    system = diffkit.compose(schedule="cosine", num_steps=num_steps, data_shape=(2,), var=var, bins=None, backbone=None)
    generator = torch.Generator().manual_seed(0)
    kind = torch.multinomial(ORACLE.weights.float(), 400, True, generator=generator)
    x = (ORACLE.means[kind] + ORACLE.std * torch.randn(400, 2, generator=generator, dtype=torch.float64)).float()
    bound = system.bits_per_dim(x, model=network_of(ORACLE, system), seed=0, rows_per_call=4096)
    return system, x, bound.x_start_mse.double().mean(0).numpy()


@pytest.mark.parametrize("variance", ["best", "posterior", "upper"])
def test_no_chain_is_better_than_the_best(variance):
    system, _, error = measured(num_steps=9)
    for count in range(2, 8):
        found = optimal_levels(system.table, error, count, variance=variance)
        chains = [(1, *middle, 9) for middle in itertools.combinations(range(2, 9), count - 2)]
        best = min(chain_bits(system.table, error, chain, variance=variance) for chain in chains)
        assert len(found) == count
        assert chain_bits(system.table, error, found, variance=variance) == pytest.approx(best, rel=1e-12)
    assert optimal_levels(system.table, error, 9) == tuple(range(1, 10))
    assert optimal_levels(system.table, error, 1) == (9,) and optimal_levels(system.table, error, 2) == (1, 9)


@pytest.mark.parametrize(("var", "variance"), [("fixed_small", "posterior"), ("fixed_large", "upper")])
def test_chain_bits_are_those_of_the_bound(var, variance):
    """Measured once at every level, it predicts the bound of every chain."""
    system, x, error = measured(var)
    for chain in ((1, 20, 40, 60), optimal_levels(system.table, error, 7, variance=variance)):
        bound = system.bits_per_dim(x, steps=chain, model=network_of(ORACLE, system), seed=1, rows_per_call=4096)
        found = float(bound.terms.double()[:, 1:].sum(1).mean())
        own = error.copy()
        own[np.array(chain) - 1] = bound.x_start_mse.double().mean(0).numpy()
        assert chain_bits(system.table, own, chain, variance=variance) == pytest.approx(found, rel=1e-4)
        # the errors of another draw of noise predict it as well as 400 examples can
        assert chain_bits(system.table, error, chain, variance=variance) == pytest.approx(found, rel=0.15)


def test_the_best_levels_beat_even_ones():
    system, _, error = measured()
    for count in (5, 10, 25):
        best = chain_bits(system.table, error, optimal_levels(system.table, error, count))
        for even in (f"linspace{count}", f"logsnr{count}", f"quad{count}"):
            assert best < chain_bits(system.table, error, levels(60, even, system.table))


def test_a_long_table_is_priced_in_pieces():
    table = registry("schedule").create("linear").table(1000)
    error = 1 / (1 + np.exp(table.log_snr[1:]))
    found = optimal_levels(table, error, 10)
    even = levels(1000, "linspace10", table)
    assert chain_bits(table, error, found) < chain_bits(table, error, even) and found[0] == 1


def test_every_chain_is_as_good_for_normal_data_with_the_best_variance():
    """Its reverse steps are normal however long they are, so the bound is tight at any number of steps."""
    table = registry("schedule").create("cosine").table(200)
    exact = 1 / (4 + np.exp(table.log_snr[1:]))  # of standard deviation 1/2
    costs = [chain_bits(table, exact, chain) for chain in ((1, 200), (1, 3, 200), tuple(range(1, 201)))]
    np.testing.assert_allclose(costs, costs[0], rtol=1e-12)


def test_the_best_levels_are_steps(tmp_path):
    system, _, error = measured()
    found = optimal_levels(system.table, torch.from_numpy(error), 6)
    path = save_grid(tmp_path / "best.json", found, system.table)
    assert system.table_for(found) == system.table_for(str(path))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(x_start_mse=np.ones(5), count=3), "one value for each of the table's 9 levels, got shape (5,)"),
        (dict(x_start_mse=np.full(9, np.nan), count=3), "must be finite and >= 0 at every level"),
        (dict(x_start_mse=-np.ones(9), count=3), "must be finite and >= 0 at every level"),
        (dict(x_start_mse=np.ones(9), count=10), "count must be >= 1 and <= 9, got 10"),
        (
            dict(x_start_mse=np.ones(9), count=3, variance="large"),
            "variance must be one of 'best', 'posterior', 'upper'",
        ),
    ],
)
def test_wrong_questions(arguments, text):
    import re

    with pytest.raises(OptionError, match=re.escape(text)):
        optimal_levels(registry("schedule").create("cosine").table(9), **arguments)


def test_karras_levels_are_remarked_on_where_they_do_harm():
    from diffkit.explain import explain

    how = dict(num_steps=100, data_shape=(3, 32, 32), backbone="unet")
    text = str(explain(schedule="cosine", steps="karras20", **how))
    assert "steps='karras20' is made for variance-exploding paths" in " ".join(text.split())
    assert "variance-exploding" not in str(explain(schedule="cosine", steps="logsnr20", **how))
