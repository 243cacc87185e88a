"""Enlarging given pictures from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused

import diffkit
from diffkit.runtime.images import pixels, png

UNET = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4, "attention_resolutions": (4,)}


def upsampler(folder: Path, channels: int = 3, **options: object) -> Path:
    torch.manual_seed(0)
    system = diffkit.compose(
        schedule="cosine",
        num_steps=4,
        data_shape=(channels, 8, 8),
        backbone=("unet", {**UNET, "low_res_channels": channels, **options}),
    )
    with torch.no_grad():
        for parameter in system.parameters():  # a fresh network's last layer is zero and would read nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
    system.save(folder)
    (folder / "config.json").write_text('{"data": {"classes": null, "low_res": [4, 4]}}')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return upsampler(tmp_path_factory.mktemp("upsampler"))


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def file(small: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "small.npz", small)
    return tmp_path / "small.npz"


def arrays(out: Path) -> np.ndarray:
    with np.load(next(out.glob("samples_*.npz"))) as found:
        return found["arr_0"]


def expected(run: Path, small: np.ndarray, each: int = 1) -> np.ndarray:
    low_res = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
    large = diffkit.tasks.super_resolve(diffkit.load(run), low_res, each=each, seed=0, progress=False)
    return pixels(large, 256).transpose(0, 2, 3, 1)


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Up to the rounding of float32 sums, which depends on the batch size."""
    return found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("each", "n"), [(1, None), (2, None), (3, 7)])
def test_each_picture_in_its_place(command: Command, run: Path, file: Path, small, tmp_path: Path, each, n):
    words = ["--each", each, *([] if n is None else ["-n", n])]
    found = command(
        "sample", run, "--low-res", file, "--out", tmp_path / "o", "--format", "npz", "--batch-size", 2, *words
    )
    assert found.code == 0, found.err
    wanted = expected(run, small, each)
    assert close(arrays(tmp_path / "o"), wanted[: n or 5 * each])
    assert np.abs(wanted[0].astype(int) - wanted[each]).max() > 2


def test_a_folder_is_read_in_order(command: Command, run: Path, small, tmp_path: Path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, image in enumerate(small):
        (pictures / f"{i:03d}.png").write_bytes(png(image.transpose(2, 0, 1)))
    assert command("sample", run, "--low-res", pictures, "--out", tmp_path / "o", "--format", "png,npz").code == 0
    assert close(arrays(tmp_path / "o"), expected(run, small))
    assert len(list((tmp_path / "o").glob("00*.png"))) == 5


@pytest.mark.parametrize("each", [1, 2])
def test_one_picture(command: Command, refused: Refused, run: Path, small, tmp_path: Path, each: int):
    picture = tmp_path / "one.PNG"
    picture.write_bytes(png(small[0].transpose(2, 0, 1)))
    words = ["sample", run, "--low-res", picture, "--each", each, "--out", tmp_path / "o"]
    assert command(*words, "--format", "npz").code == 0
    assert close(arrays(tmp_path / "o"), expected(run, small[:1], each))
    picture.write_bytes(png(np.zeros((3, 4, 3), np.uint8)))
    assert "the small images are 4x3, the network was trained to enlarge 4x4" in refused(*words)
    picture.write_bytes(b"no image")
    assert f"{picture}: no image of a kind that is read (AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP)" in refused(*words)


def test_grey_pictures_and_pictures_of_several_sizes(command: Command, refused: Refused, run: Path, tmp_path: Path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(png(np.zeros((1, 4, 4), np.uint8)))
    words = ["sample", run, "--low-res", pictures, "--format", "npz"]
    assert command(*words, "--out", tmp_path / "a").code == 0
    assert arrays(tmp_path / "a").shape == (1, 8, 8, 3)
    (pictures / "b.png").write_bytes(png(np.zeros((3, 4, 3), np.uint8)))
    assert refused(*words, "--out", tmp_path / "b") == (
        f"the images of {str(pictures)!r} have several sizes: 4x4 (a.png), 4x3 (b.png); "
        "enlarge those of each size alone"
    )
    for path in pictures.iterdir():
        path.write_bytes(b"no image")
    assert refused(*words, "--out", tmp_path / "b") == f"{str(pictures)!r} holds no readable image"
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut")
    assert "cannot be read as a NumPy file" in refused("sample", run, "--low-res", tmp_path / "bad.npz", *words[4:])


def test_what_a_sampling_wrote_is_enlarged_with_its_classes(command: Command, refused: Refused, small, tmp_path: Path):
    run = upsampler(tmp_path / "run", num_classes=3)
    np.savez(tmp_path / "base.npz", small, np.array([2, 0, 1, 1, 2]))
    words = ["sample", run, "--low-res", tmp_path / "base.npz", "--format", "npz", "--each", "2"]
    assert command(*words, "--out", tmp_path / "a").code == 0
    with np.load(next((tmp_path / "a").glob("samples_*.npz"))) as found:
        assert found["arr_1"].tolist() == [2, 2, 0, 0, 1, 1, 1, 1, 2, 2]
    assert command(*words, "--out", tmp_path / "b", "--classes", "1").code == 0
    with np.load(next((tmp_path / "b").glob("samples_*.npz"))) as found:
        assert set(found["arr_1"].tolist()) == {1}
    (run / "config.json").write_text('{"data": {"classes": ["cat", "dog", "owl"], "low_res": [4, 4]}}')
    named = {"arr_0": small, "arr_1": np.array([1, 0, 0, 0, 1])}
    np.savez(tmp_path / "named.npz", **named, classes=np.array(["owl", "cat"]))
    assert command(*words[:3], tmp_path / "named.npz", *words[4:6], "--out", tmp_path / "d").code == 0
    with np.load(next((tmp_path / "d").glob("samples_*.npz"))) as found:
        assert found["arr_1"].tolist() == [0, 2, 2, 2, 0]
    np.savez(tmp_path / "base.npz", small, np.array([2, 0, 1, 3, 2]))
    assert refused(*words, "--out", tmp_path / "c") == (
        "--low-res has a picture of class 3, the system has 3 classes, 0..2"
    )


def test_another_set_of_pictures_is_another_sampling(
    command: Command, refused: Refused, run: Path, file: Path, small, tmp_path: Path
):
    words = ["sample", run, "--low-res", file, "--out", tmp_path / "o", "--format", "npz"]
    assert command(*words).code == 0
    np.savez(file, small[::-1])
    assert "\n  other pictures of --low-res" in refused(*words)


def test_refusals(refused: Refused, run: Path, file: Path, make_system: Callable[..., Path], tmp_path: Path):
    out = ["--out", tmp_path / "o"]
    assert refused("sample", run, *out) == (
        "this system enlarges small images; name them with --low-res FOLDER or --low-res FILE.npz"
    )
    assert refused("sample", make_system(), "--low-res", file, *out) == (
        "this system reads no small images, so there is nothing to do with --low-res; leave it out"
    )
    assert refused("sample", run, "--low-res", file, "-n", "6", *out) == (
        "-n 6 is more than --low-res has pictures for, 5; ask for several of each with --each"
    )
    assert refused("sample", run, "--each", "2", *out).startswith("--each is for the pictures of --low-res")
    assert "is not a folder or file" in refused("sample", run, "--low-res", tmp_path / "no", *out)
    for shape, said in {
        (2, 6, 6, 3): "the small images are 6x6, the network was trained to enlarge 4x4",
        (2, 4, 4, 1): "the small images have shape (1, 4, 4); the network reads 3 channels of images with 2 axes",
    }.items():
        np.savez(file, np.zeros(shape, np.uint8))
        assert refused("sample", run, "--low-res", file, *out) == said
    unwrap_module = diffkit.load(run).save(tmp_path / "bare")
    np.savez(file, np.zeros((2, 9, 9, 3), np.uint8))
    assert refused("sample", unwrap_module, "--low-res", file, *out) == (
        "the small images are 9x9, larger than what they are enlarged to, 8x8"
    )
    assert not (tmp_path / "o").exists()


def test_pictures_of_floating_point_values_must_be_scaled(refused: Refused, command: Command, run, small, tmp_path):
    np.savez(tmp_path / "raw.npz", small.astype(np.float32))
    said = refused("sample", run, "--low-res", tmp_path / "raw.npz", "--out", tmp_path / "out")
    assert (
        "are floating-point values from 0 to 25" in said and "the network reads [-1, 1]; scale them, or store" in said
    )
    np.savez(tmp_path / "scaled.npz", small.astype(np.float32) / 127.5 - 1)
    for name in ("scaled", "whole"):
        np.savez(tmp_path / "whole.npz", small)
        words = ["--low-res", tmp_path / f"{name}.npz", "--out", tmp_path / f"out_{name}", "--format", "npz"]
        assert command("sample", run, *words).code == 0
    assert np.array_equal(arrays(tmp_path / "out_scaled"), arrays(tmp_path / "out_whole"))
