"""The page of a run: everything is on it, nothing is fetched, and a real browser shows it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import diffkit
from diffkit.data.loading import load
from diffkit.errors import CheckpointError, MissingExtraError, OptionError
from diffkit.evaluation import evaluate, report
from diffkit.evaluation.samples import draw_samples
from diffkit.likelihood import score

pytest.importorskip("jinja2")
image = pytest.importorskip("PIL.Image")
VOID = {"meta", "link", "br", "img", "rect", "circle", "line", "path"}


class Page(HTMLParser):
    """Tags in balance, what they refer to, and all text."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.references, self.ids, self.text = [], [], [], set(), ""
        self.feed(self.source)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.references += [found[name] for name in ("src", "href", "data", "action") if name in found]
        self.ids |= {found["id"]} if "id" in found else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        sources = [r for r in self.references if r.startswith("data:image/png;base64,")]
        return [image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in sources]


def train(folder: Path, data, **composition) -> Path:
    torch.manual_seed(0)
    parts = dict(schedule="cosine", var="learned_range", loss="hybrid", num_steps=30) | composition
    options = dict(hidden=8, depth=1) | ({"num_classes": len(data.classes)} if data.classes else {})
    system = diffkit.compose(**parts, backbone=("mlp", options), data_shape=data.shape, bins=data.bins)
    diffkit.train(
        system, data, out=folder, steps=6, batch_size=8, log_every=2, save_every=3, ema=(0.9,), progress=False
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A class-conditional run with everything measured."""
    pytest.importorskip("sklearn")
    data = load("digits", split="train")
    folder = train(tmp_path_factory.mktemp("runs") / "a run & more", data)
    system = diffkit.load(folder)
    held_out = load("digits", split="held_out").batch(np.arange(20))
    x = diffkit.data.scale_images(held_out.images, 17)
    score(system, x, levels_per_example=12, y=held_out.conditions["y"]).save(folder / "nll.npz")
    pytest.importorskip("torchmetrics")
    samples = draw_samples(system, 40, steps=3, seed=0, progress=False, y=[i % 10 for i in range(40)])
    evaluate(samples, data, extractor="digits", kid_subsets=3).save(folder / "evaluation.json")
    return folder


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(report.write_report(run, n=20, steps=5))


def test_nothing_is_fetched(page):
    assert page.references and all(r.startswith(("data:", "#")) for r in page.references)
    assert {r[1:] for r in page.references if r.startswith("#")} <= page.ids
    assert "script" not in page.tags and "@import" not in page.source and "url(" not in page.source
    assert "default-src 'none'" in page.source


def test_everything_is_on_it(page, run):
    for word in (
        "a run & more", "cosine", "learned_range", "hybrid", "vb_weight = 0.001", "Nichol & Dhariwal 2021",
        "bits/dim", "over 20 examples", "FD (digits)", "kid_subsets 3", "digits train", "weight_decay=0.0",
        "diffkit.from_spec", "Share of the variance", "Terms of the bound", "Loss by level", "Learning rate",
        "The same seed after step 3.", "The same seed after step 6.", "A class to each column: 0, 1, 2",
        "From noise to samples", torch.__version__, '"parts"',
    ):  # fmt: skip
        assert word in page.text, word
    assert page.tags.count("svg") >= 9
    assert "Not scored yet" not in page.text and "Not measured yet" not in page.text


def test_pictures_are_samples(page, run):
    pictures = page.pictures()
    assert len(pictures) == 1 + 2 + 2  # samples, two checkpoints, two strips
    pixels = np.asarray(pictures[0])
    x = diffkit.load(run).sample(20, steps=5, seed=0, progress=False, y=[i % 10 for i in range(20)])
    tile = np.asarray(((x[0, 0].clamp(-1, 1) + 1) * 127.5).round().byte())
    np.testing.assert_array_equal(pixels[4 : 4 + 64 : 8, 4 : 4 + 64 : 8], tile)
    last, final = np.asarray(pictures[2]), pixels[: pictures[2].height - 4, : pictures[2].width]
    np.testing.assert_array_equal(last[:-4], final)  # the last checkpoint is the trained system


def test_the_system_is_left_as_it_was(run):
    before = (run / "model.safetensors").read_bytes(), sorted(p.name for p in (run / "checkpoints").iterdir())
    report.write_report(run, run.parent / "other.html", n=2, steps=2)
    assert before == ((run / "model.safetensors").read_bytes(), sorted(p.name for p in (run / "checkpoints").iterdir()))
    assert (run.parent / "other.html").is_file()


def test_a_term_of_almost_nothing_does_not_flatten_the_rest(run, tmp_path):
    """Level 1 of coarse bins costs 1e-15 bits; an axis down to it would hide everything else."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    with np.load(folder / "nll.npz") as kept:
        arrays = dict(kept)
    arrays["terms"][0], arrays["terms_error"][:] = 1e-15, 0
    np.savez(folder / "nll.npz", **arrays)
    found = Page(report.write_report(folder, n=0))
    start = found.source.index("Terms of the bound")
    ticks = re.findall(r">([\d.e-]+)</text>", found.source[start : found.source.index("</svg>", start)])
    assert len(ticks) > 4 and min(map(float, ticks)) > 1e-8


def test_what_users_write_is_escaped(run, tmp_path):
    folder = tmp_path / "<img src=x>"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["classes"] = ["<script>alert(1)</script>", *map(str, range(1, 10))]
    config["data"]["source"] = "'\"><script src=http://example.invalid></script>"
    config["train"]["engine"] = "torch"  # an option of runs before, which the code to repeat it leaves out
    (folder / "config.json").write_text(json.dumps(config))
    found = Page(report.write_report(folder, n=10, steps=2))
    assert "script" not in found.tags and "<script>alert(1)</script>" in found.text and "engine=" not in found.text
    assert all(r.startswith(("data:", "#")) for r in found.references)


def test_a_saved_system_that_was_never_trained(tmp_path):
    system = diffkit.compose(
        schedule="cosine", backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(3, 5, 4), num_steps=3
    )
    found = Page(report.write_report(system.save(tmp_path / "saved"), n=5))
    assert len(found.pictures()) == 3 and found.pictures()[0].mode == "RGB"
    for word in ("This folder holds a saved system", "Not scored yet", "Not measured yet", "3 steps, seed 0"):
        assert word in found.text
    nothing = Page(report.write_report(tmp_path / "saved", n=0))
    assert not nothing.pictures() and "None were drawn" in nothing.text


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 4, 4), (1, 2, 3, 2)])
def test_data_of_any_shape(tmp_path, shape):
    data = load(np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32))
    found = Page(report.write_report(train(tmp_path / "run", data, mean="v"), n=3, steps=2))
    if len(shape) == 1:
        assert "Samples of the trained system" in found.text and found.source.count("<circle") > 900
    elif len(shape) == 3:
        assert found.pictures()[0].mode == "L"  # two channels stand side by side
    else:
        assert "is not a picture" in found.text


def test_a_network_from_elsewhere_is_refused_as_loading_does(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        report.write_report(tmp_path / "nothing")


def test_damaged_results(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "nll.npz").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"nll\.npz is not a file of diffkit nll"):
        report.write_report(folder, n=0)
    (folder / "nll.npz").unlink()
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"evaluation\.json cannot be read as JSON"):
        report.write_report(folder, n=0)
    (folder / "evaluation.json").unlink()
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").write_text("{}")
    assert "The same seed" not in Page(report.write_report(folder, n=2, steps=2)).text  # one checkpoint left: no course
    with pytest.raises(OptionError, match="n must be >= 0, got -1"):
        report.write_report(folder, n=-1)


def test_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[report\]"'):
        report.write_report(run, n=0)


# ---- in a browser ----------------------------------------------------------------------------------------------------

_LOOK = """<script>
addEventListener("load", () => {
  const page = document.documentElement, all = s => [...document.querySelectorAll(s)];
  const wide = all("body *").filter(e => !e.closest("pre, .scroll, svg") &&
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName);
  const boxes = all("svg").map(e => e.getBoundingClientRect());
  top.document.title = "SEEN" + JSON.stringify({
    width: innerWidth, scroll: page.scrollWidth, wide,
    images: all("img").length, broken: all("img").filter(e => !e.naturalWidth || !e.complete).length,
    charts: boxes.length, flat: boxes.filter(b => b.width < 200 || b.height < 100).length,
    small: all("p, td, th, figcaption, li").filter(e => parseFloat(getComputedStyle(e).fontSize) < 13).length,
  }) + "NEES";
});</script>"""


def _chromium(url: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if program is None:
        pytest.skip("no Chromium to look with")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
    ]
    return subprocess.run(
        [program, *options, f"--user-data-dir={folder}", *words, url], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_a_browser_shows_it(page, run, tmp_path, width, dark):
    """No complaint on the console, every picture there, nothing cut off, at a desk and on a telephone."""
    words = [f"--window-size={width},900", *(["--force-dark-mode"] if dark else [])]
    shown = tmp_path / "page.html"
    shown.write_text(page.source)
    plain = _chromium(shown.as_uri(), tmp_path / "profile", *words, f"--screenshot={tmp_path / 'page.png'}")
    assert not re.findall(r".*CONSOLE.*", plain.stderr) and (tmp_path / "page.png").stat().st_size > 10_000
    # A page that runs no script cannot be asked; its copy can.
    asking = re.sub(r"<meta http-equiv=[^>]*>", "", page.source).replace("</head>", _LOOK + "</head>")
    # A window is at least 500 pixels wide, so the telephone is a frame in it.
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(asking)}"></iframe>'
    (tmp_path / "asking.html").write_text(f"<!DOCTYPE html><title>x</title><body style='margin:0'>{frame}")
    told = _chromium((tmp_path / "asking.html").as_uri(), tmp_path / "profile2", *words, "--dump-dom")
    seen = json.loads(html.unescape(re.search(r"<title>SEEN(.*)NEES", told.stdout)[1]))
    assert seen["width"] == width and seen["images"] == 5 and seen["broken"] == 0
    assert seen["charts"] >= 9 and seen["flat"] == 0 and seen["small"] == 0
    assert seen["scroll"] <= seen["width"] + 1 and not seen["wide"], seen
