"""Samples against a reference, stored statistics, extractors by name, and the remarks on the numbers."""

from __future__ import annotations

import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import StandIn, StandInExtractor, images
from torch import nn

import diffkit
from diffkit.data.loading import load
from diffkit.errors import DataError, MissingExtraError, OptionError, UnknownComponentError
from diffkit.evaluation import (
    Extractor,
    Features,
    ModuleExtractor,
    Reference,
    evaluate,
    extract,
    extractor_for,
    load_reference,
)
from diffkit.evaluation.metrics import FeatureStatistics, frechet_distance

pytest.importorskip("torchmetrics")


@pytest.fixture
def stand_in():
    return ModuleExtractor(StandIn(), name="stand_in")


@pytest.fixture
def files(tmp_path):
    """Samples and reference as the published scripts write them."""
    paths = tmp_path / "samples_60x7x9x3.npz", tmp_path / "reference.npz"
    np.savez(paths[0], images(60, 1), np.zeros(60, np.int64))
    np.savez(paths[1], images(80, 2, shift=30))
    return paths


# ---- features --------------------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_the_batches(stand_in):
    data = load(images(11), layout="channels_last")
    whole, cut = extract(stand_in, data), extract(stand_in, data, batch_size=3)
    torch.testing.assert_close(whole.features.pool, cut.features.pool)
    torch.testing.assert_close(whole.features.spatial, cut.features.spatial)
    assert dict(whole.data) == dict(cut.data) and whole.data["count"] == 11 and len(whole.data["sha256"]) == 64
    fewer = extract(stand_in, data, count=5)
    assert len(fewer.features) == 5 and fewer.data["sha256"] != whole.data["sha256"]
    for count, text in ((12, "count=12 is more than the 11 examples in the data"), (1, "the data: 1 example has")):
        with pytest.raises(DataError, match=text):
            extract(stand_in, data, count=count)


def test_extractors_see_data_scaled_to_one():
    seen = []

    class Spy(StandInExtractor):
        def __call__(self, x):
            seen.append(x)
            return Features(x.flatten(1))

    extract(Spy(), load(np.array([[[[0, 255]]], [[[255, 0]]]], np.uint8)))
    assert seen[0].dtype == torch.float32 and seen[0].flatten().tolist() == [-1, 1, 1, -1]


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_all_metrics_of_files(files, stand_in):
    found = evaluate(*files, extractor=stand_in)
    names = ["fid", "sfid", "kid", "inception_score", "precision", "recall"]
    assert [value.name for value in found.values] == names
    assert all(np.isfinite(found[name]) for name in names)
    fake, real = (extract(stand_in, load(path)).features for path in files)
    assert found["fid"] == pytest.approx(
        frechet_distance(FeatureStatistics.of(real.pool), FeatureStatistics.of(fake.pool))
    )
    assert found["sfid"] == pytest.approx(
        frechet_distance(FeatureStatistics.of(real.spatial), FeatureStatistics.of(fake.spatial))
    )
    with pytest.raises(KeyError):
        found["fvd"]


def test_equal_sets_are_at_distance_zero(stand_in):
    x = images(50)
    data = load(x, layout="channels_last")
    found = evaluate(data, data, extractor=stand_in)
    assert abs(found["fid"]) < 1e-4 and found["precision"] == found["recall"] == 1
    shifted = evaluate(load(images(50, shift=50), layout="channels_last"), data, extractor=stand_in)
    assert shifted["fid"] > 100 * abs(found["fid"])


def test_settings_are_printed_with_the_numbers(files, stand_in, tmp_path):
    found = evaluate(*files, extractor=stand_in, count=50, metrics=["kid", "fid"], seed=3)
    text = str(found)
    assert "FD (stand_in)" in text and "KD (stand_in)" in text and "+-" in text
    assert f"50 from {files[0]}" in text and f"80 from {files[1]}" in text
    assert "resize none" in text and "weights_sha256" in text
    assert "kid_subsets 100" in text and "seed 3" in text and "kid_subset_size 50" in text and "neighbours" not in text
    assert "note: FID is biased upwards by few samples; 50 is less" in text
    kept = json.loads(found.save(tmp_path / "metrics.json").read_text())
    assert kept["values"][1]["value"] == found["fid"] and kept["settings"]["samples"]["count"] == 50
    assert kept["settings"]["versions"]["torch"] == torch.__version__
    assert len(kept["settings"]["reference"]["sha256"]) == 64


def test_a_folder_of_images(files, stand_in, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(images(60, 1)):
        pillow.fromarray(image).save(folder / f"{i:03d}.png")
    from_folder = evaluate(load(folder, size=(7, 9)), files[1], extractor=stand_in)
    from_file = evaluate(*files, extractor=stand_in)
    assert from_folder["fid"] == pytest.approx(from_file["fid"])
    assert from_folder.settings["samples"]["sha256"] == from_file.settings["samples"]["sha256"]


def test_only_what_can_be_had(files):
    class Plain(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    found = evaluate(*files, extractor=Plain())
    assert [value.name for value in found.values] == ["fid", "kid", "precision", "recall"]
    with pytest.raises(
        OptionError,
        match="sfid needs spatial features, which 'inception' gives; inception_score needs an extractor with class",
    ):
        evaluate(*files, extractor=Plain(), metrics=["sfid", "inception_score"])


def test_wrong_words(files, stand_in):
    with pytest.raises(OptionError, match=re.escape("no metric named 'fidd'; did you mean 'fid'? (known: fid, sfid")):
        evaluate(*files, extractor=stand_in, metrics=["fidd"])
    with pytest.raises(OptionError, match=r"metrics must be some of fid, .*, got"):
        evaluate(*files, extractor=stand_in, metrics=[])
    with pytest.raises(OptionError, match="neighbours must be >= 1, got 0"):
        evaluate(*files, extractor=stand_in, neighbours=0)
    with pytest.raises(OptionError, match="kid_subsets must be >= 1 and <= 100000, got 1000000000"):
        evaluate(*files, extractor=stand_in, kid_subsets=10**9)


@pytest.mark.parametrize(("scale", "remedy"), [(1, "scale them by 2 * x - 1"), (255, "x / 127.5 - 1")])
def test_images_in_another_range_are_remarked_on(tmp_path, stand_in, scale, remedy):
    values = np.random.default_rng(0).random((24, 8, 8, 3), dtype=np.float32)
    np.savez(tmp_path / "right.npz", 2 * values - 1)
    np.savez(tmp_path / "wrong.npz", scale * values)
    for pair, remarked in ((("wrong", "right"), 1), (("right", "right"), 0), (("wrong", "wrong"), 2)):
        files = [tmp_path / f"{name}.npz" for name in pair]
        found = evaluate(files[0], reference=files[1], extractor=stand_in, metrics=["fid"])
        assert str(found).count(remedy) == remarked


# ---- reference statistics --------------------------------------------------------------------------------------------


def test_stored_statistics_give_the_same_numbers(files, stand_in, tmp_path):
    direct = evaluate(*files, extractor=stand_in)
    reference = Reference.build(load(files[1]), stand_in)
    path = reference.save(tmp_path / "stats.npz")
    for kept in (reference, path, str(path)):
        found = evaluate(files[0], kept, extractor=stand_in)
        for value in direct.values:
            assert found[value.name] == pytest.approx(value.value, rel=1e-9)
    again = load_reference(path)
    assert again.meta["data"]["count"] == 80 and again.meta["extractor"]["resize"] == "none"
    assert again.meta["data"]["sha256"] == direct.settings["reference"]["sha256"]


def test_statistics_without_features(files, stand_in, tmp_path):
    path = Reference.build(load(files[1]), stand_in, keep=0).save(tmp_path / "stats.npz")
    found = evaluate(files[0], path, extractor=stand_in)
    assert [value.name for value in found.values] == ["fid", "sfid", "inception_score"]
    with pytest.raises(OptionError, match="kid needs a reference with features, not statistics only"):
        evaluate(files[0], path, extractor=stand_in, metrics=["kid"])
    some = Reference.build(load(files[1]), stand_in, keep=30)
    assert some.features.shape == (30, 6) and some.meta["kept"] == 30


def test_statistics_of_another_extractor_are_refused(files, stand_in, tmp_path):
    path = Reference.build(load(files[1]), stand_in).save(tmp_path / "stats.npz")
    other = ModuleExtractor(StandIn(seed=1), name="stand_in", size=8)
    with pytest.raises(DataError) as caught:
        evaluate(files[0], path, extractor=other)
    text = str(caught.value)
    assert "made by another extractor" in text and "weights_sha256=" in text and "resize='none', now '8x8" in text


def test_published_statistics(files, tmp_path):
    """mu and sigma only, as the published reference batches have them."""

    class Published(StandInExtractor):
        name = "inception"

    reference = Reference.build(load(files[1]), Published())
    arrays = dict(
        mu=reference.pool.mean, sigma=reference.pool.covariance, mu_s=reference.spatial.mean,
        sigma_s=reference.spatial.covariance, arr_0=images(3),
    )  # fmt: skip
    np.savez(tmp_path / "published.npz", **arrays)
    found = evaluate(files[0], tmp_path / "published.npz", extractor=Published())
    direct = evaluate(files[0], reference, extractor=Published())
    assert found["fid"] == pytest.approx(direct["fid"]) and found["sfid"] == pytest.approx(direct["sfid"])
    assert found.values[0].label == "FID" and "taken for the published inception" in str(found)
    with pytest.raises(DataError, match="taken for the published one; use extractor 'inception', not 'stand_in'"):
        evaluate(files[0], tmp_path / "published.npz", extractor=StandInExtractor())


def test_damaged_statistics(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        load_reference(tmp_path / "nothing.npz")
    np.savez(tmp_path / "images.npz", images(2))
    with pytest.raises(DataError, match="holds no statistics: it has no array 'mu'"):
        load_reference(tmp_path / "images.npz")
    for mu, sigma in ((np.zeros(2), np.zeros((3, 3))), (np.array([np.nan]), np.ones((1, 1)))):
        np.savez(tmp_path / "bad.npz", mu=mu, sigma=sigma)
        with pytest.raises(DataError, match="cannot be read as statistics"):
            load_reference(tmp_path / "bad.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4torn")
    with pytest.raises(DataError, match=r"cannot be read as statistics: it is not an \.npz file$"):
        load_reference(tmp_path / "torn.npz")
    np.savez(tmp_path / "new.npz", mu=np.zeros(1), sigma=np.ones((1, 1)), meta=np.array('{"format": 99}'))
    with pytest.raises(DataError, match="has format 99, this diffkit reads up to 1; upgrade it"):
        load_reference(tmp_path / "new.npz")


# ---- extractors ------------------------------------------------------------------------------------------------------


def test_digits():
    pytest.importorskip("sklearn")
    network = extractor_for("digits")
    assert isinstance(network, Extractor) and network is not extractor_for("digits")
    held_out, rest = load("digits", split="held_out"), load("digits", split="train")
    near = evaluate(held_out, rest, extractor="digits")
    noise = np.random.default_rng(0).integers(0, 17, (299, 1, 8, 8))
    far = evaluate(load(noise, bins=17), rest, extractor="digits")
    assert near["fid"] < 1 < 50 < far["fid"] and near["precision"] > 0.7 > far["precision"]
    assert near["inception_score"] > 9 and far["inception_score"] < 9
    with pytest.raises(DataError, match=r"reads images of shape \(1, 8, 8\), got \(3, 7, 9\)"):
        evaluate(load(images(4), layout="channels_last"), rest, extractor="digits")


def test_the_digits_network_is_good_and_always_the_same():
    pytest.importorskip("sklearn")
    from diffkit.evaluation._digits import digit_examples, trained_digits_network

    x, y = digit_examples("held_out")
    torch.manual_seed(5)
    first = trained_digits_network()
    trained_digits_network.cache_clear()
    torch.manual_seed(6)
    second = trained_digits_network()
    assert torch.equal(first(x)[0], second(x)[0])
    assert (second(x)[1].argmax(1) == y).double().mean() > 0.95


def test_by_module_path(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "own", types.SimpleNamespace(
        Made=StandInExtractor, made=StandInExtractor(), network=StandIn(), build=lambda: StandIn(), number=3
    ))  # fmt: skip
    expected = evaluate(*files, extractor=StandInExtractor())["fid"]
    for name in ("own:Made", "own:made", "own:network", "own:build"):
        assert evaluate(*files, extractor=name)["fid"] == pytest.approx(expected)
    assert extractor_for("own:network").name == "own:network"
    with pytest.raises(OptionError, match="extractor 'own:number' is int, which has no name, identity and call"):
        extractor_for("own:number")
    with pytest.raises(OptionError, match="extractor 'own:nothing' cannot be imported"):
        extractor_for("own:nothing")
    with pytest.raises(UnknownComponentError, match=re.escape("no extractor named 'digit'; did you mean 'digits'?")):
        extractor_for("digit")
    with pytest.raises(OptionError, match="weights are for extractor 'inception', not 'digits'"):
        extractor_for("digits", weights="x.pth")


def test_what_a_module_is_given():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    grey = torch.linspace(-1, 1, 2 * 16).view(2, 1, 4, 4)
    ModuleExtractor(Spy())(grey)
    assert torch.equal(seen[-1], grey)
    made = ModuleExtractor(Spy(), size=6, channels=3, mean=(0.5, 0.5, 0.25), std=(0.5, 0.5, 0.25), name="spy")
    assert made(grey).pool.shape == (2, 108) and seen[-1].shape == (2, 3, 6, 6)
    flat = ModuleExtractor(Spy(), channels=3, mean=(0.5, 0.5, 0.25), std=(0.5, 0.5, 0.25))
    flat(grey)
    torch.testing.assert_close(seen[-1][:, :1], grey)
    torch.testing.assert_close(seen[-1][:, 2:], ((grey + 1) / 2 - 0.25) / 0.25)
    assert made.identity["resize"] == "6x6 bicubic, antialiased" and made.identity["class"].endswith("Spy")
    with pytest.raises(DataError, match="spy reads 3 channels, the images have 2"):
        made(torch.zeros(1, 2, 4, 4))
    with pytest.raises(OptionError, match="mean and std go together"):
        ModuleExtractor(Spy(), mean=(0.5,))


# ---- the published network, by a stand-in of its library -------------------------------------------------------------


class Library(nn.Module):
    """What diffkit uses of torch-fidelity's network: the constructor, one inner layer, and the call."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 9, 1, bias=False)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        maps = self.Mixed_6d.branch1x1(x.float())
        return maps.mean((2, 3)).repeat(1, 2), maps.amax((2, 3))


@pytest.fixture
def fidelity(monkeypatch):
    library = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    library.FeatureExtractorInceptionV3 = Library
    library.URL_INCEPTION_V3 = "https://example.invalid/weights-inception-2015-12-05-6726825d.pth"
    package = types.ModuleType("torch_fidelity")
    package.__version__, package.feature_extractor_inceptionv3 = "0.4.0", library
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, library.__name__, library)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"Mixed_6d.branch1x1.weight": torch.randn(9, 3, 1, 1)}, path)
    return path


def test_inception_from_a_file(fidelity, weights, files):
    found = evaluate(*files, weights=weights)
    assert [v.label for v in found.values] == ["FID", "sFID", "KID", "IS", "Precision", "Recall"]
    assert found.settings["extractor"]["resize"].startswith("299x299 bilinear")
    network = extractor_for("inception", weights=weights)
    seen = network(torch.rand(2, 1, 5, 4) * 2 - 1)
    assert seen.pool.shape == (2, 18) and seen.spatial.shape == (2, 7 * 20) and seen.logits.shape == (2, 9)
    with pytest.raises(DataError, match=r"inception reads images of 1 or 3 channels, got shape \(2, 4, 4\)"):
        network(torch.zeros(1, 2, 4, 4))


def test_eight_bit_images_reach_inception_unchanged(fidelity, weights):
    network = extractor_for("inception", weights=weights)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    seen = []
    network._network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(diffkit.data.scale_images(pixels, 256))
    assert torch.equal(seen[0], pixels)


def test_inception_weights_are_fetched_once_and_checked(fidelity, weights, monkeypatch):
    calls = []

    def fetch(url, **how):
        calls.append((url, how))
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    made = extractor_for("inception")
    assert calls == [(calls[0][0], dict(map_location="cpu", check_hash=True, weights_only=True))]
    assert made.identity == extractor_for("inception", weights=weights).identity


def test_what_to_do_offline(fidelity, monkeypatch, tmp_path):
    def fetch(url, **how):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(DataError) as caught:
        extractor_for("inception")
    text = str(caught.value)
    assert "cannot be fetched: no route to host" in text and "without network access, put weights-inception" in text
    assert "checkpoints, or pass its path as weights, or choose another extractor" in text
    (tmp_path / "torn.pth").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"torn\.pth' cannot be read"):
        extractor_for("inception", weights=tmp_path / "torn.pth")


def test_inception_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[inception\]"'):
        extractor_for("inception")


@pytest.mark.slow
def test_the_real_inception_network(tmp_path, monkeypatch):
    """With random weights, since the real ones are fetched; skipped where torchvision does not fit torch."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as library
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
    blank = type("Blank", (library.FeatureExtractorInceptionV3,), {"load_state_dict": lambda *_: None})
    torch.save({}, tmp_path / "empty.pth")
    network = blank("blank", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    torch.save(network.state_dict(), tmp_path / "random.pth")
    found = extractor_for("inception", weights=tmp_path / "random.pth")(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert [tuple(part.shape) for part in (found.pool, found.spatial, found.logits)] == [
        (2, 2048),
        (2, 2023),
        (2, 1008),
    ]
    assert found.pool.isfinite().all()


def test_advice_about_samples_is_taken(tmp_path, stand_in):
    """What an error of `evaluate` advises is an option of it."""
    rng, real = np.random.default_rng(0), load(images(30), layout="channels_last")

    def folder(name, sides):
        root = tmp_path / name
        root.mkdir()
        for i, side in enumerate(sides):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(root / f"{i}.png")
        return root

    side = real.shape[-1]
    broken, mixed, one = folder("broken", [side] * 5), folder("mixed", [side, side + 1] * 3), folder("one", [side])
    (broken / "z.png").write_bytes(b"\x89PNG")
    for samples, option, advice in (
        (broken, {"on_error": "skip"}, "on_error='skip'"),
        (mixed, {"size": side}, f"size={side}"),
    ):
        with pytest.raises(DataError, match=re.escape(advice)):
            evaluate(samples, real, extractor=stand_in, metrics=["fid"])
        assert evaluate(samples, real, extractor=stand_in, metrics=["fid"], **option).settings["samples"]["count"] > 4
        swapped = evaluate(real, samples, extractor=stand_in, metrics=["fid"], **option)
        assert swapped.settings["reference"]["count"] > 4
    np.save(tmp_path / "s.npy", rng.random((20, 9, 9, 9), dtype=np.float32))
    with pytest.raises(DataError, match="layout='channels_first'"):
        evaluate(tmp_path / "s.npy", real, extractor=stand_in, metrics=["fid"])
    for layout in ("channels_first", "channels_last"):
        found = evaluate(tmp_path / "s.npy", tmp_path / "s.npy", extractor=Flat(), metrics=["fid"], layout=layout)
        assert abs(found["fid"]) < 1e-3
    with pytest.raises(DataError, match="the samples: 1 example has no spread to compare"):
        evaluate(one, real, extractor=stand_in, metrics=["fid"])
    with pytest.raises(DataError, match="the reference: 1 example has no spread"):
        evaluate(real, one, extractor=stand_in, metrics=["fid"])


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)
