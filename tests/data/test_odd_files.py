"""Every odd file that folders of images hold: its right pixels, or one line that names its fault."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

import diffkit.data
from diffkit.data.images import Form, decode_image, read_image
from diffkit.data.inspection import check_images
from diffkit.data.names import printable
from diffkit.errors import DataError

SIDE = 16
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 8
"""A slope from 0 to 240, the same turned or mirrored along its diagonal."""
GREY = RAMP.astype(np.uint8)
COLOUR = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 100)], -1)
DEEP = (RAMP * 257).astype(np.uint16)
VEIL = np.repeat([0, 255], SIDE // 2).astype(np.uint8)[:, None].repeat(SIDE, 1)
"""Opacity: the upper half is transparent."""

Made = dict[str, tuple[Callable[[Path], object], np.ndarray, int]]
"""Name -> how to make the file, its pixels (H, W) or (H, W, 3), and by how much they may differ."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, rows: bytes | None = None) -> bytes:
    """A grey 8-bit PNG from its chunks."""
    rows = b"".join(b"\0" + bytes(width) for _ in range(height)) if rows is None else rows
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(colour_type: int, *planes: np.ndarray) -> Callable[[Path], object]:
    """A PNG of 16 bits per channel, which Pillow reads but does not write; planes are of 8 bits."""
    pixels = (np.stack(planes, -1).astype(np.uint32) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, colour_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return content(b"\x89PNG\r\n\x1a\n" + header + data)


def content(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def image(pixels: np.ndarray = COLOUR, mode: str | None = None) -> Image.Image:
    made = Image.fromarray(pixels)
    return made if mode is None else made.convert(mode)


def saved(made: Image.Image, **options) -> Callable[[Path], object]:
    return lambda path: made.save(path, **options)


def alpha(pixels: np.ndarray) -> Image.Image:
    """With an upper half that is transparent, and of other colours than the background."""
    made = image(pixels).convert("RGBA" if pixels.ndim == 3 else "LA")
    made.putalpha(Image.fromarray(VEIL))
    return made


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(pixels[: SIDE // 2], 255), pixels[SIDE // 2 :]])


def with_colour(pixels: np.ndarray, colour) -> np.ndarray:
    """The ramp with a corner of one colour."""
    found = pixels.copy()
    found[:4, :4] = colour
    return found


def turned(how: int) -> Callable[[Path], object]:
    """A picture that is upright only after it is turned as its EXIF says."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = how
    return saved(image().transpose(undo[how]) if how in undo else image(), exif=exif)


def frames() -> list[Image.Image]:
    return [image(), image(255 - COLOUR), image(COLOUR // 2)]


def animated(**options) -> Callable[[Path], object]:
    return lambda path: frames()[0].save(path, save_all=True, append_images=frames()[1:], **options)


def palette(**options) -> Callable[[Path], object]:
    made = Image.fromarray(with_colour(GREY // 8, 31), "P")
    made.putpalette([v for i in range(31) for v in (i * 8, i * 8, i * 8)] + [250, 10, 10])
    return saved(made, **options)


def grey3(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, -1)


def broken_exif(path: Path) -> None:
    image().save(path, quality=100, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")


def lab(path: Path) -> None:
    Image.merge("LAB", [Image.fromarray((RAMP * 1.0).astype(np.uint8)), *[Image.new("L", (SIDE, SIDE), 128)] * 2]).save(
        path
    )


def lab_greys() -> np.ndarray:
    """CIE 1976 L* (as 0..255) to sRGB, for greys."""
    lightness = RAMP / 255 * 100
    y = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    return grey3(np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055) * 255)


RIGHT: Made = {
    "grey16.png": (saved(image(DEEP)), grey3(GREY), 1),
    "grey16.tif": (saved(image(DEEP)), grey3(GREY), 1),
    "grey16-big-endian.tif": (saved(Image.fromarray(DEEP.astype(">u2"))), grey3(GREY), 1),
    "rgb16.png": (deep_png(2, *COLOUR.transpose(2, 0, 1)), COLOUR, 0),
    "rgba16.png": (deep_png(6, *COLOUR.transpose(2, 0, 1), VEIL), on_white(COLOUR), 0),
    "la16.png": (deep_png(4, GREY, VEIL), grey3(on_white(GREY)), 0),
    "int32.tif": (saved(image(DEEP.astype(np.int32))), grey3(GREY), 1),
    "float.tif": (saved(image((RAMP / 255).astype(np.float32))), grey3(GREY), 1),
    **{f"orientation-{how}.png": (turned(how), COLOUR, 0) for how in range(1, 9)},
    "rgba.png": (saved(alpha(COLOUR)), on_white(COLOUR), 0),
    "rgba.tif": (saved(alpha(COLOUR)), on_white(COLOUR), 0),
    "rgba.webp": (saved(alpha(COLOUR), lossless=True), on_white(COLOUR), 0),
    "la.png": (saved(alpha(GREY)), grey3(on_white(GREY)), 0),
    "palette.png": (palette(), with_colour(grey3(GREY), (250, 10, 10)), 0),
    "palette-transparent.png": (palette(transparency=31), with_colour(grey3(GREY), (255, 255, 255)), 0),
    "palette-transparent.gif": (palette(transparency=31), with_colour(grey3(GREY), (255, 255, 255)), 0),
    "rgb-transparent.png": (
        saved(image(with_colour(COLOUR, (1, 2, 3))), transparency=(1, 2, 3)),
        with_colour(COLOUR, (255, 255, 255)),
        0,
    ),
    "grey-transparent.png": (
        saved(image(with_colour(GREY, 7)), transparency=7),
        grey3(with_colour(GREY, 255)),
        0,
    ),
    "animated.gif": (animated(), COLOUR, 8),
    "animated.png": (animated(), COLOUR, 0),
    "animated.webp": (animated(lossless=True), COLOUR, 0),
    "pages.tif": (animated(), COLOUR, 0),
    "cmyk.jpg": (saved(image(mode="CMYK"), quality=100, subsampling=0), COLOUR, 6),
    "cmyk.tif": (saved(image(mode="CMYK")), COLOUR, 2),
    "ycbcr.jpg": (saved(image(mode="YCbCr"), quality=100, subsampling=0), COLOUR, 6),
    "ycbcr.tif": (saved(image(mode="YCbCr")), COLOUR, 3),
    "lab.tif": (lab, lab_greys(), 4),
    "onebit.png": (saved(Image.fromarray(GREY > 100)), grey3((GREY > 100) * 255), 0),
    "onebit.tif": (saved(Image.fromarray(GREY > 100), compression="group4"), grey3((GREY > 100) * 255), 0),
    "plain.bmp": (saved(image()), COLOUR, 0),
    "progressive.jpg": (saved(image(), quality=100, subsampling=0, progressive=True), COLOUR, 6),
    "wrong-ending.png": (saved(image(), format="BMP"), COLOUR, 0),
    "UPPER.PNG": (saved(image()), COLOUR, 0),
    "broken-exif.jpg": (broken_exif, COLOUR, 6),
    "grüße 猫 🙂.png": (saved(image()), COLOUR, 0),
    "line\nbreak\x1b[31m.png": (saved(image()), COLOUR, 0),
    f"{'x' * 251}.png": (saved(image()), COLOUR, 0),
}
if features.check("avif"):
    RIGHT["plain.avif"] = (saved(image(), quality=100, subsampling="4:4:4"), COLOUR, 8)


def cut(made: Callable[[Path], object], share: float = 0.5) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        made(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
NO_IMAGE = "no image of a kind that is read"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.png": (cut(saved(image(NOISE))), "OSError: "),
    "truncated.jpg": (cut(saved(image(NOISE))), "OSError: image file is truncated"),
    "truncated.gif": (cut(saved(image(NOISE, "P")), 0.7), "OSError: "),
    "truncated.webp": (cut(saved(image(NOISE))), "no image|OSError"),
    "truncated.tif": (cut(saved(image(NOISE))), "no image|Error"),
    "bad-sum.png": (content(png(4, 4, chunk(b"tEXt", b"a\0b")[:-1] + b"?")), "SyntaxError: |no image"),
    "bad-data.png": (content(png(4, 4, rows=b"\0" * 3)), "OSError: "),
    "empty.jpg": (content(b""), NO_IMAGE),
    "text.png": (content(b"just words"), NO_IMAGE),
    "page.jpg": (content(b"<html><body>404</body></html>"), NO_IMAGE),
    "drawing.png": (content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), NO_IMAGE),
    "bomb.png": (content(png(20_000, 20_000, rows=b"")), "too large to be read safely: .*400000000 pixels"),
    "text-bomb.png": (
        content(png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20))))), "too large|no image"),
    "float-large.tif": (saved(image((RAMP * 3.0).astype(np.float32))), "floating-point pixels from 0 to 720, not in"),
    "float-nan.tif": (saved(image(np.full((4, 4), np.nan, np.float32))), "floating-point pixels from nan to nan"),
    "int32-large.tif": (saved(image(RAMP.astype(np.int32) * 100_000)), "integer pixels from .*, neither 8 nor 16"),
    "int32-negative.tif": (saved(image(-DEEP.astype(np.int32))), "integer pixels from -"),
}  # fmt: skip
LEFT_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes.txt": (content(b"words"), "no image by its name"),
    "no-ending": (saved(image(), format="PNG"), "no image by its name"),
    "._photo.png": (content(b"\0\5\x16\7"), "metadata of macOS about a file"),
    "gone.png": (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
    "itself.png": (lambda path: path.symlink_to(path.name), "a link to (itself|nothing)"),
    "loop": (lambda path: path.symlink_to(path.parent, target_is_directory=True), "a link to a folder that holds this"),
    "pipe.png": (lambda path: os.mkfifo(path), "no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_pixels(name, tmp_path):
    make, expected, tolerance = RIGHT[name]
    make(tmp_path / name)
    found = read_image(tmp_path / name, Form((SIDE, SIDE))).transpose(1, 2, 0)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("name", WRONG)
def test_one_line_that_names_the_fault(name, tmp_path):
    make, reason = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / name, Form((SIDE, SIDE)))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def not_utf8(folder: Path) -> Path:
    """A name that a Latin-1 system wrote."""
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    try:
        image().save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_random_damage_is_pixels_or_one_line(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 16)  # a damaged size may be large, and slow, but not wrong
    out = io.BytesIO()
    image(NOISE).save(out, kind)
    good, rng, outcomes = out.getvalue(), np.random.default_rng(0), set()
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            bad[rng.integers(min(len(bad), rng.choice([64, len(bad)])))] = rng.integers(256)
        del bad[rng.integers(len(bad)) if rng.random() < 0.2 else len(bad) :]
        try:
            found = decode_image(io.BytesIO(bytes(bad)), "the name", Form((SIDE, SIDE)))
            outcomes.add(found.shape)
        except DataError as error:
            outcomes.add(str(error).startswith("the name: ") and "\n" not in str(error))
    assert outcomes <= {True, (3, SIDE, SIDE)} and True in outcomes


@pytest.mark.parametrize("processes", [0, 2])
def test_all_of_them_in_one_folder(tmp_path, processes, capsys):
    """Each is an example or on one line; nothing is left for training to stumble over."""
    root = tmp_path / "odd"
    (root / "album.png").mkdir(parents=True)
    for name, (make, *_) in {**RIGHT, **WRONG, **LEFT_OUT}.items():
        make(root / name)
    not_utf8(root / "album.png")

    report = check_images(root, labels="prefix", size=(SIDE, SIDE), processes=processes)
    assert set(report.images) == {*map(printable, RIGHT), "album.png/caf\\xe9.png"}
    assert set(report.unreadable) == set(WRONG) and set(report.ignored) == set(LEFT_OUT)
    assert not report.good and "line\\nbreak\\x1b[31m.png" in report.images
    for name, (_, reason) in LEFT_OUT.items():
        assert np.any([word in report.ignored[name] for word in reason.replace("(itself|nothing)", "").split("|")])
    assert "\x1b" not in str(report) and max(map(len, str(report).splitlines())) < 400

    with pytest.raises(DataError, match=f"{len(WRONG)} of {len(RIGHT) + len(WRONG) + 1} files cannot be read"):
        diffkit.data.loading.load(root, size=SIDE)
    data = diffkit.data.loading.load(root, size=SIDE, on_error="skip", processes=processes, cache=tmp_path / "c.npy")
    assert len(data) == len(RIGHT) + 1 and len(data.skipped) == len(WRONG) + len(LEFT_OUT)
    err = capsys.readouterr().err
    assert err.count("skipped ") == len(WRONG) and "\x1b[31m" not in err
    images = data.batch(range(len(data))).images
    assert images.dtype == torch.uint8 and images.shape == (len(data), 3, SIDE, SIDE)
    for i, row in enumerate(data.rows):
        name = data.pictures.name(row)
        if name in RIGHT:
            _, expected, tolerance = RIGHT[name]
            assert np.abs(images[i].permute(1, 2, 0).numpy().astype(float) - expected).max() <= tolerance, name


def test_sixteen_bits_with_a_transparent_grey(tmp_path):
    """Pillow stores the grey of "transparent" separately from the image; it goes through the scaling, too."""
    deep = with_colour(DEEP, 1234)
    image(deep).save(tmp_path / "a.png")
    plain = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk(b"tRNS", struct.pack(">H", 1234)) + plain[33:])
    expected = with_colour(GREY, 255)
    for bits, scale in ((8, 1), (16, 257)):
        found = read_image(tmp_path / "a.png", Form((SIDE, SIDE), 1, bits))[0]
        assert np.abs(found.astype(float) - expected * float(scale)).max() <= 1, bits


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    image().save(tmp_path / "a" / "c.png")
    original = os.scandir

    def refusing(path):
        if Path(path).name == locked:
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    locked = "b"
    data = diffkit.data.loading.load(tmp_path / "a", size=8)
    assert data.skipped == (("b", "a folder that cannot be listed: Permission denied"),)
    locked = "a"
    with pytest.raises(DataError, match=r"a' cannot be listed: Permission denied"):
        diffkit.data.loading.load(tmp_path / "a", size=8)


def test_the_report_reports_what_will_be_done_to_the_images(tmp_path):
    image(DEEP).save(tmp_path / "x_deep.png")
    alpha(COLOUR).save(tmp_path / "x_alpha.png")
    animated()(tmp_path / "y_moving.gif")
    turned(6)(tmp_path / "y_turned.png")
    image(NOISE).save(tmp_path / "y_large.png")
    report = check_images(tmp_path, labels="prefix", size=(32, 32))
    assert report.good and report.classes == {"x": 2, "y": 3}
    text = str(report).splitlines()
    assert text[0] == f"{tmp_path}: 5 images, 0 image files that cannot be read, 0 other files"
    assert "  sizes    16x16 (4), 64x64 (1)" in text and "  formats  PNG (4), GIF (1)" in text
    for line in (
        "  1 of 16 bits, scaled to 8 unless --data.bits 16",
        "  1 with transparency, which is put onto the background",
        "  1 with more than one frame, of which the first is read",
        "  1 turned upright as their orientation says",
        "  4 smaller than 32x32, which are enlarged",
        "  2 classes: x 2, y 3",
    ):
        assert line in text, text
    assert check_images(tmp_path).classes is None
    assert "t.csv' do not exist" in str(check_images(tmp_path, labels="t.csv").fault)
