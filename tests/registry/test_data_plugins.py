"""Data sources and feature networks of other packages: listed, used by name in Python and by command, recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import diffkit
from diffkit.__main__ import main
from diffkit.data import as_data, load
from diffkit.errors import DataError, OptionError, PluginLoadError, UnknownComponentError
from diffkit.evaluation import ModuleExtractor, extractor_for
from diffkit.registry import refresh, registry

STRIPES = """
    from attrs import frozen
    import numpy as np
    from diffkit.data import Source, from_array
    from diffkit.options import integer

    @frozen(kw_only=True)
    class Stripes(Source):
        '''Stripes of two grey levels.

        Attributes:
            width: Pixels of a stripe.
        '''

        width: int = integer(2, ge=1, le=8)

        def open(self):
            rows = (np.arange(8) // self.width % 2 * 255).astype(np.uint8)
            return from_array(np.tile(rows, (6, 1, 8, 1)), source=f"stripes {self.width}")
"""
NETWORK = """
    import torch

    class Means(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    def halves():
        network = Means()
        return lambda images: network(images) / 2

    def broken():
        return 1 / 0
"""


@pytest.fixture
def packages(site):
    site.module("acme_stripes", STRIPES)
    site.module("acme_network", NETWORK)
    site.distribution("acme", {
        "data": {"stripes": "acme_stripes:Stripes"},
        "extractors": {"means": "acme_network:Means", "broken": "acme_network:broken", "gone": "acme_gone:Net"},
    })  # fmt: skip
    refresh()
    return site


def test_a_source_of_a_package_is_data_by_name(packages, tmp_path, monkeypatch):
    assert "stripes" in registry("data").names() and "data" in diffkit.describe("data")
    expected = np.asarray(load("stripes", width=4).images)
    for slot in (
        ("stripes", {"width": 4}),
        {"name": "stripes", "width": 4},
        registry("data").create("stripes", width=4),
    ):
        assert np.array_equal(np.asarray(as_data(slot).images), expected)
    assert load("acme:stripes").describe()["source"] == "stripes 2"
    with pytest.raises(OptionError, match="data 'stripes' has no option 'widht'; did you mean 'width'"):
        load("stripes", widht=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stripes").mkdir()
    with pytest.raises(DataError, match="is both a path here and a registered name"):
        load("stripes")
    assert load("acme:stripes").shape == (1, 8, 8)


def test_a_source_of_a_package_on_the_command_line(packages, tmp_path, capfd):
    words = [
        "--data",
        "stripes",
        "--data.width",
        "4",
        "--backbone",
        "mlp",
        "--num-steps",
        "4",
        "--steps",
        "1",
        "--schedule",
        "cosine",
    ]
    assert main(["train", *words, "--batch-size", "2", "--out", str(tmp_path / "run")]) in (0, None)
    config = (tmp_path / "run" / "config.toml").read_text()
    assert "stripes" in config and "width = 4" in config
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["source"] == "stripes 4"
    main(["list", "data"])
    assert "stripes" in capfd.readouterr().out


def test_a_feature_network_of_a_package(packages):
    images = torch.linspace(-1, 1, 32).view(2, 1, 4, 4)
    found = extractor_for("means")
    assert isinstance(found, ModuleExtractor) and found.name == "means"
    torch.testing.assert_close(found(images).pool, images.mean((2, 3)))
    assert extractor_for(("acme:means", {})).identity["weights_sha256"]
    with pytest.raises(PluginLoadError, match="extractor 'broken' cannot be made: ZeroDivisionError"):
        extractor_for("broken")
    with pytest.raises(PluginLoadError, match=r"cannot load extractor 'gone' of acme 1.0 \(acme_gone:Net\)"):
        extractor_for("gone")
    with pytest.raises(UnknownComponentError, match="did you mean 'means'"):
        extractor_for("mean")
