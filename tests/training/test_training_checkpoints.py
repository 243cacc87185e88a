"""Checkpoints are whole or not there; damage is found before a tensor is used."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import checkpoints, content, lines, system, train

import diffkit
from diffkit.errors import CheckpointError, OptionError, SpecError
from diffkit.runtime import weights_files
from diffkit.system.saving import renew
from diffkit.training import checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of 12 steps with checkpoints at 4, 8 and 12, to copy from."""
    folder = tmp_path_factory.mktemp("run")
    train(folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_what_a_checkpoint_holds(made):
    newest = made / "checkpoints" / "step_00000012"
    assert {path.name for path in newest.iterdir()} == {
        "manifest.json", "model.safetensors", "ema_0.9.safetensors", "ema_0.99.safetensors",
        "optimizer.safetensors", "trainer.safetensors",
    }  # fmt: skip
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["step"] == 12 and manifest["seed"] == 0 and manifest["world_size"] == 1
    assert manifest["diffkit"] == diffkit.__version__ and manifest["torch"] == torch.__version__
    assert manifest["parts"]["schedule"]["name"] == "cosine" and "origin" in manifest["parts"]["schedule"]
    for name, record in manifest["files"].items():
        assert (newest / name).stat().st_size == record["size"] and len(record["sha256"]) == 64
    read = checkpoint.read(newest)
    assert read.step == 12 and read.files["trainer"]["skipped"] == 0
    step = next(v for k, v in read.files["optimizer"].items() if k.startswith("step/"))
    assert step == 12  # completed updates, where the published code's model000002 holds three


def test_only_the_newest_are_kept(tmp_path):
    train(tmp_path, steps=9, save_every=1, keep=2)
    assert checkpoints(tmp_path) == [9, 8]
    assert names(tmp_path / "checkpoints") == ["step_00000008", "step_00000009"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    elif how == "random":
        path.write_bytes(random.Random(0).randbytes(len(content)))
    elif how == "pickle":
        path.write_bytes(pickle.dumps([1, 2]))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "random", "pickle", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.safetensors", "manifest.json"])
def test_a_damaged_newest_falls_back_and_reports_it(run, made, how, name, capsys):
    damage(run / "checkpoints" / "step_00000012" / name, how)
    train(run, steps=12)
    text = capsys.readouterr().err
    assert text.startswith("warning: ") and name in text and "after step 8 of 12" in text
    assert content(run) == content(made) and lines(run) == lines(made)
    assert names(run / "checkpoints") == [f"step_{step:08d}" for step in (4, 8, 12)]


def test_two_damaged_ones(run, made, capsys):
    damage(run / "checkpoints" / "step_00000012" / "model.safetensors", "truncated")
    damage(run / "checkpoints" / "step_00000008" / "manifest.json", "random")
    train(run)
    assert capsys.readouterr().err.count("warning: ") == 2
    assert content(run) == content(made)


def test_a_damaged_newest_does_not_push_out_a_good_one(run):
    """Continuing from 8 and stopping at 9 must keep 9, though the damaged 12 has a higher number."""
    damage(run / "checkpoints" / "step_00000012" / "model.safetensors", "truncated")
    train(run, steps=9, keep=1)
    assert checkpoints(run) == [9]
    assert names(run / "checkpoints") == ["step_00000009"]


def test_nothing_starts_again_silently(run):
    for path in (run / "checkpoints").iterdir():
        damage(path / "model.safetensors", "flipped")
    with pytest.raises(CheckpointError) as caught:
        train(run)
    text = str(caught.value)
    assert "can be read; remove the run's folder to start anew:" in text and text.count("its SHA-256 is not") == 3


def test_two_hundred_flipped_bytes_are_all_found(made, tmp_path):
    rng = random.Random(0)
    source = made / "checkpoints" / "step_00000012"
    target = Path(shutil.copytree(source, tmp_path / "step_00000012"))
    files = sorted(target.iterdir())
    for _ in range(200):
        path = rng.choice(files)
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        try:
            read = checkpoint.read(target)
        except CheckpointError:
            pass
        else:  # a flip that JSON reads as the same thing, such as one in a space that is a tab then
            assert path.name == "manifest.json" and read.manifest == checkpoint.read(source).manifest
        path.write_bytes(whole)
    checkpoint.read(target)


def test_truncation_anywhere_is_found(made, tmp_path):
    target = Path(shutil.copytree(made / "checkpoints" / "step_00000012", tmp_path / "step_00000012"))
    for path in sorted(target.iterdir()):
        whole = path.read_bytes()
        for i in range(20):
            path.write_bytes(whole[: i * (len(whole) - 2) // 20])
            with pytest.raises(CheckpointError, match=path.name):
                checkpoint.read(target)
        path.write_bytes(whole)


def test_a_renamed_checkpoint_is_found(run):
    (run / "checkpoints" / "step_00000012").rename(run / "checkpoints" / "step_00000099")
    with pytest.raises(CheckpointError, match="holds step 12: it was renamed"):
        checkpoint.read(run / "checkpoints" / "step_00000099")


def test_a_checkpoint_of_a_newer_diffkit_is_left_alone(run):
    path = run / "checkpoints" / "step_00000012" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_bytes(checkpoint._manifest_bytes(manifest | {"format": 2, "diffkit": "9.9"}))
    with pytest.raises(SpecError, match=r"has format 2, written by diffkit 9\.9; .* upgrade diffkit"):
        train(run, steps=14)
    assert checkpoints(run) == [12, 8, 4]


def test_no_pickle_is_run(run, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for maker in (pickle.dumps, lambda p: _torch_bytes(p)):
        for path in (run / "checkpoints" / "step_00000012").iterdir():
            path.write_bytes(maker(Payload()))
    train(run)
    assert not (tmp_path / "executed").exists()


def _torch_bytes(payload) -> bytes:
    out = io.BytesIO()
    torch.save(payload, out)
    return out.getvalue()


# ---- saving is interrupted -----------------------------------------------------------------------------------------


class Stop(BaseException):
    """Stands for the process being killed: nothing catches it."""


class Faults:
    """Counts the file system calls of a save, and fails at one of them."""

    def __init__(self, monkeypatch, at: int | None, error: BaseException | None):
        self.at, self.error, self.calls, self.dead = at, error, 0, False
        for owner, name in [
            (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (os, "open"),
            (io, "open"),
        ]:  # fmt: skip
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, call):
        def checked(*args, **more):
            if self.dead:
                raise Stop
            self.calls += 1
            if self.calls - 1 == self.at:
                assert self.error is not None
                self.dead = isinstance(self.error, Stop)
                raise self.error
            return call(*args, **more)

        return checked


def save(folder: Path, step: int) -> None:
    files = {"model": {"w": torch.full((3,), float(step))}, "trainer": {"n": torch.tensor(step)}}
    checkpoint.write(folder, step, files, {"seed": 0})
    checkpoint.prune(folder, 2)


def calls_of_a_save(tmp_path, monkeypatch) -> int:
    folder = tmp_path / "counted"
    folder.mkdir()
    save(folder, 1)
    save(folder, 2)
    with monkeypatch.context() as patched:
        faults = Faults(patched, None, None)
        save(folder, 3)
    return faults.calls


def assert_sound(folder: Path, least: int) -> None:
    found = [checkpoint.read(path) for path in checkpoint.newest_first(folder)]
    assert found and found[0].step >= least
    for each in found:
        assert torch.equal(each.files["model"]["w"], torch.full((3,), float(each.step)))


@pytest.mark.parametrize("error", [Stop(), OSError(errno.ENOSPC, "no space left"), OSError(errno.EIO, "input/output")])
def test_a_save_may_fail_at_every_call(error, tmp_path, monkeypatch):
    count = calls_of_a_save(tmp_path, monkeypatch)
    assert count >= 12
    for at in range(count):
        folder = tmp_path / f"at{at}"
        folder.mkdir()
        save(folder, 1)
        save(folder, 2)
        with monkeypatch.context() as patched:
            Faults(patched, at, error)
            try:
                save(folder, 3)
            except (Stop, CheckpointError, OSError) as raised:
                if isinstance(raised, CheckpointError):
                    assert "cannot write checkpoint" in str(raised)
                    assert ("bytes are needed" in str(raised)) == (error.errno == errno.ENOSPC)
        assert_sound(folder, 2)
        save(folder, 4)
        assert_sound(folder, 4)
        assert names(folder)[-1] == "step_00000004"
        assert not [name for name in names(folder) if name.startswith(".")]


def test_the_runs_system_can_be_loaded_whenever_its_saving_stops(run, tmp_path, monkeypatch):
    system = diffkit.load(run)
    spec, weights = system.spec(), {k: v + 1 for k, v in system.network.state_dict().items()}
    counted = Path(shutil.copytree(run, tmp_path / "counted"))
    with monkeypatch.context() as patched:
        faults = Faults(patched, None, None)
        renew(spec, weights, counted)
    for at in range(faults.calls):
        folder = Path(shutil.copytree(run, tmp_path / f"at{at}"))
        with monkeypatch.context() as patched, pytest.raises((Stop, CheckpointError)):
            Faults(patched, at, Stop())
            renew(spec, weights, folder)
        diffkit.load(folder)
        renew(spec, weights, folder)
        assert torch.equal(next(iter(diffkit.load(folder).parameters())), next(iter(weights.values())))


def test_files_can_be_read_by_those_whom_the_umask_lets(run):
    before = os.umask(0o022)
    try:
        train(run, steps=13)
    finally:
        os.umask(before)
    for name in (
        "spec.json",
        "model.safetensors",
        "config.json",
        "metrics.jsonl",
        "checkpoints/step_00000013/manifest.json",
    ):
        assert (run / name).stat().st_mode & 0o777 == 0o644, name


def test_a_flipped_byte_in_the_runs_system_is_found(run):
    damage(run / "model.safetensors", "flipped")
    with pytest.raises(CheckpointError, match="its SHA-256 is not the one that was written"):
        diffkit.load(run)
    train(run, steps=13)
    diffkit.load(run)


def test_saving_into_a_run_is_refused(tmp_path):
    """It replaced the averaged model, and the run could not go on."""
    run = tmp_path / "run"
    trained = train(run, steps=2)
    kept = (run / "model.safetensors").read_bytes()
    for save in (system(1).save, trained.save):
        with pytest.raises(OptionError, match="holds a training run, whose result would be lost; save into another"):
            save(run)
    assert (run / "model.safetensors").read_bytes() == kept
    train(run, steps=4)


def test_a_finished_run_gets_its_system_back(run, capsys):
    for name in ("model.safetensors", "spec.json"):
        before = (run / name).read_bytes()
        damage(run / name, "truncated")
        text = (
            r"(damaged|cannot be read).*the run's checkpoints still hold it: the command or call that trained it writes"
        )
        with pytest.raises(CheckpointError, match=text):
            diffkit.load(run)
        capsys.readouterr()
        train(run)
        assert (
            "warning: " in (said := capsys.readouterr().err) and "written again from the checkpoint of step 12" in said
        )
        assert json.loads((run / "spec.json").read_text())["parts"] and (run / "model.safetensors").stat().st_size
        assert name == "spec.json" or (run / name).read_bytes() == before
        diffkit.load(run)
    train(run)
    assert capsys.readouterr().err == ""


def test_a_system_that_nothing_describes_is_held_against_the_checkpoints(run):
    (run / "spec.json").write_text("{}")
    with pytest.raises(OptionError, match=r"num_steps=20, now num_steps=30"):
        train(run, system=system(num_steps=30))
    manifest = run / "checkpoints" / "step_00000012" / "manifest.json"
    older = json.loads(manifest.read_text())
    del older["sha256"], older["spec"]  # as earlier versions wrote it
    manifest.write_bytes(checkpoint._manifest_bytes(older))
    with pytest.raises(OptionError, match="mean eps, now x_start"):
        train(run, system=system(mean="x_start"))
    train(run)
    diffkit.load(run)


def test_a_run_whose_large_files_were_hashed_as_a_whole_goes_on(made, tmp_path, monkeypatch, capsys):
    """Earlier versions recorded every file like this; here files of more than 1 KiB are large."""
    train(tmp_path, steps=8)
    whole = read_json(tmp_path / "spec.json")["weights"]
    monkeypatch.setattr(weights_files, "_CHUNK", 1 << 10)
    capsys.readouterr()
    train(tmp_path, steps=8)
    assert capsys.readouterr().err == "" and read_json(tmp_path / "spec.json")["weights"] == whole
    train(tmp_path)
    record = read_json(tmp_path / "spec.json")["weights"]
    assert record["chunk"] == record["before"]["chunk"] == 1 << 10 and "chunk" not in whole
    assert content(tmp_path) == content(made) and lines(tmp_path) == lines(made)
    assert capsys.readouterr().err == ""
    diffkit.load(tmp_path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
