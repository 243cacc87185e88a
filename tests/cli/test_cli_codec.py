"""What a run and the commands make of a system with a codec is data in its own units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from PIL import Image

import diffkit
from diffkit import tasks
from diffkit.__main__ import main
from diffkit.parts.codecs.autoencoder import Autoencoder
from diffkit.runtime.images import grid, pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
SMALL = "--schedule cosine --mean v --num-steps 20 --steps 2 --batch-size 8 --lr 0.01 --preview-every 2 --preview 4"
UNET = "--backbone.channels 8 --backbone.groups 4 --backbone.channel-mult 1 --backbone.num-res-blocks 1"
CODECS = ["autoencoder", "standardize"]
OPERATOR = tasks.average_pool(2)


def save_autoencoder(folder: Path, shape: tuple[int, ...] = (1, 8, 8)) -> Path:
    torch.manual_seed(0)
    recipe = Autoencoder(channels=(4, 4), latent_channels=2)
    return diffkit.weights.save_codec(recipe, recipe.build(shape), folder, shape)


def words(folder: Path, codec: str, name: str = "run") -> list[str]:
    """``diffkit train`` with a codec: on pictures with classes, or on continuous values about 150."""
    data = folder / ("x.npz" if codec == "autoencoder" else "x.npy")
    if data.suffix == ".npz":
        np.savez(data, PIXELS, np.arange(24, dtype=np.int64) % 3)
        more = ["--data.labels", "true", "--codec.folder", str(save_autoencoder(folder / f"{name}_codec"))]
    else:
        np.save(data, PIXELS.transpose(0, 3, 1, 2).astype(np.float32) + 23)
        more = ["--data.layout", "channels_first"]
    start = ["train", "--data", str(data), "--out", str(folder / name), "--codec", codec, *more]
    return [*start, *SMALL.split(), *UNET.split(), "--backbone.num-heads", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {codec: tmp_path_factory.mktemp(codec) for codec in CODECS}
    for codec, folder in folders.items():
        assert main(words(folder, codec)) == 0
    return {codec: folder / "run" for codec, folder in folders.items()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def scaled(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 127.5 - 1


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def assert_drawn(path: Path, wanted: torch.Tensor) -> None:
    """A picture is that of an example, but for the rounding of another batch."""
    assert np.abs(read(path) - pixels(wanted[None], 256)[0, 0]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_previews_and_samples(codec: str, runs: dict[str, Path], command: Command, tmp_path: Path):
    run, conditions = runs[codec], {} if codec == "standardize" else {"y": [0, 2, 0, 2]}
    system = diffkit.load(run)
    drawn = system.sample(4, steps=20, seed=0, progress=False, **(conditions and {"y": [0, 2, 0, 2]}))
    shown = grid(list(pixels(system.to_drawn(drawn), 256)), 2)[0]
    assert np.abs(read(run / "previews" / "step_00000002.png") - shown).max() <= 1
    assert codec == "autoencoder" or (drawn.mean() > 50 and shown.max() == 255)
    labels = ["--classes", "0,2"] if conditions else []
    out = tmp_path / "s"
    assert command("sample", run, "-n", "4", "--out", out, "--format", "npz", *labels).code == 0
    (file,) = out.glob("*.npz")
    wanted = pixels(system.sample(4, seed=0, progress=False, **conditions), system.bins).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.load(file)["arr_0"].astype(float), wanted, atol=1)


@pytest.mark.slow
def test_evaluate_compares_pixels(runs: dict[str, Path], command: Command, tmp_path: Path):
    run = runs["autoencoder"]
    how = [
        "--data",
        run.parent / "x.npz",
        "--data.labels",
        "true",
        "--extractor",
        "digits",
        "--metrics",
        "fid",
        "--seed",
        "3",
    ]
    assert command("evaluate", run, *how, "--num", "12", "--steps", "3").code == 0
    drawn = ["sample", run, "-n", "12", "--steps", "3", "--seed", "3", "--format", "npz", "--out", tmp_path / "s"]
    assert command(*drawn).code == 0
    (file,) = (tmp_path / "s").glob("*.npz")
    assert command("evaluate", file, *how, "--out", tmp_path / "e.json").code == 0
    found, wanted = (json.loads(path.read_text()) for path in (run / "evaluation.json", tmp_path / "e.json"))
    assert found["values"][0]["name"] == "fid" and found["values"][0]["value"] > 0
    assert found["values"][0]["value"] == pytest.approx(wanted["values"][0]["value"], rel=1e-3)


@pytest.mark.slow
def test_commands_of_pictures(runs: dict[str, Path], command: Command, picture: Path, tmp_path: Path):
    run = runs["autoencoder"]
    system, x, how = diffkit.load(run), scaled(PIXELS[:1]), {"seed": 0, "y": [1], "progress": False}
    more = ["--classes", "1", "--out"]
    assert command("edit", run, picture, *more, tmp_path / "edit").code == 0
    assert_drawn(tmp_path / "edit" / "a.png", tasks.image_to_image(system, x, strength=0.5, **how)[0])
    known = np.repeat([[255] * 4 + [0] * 4], 8, 0).astype(np.uint8)
    Image.fromarray(known).save(tmp_path / "mask.png")
    words = ["inpaint", run, picture, "--mask", tmp_path / "mask.png", "--resample", "1", *more, tmp_path / "paint"]
    assert command(*words).code == 0
    painted = tasks.inpaint(system, x, torch.from_numpy(known > 0), resample=1, **how)[0]
    assert torch.equal(painted[..., :4], x[0, ..., :4])
    assert_drawn(tmp_path / "paint" / "a.png", painted)
    steps = ["--steps", "3", *more]
    Image.fromarray(PIXELS[0, :4, :4, 0]).save(tmp_path / "small.png")
    upscaled = command("upscale", run, tmp_path / "small.png", "--method", "dps", *steps, tmp_path / "large")
    assert upscaled.code == 0, upscaled.err
    assert command("interpolate", run, picture, picture, "-n", "2", *steps, tmp_path / "between").code == 0
    ends = tasks.interpolate(system, x[0], x[0], 2, steps=3, y=1, progress=False)
    assert_drawn(tmp_path / "between" / "between_00.png", ends[0])
    assert command("invert", run, picture, *steps, tmp_path / "back").code == 0
    assert_drawn(tmp_path / "back" / "a.png", tasks.invert(system, x, steps=3, y=[1]).reconstruction[0])


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_measurements_are_of_data(codec: str, runs: dict[str, Path]):
    """DPS comes nearer to what was measured of data than samples without it."""
    system = diffkit.load(runs[codec])
    x = system.from_latents(torch.randn(2, *system.parts.data_shape, generator=torch.Generator().manual_seed(1)))
    y, conditions = OPERATOR(x), {"y": [0, 1]} if codec == "autoencoder" else {}
    how = {"seed": 0, "progress": False, **conditions}
    step = 0.5 if codec == "autoencoder" else 0.005  # of a measurement with a deviation of 75
    near = tasks.solve(system, y, ("dps", {"operator": OPERATOR, "step": step}), **how)
    far = system.sample(2, sampler="ancestral", **{**how, **({"y": [0, 1]} if conditions else {})})
    assert near.shape == x.shape and (OPERATOR(near) - y).square().mean() < 0.7 * (OPERATOR(far) - y).square().mean()


@pytest.mark.slow
def test_super_resolution(command: Command, tmp_path: Path):
    call = words(tmp_path, "autoencoder")
    assert command(*call, "--low-res", "4", "--low-res-noise", "0.2").code == 0
    run = tmp_path / "run"
    small = PIXELS[:2].reshape(2, 4, 2, 4, 2, 1).mean((2, 4)).astype(np.uint8)
    np.savez(tmp_path / "small.npz", small, np.array([0, 1]))
    out = tmp_path / "large"
    found = command("sample", run, "--low-res", tmp_path / "small.npz", "--format", "npz", "--out", out)
    assert found.code == 0, found.err
    (file,) = out.glob("*.npz")
    wanted = tasks.super_resolve(diffkit.load(run), scaled(small), y=[0, 1], seed=0, progress=False)
    np.testing.assert_allclose(np.load(file)["arr_0"].astype(float), pixels(wanted, 256).transpose(0, 2, 3, 1), atol=1)


@pytest.mark.slow
def test_a_classifier_reads_latents(runs: dict[str, Path], command: Command, tmp_path: Path):
    run, folder = runs["autoencoder"], tmp_path / "classifier"
    size = "--channels 8 --num-head-channels 8 --channel-mult 1 --num-res-blocks 1 --groups 4 --attention-resolutions 4"
    found = command(
        *[
            "train-classifier",
            "--data",
            run.parent / "x.npz",
            "--data.labels",
            "true",
            "--system",
            run,
            "--out",
            folder,
        ],
        *["--steps", "2", "--batch-size", "8", *size.split()],
    )
    assert found.code == 0, found.err
    guided = ["--guidance", "classifier", "--guidance.classifier", folder]
    found = command("sample", run, "-n", "2", "--format", "npz", "--steps", "2", *guided, "--out", tmp_path / "s")
    assert found.code == 0, found.err


@pytest.mark.slow
def test_what_cannot_work_is_one_line(runs: dict[str, Path], refused: Refused, picture: Path, tmp_path: Path):
    run, out = runs["autoencoder"], ["--out", tmp_path / "out"]
    data = run.parent / "x.npz"
    Image.fromarray(PIXELS[0, :4, :4, 0]).save(picture)
    lossy = "codec 'autoencoder' does not give data back exactly, so that data has no likelihood"
    for how in ([], ["--ode"], ["--continuous"]):
        assert refused("nll", run, "--data", data, "--data.labels", "true", *how).startswith(lossy)
    upscale = ["upscale", run, picture, "--classes", "1", "--steps", "2", *out]
    assert "needs a measurement that is linear" in refused(*upscale)
    assert "--noise-std is for the other methods" in refused(*upscale, "--method", "dps", "--noise-std", "0.1")
    train = ["train", "--data", data, *out, "--codec", "autoencoder", "--steps", "1"]
    assert refused(*train).startswith("--codec.folder is missing, and latents of random weights say nothing")
    assert "nowhere holds no autoencoder" in refused(*train, "--codec.folder", tmp_path / "nowhere")
    other = save_autoencoder(tmp_path / "colour", (3, 8, 8))
    assert "its module takes no data of shape (1, 8, 8)" in refused(*train, "--codec.folder", other)
