"""docs/data.md: its commands run, and its options and defaults are those of the sources."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import attrs
import lmdb
import numpy as np
import pytest
from PIL import Image
from test_data_archives import COLOURS, encoded, members, packed

from diffkit.__main__ import main
from diffkit.data import Folder, NumpyFile, Zip
from diffkit.data.sources._images import ImageSource
from diffkit.registry import registry

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_commands_and_code_run_and_print_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(6):
        pixels = np.full((24, 32, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(f"photos/{'cat' if i % 2 else 'dog'}_{i}.png")
    packed(Path("cifar-10-python.tar.gz"), members("python"))
    with lmdb.open("bedroom_train_lmdb", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for i, colour in enumerate(COLOURS):
            transaction.put(f"{i:040x}".encode(), encoded(colour))
    for code in blocks("python"):
        exec(code, {"__name__": "docs"})
    printed = []
    for line in "".join(blocks("bash")).splitlines():
        capsys.readouterr()
        assert main(shlex.split(line)[1:]) == 0, line
        printed.append(capsys.readouterr().out)
    assert printed[0] == blocks("text")[0]
    assert (tmp_path / "lsun_train" / "bedroom_00000.png").exists()


def options(words: str) -> dict[str, str]:
    """`size` (64), `labels` (false) -> names and defaults; an option without one must be given or has none."""
    return dict(re.findall(r"`(\w+)`(?: \(([^)]*)\))?", words))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("a folder", Folder),
        ("`FILE.npz`", NumpyFile),
        ("`FILE.zip`", Zip),
        *((f"`{n}`", registry("data").get(n)) for n in registry("data").built_in_names()),
    ],
)
def test_the_table_of_sources_is_complete(row, kind):
    cells = next(line for line in TEXT.splitlines() if line.startswith(f"| {row} |")).split(" | ")
    shown = options(cells[-1].rstrip(" |"))
    shared = {field.name for field in attrs.fields(ImageSource)} if issubclass(kind, ImageSource) else set()
    fields = {field.name: field for field in attrs.fields(kind) if field.name not in {*shared, "path"}}
    assert set(shown) == set(fields)
    for name, default in shown.items():
        real = fields[name].default
        if isinstance(real, bool | str) or (isinstance(real, int) and real is not None):
            assert default == str(real).lower(), name
        elif isinstance(real, tuple):
            assert default == ",".join(map(str, real)), name


def test_the_table_of_shared_options_is_complete():
    rows = [line.split(" | ") for line in TEXT.splitlines() if line.startswith("| `")]
    shown = {cells[0].strip("| `"): cells[-1].rstrip(" |") for cells in rows}
    for field in attrs.fields(ImageSource):
        assert field.name in shown
        if isinstance(field.default, int | str):
            assert shown[field.name].startswith(str(field.default).lower()), field.name
