"""What `system(x)` may cost beside network and loss: one upload, no host read."""

from __future__ import annotations

import pytest
import torch
from counters import DEVICE, counted
from torch import nn

import diffkit

SHAPE, BATCH = (3, 4, 4), 4


class Repeats(nn.Module):
    """Returns its input as often as the variance asks for."""

    def __init__(self, times: int):
        super().__init__()
        self.times, self.scale = times, nn.Parameter(torch.zeros(()))

    def forward(self, x, time):
        return x.repeat(1, self.times, 1, 1) * self.scale


class Reading(Repeats):
    """Reads a value back."""

    def forward(self, x, time):
        return super().forward(x, time) * float(x.sum())


class Uploading(Repeats):
    """Brings a tensor of its own along in every call."""

    def forward(self, x, time):
        return super().forward(x, time) + torch.zeros(1).to(x.device)


def uploads(loss: str, var: str, network: type[Repeats] = Repeats, timesteps: str = "uniform") -> int:
    """Uploads of one call of a system on the device, its tables uploaded before."""
    system = diffkit.compose(
        schedule="cosine",
        var=var,
        loss=loss,
        timesteps=timesteps,
        backbone=network(2 if var == "learned_range" else 1),
        data_shape=SHAPE,
    ).to(DEVICE)
    x = torch.zeros(BATCH, *SHAPE, device=DEVICE)
    system.objective.columns.on(DEVICE)
    return counted(lambda: system(x)).uploads


@pytest.mark.parametrize(("loss", "var"), [("simple", "fixed_large"), ("hybrid", "learned_range")])
@pytest.mark.parametrize("timesteps", ["uniform", "stratified"])
def test_levels_and_weights_are_all_that_is_uploaded(loss, var, timesteps):
    """A read of a value raises on this device."""
    assert uploads(loss, var, timesteps=timesteps) == 1


LIMITS = {"simple": 12, "hybrid": 34}
"""Loss -> operations forward and backward, its draws and the network's own left out."""


@pytest.mark.parametrize("loss", LIMITS)
def test_operations_forward_and_backward(loss):
    learned = loss == "hybrid"
    var = "learned_range" if learned else "fixed_large"
    system = diffkit.compose(schedule="cosine", var=var, loss=loss, backbone=None, data_shape=SHAPE)
    x, level = torch.zeros(BATCH, *SHAPE, device=DEVICE), torch.full((BATCH,), 2, device=DEVICE)
    leaf = torch.zeros(BATCH, SHAPE[0] * (1 + learned), *SHAPE[1:], device=DEVICE, requires_grad=True)
    system.objective.columns.on(DEVICE)
    found = counted(
        lambda: system.loss_terms(lambda x, time: leaf, x, level, x, decoder_rows=0)["loss"].sum().backward()
    )
    assert found.count <= LIMITS[loss], found.by_name


def test_an_upload_is_caught():
    assert uploads("simple", "fixed_large", Uploading) == 2


def test_a_host_read_is_caught():
    with pytest.raises(RuntimeError, match="meta"):
        uploads("simple", "fixed_large", Reading)
