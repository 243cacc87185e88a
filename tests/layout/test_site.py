"""The site: every public name and every part has a page, docstrings become valid text, and links lead somewhere."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest
from matplotlib.figure import Figure

from diffkit.registry import BUILT_IN, KINDS, registry

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "_ext"))

from diffkit_docs import (  # noqa: E402
    check,
    commands,
    docstrings,
    external,
    gallery,
    names,
    notebooks,
    options,
    plots,
    reference,
    repository,
)

PARTS = [(kind, e.name) for kind in KINDS for e in registry(kind).entries() if e.origin == BUILT_IN]


def test_every_public_name_says_what_it_is():
    assert [
        each.path for each in names.public_names() if each.what != "data" and not reference.summary(each.value)
    ] == []


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_option_of_a_part_is_explained(kind: str, name: str):
    part = registry(kind).get(name)
    found = options.options_of(part) if attrs.has(part) else ()
    assert [each.name for each in found if not each.about] == []


def test_an_option_has_its_default_and_bounds():
    eta, _ = options.options_of(registry("sampler").get("ddim"))
    assert (eta.name, eta.kind, eta.default, eta.allowed) == ("eta", "float", "0.0", "≥ 0, ≤ 1")


def test_a_docstring_in_pieces():
    doc = docstrings.parse(
        """Return ``a * b``, of `System.sample`.

        A list:

        * one,
          going on
        * two

            code = here(1)

        Args:
            x, y: Data, (B, C, *S),
                float32.
            **conditions: For the network.
        Returns: A tensor.
        Source: Someone 2020,
        arXiv:2000.00000.
        """
    )
    assert doc.summary == "Return ``a * b``, of `System.sample`."
    assert doc.entry("y") == "Data, (B, C, *S), float32."
    assert [each.title for each in doc.sections] == ["Args", "Returns", "Source"]
    assert docstrings.inline(doc.summary) == "Return ``a * b``, of :py:obj:`System.sample <System.sample>`."
    assert docstrings.inline("(B, C, *S) of x_") == r"(B, C, \*S) of x\_"
    assert docstrings.block(doc.blocks[-1]).startswith(".. code-block:: python")


DRAWN = [kind for kind in KINDS if find_spec(f"diffkit_docs.plots.{kind}")]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "backbone")) for k in DRAWN])
def test_a_part_of_each_kind_is_drawn(kind: str):
    name = next(name for of, name in PARTS if of == kind)
    panels = plots.panels_of(kind, name, gallery.made(kind, name))
    assert all(panel.title and (kind == "data" or panel.y) for panel in panels)
    for panel in panels[-1:]:  # the first of a sampler takes seconds
        axes = Figure().add_subplot()
        panel.draw(axes)
        assert axes.has_data()


def test_help_texts_are_read_in_full():
    found = commands.help_of("sample")
    shown = {name.split()[0] for panel in found.panels for name, _ in panel.rows}
    assert found.usage.startswith("diffkit sample RUN")
    assert {"RUN", "--steps", "--sampler", "--print-config"} <= shown
    assert all(text for panel in found.panels for _, text in panel.rows)


def test_what_an_option_may_be_is_read_from_its_help():
    rows = ("--order a|b  The order. [default: a] [choices: a, b]", "--out PATH  Folder. [required]")
    text = "\n".join(["╭─ Options ─╮", *(f"│ {row}  │" for row in rows), "╰─╯"])
    (panel,) = commands.read(text).panels
    shown = [line.strip() for line in commands._rows(panel)]  # the only place that reads the notes
    assert "- The order. Default: ``a``. Choices: ``a, b``." in shown
    assert "- Folder. Required." in shown


def test_links_to_the_repository_become_links_of_the_site(tmp_path: Path):
    docs = ROOT / "docs"
    text = "[a](../tests/layout/test_pages.py) [b](tasks.md#inversion) [c](https://example.org)"
    changed = repository.with_site_links(text, docs / "samplers.md", docs)
    assert changed == "a (`tests/layout/test_pages.py`) [b](tasks.md#inversion) [c](https://example.org)"


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("Mapping", "docs.python.org/3/library/collections.abc.html#collections.abc.Mapping"),
        ("str", "docs.python.org/3/library/stdtypes.html#str"),
        ("ValueError", "docs.python.org/3/library/exceptions.html#ValueError"),
        ("nn.Module", "docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module"),
        ("torch._C.Generator", "docs.pytorch.org/docs/stable/generated/torch.Generator.html#torch.Generator"),
        ("torch.device", "docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device"),
        ("NDArray", "numpy.org/doc/stable/reference/typing.html#numpy.typing.NDArray"),
    ],
)
def test_names_of_others_lead_to_their_documentation(name: str, page: str):
    assert external.link(name) == f"https://{page}"


def test_other_names_lead_nowhere():
    assert [name for name in ("eta", "torch.no.such", "steps", "license") if external.link(name)] == []


def test_a_page_becomes_a_notebook():
    page = (
        "# Page\n\nSee [a](b.md) and {doc}`c </c>`.\n\n```python\n1 / 0\n```\n\n```text\nZeroDivisionError: a\n```\n\n"
        "`f.py`:\n\n```python\nx = 1\n```\n\n```sh\npip install x\n```\n\n```bash\ndiffkit list\n```\n"
    )
    cells = [("".join(cell["source"]), cell["metadata"]) for cell in notebooks.notebook(page, "1.0")["cells"]]
    assert cells[1:] == [
        ("See a and c.", {}),
        ("1 / 0", {"tags": ["raises-exception"]}),
        ("%%writefile f.py\nx = 1", {}),
        ("```sh\npip install x\n```", {}),
        ("!diffkit list", {}),
    ]


def test_dead_links_and_things_from_elsewhere_are_found(tmp_path: Path):
    (tmp_path / "a.html").write_text('<a href="b.html#x"></a><a href="#y"></a><script src="https://cdn/x.js"></script>')
    (tmp_path / "b.html").write_text('<p id="z"></p><a href="a.html">a</a><a href="https://example.org">ok</a>')
    assert check.problems(tmp_path) == ["a.html: no #y", "a.html: no b.html#x", "a.html: loads https://cdn/x.js"]


@pytest.mark.slow(minutes=3)
@pytest.mark.skipif(not find_spec("furo"), reason="the site needs the extra docs")
def test_the_site_builds_without_warnings_and_has_every_page(tmp_path: Path):
    line = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*line, ROOT / "docs", tmp_path / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {f"api/{home}.html" for home in reference.homes(names.public_names()).values()}
    wanted |= {f"gallery/{kind}/{name}.html" for kind, name in PARTS}
    wanted |= {"gallery/papers.html"}
    assert [page for page in sorted(wanted) if not (tmp_path / "html" / page).exists()] == []
    offered = {path.stem for path in (tmp_path / "html" / "_downloads").rglob("*.ipynb")}
    assert offered == set(notebooks.TUTORIALS)
