"""Image files to arrays: the published pipeline's numbers where it is right, and the odd files where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffkit.data
from diffkit.data.folder import list_images
from diffkit.data.images import Form, read_image
from diffkit.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"
STEP = 1 / 127.5
"""One grey level: Pillow's resampling moves by this from version to version."""


def save(path: Path, pixels, mode: str | None = None, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    (image if mode is None else image.convert(mode)).save(path, **more)
    return path


def noise(height: int = 20, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("case", range(6))
def test_resize_and_crop_equal_the_published_pipeline(case, tmp_path):
    with np.load(GOLDEN / "data_pipeline.npz") as stored:
        source, size = stored[f"case{case}__source_uint8_hwc"], int(stored[f"case{case}__resolution"])
        expected = stored[f"case{case}__out_chw"]
    data = diffkit.data.loading.load(save(tmp_path / "a.png", source).parent, size=size)
    found = diffkit.data.scale_images(data.batch([0]).images, data.bins)[0].numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= STEP * 1.001
    assert (found != expected).mean() < 0.01


def test_eight_bits_become_values_from_minus_one_to_one():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(diffkit.data.scale_images(every, 256), every.float() / 127.5 - 1)
    assert diffkit.data.scale_images(torch.tensor([0, 8, 16], dtype=torch.uint8), 17).tolist() == [-1, 0, 1]
    kept = torch.tensor([0.3, -2.0])
    assert torch.equal(diffkit.data.scale_images(kept, None), kept)


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (9, 6), (30, 40), (200, 150)])
@pytest.mark.parametrize("source", [(100, 150), (150, 100), (120, 60), (101, 97)])
def test_any_size_is_covered_and_nothing_is_stretched(size, source, tmp_path):
    """A slope of 45 degrees stays one, whatever the output shape."""
    height, width = source
    slope = (np.arange(height)[:, None] + np.arange(width)).astype(np.uint8)
    found = read_image(save(tmp_path / "a.png", slope), Form(size, 1))
    assert found.shape == (1, *size)
    inner = found[0, 1:-1, 1:-1]
    down, across = np.diff(inner.astype(float), axis=0).mean(), np.diff(inner.astype(float), axis=1).mean()
    assert down == pytest.approx(across, rel=0.2, abs=0.1)  # sizes are rounded to pixels


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    for suffix in ("png", "tif"):
        path = save(tmp_path / f"a.{suffix}", ramp.astype(np.uint16))
        found = read_image(path, Form((32, 32), 1))[0]
        assert np.abs(found - ramp / 257).max() <= 0.51
        assert np.array_equal(read_image(path, Form((32, 32), 3))[2], found)


def test_floating_point_from_0_to_1_is_scaled_and_other_is_refused(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    found = read_image(save(tmp_path / "a.tif", ramp), Form((8, 8), 1))[0]
    assert np.abs(found - ramp * 255).max() <= 0.5 + 1e-4
    with pytest.raises(DataError, match=r"b\.tif: ValueError: floating-point pixels from 0 to 3, not in \[0, 1\]"):
        read_image(save(tmp_path / "b.tif", ramp * 3), Form((8, 8), 1))
    with pytest.raises(DataError, match=r"c\.tif: ValueError: integer pixels from 0 to 100000, neither 8 nor 16 bits"):
        read_image(save(tmp_path / "c.tif", np.linspace(0, 1e5, 64).reshape(8, 8).astype(np.int32)), Form((8, 8), 1))


def test_orientation_is_applied(tmp_path):
    pixels = noise(20, 30)
    turned = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    found = read_image(save(tmp_path / "a.png", turned, exif=exif), Form((30, 20), 3))
    assert np.array_equal(found.transpose(1, 2, 0), np.rot90(pixels, -1))


@pytest.mark.parametrize("background", [255, 0, 100])
def test_transparency_is_put_onto_the_background(background, tmp_path):
    pixels = noise(8, 8, 4)
    pixels[:4, :, 3], pixels[4:, :, 3] = 0, 255
    found = read_image(save(tmp_path / "a.png", pixels), Form((8, 8), 3, background=background))
    assert (found[:, :4] == background).all()
    assert np.array_equal(found[:, 4:], pixels[4:, :, :3].transpose(2, 0, 1))
    grey = save(tmp_path / "b.png", Image.fromarray(pixels).convert("LA"))
    assert (read_image(grey, Form((8, 8), 1, background=background))[:, :4] == background).all()
    palette = Image.fromarray(np.tile([0, 1], (8, 4)).astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    found = read_image(save(tmp_path / "c.png", palette, transparency=0), Form((8, 8), 3, background=background))
    assert (found[:, :, ::2] == background).all() and (found[:, 0, 1] == [40, 50, 60]).all()
    assert np.array_equal(read_image(tmp_path / "a.png", Form((8, 8), 4)), pixels.transpose(2, 0, 1))


def test_palettes_are_converted_before_resizing(tmp_path):
    """improved-diffusion resizes palette numbers, which makes unrelated colours."""
    palette = Image.fromarray(np.tile([0, 200], (16, 8)).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0] + [0] * 597 + [0, 0, 255] + [0] * (768 - 603))
    found = read_image(save(tmp_path / "a.png", palette), Form((8, 8), 3))
    assert np.abs(found[0].astype(int) - 128).max() <= 2 and np.abs(found[2].astype(int) - 128).max() <= 2
    assert found[1].max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "YCbCr"])
def test_colour_modes(mode, tmp_path):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    path = save(tmp_path / f"a.{suffix}", np.full((8, 8, 3), 255, np.uint8), mode)
    for channels in (1, 3, 4):
        found = read_image(path, Form((8, 8), channels))
        assert found.shape == (channels, 8, 8) and found.dtype == np.uint8
        assert found.min() >= 250


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", Form((8, 8), 1)).max() <= 1


# ---- folders -------------------------------------------------------------------------------------------------------


def odd_folder(root: Path) -> Path:
    """Six good images and every kind of file that is none."""
    for i in range(6):
        save(root / f"{'cat' if i % 2 else 'dog'}_{i}.png", noise(seed=i))
    good = (root / "cat_1.png").read_bytes()
    (root / "cut.png").write_bytes(good[: len(good) // 2])
    (root / "flipped.png").write_bytes(good[:60] + bytes([good[60] ^ 255]) + good[61:])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.png").write_text("<html>not found</html>")
    (root / "notes.txt").write_text("not an image")
    (root / "._cat_1.png").write_bytes(b"\0\5\x16\7")
    (root / "gone.png").symlink_to(root / "nowhere")
    (root / "album.png").mkdir()
    save(root / "album.png" / "in_album.png", noise(seed=9))
    (root / "loop").symlink_to(root, target_is_directory=True)
    return root


def test_unreadable_files_are_all_named_before_training(tmp_path):
    with pytest.raises(DataError) as caught:
        diffkit.data.loading.load(odd_folder(tmp_path), size=8)
    text = str(caught.value)
    assert text.startswith("4 of 11 files cannot be read; remove them; use on_error='skip'")
    for name in ("cut.png", "flipped.png", "empty.jpg", "page.png"):
        assert str(tmp_path / name) in text


def test_unreadable_files_are_skipped_with_a_line_for_each(tmp_path, capsys):
    data = diffkit.data.loading.load(odd_folder(tmp_path), size=8, on_error="skip", labels="prefix")
    assert len(data) == 7 and data.classes == ("cat", "dog", "in")
    assert {name for name, _ in data.skipped} == {
        "cut.png", "flipped.png", "empty.jpg", "page.png", "notes.txt", "._cat_1.png", "gone.png", "loop",
    }  # fmt: skip
    assert capsys.readouterr().err.count("skipped ") == 4
    assert data.describe()["class_counts"] == [3, 3, 1] and data.describe()["skipped"] == 8
    assert data.batch(range(7)).images.shape == (7, 3, 8, 8)


def test_listing_and_labels_equal_the_published_ones(tmp_path):
    facts = json.loads((GOLDEN / "data_listing.json").read_text())
    for name in [*facts["listed"], "noext"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(8, 8)).save(path, format="GIF" if path.suffix == ".gif" else "PNG")
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path).files] == facts["listed"]
    data = diffkit.data.loading.load(tmp_path, size=8, labels="prefix")
    assert {name: i for i, name in enumerate(data.classes)} == facts["class_to_index"]
    assert data.labels.tolist() == facts["labels"]


def test_labels_from_folders(tmp_path):
    for name in ("b/x/1.png", "b/2.png", "a/3.png", "c/4.webp"):
        save(tmp_path / name, noise(8, 8, seed=len(name)))
    data = diffkit.data.loading.load(str(tmp_path), size=(4, 6), labels="folders", channels=1)
    assert data.shape == (1, 4, 6) and data.bins == 256 and data.classes == ("a", "b", "c")
    assert data.batch(range(4)).conditions["y"].tolist() == [0, 1, 1, 2]
    image, conditions = data[3]
    assert image.shape == (1, 4, 6) and conditions == {"y": 2}
    save(tmp_path / "loose.png", noise())
    with pytest.raises(
        DataError, match=r"labels='folders' needs every image in a folder; 1 are in none below .*loose\.png"
    ):
        diffkit.data.loading.load(tmp_path, size=8, labels="folders")


def test_images_that_do_not_fit_into_memory_are_read_at_every_use(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(seed=i))
    kept = diffkit.data.loading.load(tmp_path, size=8)
    monkeypatch.setattr("diffkit.data.image_data.IN_MEMORY", 0)
    read = diffkit.data.loading.load(tmp_path, size=8)
    assert kept.pixels is not None and read.pixels is None
    assert torch.equal(kept.batch([2, 0]).images, read.batch([2, 0]).images)
    assert torch.equal(torch.as_tensor(kept[1][0]), torch.as_tensor(read[1][0]))


@pytest.mark.parametrize("name", ["grüße 猫.png", "with space.png", "x" * 200 + ".png"])
def test_names_of_all_kinds(name, tmp_path):
    save(tmp_path / name, noise())
    assert len(diffkit.data.loading.load(tmp_path, size=8)) == 1


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    save(tmp_path / "big.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"big\.png: too large to be read safely"):
        diffkit.data.loading.load(tmp_path, size=8)


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"holds no image \(0 other files\); images end in \.avif"):
        diffkit.data.loading.load(tmp_path, size=8)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="1 other files"):
        diffkit.data.loading.load(tmp_path, size=8)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no readable image \(1 unreadable\); the first: .*a\.png: no image"):
        diffkit.data.loading.load(tmp_path, size=8, on_error="skip")
    with pytest.raises(DataError, match="is not there"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file, not a folder"):
        list_images(tmp_path / "a.txt")
