"""A part of each kind in a throw-away package: installed, listed, used by name in Python and on the command line,
checked by the kit, saved and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from registry_support import Site

import diffkit
from diffkit.__main__ import main
from diffkit.cli.templates import package_files
from diffkit.errors import OptionError, ProtocolError, SpecError
from diffkit.registry import KINDS, SLOTS, describe, faults, refresh, registry
from diffkit.system.saving import part_spec
from diffkit.testing import check_component, report

SMALL = dict(schedule="cosine", num_steps=12, data_shape=(1, 4, 4), backbone=("mlp", {"hidden": 8, "depth": 1}))

SOURCES = {
    "guidance": """
        from typing import ClassVar
        from attrs import frozen
        from diffkit.options import number
        from diffkit.protocols import Guidance

        @frozen
        class Part(Guidance):
            neutral: ClassVar = ("scale", 1.0)

            scale: float = number(0.5)

            def guide(self, evaluate, x, level, conditions):
                estimate = evaluate(x, level, conditions)
                return estimate.with_x_start(self.scale * estimate.x_start)
    """,
    "spacing": """
        from attrs import frozen
        from diffkit.options import integer, number
        from diffkit.protocols import LevelSpacing

        @frozen
        class Part(LevelSpacing):
            count: int = integer(3, ge=1)
            shift: float = number(0.0, ge=0)

            def levels(self, table):
                return sorted({max(1, table.num_steps - i - int(self.shift)) for i in range(self.count)})
    """,
    "decoder": """
        from attrs import frozen
        from diffkit.options import number
        from diffkit.parts.decoders.continuous import Continuous
        from diffkit.protocols import Decoder

        @frozen
        class Part(Decoder):
            scale: float = number(1.0, gt=0)

            @property
            def bins(self):
                return None

            @property
            def bounded(self):
                return False

            def log_prob(self, x_start, mean, log_variance):
                return Continuous().log_prob(x_start, mean, log_variance + self.scale - 1)
    """,
}


OPTIONS = {
    "schedule": {"rate": 8.0}, "mean": {}, "var": {"share": 0.25}, "loss": {"c": 2.0}, "timesteps": {"power": 2.0},
    "sampler": {}, "backbone": {"hidden": 8}, "guidance": {"scale": 0.25}, "spacing": {"count": 3},
    "decoder": {"scale": 0.25}, "coupling": {"reverse": True}, "codec": {"scale": 2.0}, "adapter": {"scale": 2.0},
    "data": {"examples": 12}, "optimizer": {"momentum": 0.5}, "lr_schedule": {"power": 3.0},
}  # fmt: skip
"""Options of the parts; those without a source above are as ``diffkit new-plugin`` writes them."""


def write_template(name: str, site: Site) -> str:
    """Write a part as ``diffkit new-plugin`` does; return the name of its module."""
    for path, text in package_files((name,), f"acme-{name}", "acme").items():
        if path.startswith("src/") and path.endswith(".py"):
            site.module(path.removeprefix("src/").removesuffix(".py").replace("/", "."), text)
    return f"acme_{name}.{name}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, site: Site) -> str:
    """A kind, of which a package 'acme-KIND' offers a part 'acme'."""
    name: str = request.param
    if name in SOURCES:
        site.module(f"acme_{name}", dedent(SOURCES[name]))
        value = f"acme_{name}:Part"
    else:
        value = write_template(name, site) + ":Acme"
    site.distribution(f"acme-{name}", f"[{KINDS[name].group}]\nacme = {value}\n", version="2.1")
    refresh()
    return name


def command(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_it_is_listed_unimported_with_where_it_is_from(kind: str, site: Site, capsys: pytest.CaptureFixture[str]):
    assert not faults()
    assert ["acme", f"acme-{kind}", "2.1"] in [line.split()[:3] for line in command(capsys, "list", kind).splitlines()]
    assert f"acme-{kind}" in describe(kind) and site.imported() == []


def test_the_kit_checks_it(kind: str, capsys: pytest.CaptureFixture[str]):
    """All laws for those that are written here; those of templates are checked with `new-plugin`."""
    if kind in SOURCES:
        results = check_component(kind, registry(kind).create("acme"))
        assert all(result.ok for result in results), report(results)
        assert sum(result.status == "passed" for result in results) > 9
    law = {"extractor": "identity_is_plain", "hook": "members_of_a_hook"}.get(kind, "contract")
    words = (f"--{kind}", "acme") if KINDS[kind].recipe else ("acme", "--kind", kind)
    out = command(capsys, "check", *words, "--only", law)
    assert out.startswith(f"{kind} acme: ") and "1 passed" in out


@pytest.mark.parametrize("kind", OPTIONS, indirect=True)
def test_its_spec_is_a_name_with_options_and_provenance(kind: str):
    made = registry(kind).create("acme", **OPTIONS[kind])
    spec = json.loads(json.dumps(part_spec(kind, made)))
    assert (spec["name"], spec["origin"], spec["version"]) == ("acme", f"acme-{kind}", "2.1")
    assert registry(kind).create(f"{spec['origin']}:{spec['name']}", **spec["options"]) == made


@pytest.mark.parametrize("kind", SLOTS, indirect=True)
def test_a_slot_is_filled_by_name_and_saved(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = OPTIONS[kind]
    part = registry(kind).create("acme", **options)
    for slot in (("acme", options), {"name": f"acme-{kind}:acme", **options}, part):
        system = diffkit.compose(**SMALL | {kind: slot})
        assert getattr(system.parts, kind) == part
    again = diffkit.load(system.save(tmp_path / "system"))
    assert getattr(again.parts, kind) == part and again.spec() == system.spec()
    assert again.spec()["parts"][kind]["origin"] == f"acme-{kind}"
    assert again(torch.zeros(2, 1, 4, 4))["loss"].shape == (2,)
    assert again.sample(2, steps=3, progress=False).shape == (2, 1, 4, 4)
    words = {"schedule": "cosine", "backbone": "mlp", "num-steps": 12, "data-shape": "1,4,4"} | {kind: "acme"}
    words |= {f"{kind}.{name}": value for name, value in options.items()}
    explained = command(capsys, "explain", *(word for name, value in words.items() for word in (f"--{name}", value)))
    assert f"[acme-{kind} 2.1]" in explained


@pytest.mark.parametrize("kind", ["extractor"], indirect=True)
def test_an_extractor_measures_by_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On the command line, against statistics that were saved with it, which the identity holds to its weights."""
    images = np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images)
    words = ("evaluate", "--extractor", "acme", "--device", "cpu")
    saved = tmp_path / "reference.npz"
    command(capsys, *words, "--data", tmp_path / "a.npz", "--save-reference", saved)
    command(capsys, *words, tmp_path / "a.npz", "--reference", saved, "--metrics", "fid", "--out", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["settings"]["extractor"]["class"] == "acme_extractor.extractor.Acme"
    assert [one["value"] for one in found["values"]] == [pytest.approx(0, abs=1e-4)]


@pytest.mark.parametrize("kind", ["hook"], indirect=True)
def test_a_hook_is_used_by_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), np.uint8))
    for number, slot in enumerate(
        (("acme", {"loss": 9.0, "times": 2}), {"name": "acme-hook:acme", "loss": 9, "times": 2})
    ):
        system, out = diffkit.compose(**SMALL | {"data_shape": (1, 8, 8)}), tmp_path / f"python{number}"
        often = dict(batch_size=8, log_every=1, progress=False)
        diffkit.train(system, tmp_path / "images.npy", out=out, steps=4, hooks=slot, **often)
        assert [line["step"] for line in diffkit.training.read_metrics(out)] == [1, 2]
    words = ["train", "--data", tmp_path / "images.npy", "--out", tmp_path / "line", "--backbone", "mlp", "--steps", 4]
    words += ["--schedule", "cosine", "--num-steps", 12, "--batch-size", 8, "--log-every", 1]
    command(capsys, *words, "--hook", "acme,gradient_norms", "--hook.acme.loss", 9, "--hook.gradient-norms.depth", 1)
    found = diffkit.training.read_metrics(tmp_path / "line")
    assert [line["step"] for line in found] == [1] and "grad_norm/out" in found[0]
    toml = tmp_path / "hooks.toml"
    toml.write_text('hook = ["gradient_norms", {name = "acme", loss = 9, times = 3}]')
    command(capsys, *[str(word).replace("/line", "/toml") for word in words], "--config", toml)
    assert len(diffkit.training.read_metrics(tmp_path / "toml")) == 3


def draw(**how: object) -> torch.Tensor:
    torch.manual_seed(0)
    return diffkit.compose(**SMALL).sample(2, steps=3, seed=0, progress=False, **how)


def shown(folder: Path) -> np.ndarray:
    with np.load(next(folder.glob("*.npz"))) as found:
        return found["arr_0"]


@pytest.mark.parametrize("kind", ["guidance"], indirect=True)
def test_guidance_is_used_by_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part = registry(kind).create("acme", scale=0.25)
    for slot in (("acme", {"scale": 0.25}), {"name": "acme-guidance:acme", "scale": 0.25}, part, [part]):
        assert torch.equal(draw(guidance=slot), draw(guidance=part))
    assert not torch.equal(draw(guidance="acme"), draw())
    diffkit.compose(**SMALL).save(tmp_path / "system")
    words = ["sample", tmp_path / "system", "-n", 2, "--steps", 3, "--format", "npz"]
    for name, more in (("a", ()), ("b", ("--guidance", "acme", "--guidance.scale", 0.01))):
        command(capsys, *words, "--out", tmp_path / name, *more)
    assert (shown(tmp_path / "a") != shown(tmp_path / "b")).any()


@pytest.mark.parametrize("kind", ["guidance"], indirect=True)
def test_guidance_is_saved_with_a_system(kind: str, tmp_path: Path):
    how = {"steps": 3, "guidance": ("acme", {"scale": 0.25})}
    again = diffkit.load(diffkit.compose(**SMALL, sampling=how).save(tmp_path / "system"))
    assert again.spec()["settings"]["sampling"]["guidance"] == {"name": "acme", "scale": 0.25}
    found, wanted = (again.sample(2, seed=0, progress=False, **more) for more in ({}, how))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["decoder"], indirect=True)
def test_a_decoder_is_used_by_name_and_saved(kind: str, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part = registry(kind).create("acme", scale=2.0)
    x = torch.zeros(2, 1, 4, 4)
    for slot in (("acme", {"scale": 2.0}), {"name": "acme", "scale": 2.0}, part):
        system = diffkit.compose(decoder=slot, **SMALL)
        assert system.decoder == part and not system.settings.clip_x_start and system(x)["loss"].shape == (2,)
    again = diffkit.load(system.save(tmp_path / "system"))
    assert again.decoder == part and again.spec()["settings"]["decoder"]["options"] == {"scale": 2.0}
    assert "bins" not in again.spec()["settings"]
    assert diffkit.recompose(again, sampler="ddim").decoder == part
    assert diffkit.recompose(again, bins=17).decoder.bins == 17
    small = ("--schedule", "cosine", "--backbone", "mlp", "--data-shape", "1,4,4", "--num-steps", 12)
    explained = command(capsys, "explain", "--decoder", "acme", "--decoder.scale", 2, *small)
    assert "decoder acme (scale=2.0) [acme-decoder 2.1]" in " ".join(explained.split())
    site.distribution("acme-decoder", "", version="2.2")
    (site.path / "acme_decoder-2.1.dist-info" / "entry_points.txt").unlink()
    refresh()
    with pytest.raises(
        SpecError, match=r"this system uses decoder 'acme' of acme-decoder 2\.1, which is not installed"
    ):
        diffkit.load(tmp_path / "system")


@pytest.mark.parametrize("kind", ["coupling"], indirect=True)
def test_a_coupling_is_used_by_name_and_saved(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part, x = registry(kind).create("acme", reverse=True), torch.linspace(-1, 1, 32).view(2, 1, 4, 4)
    for slot in (("acme", {"reverse": True}), {"name": "acme-coupling:acme", "reverse": True}, part):
        system = diffkit.compose(coupling=slot, **SMALL | {"sampler": "ddim"})
        assert system.settings.coupling == part and system(x)["loss"].shape == (2,)
    again = diffkit.load(system.save(tmp_path / "system"))
    assert again.spec() == system.spec() and again.settings.coupling == part
    assert diffkit.recompose(again, coupling="independent").settings.coupling is None
    small = ("--schedule", "cosine", "--backbone", "mlp", "--data-shape", "1,4,4", "--num-steps", 12)
    explained = command(capsys, "explain", "--coupling", "acme", "--coupling.reverse", "--sampler", "ddim", *small)
    assert "coupling acme (reverse=True) [acme-coupling 2.1]" in " ".join(explained.split())


@pytest.mark.parametrize("kind", ["codec"], indirect=True)
def test_a_codec_is_used_by_name_and_saved(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part, x = registry(kind).create("acme", scale=2.0), torch.linspace(-50, 50, 32).view(2, 1, 4, 4)
    for slot in (("acme", {"scale": 2.0}), {"name": "acme-codec:acme", "scale": 2}, part):
        system = diffkit.compose(codec=slot, mean="x_start", **SMALL)
        assert system.settings.codec == system.parts.codec == part and system(x)["loss"].shape == (2,)
    again = diffkit.load(system.save(tmp_path / "system"))
    assert again.spec() == system.spec() and again.settings.codec == part and again.bins is None
    assert diffkit.recompose(again, codec="identity").settings.codec is None
    words = ["sample", tmp_path / "system", "-n", 2, "--steps", 3, "--format", "npz", "--out", tmp_path / "samples"]
    command(capsys, *words)
    drawn = np.moveaxis(shown(tmp_path / "samples"), -1, 1)
    latents = diffkit.recompose(again, codec=None, bins=None).sample(2, steps=3, seed=0, progress=False)
    assert np.allclose(drawn, 2 * latents.sinh().numpy(), rtol=1e-4)
    small = ("--schedule", "cosine", "--backbone", "mlp", "--data-shape", "1,4,4", "--num-steps", 12, "--bins", "none")
    explained = command(capsys, "explain", "--codec", "acme", "--codec.scale", 2, *small)
    assert "codec acme (scale=2.0) [acme-codec 2.1]" in " ".join(explained.split())


@pytest.mark.parametrize("kind", ["spacing"], indirect=True)
def test_a_spacing_is_used_by_name_and_saved(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part, system = registry(kind).create("acme", count=4, shift=2), diffkit.compose(**SMALL)
    wanted = system.table_for([7, 8, 9, 10])
    pairs = ("acme", {"count": 4, "shift": 2}), {"name": "acme-spacing:acme", "count": 4, "shift": 2}
    for slot in (*pairs, part, "acme4:shift=2"):
        assert system.table_for(slot) == wanted
    assert system.table_for("acme4") == system.table_for([9, 10, 11, 12]) and system.table_for("acme").num_steps == 3
    for slot in (*pairs, part):
        trained = diffkit.compose(train_spacing=slot, **SMALL)
        again = diffkit.load(trained.save(tmp_path / "system"))
        assert again.table == wanted and again.spec() == trained.spec()
        assert again.spec()["settings"]["train_spacing"]["origin"] == "acme-spacing"
        assert diffkit.recompose(again, sampler="ddim").table == wanted
    explained = command(capsys, "explain", "--steps", "acme4", "--schedule", "cosine", "--num-steps", 12)
    assert "4 of 12 levels: 9, 10, 11, 12" in explained


@pytest.mark.parametrize("kind", ["optimizer", "lr_schedule"], indirect=True)
def test_a_part_of_training_is_used_by_name_and_resumes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In Python in every form, and on the command line; a run goes on with the same part only."""
    options, data = OPTIONS[kind], diffkit.data.load("points", examples=40)
    part = registry(kind).create("acme", **options)
    small: dict[str, Any] = {"data_shape": data.shape, "bins": None, "num_steps": 30}
    how = {"batch_size": 8, "lr": 0.01, "save_every": 3, "progress": False}

    def train(out: str, steps: int, slot: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        system = diffkit.compose(**SMALL | small)
        options = how if slot is None else how | {kind: slot}
        return diffkit.train(system, data, out=tmp_path / out, steps=steps, **options).state_dict()

    pair = ("acme", options)
    whole, other = train("whole", 6, pair), train("other", 6, None)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)
    stopped = train("again", 6, {"name": f"acme-{kind}:acme", **options})
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    with pytest.raises(OptionError, match=f"{kind}=.*, now {kind}='acme'"):
        train("whole", 6, "acme")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000006")
    resumed = train("again", 6, part)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    words = ["--data", "points", "--data.examples", "40", "--schedule", "cosine", "--num-steps", "30", "--steps", "2"]
    words += ["--backbone", "mlp", "--backbone.hidden", "8", "--backbone.depth", "1", "--batch-size", "8"]
    flag = f"--{kind.replace('_', '-')}"
    words += [flag, "acme", *(word for name, value in options.items() for word in (f"{flag}.{name}", str(value)))]
    command(capsys, "train", *words, "--out", tmp_path / "a")
    command(capsys, "train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_an_adopter_reads_models_of_the_package_it_is_named_for(site: Site, capsys: pytest.CaptureFixture[str]):
    """It has no slot, and no options of its own: the name is found by the model's type, or given as ``reader``."""
    site.module("acme_empty", "")
    points = {"acme": write_template("adopter", site), "empty": "acme_empty"}
    site.distribution("acme-adopter", {"adopter": points}, version="2.1")
    refresh()
    listed = command(capsys, "list", "adopter")
    assert "acme-adopter 2.1" in listed and "Read models that hold a denoiser" in listed and site.imported() == []
    members = {"sigmas": np.linspace(0.1, 9, 12), "denoise": lambda self, x, sigma: x / (1 + sigma.view(-1, 1, 1, 1))}
    model = type("Model", (), {"__module__": "acme.models", **members})()
    systems = [diffkit.adopt(model, data_shape=(1, 4, 4), **how) for how in ({}, {"reader": "acme-adopter:acme"})]
    drawn = [system.sample(2, steps=3, seed=0, progress=False) for system in systems]
    assert torch.equal(*drawn) and systems[0].table.num_steps == 12
    with pytest.raises(OptionError, match="no reader 'acmee'; did you mean 'acme'"):
        diffkit.adopt(model, data_shape=(1, 4, 4), reader="acmee")
    with pytest.raises(ProtocolError, match=r"does not honour the Adopter contract:\n  read: expected Callable, found"):
        diffkit.adopt(model, data_shape=(1, 4, 4), reader="empty")


def test_bins_and_decoder_are_two_ways_to_say_one_thing():
    for decoder, bins in (
        (("binned", {"bins": 17}), 17),
        (("binned", {"cdf": "exact"}), {"bins": 256, "cdf": "exact", "floor": 1e-12}),
        ("continuous", None),
    ):
        system = diffkit.compose(decoder=decoder, **SMALL)
        assert system.spec()["settings"]["bins"] == bins and "decoder" not in system.spec()["settings"]
        assert system.decoder == diffkit.compose(bins=bins, **SMALL).decoder
    with pytest.raises(OptionError, match="bins 256 and decoder 'continuous' both name the decoder; give one of them"):
        diffkit.compose(decoder="continuous", bins=256, **SMALL)


def test_describe_takes_a_kind():
    with pytest.raises(OptionError, match=r"describe takes a kind of part, got a Registry; diffkit\.explain"):
        describe(registry("loss"))
