"""The wheel and the source distribution from a user's side: what is in them, notebooks, and types of a user's code.

Everything is installed into a new environment that sees the dependencies of this one and nothing else of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_pages_run import PAGES, Page

import diffkit

pytestmark = pytest.mark.slow
ROOT = Path(diffkit.__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "_ext"))

from diffkit_docs.notebooks import TUTORIALS, notebook  # noqa: E402

RUN = """
import json, subprocess, sys

sys.path.insert(0, "")
names = vars(sys.modules["__main__"])
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        continue
    if source.startswith("%%writefile "):
        first, _, text = source.partition("\\n")
        open(first.split()[1], "w", encoding="utf-8").write(text + "\\n")
        continue
    if source.startswith("!"):
        for line in source.splitlines():
            subprocess.run(line[1:], shell=True, check=True)
        continue
    try:
        exec(compile(source, source.splitlines()[0], "exec"), names)
    except Exception:
        if "raises-exception" not in cell["metadata"].get("tags", ()):
            raise
"""
"""What Jupyter does with the cells of a notebook, as far as ours go."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("built")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*pip, "-w", str(folder), str(ROOT)], check=True)
    backend = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", backend, str(folder)], check=True, cwd=ROOT, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def user(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a command of a new environment in which the wheel is installed, in a folder."""
    home = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    (site,) = home.glob("[Ll]ib/**/site-packages")
    here = dict.fromkeys([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))])
    (site / "here.pth").write_text("\n".join(here) + "\n")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", "-q", str(wheel)], check=True)
    outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    outer |= {"PATH": os.pathsep.join([str(programs), os.environ["PATH"]]), "DIFFKIT_PLUGINS": ""}

    def run(*words: str, folder: Path) -> str:
        line = [str(programs / "python"), *words]
        done = subprocess.run(line, cwd=folder, env=outer, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    place = run("-c", "import diffkit; print(diffkit.__file__)", folder=home).strip()
    assert Path(place).is_relative_to(site)
    return run


def test_the_distributions_hold_what_they_should(built: Path):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    tracked = subprocess.run(["git", "ls-files", "diffkit"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked) - in_wheel == set()
    assert {name.split("/")[0] for name in in_wheel} == {"diffkit", f"diffkit-{diffkit.__version__}.dist-info"}
    with tarfile.open(source) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert set(tracked) - set(names) == set()
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "Makefile"} <= set(names)
    assert {"docs/conf.py", "docs/learn/first-hour.md", "tests/conftest.py", "plugins/README.md"} <= set(names)
    made = re.compile(r"__pycache__|_build/|\.pyc$|^docs/(api|gallery|commands)/")
    assert [name for name in names if made.search(name)] == []


def test_a_wheel_of_the_source_distribution_is_the_same(built: Path, tmp_path: Path):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*pip, "-w", str(tmp_path), str(source)], check=True)
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_notebook_runs_from_top_to_bottom(name: str, user: Callable[..., str], tmp_path: Path):
    text = (ROOT / "docs" / "learn" / f"{name}.md").read_text(encoding="utf-8")
    for full, small in PAGES.get(f"learn/{name}", Page()).smaller.items():
        text = text.replace(full, small)
    made = notebook(text, diffkit.__version__)
    assert sum(cell["cell_type"] == "code" for cell in made["cells"]) >= text.count("```python")
    (tmp_path / "page.ipynb").write_text(json.dumps(made), encoding="utf-8")
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    user("run.py", "page.ipynb", folder=tmp_path)


TYPED = '''
"""What a user writes, with types."""

from collections.abc import Mapping
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor
from typing_extensions import assert_type

import diffkit
from diffkit.gaussian import mean_flat, squared_error
from diffkit.options import number
from diffkit.protocols import Estimate, Conditions, Evaluate, Guidance, Level, Loss, LossInputs
from diffkit.registry import registry


@registry("loss").register("typed")
@frozen
class Typed(Loss):
    """A loss."""

    width: float = number(2.0, gt=0)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return the loss."""
        return {"loss": mean_flat(squared_error(at.out, at.target)) / self.width}


@frozen
class Sharper(Guidance):
    """A guidance."""

    amount: float = number(0.1, ge=0)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate, enlarged."""
        estimate = evaluate(x, level, conditions)
        return estimate.with_x_start((1 + self.amount) * estimate.x_start)


class Network(torch.nn.Module):
    """A network of points."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the prediction."""
        return x * time[:, None]


system = diffkit.compose(schedule="cosine", loss=("typed", {"width": 3.0}), backbone="mlp", data_shape=(1, 8, 8))
other = diffkit.compose(loss=Typed(width=3.0), backbone=Network(), data_shape=(2,), bins=None)
images = system.sample(4, steps=5, sampler=("ddim", {"eta": 0.5}), guidance=[Sharper(0.2)], seed=0, progress=False)
assert_type(images, Tensor)
data = diffkit.data.from_array(images, bins=256)
trained = diffkit.train(system, data, out="runs/typed", steps=2, batch_size=2, lr=1e-3, progress=False)
assert_type(trained, diffkit.System)
faster = diffkit.recompose(trained, sampler="dpmpp_2m")
assert_type(faster.save("systems/typed"), Path)
assert_type(diffkit.load("systems/typed").sample(1, steps=2), Tensor)
print(faster.bits_per_dim(images).total.mean())
'''

WRONG = """
import diffkit

system = diffkit.compose(schedule="cosine")
diffkit.compose(schedul="cosine")
system.sample("4")
system.sample(4, step=5)
diffkit.train(system, [], out="runs/a", steps="2")
"""
CHECKERS = {"mypy": ["-m", "mypy", "--strict"], "basedpyright": ["-m", "basedpyright", "--level", "error"]}


@pytest.mark.parametrize("checker", CHECKERS)
def test_types_of_a_users_code(checker: str, user: Callable[..., str], tmp_path: Path):
    pytest.importorskip(checker)
    (tmp_path / "typed.py").write_text(TYPED)
    user(*CHECKERS[checker], "typed.py", folder=tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    with pytest.raises(AssertionError) as found:
        user(*CHECKERS[checker], "wrong.py", folder=tmp_path)
    lines = {int(line) for line in re.findall(r"wrong\.py:(\d+)", str(found.value))}
    assert lines == {5, 6, 7, 8}


def test_a_users_code_runs(user: Callable[..., str], tmp_path: Path):
    (tmp_path / "typed.py").write_text(TYPED)
    user("typed.py", folder=tmp_path)
