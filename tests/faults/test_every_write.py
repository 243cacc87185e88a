"""A command that is killed, or meets a full disk, at any of its writes: given again, it leaves what it always leaves.

Nothing is wrong, refused for ever or left over, nothing ends in a traceback, and an error says what happened. The
shorter lanes try a few writes of each command, the soak lane all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands_that_write import commands
from forks import forking
from lanes import in_lanes
from write_faults import Limited, Trial, faults
from write_watch import Fault

from diffkit.runtime.publishing import new_folder, save_npz, together, unfinished

LIMITS = [Limited(size, kill) for size in (0, 50, 300, 1500) for kill in (False, True)]


@forking
@pytest.mark.parametrize("name", sorted(commands()))
@in_lanes(slow=4)
def test_given_again_it_leaves_what_it_always_leaves(name, chosen, tmp_path):
    trial = Trial(commands()[name], tmp_path)
    cases = [*faults(trial.writes), *LIMITS]
    wrong = [problem for case in chosen(cases) for problem in trial.problems(case)]
    assert trial.writes and not wrong, "\n".join(wrong)


@forking
@pytest.mark.parametrize("name", ["new_plugin", "data_import_folder"])
def test_the_same_for_a_few_writes_of_quick_commands(name, tmp_path):
    trial = Trial(commands()[name], tmp_path)
    cases = [Fault("kill", 3), Fault("full", 3), Fault("full_from", trial.writes), Limited(50, kill=False)]
    wrong = [problem for case in cases for problem in trial.problems(case)]
    assert not wrong, "\n".join(wrong)


def _can_mount() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data_import_npz", "nll", "export_pt", "edit", "cache", "average"])
def test_a_disk_that_is_really_full(name, tmp_path):
    if not _can_mount():
        pytest.skip("this machine lets a test mount no file system")
    command = commands()[name]
    command.prepare(tmp_path)
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "diffkit", *command.words))
    script = f"""
        mount -t tmpfs -o size=16m none /mnt && cp -r {tmp_path}/. /mnt && cd /mnt || exit 99
        dd if=/dev/zero of=filler bs=4096 2>/dev/null
        {words} > said 2>&1; first=$?; cat said >&2; rm filler said
        {words} > said 2>&1; echo $first $?; cat said >&2; rm said
        find . -name '.*.tmp' -o -name '.*.unfinished'
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    codes, *left = done.stdout.splitlines()
    assert codes == "2 0" and not left and "Traceback" not in done.stderr, done.stdout + done.stderr


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out) as work:
        (work / "half").write_text("")
        raise ZeroDivisionError
    assert not out.exists() and list(out.parent.iterdir()) == []
    with new_folder(out) as work:
        (work / "sub").mkdir()
        (work / "sub" / "file").write_text("new")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "new" and list(out.parent.iterdir()) == [out]


def test_what_a_folder_holds_stays_beside_what_is_new(tmp_path):
    (tmp_path / "own").write_text("stays")
    (tmp_path / "old").write_text("goes")
    with new_folder(tmp_path) as work:
        (work / "old").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"own": "stays", "old": "new"}


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as work:
        (work / "file").write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == "new"


def test_only_what_the_same_command_left_is_unfinished(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyboardInterrupt), together([first, second]):
        first.write_text("")
        raise KeyboardInterrupt
    assert unfinished([first, second]) and not unfinished([first]) and not unfinished([second, first])
    with together([first, second]):
        second.write_text("")
    assert not unfinished([first, second]) and sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize("content", ["", "[1", json.dumps({"a": 1}), "null", "[" * 100_000])
def test_a_note_of_something_else_permits_nothing(content, tmp_path):
    (tmp_path / ".first.unfinished").write_text(content)
    assert not unfinished([tmp_path / "first", tmp_path / "second"])


def test_the_same_arrays_are_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_npz(tmp_path / name, x=np.arange(3))
    assert Path(tmp_path / "a.npz").read_bytes() == Path(tmp_path / "b.npz").read_bytes()
