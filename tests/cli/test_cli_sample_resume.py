"""Sampling that stops anywhere resumes, and its files are those of an uninterrupted one, with any processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_support import Command, Refused

import diffkit
from diffkit.__main__ import main
from diffkit.system.randomness import NOISE

WORDS = ["-n", "7", "--steps", "3", "--batch-size", "2", "--format", "png,grid,npz", "--sampler", "ancestral"]
KILLED = -signal.SIGKILL


def arguments(saved: Path, out: Path, *more: str) -> list[str]:
    return ["sample", str(saved), *WORDS, "--out", str(out), *more]


def content(out: Path) -> dict[str, bytes]:
    """Every file there is, hidden ones and folders included, and the grid next to them."""
    files = [path for path in out.rglob("*") if path.is_file()]
    beside = [path for path in out.parent.glob(f"*{out.name}_grid*") if path.is_file()]
    return {path.relative_to(out.parent).as_posix(): path.read_bytes() for path in files + beside}


@pytest.fixture(scope="module")
def whole(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sampling that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(saved, out)) == 0
    found = content(out)
    assert len(found) == 7 + 1 + 1 + 1  # PNG files, grid, npz, sampling.json
    return found


def forked(do: Callable[[], object]) -> int:
    """Start a copy of this process that does something, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns about threads, which the child has none of
        child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    try:
        do()
        os._exit(0)
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """Exit code of a process, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def killed_at(number: int, after: bool) -> Iterator[None]:
    """Let SIGKILL strike this process just before, or after, the file of that number gets its name."""
    plain, count = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = plain(self, target)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Path.replace = replace  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.replace = plain  # type: ignore[method-assign]


def check_kill(saved: Path, out: Path, number: int, after: bool, whole: dict[str, bytes]) -> None:
    def work() -> None:
        with killed_at(number, after):
            main(arguments(saved, out))

    assert ended(forked(work)) == KILLED
    assert main(arguments(saved, out)) == 0
    assert content(out) == whole


@pytest.mark.parametrize("number", [1, 6, 13, 14])
def test_killed_as_a_file_gets_its_name(saved: Path, whole: dict[str, bytes], tmp_path: Path, number: int):
    check_kill(saved, tmp_path / "out", number, number % 2 == 0, whole)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 15))  # 1 + 7 + 4 + 1 + 1 files get their names
def test_killed_around_any_file(saved: Path, whole: dict[str, bytes], tmp_path: Path, number: int, after: bool):
    check_kill(saved, tmp_path / "out", number, after, whole)


def test_killed_again_and_again(command: Command, saved: Path, whole: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    deaths = 0
    for seed in range(15):
        child = forked(lambda: main(arguments(saved, out)))
        time.sleep(random.Random(seed).uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        deaths += ended(child) == KILLED
    assert deaths > 2
    assert command(*arguments(saved, out)).code == 0
    assert content(out) == whole


def test_what_is_there_is_not_made_again(command: Command, saved: Path, whole: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"

    def work() -> None:
        with killed_at(6, after=True):  # the facts, then a batch with its pixels, then half of the second batch
            main(arguments(saved, out))

    assert ended(forked(work)) == KILLED
    found = command(*arguments(saved, out))
    assert found.out.splitlines()[:2] == [f"writing to {out}/", "2 of 7 samples are there already"]
    (out / "dog_000004.png").unlink()
    (tmp_path / "out_grid.png").unlink()
    assert command(*arguments(saved, out)).code == 0
    assert content(out) == whole


def test_another_sampling_is_refused(command: Command, refused: Refused, saved: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert command(*arguments(saved, out)).code == 0
    before = content(out)
    steered = ["--guidance", "cfg", "--guidance.scale", "2"]
    said = refused(*arguments(saved, out), "--seed", "1", "--classes", "owl", *steered)
    assert said.startswith(f"--out {out} holds samples drawn with other options:\n  other --classes, or ")
    assert "\n  --seed 0, now 1" in said and "\n  --guidance none, now ClassifierFree(" in said
    assert said.endswith("pass the same options to resume, or name another folder; use --overwrite")
    other = diffkit.load(saved)
    next(other.network.parameters()).data.add_(1)
    assert "\n  another system, or the same with other weights\n" in refused(
        "sample", other.save(tmp_path / "other"), *WORDS, "--out", out
    )
    assert content(out) == before


def test_a_folder_records_its_noise(command: Command, refused: Refused, saved: Path, whole: dict[str, bytes], tmp_path):
    """Folders begun before the noise had a name hold that of generators."""
    out = tmp_path / "out"
    assert command(*arguments(saved, out)).code == 0
    facts = json.loads((out / "sampling.json").read_text())
    assert facts.pop("noise") == NOISE == "generators"
    (out / "sampling.json").write_text(json.dumps(facts))
    (out / "dog_000004.png").unlink()
    assert command(*arguments(saved, out)).code == 0
    assert (out / "dog_000004.png").read_bytes() == whole["out/dog_000004.png"]
    (out / "sampling.json").write_text(json.dumps(facts | {"noise": "counters"}))
    assert "\n  noise that another version of diffkit drew\n" in refused(*arguments(saved, out))


def test_guidance_gets_options(command: Command, saved: Path, tmp_path: Path):
    """Folders begun when descriptions had every option, and guidance fewer, go on."""
    words = [*arguments(saved, tmp_path / "out"), "--guidance", "cfg", "--guidance.scale", "2"]
    assert command(*words).code == 0
    path = tmp_path / "out" / "sampling.json"
    facts = json.loads(path.read_text())
    assert facts["guidance"] == "ClassifierFree(scale=2.0)"
    path.write_text(json.dumps(facts | {"guidance": "ClassifierFree(scale=2.0, interval=None, joint=True)"}))
    assert command(*words).code == 0


@pytest.mark.parametrize("n", ["6", "8"])
def test_another_number_needs_another_folder(n: str, command: Command, refused: Refused, saved: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert command(*arguments(saved, out)).code == 0
    words = [*without(arguments(saved, out), ["-n"]), "-n", n]
    assert refused(*words) == (
        f"--out {out} holds samples drawn with other options:\n  -n 7, now {n}\n"
        "pass -n 7 (the last batch would be another), or name another folder; use --overwrite"
    )


def test_two_at_once_are_refused(refused: Refused, saved: Path, tmp_path: Path):
    from diffkit.training.lock import RunLock

    out = tmp_path / "out"
    (out / ".batches").mkdir(parents=True)
    with RunLock(out / ".batches"):
        assert "is being written by another sampling (process" in refused(*arguments(saved, out))


def without(words: list[str], flags: Sequence[str]) -> list[str]:
    """A command line without some options and their values."""
    dropped = {i + k for i, word in enumerate(words) if word in flags for k in (0, 1)}
    return [word for i, word in enumerate(words) if i not in dropped]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(saved: Path, out: Path, size: int, *more: str) -> list[int]:
    """Start the processes of one sampling, as torchrun would."""
    port = str(free_port())

    def work(rank: int) -> int:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return main(without(arguments(saved, out), more[::2]) + list(more))

    return [forked(lambda rank=rank: os._exit(work(rank))) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_writes_the_same(saved: Path, whole: dict[str, bytes], tmp_path: Path, size: int):
    out = tmp_path / "out"
    assert [ended(child) for child in launch(saved, out, size)] == [0] * size
    assert content(out) == whole


def test_two_processes_killed_and_finished_by_one(
    command: Command, saved: Path, whole: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    for wanted in (1, 3, 5):
        children = launch(saved, out, 2)
        wait_for(lambda wanted=wanted: len(list(out.glob("*_*.png"))) >= wanted)
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            ended(child)
    assert command(*arguments(saved, out)).code == 0
    assert content(out) == whole


def test_processes_end_with_their_launcher(saved: Path, tmp_path: Path):
    """A launcher that is killed itself cannot stop them; left alone they would hold the folder."""
    out = tmp_path / "out"

    def launcher() -> None:
        for child in launch(saved, out, 2, "-n", "5000", "--format", "png"):
            ended(child)

    started = forked(launcher)
    wait_for(lambda: len(list(out.glob("*_*.png"))) > 3)
    os.kill(started, signal.SIGKILL)
    ended(started)
    wait_for(lambda: is_free(out / ".batches"))
    assert not is_whole(out, 5000)


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def is_free(folder: Path) -> bool:
    from diffkit.training.lock import RunLock

    try:
        RunLock(folder).release()
    except diffkit.OptionError:
        return False
    return True


def is_whole(out: Path, count: int) -> bool:
    return len(list(out.glob("*_*.png"))) == count


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_torchrun_killed_at_random(saved: Path, whole: dict[str, bytes], tmp_path: Path, size: int):
    """Whole programs, started as people start them, killed at times that no one chose.

    torchrun's processes are in sessions of their own: what is killed with it is torchrun alone.
    """
    out = tmp_path / "out"
    launcher = [] if size == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
    program = [sys.executable, "-m", *launcher, "diffkit", *arguments(saved, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for seed in range(6):
        started = subprocess.Popen(program, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(random.Random(seed).uniform(2.0, 6.0))
        os.killpg(os.getpgid(started.pid), signal.SIGKILL)
        started.wait()
    for _ in range(20):
        last = subprocess.run(program, env=environment, capture_output=True, text=True)
        if not last.returncode:
            break
        assert "is being written by another sampling" in last.stderr  # by processes that have not noticed yet
        time.sleep(1)
    assert content(out) == whole
