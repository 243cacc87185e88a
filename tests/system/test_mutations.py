"""Files damaged in thousands of ways: each is read, or refused by an error of diffkit's own that can be shown as it is.

Nothing else may happen: no other exception, no control character in a message, no hang, no memory that a file asks for
and its weights do not have. The same seeds are the same damage.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import as_json, by_bytes, by_structure, json_mutations
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

import diffkit
from diffkit import weights
from diffkit.data import from_array
from diffkit.errors import DiffkitError
from diffkit.runtime.weights_files import digest
from diffkit.training import checkpoint

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="it cannot be told how much memory is taken"
)
SECONDS, MEMORY = 60, 6 * 2**30
"""Far more than any of these needs, on a machine that is busy; memory on top of what the process has already."""

SYSTEMS: dict[str, dict[str, Any]] = {
    "mlp": dict(
        schedule=("cosine", {"s": 0.01}),
        mean="v",
        var="learned_range",
        loss="hybrid",
        timesteps=("loss_second_moment", {"history": 3}),
        sampler=("ddim", {"eta": 0.5}),
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3}),
        data_shape=(1, 4, 4),
        num_steps=30,
        train_spacing=[1, 10, 20, 30],
        bins={"bins": 17, "cdf": "exact"},
    ),
    "unet": dict(
        schedule="cosine",
        backbone=("unet", {"channels": 8, "groups": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 2}),
        data_shape=(1, 8, 8),
        num_steps=40,
        train_spacing="5",
    ),
    "dit": dict(
        schedule="cosine",
        backbone=("dit", {"size": "S", "depth": 1, "hidden": 16, "heads": 2}),
        data_shape=(1, 8, 8),
        num_steps=40,
    ),
}


def lanes(quick: int, slow: int, soak: int) -> Any:
    """Seeds of each lane: a few always, some hundred in the slow one, all in the longest."""
    return pytest.mark.parametrize(
        "seeds",
        [
            pytest.param(range(quick), id="quick"),
            pytest.param(range(quick, quick + slow), id="slow", marks=pytest.mark.slow),
            pytest.param(range(quick + slow, quick + slow + soak), id="soak", marks=pytest.mark.soak),
        ],
    )


@contextmanager
def watched() -> Iterator[None]:
    """Let what does not end, or takes more memory than there is, fail."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_taken() + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _taken() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def attempt(capsys: pytest.CaptureFixture[str]) -> Callable[[int, Callable[[], Any]], None]:
    """Read a damaged file; what is raised and printed is looked at."""

    def act(seed: int, read: Callable[[], Any]) -> None:
        said = ""
        try:
            with watched():
                read()
        except DiffkitError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed} is {type(error).__name__}, not an error of diffkit's own") from error
        shown = said + "".join(capsys.readouterr())
        assert all(c.isprintable() or c in "\n\r" for c in shown), f"seed {seed} shows control characters: {shown!r}"

    return act


@pytest.mark.parametrize("kind", SYSTEMS)
@lanes(quick=12, slow=150, soak=1000)
def test_specs(kind, seeds, tmp_path, attempt):
    path = diffkit.compose(**SYSTEMS[kind]).save(tmp_path / "system") / "spec.json"
    for seed, content in json_mutations(path.read_bytes(), seeds):
        path.write_bytes(content)
        attempt(seed, lambda: diffkit.load(path.parent))


@pytest.mark.parametrize("how", ["header", "spec inside", "safetensors", "pt", "old pt"])
@lanes(quick=12, slow=100, soak=500)
def test_files_of_weights(how, seeds, tmp_path, attempt):
    system, path = diffkit.compose(**SYSTEMS["unet"]), tmp_path / "damaged"
    weights.export(system, tmp_path / "x.safetensors")
    weights.export(system, tmp_path / "x.pt")
    whole = (tmp_path / ("x.pt" if how == "pt" else "x.safetensors")).read_bytes()
    if how == "old pt":
        held = {"model": system.network.state_dict(), "step": 3}
        torch.save(held, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        whole = (tmp_path / "old.pt").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for seed in seeds:
        if how in ("header", "spec inside"):
            content = _with_header(_damaged_header(json.loads(whole[8 : 8 + size]), how, seed), whole[8 + size :])
        else:  # where the structure is, mostly
            content = by_bytes(whole[:6000], seed) + whole[6000:] if seed % 3 else by_bytes(whole, seed)
        path.write_bytes(content)
        for read in (diffkit.load_checkpoint, weights.identify, lambda file: weights.load_matching(system, file)):
            attempt(seed, lambda read=read: str(read(path)))


def _damaged_header(header: Any, how: str, seed: int) -> Any:
    if how == "header":
        return by_structure(header, seed)
    spec = as_json(by_structure(json.loads(header["__metadata__"]["diffkit"]), seed))
    return header | {"__metadata__": {"diffkit": spec.decode()}}


def _with_header(header: Any, body: bytes) -> bytes:
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + body


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    trained(folder, 6)
    return folder


def trained(folder: Path, steps: int) -> None:
    data = from_array(
        np.random.default_rng(0).integers(0, 17, (20, 1, 4, 4)).astype(np.uint8), labels=[0, 1, 2, 0] * 5, bins=17
    )
    torch.manual_seed(0)
    system = diffkit.compose(**SYSTEMS["mlp"] | {"bins": 17})
    options = dict(batch_size=4, save_every=3, log_every=1, ema=(0.9,), ema_power=(0.05,), progress=False)
    diffkit.train(system, data, out=folder, steps=steps, **options)


@pytest.mark.parametrize("name", ["config.json", "spec.json", "metrics.jsonl"])
@lanes(quick=15, slow=200, soak=1000)
def test_runs_that_are_listed(name, seeds, whole, tmp_path, attempt):
    from diffkit.__main__ import main

    run, other = (shutil.copytree(whole, tmp_path / part) for part in ("run", "other"))
    for seed in seeds:
        (run / name).write_bytes(_damaged_file(whole / name, seed))
        attempt(seed, lambda: main(["runs", str(run), str(other)]))


DAMAGED = ["config.json", "spec.json", "metrics.jsonl", "manifest", "tensors"]


@pytest.mark.parametrize("what", DAMAGED)
@lanes(quick=3, slow=30, soak=200)
def test_runs_that_go_on(what, seeds, whole, tmp_path, attempt):
    for seed in seeds:
        run = shutil.copytree(whole, tmp_path / "run")
        newest = next(checkpoint.newest_first(run / "checkpoints"))
        if what in ("manifest", "tensors"):
            change = _damaged_manifest if what == "manifest" else _damaged_tensors
            change(newest, seed)
        else:
            (run / what).write_bytes(_damaged_file(whole / what, seed))
        attempt(seed, lambda run=run: trained(run, 7))
        shutil.rmtree(run)


def _damaged_file(path: Path, seed: int) -> bytes:
    """A JSON file, or one with JSON in each line, with damage to one of them."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return next(json_mutations(content, range(seed, seed + 1)))[1]
    lines = content.splitlines(keepends=True)
    row = seed % len(lines)
    one = by_bytes(lines[row], seed) if seed % 3 else json.dumps(by_structure(json.loads(lines[row]), seed)).encode()
    return b"".join([*lines[:row], one, b"\n", *lines[row + 1 :]])


def _damaged_manifest(path: Path, seed: int) -> None:
    """One that is sealed as a whole one is, or not."""
    content = (path / "manifest.json").read_bytes()
    manifest = json.loads(content)
    del manifest["sha256"]
    changed = by_structure(manifest, seed)
    sealed = isinstance(changed, dict) and seed % 4
    (path / "manifest.json").write_bytes(checkpoint._manifest_bytes(changed) if sealed else by_bytes(content, seed))


def _damaged_tensors(path: Path, seed: int) -> None:
    """A file of the checkpoint with other tensors, whose digest is right."""
    rng = random.Random(seed)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    name = rng.choice(sorted(manifest["files"]))
    tensors = dict(from_bytes((path / name).read_bytes()))
    full = rng.choice(sorted(tensors))
    value = tensors.pop(full)
    more: Mapping[str, torch.Tensor] = rng.choice(
        (
            {},
            {rng.choice(("x", "\x1b[3m", "exp_avg/", "/", "step")): value},
            {full: torch.cat([value.flatten(), value.flatten()])},
            {full: value.to(rng.choice((torch.int8, torch.float64, torch.bool, torch.complex64)))},
            {full: torch.zeros(0)},
        )
    )
    content = to_bytes(tensors | dict(more))
    if rng.random() < 0.3:
        size = int.from_bytes(content[:8], "little")
        header = by_bytes(content[8 : 8 + size], seed)
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    (path / name).write_bytes(content)
    manifest["files"][name] = digest(content)
    (path / "manifest.json").write_bytes(checkpoint._manifest_bytes(manifest))


TOML = b"""
num_steps = 40
steps = 1
batch_size = 2
ema = [0.9, 0.99]
[schedule]
name = "cosine"
s = 0.008
[backbone]
name = "mlp"
hidden = 8
depth = 1
[data]
name = "points"
examples = 20
"""


@lanes(quick=6, slow=100, soak=800)
def test_configuration_files(seeds, tmp_path, attempt):
    from diffkit.__main__ import main

    for seed in seeds:
        (tmp_path / "c.toml").write_bytes(by_bytes(TOML, seed) if seed % 2 else _toml(seed))
        words = ["train", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "never"), "--dry-run"]
        attempt(seed, lambda words=words: main(words))


def _toml(seed: int) -> bytes:
    """The file with the value of a line or two replaced by what TOML can say at all."""
    rng = random.Random(seed)
    odd = ["nan", "-inf", "1e999", "9" * 5000, "0x" + "f" * 300, "[]", "{}", '"\\u001b[2J"', "1979-05-27", "true", "-1"]
    odd += ["[" * 3000, "a.b.c = 1", "10_000_000_000", '{name = "mlp"}', "[[1], 2]", '"' + "x" * 5000 + '"', '"\\n"']
    lines = TOML.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        row = rng.randrange(1, len(lines))
        key = lines[row].partition(" = ")[0]
        lines[row] = rng.choice((f"{key} = {rng.choice(odd)}", f"[{key}.x]", f'"\\u001b{key}" = 1', f"{key} = {key}"))
    return "\n".join(lines).encode()
