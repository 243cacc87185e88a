"""Work on many items: in order, with what failed in its place, here and in other processes."""

from __future__ import annotations

import os

import pytest
from PIL import Image

import diffkit.data
from diffkit.data.parallel import map_in_order
from diffkit.errors import DataError


def halved(number: int) -> int:
    if number % 7 == 3:
        raise DataError(f"{number} is odd in some way") from ValueError("a cause")
    return number // 2


def dying(number: int) -> int:
    os._exit(number)


@pytest.mark.parametrize("processes", [0, 2])
def test_results_and_errors_come_in_order(processes):
    found = list(map_in_order(halved, range(100), processes))
    assert len(found) == 100
    for number, result in enumerate(found):
        if number % 7 == 3:
            assert isinstance(result, DataError) and str(result) == f"{number} is odd in some way"
        else:
            assert result == number // 2


def test_nothing_to_do():
    assert list(map_in_order(halved, [], 0)) == list(map_in_order(halved, [], 2)) == []


def test_a_process_that_dies_is_one_clear_error():
    with pytest.raises(DataError, match=r"a process that reads images died, .*; use processes=0"):
        list(map_in_order(dying, [3], 1))


@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_process_of_a_job_reports_what_is_skipped(rank, lines, tmp_path, monkeypatch, capsys):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert len(diffkit.data.loading.load(tmp_path, size=4, on_error="skip")) == 1
    err = capsys.readouterr().err
    assert err.count("skipped ") == lines and ("reading images" in err) == bool(lines)


def test_other_errors_are_not_hidden():
    with pytest.raises(TypeError):
        list(map_in_order(halved, ["text"], 0))
