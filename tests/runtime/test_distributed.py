"""Processes of one job agree, and an error in one of them is an error in all."""

from __future__ import annotations

import socket

import pytest
from forks import forked, forking

from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.distributed import Ranks, join_ranks, launched


@forking
def test_two_processes_agree():
    def job(rank: int) -> str:
        with join_ranks(timeout=60) as among:
            assert among.gather(among.rank * 10) == [0, 10]
            assert among.all_ranks(lambda: among.rank) == [0, 1]
            assert among.rank_zero(lambda: f"from {among.rank}") == "from 0"
            assert among.any(among.rank == 1) and not among.any(False)
            for do in (lambda: among.rank_zero(_bad), lambda: among.all_ranks(_bad if among.rank else (lambda: 1))):
                with pytest.raises(CheckpointError, match=r"^the disk is full$"):
                    do()
            with pytest.raises((ZeroDivisionError, RuntimeError)) as caught:
                among.all_ranks(lambda: 1 // (1 - among.rank))
        return str(caught.value)

    other, own = forked(2, job)
    assert own == "integer division or modulo by zero" and "rank 1: ZeroDivisionError" in other


def _bad() -> None:
    raise CheckpointError("the disk is full")


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as among:
        assert among == Ranks(0, 1)
        assert among.all_ranks(lambda: 3) == [3] and among.rank_zero(lambda: 4) == 4 and among.any(True)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("WORLD_SIZE", "two", "WORLD_SIZE must be an integer, got 'two'"), ("WORLD_SIZE", "2", "RANK is not")],
)
def test_half_an_environment_is_refused(monkeypatch, name, value, text):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=text):
        launched()


@pytest.mark.parametrize("waits", ["JOIN_TIMEOUT", "AGENT_TIMEOUT"])
def test_a_launcher_that_is_gone_is_not_waited_for(monkeypatch, waits):
    """Its processes, started but not joined when it was killed, would wait for as long as for the slowest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(waits == "AGENT_TIMEOUT"))
    monkeypatch.setattr(f"diffkit.runtime.distributed.{waits}", 1.0)
    with pytest.raises(OptionError, match=r"do not find each other: .*; is their launcher alive"), join_ranks():
        pass
