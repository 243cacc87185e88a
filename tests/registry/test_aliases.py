"""Names of other libraries lead to the part that is meant, in the text of the error only."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from registry_support import Site

import diffkit
from diffkit.errors import UnknownComponentError
from diffkit.registry import KINDS, refresh, registry
from diffkit.registry.aliases import ALIASES, _plain, alias_of
from diffkit.registry.kinds import FOUND

PLUGINS = Path(__file__).parents[2] / "plugins"


def refusal(kind: str, name: str) -> str:
    with pytest.raises(UnknownComponentError) as caught:
        registry(kind).get(name)
    return str(caught.value)


def offered() -> dict[str, set[str]]:
    """Kind -> "distribution:name" of every part in `plugins/`."""
    found: dict[str, set[str]] = {kind: set() for kind in FOUND}
    for file in PLUGINS.glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        for group, names in project["entry-points"].items():
            found[group.removeprefix("diffkit.")] |= {f"{project['name']}:{name}" for name in names}
    return found


def names_of(kind: str) -> dict[str, str]:
    return {other: ours for ours, others in ALIASES.get(kind, {}).items() for other in others.split()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_leads_to_a_part_that_there_is(kind: str):
    if not PLUGINS.is_dir():
        pytest.skip("the plugins are not part of this distribution")
    built_in, plugins = registry(kind).built_in_names(), offered()[kind]
    assert set(ALIASES.get(kind, ())) <= {*built_in, *plugins}
    assert plugins <= set(ALIASES.get(kind, ())), "a plugin's own names are known where it is not installed"
    for other, ours in names_of(kind).items():
        assert alias_of(kind, other, built_in) == ours, other


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_leads_to_two_parts_or_is_taken(kind: str):
    found = [_plain(other) for other in names_of(kind)]
    assert len(found) == len(set(found))
    assert not set(found) & {_plain(name) for name in registry(kind).built_in_names()}


@pytest.mark.parametrize(
    ("kind", "asked", "name"),
    [
        ("sampler", "ddpm", "ancestral"),
        ("sampler", "DDPM", "ancestral"),
        ("sampler", "DDPMScheduler", "ancestral"),
        ("sampler", "DDIM", "ddim"),
        ("sampler", "plms", "pndm"),
        ("sampler", "euler_a", "euler_ancestral"),
        ("sampler", "Euler a", "euler_ancestral"),
        ("sampler", "sample_euler_ancestral", "euler_ancestral"),
        ("sampler", "dpm_2", "dpm2"),
        ("sampler", "DPM2 a", "dpm2_ancestral"),
        ("sampler", "dpmpp_2m_sde", "sde_dpmpp_2m"),
        ("sampler", "DPM++ 2M SDE", "sde_dpmpp_2m"),
        ("sampler", "DPM++ 2S a", "dpmpp_2s_ancestral"),
        ("sampler", "DPM++ SDE", "dpmpp_sde"),
        ("sampler", "dpmpp_3m_sde", "sde_dpmpp_3m"),
        ("sampler", "DPMSolverMultistep", "dpmpp_2m"),
        ("sampler", "UniPCMultistepScheduler", "unipc"),
        ("mean", "epsilon", "eps"),
        ("mean", "sample", "x_start"),
        ("mean", "v_prediction", "v"),
        ("schedule", "squaredcos_cap_v2", "cosine"),
        ("var", "fixed_small_log", "fixed_small"),
        ("loss", "mse", "simple"),
        ("timesteps", "loss-second-moment-resampler", "loss_second_moment"),
        ("backbone", "DiT-XL/2", "dit"),
    ],
)
def test_what_people_ask_for(kind: str, asked: str, name: str):
    assert refusal(kind, asked).startswith(f"no {kind} named {asked!r}; it is called {name!r} here (known: ")


@pytest.mark.parametrize(
    ("kind", "asked", "plugin", "name"),
    [
        ("loss", "min_snr", "diffkit-minsnr", "minsnr"),
        ("loss", "minsnr", "diffkit-minsnr", "minsnr"),
        ("schedule", "edm", "diffkit-edm", "edm_karras"),
        ("schedule", "scaled_linear", "diffkit-diffusers", "diffusers_betas"),
        ("sampler", "FlowMatchEulerDiscreteScheduler", "diffkit-flow", "flow_euler"),
    ],
)
def test_what_a_plugin_has(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, asked: str, plugin: str, name: str):
    if name in registry(kind).names():
        pytest.skip(f"{plugin} is installed here")
    expected = f"no {kind} named {asked!r}; it is {name!r} of the plugin {plugin}: pip install {plugin} (known: "
    assert refusal(kind, asked).startswith(expected)
    site.distribution(plugin, {kind: {name: "nowhere:Part"}})
    refresh()
    if asked != name:
        assert refusal(kind, asked).startswith(f"no {kind} named {asked!r}; it is called {name!r} here (known: ")
    monkeypatch.setenv("DIFFKIT_PLUGINS", "")
    assert "pip install" not in refusal(kind, asked)
    assert refusal(kind, asked).endswith(f"; {plugin} offers it, but DIFFKIT_PLUGINS does not list that distribution")
    assert site.imported() == []


def test_an_unknown_name_is_still_answered_by_the_nearest_one():
    assert refusal("sampler", "unipcc").startswith("no sampler named 'unipcc'; did you mean 'unipc'? (known: ")
    assert alias_of("sampler", "nothing of the kind", ()) is None
    assert alias_of("sampler", "", ()) is None
    assert refusal("sampler", "acme:ddpm").startswith("no sampler named 'acme:ddpm'")


def test_compose_raises_the_same_error():
    with pytest.raises(LookupError, match="no mean named 'epsilon'; it is called 'eps' here"):
        diffkit.compose(mean="epsilon", backbone=None)
