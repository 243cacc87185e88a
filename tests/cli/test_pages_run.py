"""The pages of docs/learn and docs/from, run from top to bottom, with smaller numbers where a run would take long.

A ``python`` block is executed, in one namespace for the page; under a line with the name of a file it is written to
that file. In a ``bash`` block the lines of diffkit and torchrun are run. A ``text`` block right below is what is
printed, an error of diffkit that ends the code included; numbers in it may differ where a page is run smaller. In a
table with a column "here", the code of that column is executed. Blocks of other languages, ``py`` or ``sh``, are shown
only: what needs a network or several machines.
"""

from __future__ import annotations

import doctest
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import pytest
import torch
from attrs import frozen
from cli_support import Command

import diffkit
from diffkit import demo
from diffkit.registry import KINDS, registry

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>python|bash)\n(?P<code>.*?)^```$(?:\n+^```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
TABLE = re.compile(r"^\|[^\n]*\| here \|[^\n]*\n\|[-| ]+\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@frozen
class Page:
    """How a page is run: text -> smaller text, and what it finds."""

    smaller: Mapping[str, str] = {}
    before: Callable[[], None] = lambda: None


def demo_run() -> None:
    """What the demo leaves, hardly trained."""
    system = diffkit.compose(**demo.COMPOSITION)
    data = diffkit.data.loading.load("digits", split="train")
    diffkit.train(system, data, out="demo/run", steps=1, progress=False, **{**demo.TRAINING, "batch_size": 8})


PAGES = {
    "learn/first-hour": Page(
        {
            "diffkit demo\n": "diffkit demo --steps 20\n",  # only in the notebook
            "--num 50": "--num 2 --steps 3",
            "--steps 50": "--steps 2",
            "steps=20": "steps=2",
            "range(10)": "range(2)",
            "seed=0, **batch": "steps=3, seed=0, **batch",
            "--steps 3000 --batch-size 32": "--steps 1 --batch-size 2",
            "--data.size 64 --data.pieces random": "--data.size 16 --data.pieces random --data.examples 6",
            "--data.size 32": "--data.size 8",
            "channel-mult 1,2,2": "channel-mult 1,1 --backbone.attention-resolutions 4",
        },
        demo_run,
    ),
    "learn/beyond-images": Page({"steps=3000": "steps=1", "steps=2000": "steps=1", "batch_size=32": "batch_size=2"}),
    "learn/likelihood": Page(
        {
            "steps=2000": "steps=1",
            "--num 100": "--num 4",
            "x[:4], y=y[:4], rtol=1e-3, atol=1e-3": "x[:2], y=y[:2], rtol=1e-1, atol=1e-1",
        },
    ),
    "learn/train-at-scale": Page(
        {
            "--data.size 64": "--data.size 8 --backbone.channels 32 --backbone.channel-mult 1,1",
            "--steps 200000 --batch-size 128": "--backbone.attention-resolutions 4 --steps 1 --batch-size 2",
        }
    ),
    "learn/data-spaces": Page(
        {
            "range(300)": "range(3)",
            "--steps 60": "--steps 2",
            "--steps 40": "--steps 2",
            "-n 20 --steps 20": "-n 4 --steps 2",
        }
    ),
    "learn/optimizers": Page(
        {
            '"steps": 200': '"steps": 2',
            '"steps": 250': '"steps": 3',
            "--steps 200": "--steps 2",
            "--steps 20": "--steps 2",
        }
    ),
    "learn/cascades": Page(
        {
            "--steps 1500 --batch-size 64": "--steps 1 --batch-size 4",
            "--steps 1000 --batch-size 32": "--steps 1 --batch-size 4",
            "-n 40": "-n 4",
        }
    ),
    "learn/serving": Page({"steps=500": "steps=1"}),
    "learn/log-probabilities": Page({"steps=1000": "steps=1", "steps=125": "steps=1", "steps=250": "steps=2"}),
    "learn/your-own-part": Page(
        {
            "my_loss.py bump": "my_loss.py bump --only rows_are_independent,one_number_for_each_example",
            "two_step\n": "two_step --only no_hidden_state\n",
            "noisy_step\n": "noisy_step --only noise_as_declared,keeps_the_marginals\n",
            "eta 0\n": "eta 0 --only noise_as_declared,same_plan_again\n",
            "my_guidance.py sharper": "my_guidance.py sharper --only pure,keeps_the_form",
            "my_projection.py projected": "my_projection.py projected --only works_with_labels,pure",
        }
    ),
}
FAST = ("learn/seven-decisions", "learn/your-own-part", "from/index")
"""Those of the default lane; the others are slow tests."""


def names() -> list[object]:
    found = sorted([*DOCS.glob("learn/*.md"), *DOCS.glob("from/*.md")])
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in found]
    return [pytest.param(page, marks=[] if page in FAST else [pytest.mark.slow]) for page in pages]


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    yield
    diffkit.refresh()


@pytest.mark.parametrize("name", names())
def test_everything_on_the_page_runs(name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _offer_plugins(tmp_path / "metadata", monkeypatch)
    for kind in KINDS:
        monkeypatch.setattr(registry(kind), "_here", {})
    torch.manual_seed(0)
    page = PAGES.get(name, Page())
    page.before()
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for full in page.smaller:
        assert full in text, f"{full!r} is no longer on the page, so this test would run it at full size"
    module = types.ModuleType("page")  # so that classes of the page can be copied
    monkeypatch.setitem(sys.modules, "page", module)
    given = vars(module)
    for block in BLOCK.finditer(text):
        code = block["code"]
        for full, small in page.smaller.items():
            code = code.replace(full, small)
        if block["file"]:
            Path(block["file"]).write_text(code, encoding="utf-8")
            continue
        is_shown = block["shown"] is not None
        printed = _run_python(code, given, is_shown) if block["language"] == "python" else _run_bash(code, command)
        if is_shown:
            _compare(block["shown"], printed, loosely=bool(page.smaller))
    for table in TABLE.finditer(text):
        for row in table["rows"].splitlines():
            _run_cell(row.split(" | ")[1], given, command)


def _offer_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plugins of the repository be found, installed or not."""
    spec = importlib.util.spec_from_file_location("plugins_conftest", DOCS.parent / "plugins" / "conftest.py")
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    tools._folder.cleanup()  # it is for the plugins' own tests
    folder.mkdir()
    for file in sorted(tools.HERE.glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        if not list(metadata.distributions(name=project["name"])):
            monkeypatch.syspath_prepend(file.parent / "src")
            tools.write_metadata(project, folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("DIFFKIT_PLUGINS", raising=False)
    diffkit.refresh()


def _run_python(code: str, given: dict[str, object], errors_are_shown: bool) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            exec(code, given)
        except diffkit.DiffkitError as error:
            if not errors_are_shown:
                raise
            print(f"{type(error).__name__}: {error}", file=out)
    return out.getvalue()


def _run_bash(code: str, command: Command) -> str:
    printed = []
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "torchrun":  # whose processes compute on the CPU here
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *words[1:]], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        elif words[0] == "diffkit":
            found = command(*words[1:])
            assert found.code == 0, f"{line}\n{found.err}"
            printed.append(found.out)
    return "".join(printed)


def _run_cell(cell: str, given: dict[str, object], command: Command) -> None:
    for code in re.findall(r"``?([^`]+)``?", cell):
        if code.startswith("diffkit "):
            assert command(*shlex.split(code)[1:]).code == 0, code
        else:
            exec(code, {**given})


def _compare(shown: str, printed: str, loosely: bool) -> None:
    if loosely:
        shown, printed = (re.sub(r"-?\d+([.,]\d+)*(e[-+]\d+)?", "0", text) for text in (shown, printed))
    check = doctest.OutputChecker()
    if not check.check_output(shown, printed, OPTIONS):
        pytest.fail(check.output_difference(doctest.Example("", shown), printed, OPTIONS))
