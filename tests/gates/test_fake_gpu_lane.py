"""The benchmarks' GPU lane, walked on a GPU that is not there: every case runs, with no tensor on another device."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import GPU, fake_gpu

FOLDER = Path(__file__).parents[2] / "benchmarks"
if not (FOLDER / "gpu_lane.py").is_file():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what is measured against warns of this and that
OWN = ("gpu_lane", "measuring", "configurations", "updates", "plain", "published", "peers", "test_networks", "serving")


@pytest.fixture
def lane(monkeypatch):
    """The lane as on a machine with a GPU, with tiny networks, nothing compiled and each case run once."""
    kept = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("IMPROVED_DIFFUSION", raising=False)
    lane = importlib.import_module("gpu_lane")
    for module in map(sys.modules.get, OWN):
        monkeypatch.setattr(module, "DEVICE", GPU, raising=False)
    for name in ("reset_peak_memory_stats", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    stand_ins = dict(
        GPU=True,
        STEPS=2,
        system_for=lane.tiny,
        size_of=lambda *_: SimpleNamespace(training_flops=1.0),
        peak_flops=lambda: 1.0,
        launches=lambda run: run(),
        interleaved=once,
    )
    for name, value in stand_ins.items():
        monkeypatch.setattr(lane, name, value)
    served = sys.modules["serving"]
    monkeypatch.setattr(served, "clock", time.process_time)
    monkeypatch.setattr(served, "interleaved", once)
    monkeypatch.setattr(lane, "serving", lambda system, costs, _: served.serving(system, costs, 4))
    with fake_gpu(monkeypatch) as mode, mode.reading():  # what is measured against reads its losses and norms
        yield lane
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def once(cases, rounds, warm_ups=0):
    """Run each case, and say that it took a second."""
    for case in cases.values():
        case()
    return dict.fromkeys(cases, [1.0] * 3)


def moved(self, *_, **__):
    """All of a network on the device; torch's own way would swap parameters, which fake ones refuse."""
    for module in self.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(value.detach().to(GPU), value.requires_grad)
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else value.to(GPU)
    return self


CASES = {
    "ceilings": lambda lane: lane.ceilings(),
    "host_reads": lambda lane: lane.host_reads(),
    "sampling": lambda lane: lane.sampling("iddpm/cifar10-uncond", 2),
    "sampling_with_classes": lambda lane: lane.sampling("dit/xl2-256", 1),
    "training": lambda lane: lane.training("iddpm/cifar10-uncond", 2, compiled=True, peers=True),
    "training_with_classes": lambda lane: lane.training("dit/b2-256", 2, compiled=True, peers=False),
    "bound": lambda lane: lane.bound("iddpm/cifar10-uncond", 4),
    "requests": lambda lane: lane.requests("iddpm/cifar10-uncond"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_lane(lane, name):
    rows = CASES[name](lane)
    assert rows and not [row for row in rows if "error" in row], rows


def test_peers_are_among_the_updates(lane):
    updates = {row["update"] for row in CASES["training"](lane)}
    wanted = lane.PEERS if lane.DIFFUSERS else {peer for peer in lane.PEERS if peer.startswith("plain")}
    assert updates == {"bf16", "bf16 compiled"} | wanted


def test_a_tensor_on_the_wrong_device_is_an_error(lane, monkeypatch):
    monkeypatch.setattr(sys.modules["updates"], "DEVICE", torch.device("cpu"))
    rows = CASES["training"](lane)
    assert any("device" in row.get("error", "") for row in rows), rows


def test_no_stage_takes_more_than_its_time(lane):
    cases = list(lane.cases())
    assert {case.stage for case in cases} == set(lane.STAGES)
    for stage in lane.STAGES:
        assert sum(case.seconds for case in cases if case.stage == stage) <= lane.STAGE_SECONDS
    assert len({case.name for case in cases}) == len(cases)
