"""The files that sampling writes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused, seen_dtypes
from PIL import Image

import diffkit
from diffkit.evaluation.folder_sampling import draw_into, sample_folder
from diffkit.evaluation.sample_folder import write_npz
from diffkit.evaluation.sampling import Sampling
from diffkit.evaluation.saved import load
from diffkit.guidance import ClassifierFree
from diffkit.runtime.images import grid, pixels, png
from diffkit.tasks import sample_adaptive


def test_python_writes_the_same_files(command: Command, saved: Path, tmp_path: Path):
    words = ["-n", "5", "--steps", "3", "--batch-size", "2", "--classes", "owl", "--out", tmp_path / "a"]
    assert command("sample", saved, *words).code == 0
    drawn = Sampling(load(saved, torch.device("cpu")), 5, 2, labels=np.full(5, 2), options={"steps": 3})
    lines = draw_into(sample_folder(drawn, tmp_path / "b"), drawn)
    assert len(lines) == 2 and draw_into(sample_folder(drawn, tmp_path / "a"), drawn)  # it may go on with them
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes() or path.suffix == ".json"


def test_files_of_a_class_conditional_system(command: Command, saved: Path, tmp_path: Path):
    out = tmp_path / "samples"
    words = ["-n", "5", "--steps", "3", "--classes", "owl,0", "--format", "png,grid,npz", "--out", out]
    found = command("sample", saved, *words)
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        f"writing to {out}/",
        f"{out}/: 5 PNG files",
        f"{out}_grid.png: a row for each class",
        f"{out}/samples_5x8x6x1.npz: arr_0 uint8 (5, 8, 6, 1), arr_1 labels",
    ]
    names = ["cat_000001.png", "cat_000003.png", "owl_000000.png", "owl_000002.png", "owl_000004.png"]
    assert sorted(p.name for p in out.glob("*_*.png")) == names
    with np.load(out / "samples_5x8x6x1.npz") as arrays:
        assert arrays["arr_1"].dtype == np.int64 and arrays["arr_1"].tolist() == [2, 0, 2, 0, 2]
        images = arrays["arr_0"]
    assert np.array_equal(np.asarray(Image.open(out / "cat_000001.png")), images[1, :, :, 0])
    expected = diffkit.load(saved).sample(5, steps=3, seed=0, y=[2, 0, 2, 0, 2], progress=False)
    assert np.array_equal(images[:, None, :, :, 0], pixels(expected, 256))


@pytest.mark.parametrize(("steps", "said"), [("leading4", True), ("trailing4", False)])
def test_a_start_below_the_last_level_is_reported(
    command: Command, saved: Path, tmp_path: Path, steps: str, said: bool
):
    found = command("sample", saved, "-n", 1, "--steps", steps, "--out", tmp_path / "out", "--format", "npz")
    assert found.code == 0
    assert ("note: sampling starts at level" in found.err) == said


def test_noise_between_levels_and_an_end_at_level_1(command: Command, saved: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ("--steps", "karras4:exact", "--final", "sigma_min", "--sampler", "dpmpp_2m")
    found = command("sample", saved, "-n", 1, *options, "--out", out, "--format", "npz")
    assert found.code == 0 and "note:" not in found.err
    again = command("sample", saved, "-n", 1, *options[:2], "--out", out, "--format", "npz")
    assert again.code and "final" in again.err


def test_steps_of_controlled_error(command: Command, refused: Refused, saved: Path, tmp_path: Path):
    out, words = tmp_path / "out", ("-n", 3, "--batch-size", 2, "--classes", "owl", "--format", "npz")
    found = command("sample", saved, *words, "--adaptive", 0.5, "--out", out)
    assert found.code == 0, found.err
    system = diffkit.load(saved)
    start = system.prepare(2, seed=0, y=[2, 2]).noise(range(2))()
    expected = sample_adaptive(system, 2, rtol=0.5, atol=0.078, start=start, y=[2, 2]).samples
    with np.load(next(out.glob("*.npz"))) as arrays:
        assert np.array_equal(arrays["arr_0"][:2, ..., 0], pixels(expected, 256)[:, 0])
    again = command("sample", saved, *words, "--adaptive", 0.4, "--out", out)
    assert again.code and "adaptive" in again.err
    text = refused("sample", saved, "--adaptive", 0.5, "--sampler", "heun", "--out", tmp_path / "other")
    assert text == "--adaptive has a solver of its own; leave --sampler out"


def test_karras_levels_on_a_preserving_path_are_remarked_on(command: Command, saved: Path, tmp_path: Path):
    found = command("sample", saved, "-n", 1, "--steps", "karras4", "--out", tmp_path / "out", "--format", "npz")
    assert found.code == 0 and "note: steps='karras4' is made for variance-exploding paths" in found.err


def test_options_that_are_left_out_are_the_systems(command: Command, saved: Path, tmp_path: Path):
    system = diffkit.recompose(diffkit.load(saved), sampling={"steps": 3})
    system.save(tmp_path / "run")
    for words, steps in (((), 3), (("--steps", "all"), 12)):
        found = command("sample", tmp_path / "run", "-n", 1, "--out", tmp_path / f"{steps}", "--format", "npz", *words)
        assert found.code == 0, found.err
        with np.load(next((tmp_path / f"{steps}").glob("*.npz"))) as arrays:
            expected = system.sample(1, steps=steps, seed=0, y=[0], progress=False)
            assert np.array_equal(arrays["arr_0"][..., 0], pixels(expected, 256)[:, 0])


@pytest.mark.parametrize(("n", "classes"), [("1", "owl,cat"), ("5", "none"), ("5", "owl")])
def test_samples_of_one_class_are_all_in_one(n: str, classes: str, command: Command, saved: Path, tmp_path: Path):
    out = tmp_path / "samples"
    found = command("sample", saved, "-n", n, "--steps", "2", "--classes", classes, "--out", out)
    assert found.out.splitlines()[-1] == f"{out}_grid.png: all in one"
    with Image.open(tmp_path / "samples_grid.png") as image:
        assert image.width < 2 * image.height


def test_options_reach_the_sampler(command: Command, saved: Path, tmp_path: Path):
    words = ["--format", "npz", "--sampler", "ddim", "--sampler.eta", "0.5", "--seed", "7", "--steps", "trailing4"]
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        assert command("sample", saved, "-n", 3, "--batch-size", batch_size, "--out", out, *words).code == 0
        with np.load(next(out.glob("*.npz"))) as arrays:
            expected = diffkit.load(saved).sample(
                3, steps="trailing4", sampler=("ddim", {"eta": 0.5}), seed=7, y=[0, 1, 2], progress=False
            )
            # float32 sums depend on the batch size; half a pixel value is 1/255.
            assert np.abs(arrays["arr_0"][..., 0] - pixels(expected, 256)[:, 0].astype(float)).max() <= 1


def test_clipping(command: Command, saved: Path, tmp_path: Path):
    found = {}
    for word, clip in (("--clip", True), ("--no-clip", False)):
        out = tmp_path / word
        assert command("sample", saved, "-n", 3, "--steps", 4, "--out", out, "--format", "npz", word).code == 0
        with np.load(next(out.glob("*.npz"))) as arrays:
            found[clip] = arrays["arr_0"][..., 0].astype(float)
        expected = diffkit.load(saved).sample(3, steps=4, seed=0, y=[0, 1, 2], clip=clip, progress=False)
        assert np.abs(found[clip] - pixels(expected, 256)[:, 0]).max() <= 1
    assert np.abs(found[True] - found[False]).max() > 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA"), (2, "L"), (16, "L")])
def test_any_number_of_channels(command: Command, make_system: Callable, tmp_path: Path, channels: int, mode: str):
    run, out = make_system(data_shape=(channels, 4, 6)), tmp_path / "out"
    assert command("sample", run, "-n", "3", "--out", out, "--format", "png,grid,npz").code == 0
    with Image.open(out / "000002.png") as image:
        assert image.mode == mode
        assert image.size == ((6, 4) if channels in (1, 3, 4) else (6 * channels, 4))
    with np.load(out / f"samples_3x4x6x{channels}.npz") as arrays:
        assert sorted(arrays) == ["arr_0"] and arrays["arr_0"].shape == (3, 4, 6, channels)
    with Image.open(tmp_path / "out_grid.png") as image:
        assert max(image.size) > 100


def test_other_data_goes_into_npz(command: Command, refused: Refused, make_system: Callable, tmp_path: Path):
    points = make_system("points", data_shape=(2,), bins=None)
    deep = make_system("deep", bins=65536)
    assert refused("sample", points, "--out", tmp_path / "a") == (
        "data of shape (2,) is not a picture; use --format npz"
    )
    assert refused("sample", deep, "--out", tmp_path / "a") == (
        "65536-valued data does not fit into 8-bit PNG files; use --format npz"
    )
    assert not (tmp_path / "a").exists()
    for run, dtype in ((points, np.float32), (deep, np.uint16)):
        out = tmp_path / run.name / "out"
        assert command("sample", run, "--out", out, "--format", "npz").code == 0
        with np.load(next(out.glob("*.npz"))) as arrays:
            assert arrays["arr_0"].dtype == dtype and len(arrays["arr_0"]) == 16


def test_pixels_are_rounded_so_that_all_values_survive():
    values = torch.arange(256)
    assert pixels((values / 127.5 - 1).view(256, 1), 256).flatten().tolist() == values.tolist()
    sixteen = torch.arange(0, 65536, 257)
    assert pixels((sixteen / 32767.5 - 1).view(-1, 1), 65536).flatten().tolist() == sixteen.tolist()
    assert pixels(torch.tensor([[-3.0, 3.0]]), 256).tolist() == [[0, 255]]


def test_grid_has_gaps_and_a_row_for_each_class():
    tiles = [np.full((1, 32, 32), value, np.uint8) for value in (0, 50, 100)]
    found = grid(tiles, columns=2)
    assert found.shape == (1, 2 * 68 + 4, 2 * 68 + 4)
    assert found[0, 4, 4] == 0 and found[0, 4, 72] == 50 and found[0, 72, 4] == 100
    assert found[0, 68:72].min() == 255 and found[0, 100, 100] == 255


def test_png_of_colours(tmp_path: Path):
    image = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    (tmp_path / "a.png").write_bytes(png(image))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image.transpose(1, 2, 0))


def test_classes(command: Command, refused: Refused, saved: Path, make_system: Callable, tmp_path: Path):
    assert refused("sample", saved, "--classes", "cta", "--out", tmp_path / "a") == (
        "no class 'cta'; did you mean 'cat'? (classes: cat, dog, owl)"
    )
    assert refused("sample", saved, "--classes", "3", "--out", tmp_path / "a").startswith("no class '3'")
    assert refused("sample", make_system(), "--classes", "3", "--out", tmp_path / "a") == (
        "this system has no classes, so none can be chosen"
    )
    found = command("sample", saved, "--classes", "none", "-n", "2", "--steps", "2", "--out", tmp_path / "a")
    assert found.code == 0
    assert sorted(p.name for p in (tmp_path / "a").glob("none*")) == ["none_000000.png", "none_000001.png"]


@pytest.mark.parametrize(
    ("words", "flags", "more"),
    [
        (["-n", "0"], ["-n"], ">= 1"),
        (["-n", "100000000000"], ["-n"], "<= 10000000"),
        (["--batch-size", "0"], ["--batch-size"], ">= 1"),
        (["--format", "jpg"], ["--format"], "some of png, grid, npz"),
        (["--steps", "13"], ["--steps"], "<= 12"),
        (["--each", "2"], ["--each", "--low-res"], "say how many samples with -n"),
        (["--out", "full"], ["--out"], "use --overwrite"),
        (["--out", "full/x"], ["--out"], "name a folder"),
        (["--out", "full/x/y"], ["--out"], "cannot be written to"),
    ],
)
def test_refusals_before_any_work(
    refused: Refused, saved: Path, tmp_path: Path, monkeypatch, words: list[str], flags: list[str], more: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    text = refused("sample", saved, *words)
    assert text.flags == flags and more in text
    assert refused("sample", "nowhere").endswith("with spec.json and model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_pictures_need_pillow(refused: Refused, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    assert refused("sample", saved, "--out", tmp_path / "a") == (
        "writing PNG files needs the 'train' extra; run: pip install \"diffkit[train]\""
    )


def test_overwrite_and_config(command: Command, saved: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ["sample", saved, "-n", "2", "--steps", "2", "--out", out, "--format", "npz"]
    printed = command(*words, "--print-config").out
    assert not out.exists() and tomllib.loads(printed)["steps"] == 2
    (tmp_path / "s.toml").write_text(printed)
    assert command("sample", "--config", tmp_path / "s.toml").code == 0
    assert "2 of 2 samples are there already" in command(*words).out
    (out / "mine.png").touch()
    other = ["sample", saved, "-n", "3", "--steps", "2", "--out", out, "--overwrite"]
    assert command(*other).code == 0
    names = ["cat_000000.png", "dog_000001.png", "mine.png", "owl_000002.png", "sampling.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (tmp_path / "out_grid.png").exists()
    assert command(*words, "--overwrite").code == 0
    assert not (tmp_path / "out_grid.png").exists(), "an overview of other samples"


def test_npz_is_what_numpy_writes(tmp_path: Path):
    images = np.arange(5 * 24, dtype=np.uint8).reshape(5, 3, 2, 4)
    labels = np.arange(5)
    write_npz(tmp_path / "a.npz", (5, 2, 4, 3), [images[:2], images[2:4], images[4:]], labels)
    np.savez(tmp_path / "b.npz", images.transpose(0, 2, 3, 1).copy(), labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_classes_in_turn_or_at_random(command: Command, saved: Path, tmp_path: Path):
    def labels(name: str, *words: object) -> list[int]:
        out = tmp_path / name
        found = command("sample", saved, "--steps", "1", "--format", "npz", "--out", out, *words)
        assert found.code == 0, found.err
        with np.load(next(out.glob("*.npz"))) as arrays:
            return arrays["arr_1"].tolist()

    assert labels("a", "-n", "7") == [0, 1, 2, 0, 1, 2, 0]
    assert labels("b", "-n", "5", "--classes", "owl,none") == [2, 3, 2, 3, 2]
    drawn = labels("c", "-n", "300", "--class-order", "random")
    assert labels("d", "-n", "40", "--class-order", "random") == drawn[:40]
    assert labels("e", "-n", "40", "--class-order", "random", "--seed", "1") != drawn[:40]
    counts = np.bincount(drawn, minlength=3)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(300 * 2 / 9) and set(drawn) == {0, 1, 2}
    assert set(labels("f", "-n", "40", "--class-order", "random", "--classes", "1,none")) == {1, 3}


def test_guidance(command: Command, refused: Refused, saved: Path, make_system: Callable, tmp_path: Path):
    words, picture = ["-n", "3", "--steps", "3", "--format", "npz"], tmp_path / "picture.png"
    Image.new("L", (4, 4)).save(picture)
    guided = [*words, "--guidance", "cfg", "--guidance.scale", "4", "--guidance.interval", "0.1,9"]
    assert command("sample", saved, *guided, "--out", tmp_path / "a").code == 0
    with np.load(next((tmp_path / "a").glob("*.npz"))) as arrays:
        steered = ClassifierFree(4.0, interval=(0.1, 9.0))
        expected = diffkit.load(saved).sample(3, steps=3, seed=0, y=[0, 1, 2], guidance=steered, progress=False)
        assert np.abs(arrays["arr_0"][..., 0] - pixels(expected, 256)[:, 0].astype(float)).max() <= 1
    assert refused("sample", saved, "--guidance", "cgf").startswith("no guidance named 'cgf'; did you mean 'cfg'?")
    assert refused("sample", saved, "--guidance", "cfg") == "diffkit sample needs --guidance.scale"
    told = make_system("told", backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3}))
    steered = ["--guidance", "cfg", "--guidance.scale", "2", "--out", tmp_path / "b"]
    for text in (
        refused("sample", make_system(), *guided, "--out", tmp_path / "b"),
        refused("sample", told, *guided, "--out", tmp_path / "b"),
        refused("edit", told, picture, "--classes", "1", *steered),
    ):
        assert "has no null class" in text and "diffkit train --label-dropout 0.1" in text
    assert not (tmp_path / "b").exists()
    assert "has no effect without a class" in refused("edit", saved, picture, *steered)
    assert "--guidance.null" not in command("sample", "--guidance", "cfg", "--help").out  # a mapping: files only
    (tmp_path / "s.toml").write_text('[guidance]\nname = "cfg"\nscale = 4\nnull = { y = 3 }\n')
    found = command("sample", saved, "--config", tmp_path / "s.toml", *words, "--out", tmp_path / "b")
    assert found.code == 0, found.err


def test_precision_and_compilation(
    command: Command, refused: Refused, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both decide the last digits, so samples that were begun one way do not go on in another."""
    asked = []
    has = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch, "compile", lambda take, **how: asked.append(how) or take)
    words, found = ["sample", saved, "-n", "4", "--steps", "3", "--format", "npz"], {}
    for name, more in {"plain": [], "bf16": ["--precision", "bf16"], "step": ["--compile", "step"]}.items():
        with seen_dtypes() as dtypes:
            outcome = command(*words, "--out", tmp_path / name, *more)
        assert outcome.code == 0, outcome.err
        assert ("emulates" in outcome.err) == (name == "bf16")
        assert ("compiling: the first step takes minutes\n" in outcome.err) == (name == "step")
        assert name == "step" or dtypes == {torch.bfloat16 if name == "bf16" else None}
        (file,) = (tmp_path / name).glob("*.npz")
        found[name] = np.load(file)["arr_0"].astype(int)
    assert np.abs(found["step"] - found["plain"]).max() <= 1 and asked == [{"fullgraph": True}]
    assert "--precision bf16, now none" in refused(*words, "--out", tmp_path / "bf16")
    text = refused("sample", saved, "--out", tmp_path / "new", "--compile", "cuda_graph", "--device", "cpu")
    assert text == "--compile cuda_graph needs a GPU, the system is on cpu; use --compile step"
    assert not (tmp_path / "new").exists()
