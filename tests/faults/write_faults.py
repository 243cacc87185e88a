"""Commands that are killed, or meet a full disk, at one of their writes; and what the same command then makes of it.

Each runs in a fork of the test, so nothing is imported again. A write is what `write_watch` counts. `Limited` is the
other kind: a write() that really fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attrs import frozen
from write_watch import Fault, Watch

PATIENCE = 60
_COUNT = "number of writes: "


@frozen
class Command:
    """A command that writes.

    Attributes:
        name: What the test is called.
        words: Its command line; it runs in the folder that ``prepare`` filled.
        prepare: Fills an empty folder with what the command reads.
        ignore: Names of files that may differ from those of an uninterrupted run, or be there or not.
    """

    name: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None]
    ignore: tuple[str, ...] = ()


class Limited(NamedTuple):
    """No file may be longer than this: what is written beyond fails, or kills where ``kill``."""

    size: int
    kill: bool


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    said: str
    writes: int


def run(command: Command, room: Path, fault: Fault | Limited | None = None) -> Ended:
    """Run a command in a fork of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_command(command, room, fault, writing)
    os.close(writing)
    said = b""
    with os.fdopen(reading, "rb") as pipe:
        end = time.monotonic() + PATIENCE
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                break
            said += piece
        else:
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text, _, writes = said.decode(errors="replace").partition(_COUNT)
    return Ended(code, text, int(writes or 0))


def _be_the_command(command: Command, room: Path, fault: Fault | Limited | None, out: int) -> None:
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(room)
        watch = Watch(room, fault if isinstance(fault, Fault) else None)
        sys.addaudithook(watch)
        if isinstance(fault, Limited):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.kill else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, fault.size))
        code = _main(command.words)
        print(f"{_COUNT}{watch.count}")
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _main(words: Sequence[str]) -> int:
    from diffkit.__main__ import main

    try:
        return main(list(words))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def warm_up(command: Command, room: Path) -> None:
    """Run a command in this process, so that its forks have nothing to import."""
    with contextlib.chdir(room), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _main(command.words)


class Trial:
    """A command with an uninterrupted run of it to compare with.

    Args:
        command: The command.
        place: An empty folder.
    """

    def __init__(self, command: Command, place: Path):
        self.command, self.place = command, place
        self._inputs = place / "inputs"
        self._inputs.mkdir()
        command.prepare(self._inputs)
        warm_up(command, self._room())
        room = self._room()
        ended = run(command, room)
        assert ended.code == 0, ended
        self.writes, self.whole = ended.writes, self._files(room)

    def _room(self) -> Path:
        room = self.place / "room"
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(self._inputs, room)
        return room

    def _files(self, room: Path) -> dict[str, str]:
        return {
            name: digest
            for name, digest in files_of(room).items()
            if not any(part in self.command.ignore for part in Path(name).parts)
        }

    def problems(self, fault: Fault | Limited) -> list[str]:
        """Return what is wrong with what the command does at a fault, and with the same command after it."""
        room = self._room()
        first = run(self.command, room, fault)
        found = [*self._of_the_first(first, fault, room)]
        complete = self._files(room) == self.whole
        again = run(self.command, room)
        left = differences(self.whole, self._files(room))
        if "Traceback" in again.said:
            found.append(f"given again, a traceback: {again.said[-600:]}")
        if again.code and not complete:
            found.append(f"given again, it is refused with {again.code}: {again.said[-300:]}")
        elif left:
            found.append(f"given again, other files: {left}")
        return [f"{fault}: {problem}" for problem in found]

    def _of_the_first(self, ended: Ended, fault: Fault | Limited, room: Path) -> Iterator[str]:
        if "Traceback" in ended.said:
            yield f"a traceback: {ended.said[-600:]}"
        killed = fault.kill if isinstance(fault, Limited) else fault.name == "kill"
        if ended.code == 0:
            left = differences(self.whole, self._files(room))
            if left:
                yield f"exit 0 with other files: {left}; said {ended.said[-300:]}"
        elif killed and ended.code < 0:
            return
        elif ended.code != 2 or "error: " not in ended.said:
            yield f"exit {ended.code}, without an error: {ended.said[-300:]}"


def differences(whole: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Return what is missing, left over or of other content."""
    return {
        name: "missing" if name not in found else "left over" if name not in whole else "other content"
        for name in sorted(whole.keys() | found.keys())
        if whole.get(name) != found.get(name)
    }


def files_of(room: Path) -> dict[str, str]:
    """Return a digest of each file and empty folder, by name; a lock is none, and speeds are left out of metrics."""
    found = {}
    for path in sorted(room.rglob("*")):
        name = str(path.relative_to(room))
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = ""
        elif path.name != ".lock" and path.suffix != ".lock":
            found[name] = hashlib.sha256(_content(path)).hexdigest()[:12]
    return found


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name != "metrics.jsonl":
        return content
    lines = [json.loads(line) for line in content.splitlines()]
    return json.dumps([{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]).encode()


def faults(writes: int) -> Sequence[Fault]:
    """Return every fault at every write."""
    return [Fault(name, at) for at in range(1, writes + 1) for name in ("kill", "full", "full_from")]
