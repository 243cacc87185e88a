"""Tensors of a kind that a network cannot take are refused with what would help; all others are taken as they are."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from weights_support import FIXED, golden

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("none", torch.zeros(0, 3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x


FINE = {
    "float16": torch.full((2, 3), 2.0).half(),
    "bfloat16": torch.full((2, 3), 2.0).bfloat16(),
    "float64": torch.full((2, 3), 2.0).double(),
    "8-bit float": torch.full((2, 3), 2.0).to(torch.float8_e4m3fn),
    "transposed": torch.full((3, 2), 2.0).T,
    "expanded": torch.full((1, 1), 2.0).expand(2, 3),
    "a view": torch.full((9,), 2.0)[3:].view(2, 3),
    "a parameter": nn.Parameter(torch.full((2, 3), 2.0)),
}


@pytest.mark.parametrize("kind", FINE)
def test_values_of_any_real_kind_are_taken(kind, tmp_path):
    torch.save({"weight": FINE[kind], "bias": torch.ones(3), "none": torch.zeros(0, 3)}, tmp_path / "x.pt")
    network = Own()
    assert weights.load_matching(network, tmp_path / "x.pt").taken == ("weight", "bias", "none")
    assert torch.equal(network.weight.detach(), torch.full((2, 3), 2.0))


def test_a_tensor_that_two_names_share_is_taken_twice(tmp_path):
    both = torch.ones(2, 3)
    torch.save({"weight": both, "bias": both[0]}, tmp_path / "x.pt")
    network = Own()
    weights.load_matching(network, tmp_path / "x.pt")
    with torch.no_grad():
        network.weight.zero_()
    assert torch.equal(network.bias.detach(), torch.ones(3))


def test_a_buffer_may_hold_infinity(tmp_path):
    torch.save({"mask": torch.full((2,), float("-inf")), "count": torch.tensor(3)}, tmp_path / "x.pt")
    assert weights.load_matching(Own(), tmp_path / "x.pt").taken == ("mask", "count")


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


REFUSED = [
    (lambda: torch.ones(2, 3).to_sparse(), "weight is sparse; save tensor.to_dense()"),
    (lambda: torch.ones(2, 3).to_sparse_csr(), "weight is sparse; save tensor.to_dense()"),
    (quantized, "weight is quantized; save tensor.dequantize()"),
    (lambda: torch.ones(2, 3, device="meta"), "weight has a shape and no values"),
    (
        lambda: torch.ones(2, 3, dtype=torch.complex64),
        "weight holds complex numbers, the network float32; save tensor.real",
    ),
    (lambda: torch.ones(2, 3, dtype=torch.int8), "weight holds int8, the network float32; save tensor.float()"),
    (lambda: torch.ones(2, 3, dtype=torch.bool), "weight holds bool, the network float32; save tensor.float()"),
    (lambda: torch.full((2, 3), float("nan")), "weight has 6 values that are not finite"),
    (lambda: torch.full((2, 3), float("inf")).half(), "weight has 6 values that are not finite"),
    (lambda: torch.full((2, 3), float("nan")).to(torch.float8_e4m3fn), "weight has 6 values that are not finite"),
]


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantiz|TypedStorage|Validation)")
@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_values_that_a_network_cannot_take(make, text, tmp_path):
    tensor = make()
    torch.save({"weight": tensor}, tmp_path / "x.pt")
    network = Own()
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'x.pt'}: {text}")):
        weights.load_matching(network, tmp_path / "x.pt")
    assert not network.weight.any()
    advice = re.search(r"save (tensor\.\w+(?:\(\))?)", text)
    if advice:  # it runs, and helps
        torch.save({"weight": eval(advice[1], {"tensor": tensor})}, tmp_path / "x.pt")
        assert weights.load_matching(network, tmp_path / "x.pt").taken == ("weight",)


def test_public_files_with_values_that_are_not_finite_are_refused(tmp_path):
    stored = golden("unet_uncond")
    state = stored.state
    state["out.2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"out\.2\.bias has 1 values that are not finite"):
        diffkit.load_checkpoint(tmp_path / "x.pt", **FIXED, **stored.unseen)
