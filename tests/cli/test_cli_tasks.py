"""Commands that do something with pictures: edit, inpaint, upscale, invert, interpolate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from PIL import Image

import diffkit
from diffkit import tasks
from diffkit.guidance import MMPS
from diffkit.runtime.images import pixels


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two grey pictures, 8 high and 6 wide."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(("a", "b")):
        Image.fromarray(values(i)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """The left half is known."""
    Image.fromarray(np.repeat(np.array([[255] * 3 + [0] * 3], np.uint8), 8, 0)).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 6), np.uint8)


def as_data() -> torch.Tensor:
    return torch.from_numpy(np.stack([values(0), values(1)])[:, None]).float() / 127.5 - 1


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def assert_written(out: Path, names: list[str], wanted: torch.Tensor) -> None:
    assert sorted(path.name for path in out.glob("*.png")) == sorted(names)
    assert out.with_name(f"{out.name}_grid.png").is_file()
    for name, image in zip(names, pixels(wanted, 256), strict=True):
        assert np.abs(read(out / name).astype(int) - image[0]).max() <= 1, name


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {"strength": 0.5}),
        (["--strength", "0.8", "--sampler", "ddim", "--steps", "4"], {"strength": 0.8, "sampler": "ddim", "steps": 4}),
        (["--level", "3", "--seed", "5", "--batch-size", "3"], {"level": 3, "seed": 5}),
    ],
)
def test_edit(command: Command, saved: Path, pictures: Path, tmp_path: Path, words: list[str], given: dict):
    out = tmp_path / "out"
    found = command("edit", saved, pictures, "-n", "2", "--classes", "owl,cat", "--out", out, *words)
    assert found.code == 0, found.err
    assert found.out.splitlines() == [f"{out}/: 4 PNG files", f"{out}_grid.png: a row for each picture"]
    system = diffkit.load(saved)
    wanted = tasks.image_to_image(
        system, as_data().repeat_interleave(2, 0), **{"seed": 0} | given, y=[2, 2, 0, 0], progress=False
    )
    assert_written(out, ["a_00.png", "a_01.png", "b_00.png", "b_01.png"], wanted)
    assert "image to image" in found.err  # the bar


def test_a_single_picture_of_another_size_is_made_to_fit(command: Command, saved: Path, tmp_path: Path):
    Image.fromarray(np.full((40, 30, 3), 128, np.uint8)).save(tmp_path / "large.png")
    assert command("edit", saved, tmp_path / "large.png", "--steps", "2", "--out", tmp_path / "out").code == 0
    assert read(tmp_path / "out" / "large.png").shape == (8, 6)


def test_inpaint_keeps_what_is_white(command: Command, saved: Path, pictures: Path, mask: Path, tmp_path: Path):
    """And changes what is grey."""
    out, known = tmp_path / "out", torch.tensor([1.0] * 3 + [0.0] * 2 + [153 / 255]).expand(8, 6)
    Image.fromarray((known * 255).byte().numpy()).save(mask)
    found = command("inpaint", saved, pictures, "--mask", mask, "--resample", "2", "--jump", "3", "--out", out)
    assert found.code == 0, found.err
    for i, name in enumerate(("a", "b")):
        made = read(out / f"{name}.png")
        assert np.array_equal(made[:, :3], values(i)[:, :3]) and not np.array_equal(made[:, 3:], values(i)[:, 3:])
    wanted = tasks.inpaint(
        diffkit.load(saved), as_data(), known, resample=2, jump=3, seed=0, y=[3, 3], progress=False
    )  # 3 is not a class
    assert_written(out, ["a.png", "b.png"], wanted)


def test_upscale(command: Command, saved: Path, tmp_path: Path):
    Image.fromarray(values(0)[:4, :3]).save(tmp_path / "small.png")
    out, words = tmp_path / "out", ["--factor", "2", "--noise-std", "0.2", "--steps", "3"]
    found = command("upscale", saved, tmp_path / "small.png", *words, "--out", out)
    assert found.code == 0, found.err
    small = torch.from_numpy(values(0)[None, None, :4, :3].copy()).float() / 127.5 - 1
    method = MMPS(tasks.average_pool(2), noise_std=0.2)
    wanted = tasks.solve(diffkit.load(saved), small, method, steps=3, seed=0, y=[3], progress=False)
    assert_written(out, ["small.png"], wanted.detach())


def test_invert_reports_how_well(command: Command, saved: Path, pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    found = command("invert", saved, pictures, "--classes", "dog", "--steps", "5", "--out", out)
    assert found.code == 0, found.err
    wanted = tasks.invert(diffkit.load(saved), as_data(), steps=5, y=[1, 1], progress=False)
    assert found.out.splitlines() == [
        *(f"{name}: {error:.2e}" for name, error in zip("ab", wanted.error.tolist(), strict=True)),
        str(wanted),
        f"{out}/: 2 PNG files",
        f"{out}_grid.png: a row for each picture",
        f"{out}/latents.npz: latents (2, 1, 8, 6), errors, names",
    ]
    assert_written(out, ["a.png", "b.png"], wanted.reconstruction)
    with np.load(out / "latents.npz") as arrays:
        assert np.array_equal(arrays["latents"], wanted.latent) and arrays["names"].tolist() == ["a", "b"]


def test_interpolate(command: Command, saved: Path, pictures: Path, tmp_path: Path):
    out, ends = tmp_path / "out", (pictures / "a.png", pictures / "b.png")
    found = command("interpolate", saved, *ends, "-n", "3", "--steps", "4", "--out", out)
    assert found.code == 0, found.err
    wanted = tasks.interpolate(diffkit.load(saved), *as_data(), 3, steps=4, y=3, progress=False)
    assert found.out.splitlines()[-1] == f"{out}_grid.png: from the first to the second"
    assert_written(out, ["between_00.png", "between_01.png", "between_02.png"], wanted)


def test_a_system_without_classes(command: Command, make_system: Callable, tmp_path: Path):
    Image.fromarray(values(0)[:4, :4]).save(tmp_path / "a.png")
    assert command("invert", make_system(), tmp_path / "a.png", "--steps", "3", "--out", tmp_path / "out").code == 0


REFUSED = [
    (("edit", "RUN", "PICTURES", "--strength", "1.5"), "strength must be > 0 and <= 1, got 1.5"),
    (
        ("edit", "RUN", "PICTURES", "--strength", "0.5", "--level", "3"),
        "give either --strength, a share of T, or --level, 1..T",
    ),
    (("edit", "RUN", "PICTURES", "-n", "0"), "n must be >= 1 and <= 10000, got 0"),
    (("edit", "RUN", "HERE/none.png"), "none.png is not there; name a picture, or a folder of them"),
    (("edit", "RUN", "PICTURES", "--classes", "cat,dog,owl"), "one for each of 2 pictures, got 3"),
    (("edit", "RUN", "PICTURES", "--out", "PICTURES"), "is not empty; name another folder; use --overwrite"),
    (
        ("inpaint", "RUN", "PICTURES", "--mask", "HERE/none.png"),
        "none.png is not a file; name a picture in black and white",
    ),
    (("inpaint", "RUN", "PICTURES", "--mask", "HERE/small.png"), "small.png is 4x4, it has to be 8x6"),
    (("inpaint", "RUN", "PICTURES", "--mask", "HERE/white.png"), "is white all over, so there is nothing to make"),
    (("upscale", "RUN", "PICTURES", "--factor", "2"), "a.png is 8x6, it has to be 4x3"),
    (("upscale", "RUN", "PICTURES", "--factor", "4"), "--factor 4 does not divide the sides (8, 6)"),
    (("invert", "RUN", "PICTURES", "--sampler", "ancestral"), "use --sampler heun or --sampler ddim"),
    (
        ("interpolate", "RUN", "PICTURES/a.png", "PICTURES/b.png", "--sampler", "ddim", "--sampler.eta", "1"),
        "use --sampler heun or --sampler ddim",
    ),
    (("interpolate", "RUN", "PICTURES", "PICTURES/a.png"), "is a folder; name one picture"),
    (("interpolate", "RUN", "PICTURES/a.png", "PICTURES/b.png", "-n", "1"), "n must be >= 2 and <= 10000, got 1"),
]


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=[f"{words[0]}-{text[:30]}" for words, text in REFUSED])
def test_refusals_come_before_any_work(
    refused: Refused, saved: Path, pictures: Path, tmp_path: Path, words: tuple[str, ...], text: str
):
    Image.fromarray(values(0)[:4, :4]).save(tmp_path / "small.png")
    Image.fromarray(np.full((8, 6), 255, np.uint8)).save(tmp_path / "white.png")
    places = {"RUN": saved, "PICTURES": pictures, "HERE": tmp_path}
    named = [str(places[word.split("/")[0]] / word.partition("/")[2]) if word.split("/")[0] in places else word
             for word in words]  # fmt: skip
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    assert text in refused(*named, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"data_shape": (2,), "bins": None}, "data of shape (2,)"),
        ({"bins": None}, "continuous data"),
        ({"bins": 65536}, "65536 values"),
    ],
)
def test_only_pictures(refused: Refused, make_system: Callable, pictures: Path, tmp_path: Path, parts: dict, kind: str):
    message = refused("edit", make_system(**parts), pictures, "--out", tmp_path / "out")
    assert message.endswith(f"makes {kind}, no 8-bit pictures; call diffkit.tasks in Python")


def test_a_system_that_enlarges_is_refused_with_advice(
    refused: Refused, make_system: Callable, pictures: Path, tmp_path: Path
):
    small = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 8, "attention_resolutions": ()}
    run = make_system(backbone=("unet", small | {"low_res_channels": 1}))
    message = refused("edit", run, pictures, "--out", tmp_path / "out")
    assert message.endswith("enlarges small pictures, and does nothing else; use diffkit sample --low-res")


def test_resizing_is_reported(command: Command, saved: Path, pictures: Path, tmp_path: Path):
    words = ["edit", saved, pictures, "--steps", "2", "--classes", "cat"]
    assert "resized" not in command(*words, "--out", tmp_path / "a").err
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(pictures / "c.png")
    Image.fromarray(np.zeros((8, 7), np.uint8)).save(pictures / "d.png")
    assert "resized and cropped to 8x6: c.png (9x6) and 1 more\n" in command(*words, "--out", tmp_path / "b").err


def test_both_ends_are_of_one_class(refused: Refused, tmp_path: Path):
    assert refused("interpolate", "RUN", "a.png", "b.png", "--classes", "cat,dog", "--out", tmp_path / "o") == (
        "--classes must name one class, which both ends are of, got cat,dog"
    )


def test_a_system_without_a_network(refused: Refused, tmp_path: Path):
    diffkit.compose(backbone=None, data_shape=(1, 8, 8)).save(tmp_path / "none")
    Image.fromarray(values(0)).save(tmp_path / "a.png")
    for words in (["sample"], ["edit", tmp_path / "a.png"], ["nll", "--data", "digits"]):
        assert "is a system without a network" in refused(words[0], tmp_path / "none", *words[1:])


def test_inversion_of_few_levels(command: Command, saved: Path, pictures: Path, tmp_path: Path):
    ends = (pictures / "a.png", pictures / "b.png")
    assert command("invert", saved, pictures, "--out", tmp_path / "a").code == 0
    assert command("interpolate", saved, *ends, "-n", "2", "--out", tmp_path / "b").code == 0
