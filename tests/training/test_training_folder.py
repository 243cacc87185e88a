"""The folder of a run: half begun, damaged, on odd file systems, or full of links, it is gone on with or refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from training_support import content, lines, train

import diffkit
from diffkit.errors import OptionError
from diffkit.training import checkpoint_writer, lock, read_metrics
from diffkit.training import run_folder as run
from diffkit.training.checkpoint import newest_first

LEFT = ".{}.0123456789abcdef.tmp"
SHORT = dict(steps=4, save_every=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, **SHORT)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]


# ---- half begun ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", LEFT.format("config.json")], ["config.toml"]])
def test_a_folder_that_was_only_begun_is_taken(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    train(tmp_path, steps=1)
    assert leftovers(tmp_path) == []


def test_what_kills_left_is_removed(copy):
    for name in ("model.safetensors", "spec.json", "metrics.jsonl", "config.toml"):
        (copy / LEFT.format(name)).write_bytes(b"x" * 100)
    (copy / "previews").mkdir()
    (copy / "previews" / LEFT.format("step_00000002.png")).touch()
    (copy / "checkpoints" / ".doomed-step_00000003").mkdir()
    train(copy, **(SHORT | dict(steps=5)))
    assert leftovers(copy) == []


# ---- the result ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [(0.9, 0.99), ()])
def test_a_finished_run_has_the_result_of_its_last_step(tmp_path, monkeypatch, capsys, ema):
    """Killed after the last checkpoint and before the weights beside it, it had those of the save before for ever."""

    class KilledError(BaseException):
        pass

    def killed(*args, **more):
        raise KilledError

    train(tmp_path / "whole", ema=ema, keep=1, **SHORT)
    train(tmp_path / "run", ema=ema, keep=1, **(SHORT | dict(steps=2)))
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(checkpoint_writer, "renew", killed)
        train(tmp_path / "run", ema=ema, keep=1, **SHORT)
    assert [path.name for path in newest_first(tmp_path / "run" / "checkpoints")] == ["step_00000004", "step_00000002"]
    capsys.readouterr()
    again = train(tmp_path / "run", ema=ema, keep=1, **SHORT)
    assert "of another step than the newest checkpoint; it was written again from the checkpoint of step 4" in (
        capsys.readouterr().err
    )
    results = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert results[0] == results[1]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert [path.name for path in newest_first(tmp_path / "run" / "checkpoints")] == ["step_00000004"]
    loaded = diffkit.load(tmp_path / "run")
    for name, value in loaded.network.state_dict().items():
        assert value.equal(again.network.state_dict()[name])
    train(tmp_path / "run", ema=ema, keep=1, **SHORT)
    assert capsys.readouterr().err == ""


def test_weights_of_another_run_are_not_the_result(copy, made, tmp_path, capsys):
    train(tmp_path / "other", seed=3, lr=1e-3, **SHORT)
    for name in ("spec.json", "model.safetensors"):
        shutil.copy(tmp_path / "other" / name, copy / name)
    train(copy, **SHORT)
    assert "is of another step than the newest checkpoint" in capsys.readouterr().err
    assert (copy / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


# ---- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "spec.json", "model.safetensors", "metrics.jsonl"])
def test_a_link_in_a_run_is_replaced_not_followed(copy, tmp_path, name):
    target = tmp_path / "target"
    (copy / name).rename(target)
    before = target.read_bytes()
    (copy / name).symlink_to(target)
    train(copy, **(SHORT | dict(steps=6)))
    assert target.read_bytes() == before
    assert not (copy / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "previews", "tensorboard"])
def test_a_folder_that_is_a_link_is_refused(copy, tmp_path, name):
    other = tmp_path / "other"
    if (copy / name).exists():
        (copy / name).rename(other)
    other.mkdir(exist_ok=True)
    before = sorted(other.rglob("*"))
    (copy / name).symlink_to(other)
    with pytest.raises(
        OptionError, match=rf"{name} is a link, and a run does not write through links; move its target"
    ):
        train(copy, **(SHORT | dict(steps=6, keep=1)))
    assert sorted(other.rglob("*")) == before


def test_a_run_may_itself_be_a_link(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    train(tmp_path / "link", **(SHORT | dict(steps=6)))
    assert "step_00000006" in {path.name for path in (copy / "checkpoints").iterdir()}


@pytest.mark.parametrize("kind", ["link", "dangling link", "second name"])
def test_a_lock_that_is_another_file_is_refused(tmp_path, kind):
    victim, run_folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run_folder.mkdir()
    path = run_folder / ".lock"
    if kind == "second name":
        path.hardlink_to(victim)
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(OptionError, match=r"\.lock is a link or not an ordinary file, .*; remove it"):
        train(run_folder, steps=1)
    assert victim.read_text() == "precious" and not (tmp_path / "nowhere").exists()
    path.unlink()
    train(run_folder, steps=1)


def test_a_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OptionError, match=r"\.lock cannot be written: Is a directory"):
        train(tmp_path, steps=1)


def test_who_holds_the_lock_is_reported_on_one_line(tmp_path):
    with lock.RunLock(tmp_path) as held:
        held.path.write_text("\x1b[31mred\nand more")
        with pytest.raises(OptionError) as caught:
            lock.RunLock(tmp_path)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported_to_have_none(tmp_path, monkeypatch, capsys, number):
    def unsupported(handle, wait=False):
        raise OSError(number, "no locks")

    monkeypatch.setattr(lock, "lock", unsupported)
    train(tmp_path, steps=1)
    said = capsys.readouterr().err
    assert "has no locks (no locks), so nothing prevents another training from writing there" in said
    assert "being written" not in said


# ---- metrics -------------------------------------------------------------------------------------------------------

DAMAGED = [
    b"null",
    b"7",
    b'"step"',
    b"[" * 100_000,
    b'{"step": ' + b"[" * 100_000,
    b'{"step": NaN}',
    b'{"step": 1.5, "loss": 1.0}',
    b'{"step": true}',
    b'{"loss": 1.0}',
    b'{"step": 2, "loss": {"a": 1}}',
    b'{"step": -1}',
    b'{"step": 2, "lo\xb8s": 1.0}',
    b'{"step": 2, "loss": ' + b"9" * 2_000_000 + b"}",
    b"\x00\x01\x02",
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_costs_that_line(copy, made, damaged, capsys):
    path = copy / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:1], damaged + b"\n", *whole[1:]]))
    assert len(read_metrics(copy)) == 4
    assert f"warning: {path} is damaged: line 2 is left out" in capsys.readouterr().err
    train(copy, **(SHORT | dict(steps=5)))
    assert capsys.readouterr().err.count("line 2 is left out") == 1
    assert lines(copy)[:4] == lines(made)


def test_a_flipped_bit_costs_its_line(copy, capsys):
    path = copy / "metrics.jsonl"
    whole = bytearray(path.read_bytes())
    whole[20] ^= 0x80
    path.write_bytes(bytes(whole))
    train(copy, **(SHORT | dict(steps=5)))
    assert [line["step"] for line in lines(copy)] == [2, 3, 4, 5]
    assert "line 1 is left out" in capsys.readouterr().err


def test_lines_that_are_there_twice_or_in_another_order(copy, made):
    path = copy / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*reversed(whole), *whole]))
    assert [line["step"] for line in read_metrics(copy)] == [1, 2, 3, 4]
    train(copy, **SHORT)
    assert lines(copy) == lines(made)


# ---- what trains ---------------------------------------------------------------------------------------------------


def frozen(*names: str):
    from training_support import system

    found = system()
    for name, parameter in found.network.named_parameters():
        parameter.requires_grad_(name not in names)
    return found


def test_what_trains_is_part_of_a_run(made, copy, tmp_path):
    names = [name for name, _ in frozen().network.named_parameters()]
    assert json.loads((made / "config.json").read_text())["frozen"] == []
    more = SHORT | dict(steps=6)
    with pytest.raises(OptionError, match=rf"parameter {names[0]} trained, now frozen") as caught:
        train(copy, system=frozen(names[0]), **more)
    code = str(caught.value).rpartition("or in Python ")[2]
    target = frozen(names[0])
    eval(code, {"diffkit": diffkit, "system": target})  # the advice is code that runs
    assert target.network.get_parameter(names[1]).equal(diffkit.load(copy).network.get_parameter(names[1]))
    train(tmp_path / "frozen", system=frozen(*names[:2]), **SHORT)
    with pytest.raises(OptionError, match=rf"2 parameters \(the first is {names[0]}\) frozen, now trained"):
        train(tmp_path / "frozen", **more)
    train(tmp_path / "frozen", system=frozen(*names[:2]), **more)
    train(tmp_path / "whole", system=frozen(*names[:2]), **more)
    assert content(tmp_path / "frozen") == content(tmp_path / "whole")


def test_a_run_of_an_earlier_version_resumes_where_its_moments_fit(copy):
    names = [name for name, _ in frozen().network.named_parameters()]
    found = json.loads((copy / "config.json").read_text())
    del found["frozen"]
    run.write_config(copy, found)
    with pytest.raises(
        OptionError, match=rf"1 parameters that the run trained are frozen now .the first is {names[0]}"
    ):
        train(copy, system=frozen(names[0]), **(SHORT | dict(steps=6)))
    train(copy, **(SHORT | dict(steps=6)))
