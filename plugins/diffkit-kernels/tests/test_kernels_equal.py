"""The kernels against torch's own operations, in value and gradient."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from diffkit_kernels import cpu, gpu, group_norm, library

HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_cpu = pytest.mark.skipif(not cpu.available(), reason="needs AVX-512 and a C compiler")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

EPS = 1e-5
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-7}
"""Of the largest value: some roundings of sums in float32, and one rounding to 8 bits where values cancel."""


class Case:
    """Data of some shape, and the function with its gradients in float64."""

    def __init__(self, batch, groups, width, sides, dtype, silu, shifted, seed):
        generator = torch.Generator().manual_seed(seed)
        channels = groups * width

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        last = torch.channels_last
        self.groups, self.silu, self.dtype = groups, silu, dtype
        self.x = (2 * draw(batch, channels, *sides) + 3).to(dtype).contiguous(memory_format=last)
        self.grad = draw(batch, channels, *sides).to(dtype).contiguous(memory_format=last)
        self.weight, self.bias = draw(channels), draw(channels)
        self.scale_shift = draw(batch, 2 * channels).to(dtype) if shifted else None

    @property
    def inputs(self) -> list[Tensor | None]:
        return [self.x, self.weight, self.bias, self.scale_shift]

    def exact(self) -> list[Tensor]:
        """Value and gradients."""
        inputs = [None if t is None else t.double().requires_grad_() for t in self.inputs]
        y = by_torch(*inputs, self.groups, self.silu)
        return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], self.grad.double())]

    def by(self, kernel) -> list[Tensor]:
        given = [t if t is None else t.to(HERE if kernel is gpu else "cpu") for t in self.inputs]
        y, *saved = kernel.forward(*given, self.groups, EPS, self.silu)
        found = kernel.backward(self.grad.to(y.device), *given, self.groups, self.silu, *saved)
        return [t.cpu() for t in (y, *found) if t is not None]


def by_torch(x, weight, bias, scale_shift, groups, silu):
    h = F.group_norm(x, groups, weight, bias, EPS)
    if scale_shift is not None:
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h) if silu else h


def check(got: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    assert got[0].dtype == got[1].dtype == dtype and len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert (g.double() - w).abs().max() <= TOLERANCE[g.dtype] * w.abs().max().clamp(min=1)


@st.composite
def cases(draw):
    width = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24]))
    unit = 16 // torch.gcd(torch.tensor(16), torch.tensor(width)).item()
    groups = unit * draw(st.integers(1, max(1, 192 // (unit * width))))
    sides = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda s: s[0] * s[1] * width > 3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    batch, silu, shifted, seed = (
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 99)),
    )
    return Case(batch, groups, width, sides, dtype, silu, shifted, seed)


@needs_cpu
@settings(max_examples=25, derandomize=True, deadline=None)
@given(cases())
def test_c_equals_torch(case):
    assert group_norm.supports(case.x, case.groups)
    check(case.by(cpu), case.exact(), case.dtype)


@needs_cpu
@pytest.mark.slow
@settings(max_examples=500, derandomize=True, deadline=None)
@given(cases())
def test_c_equals_torch_in_many_shapes(case):
    check(case.by(cpu), case.exact(), case.dtype)


@needs_cpu
@pytest.mark.slow
def test_c_equals_torch_without_instructions_of_its_own(monkeypatch, tmp_path):
    """As on a CPU without AVX-512, where it is not used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-mno-avx512f", "-Wno-psabi"))
    library.load.cache_clear()
    for sizes in LARGE:
        case = Case(*sizes)
        check(case.by(cpu), case.exact(), case.dtype)
    library.load.cache_clear()


LARGE = [(2, 32, 2, (33, 17), torch.float32, True, True, 0), (1, 5, 16, (20, 30), torch.bfloat16, True, False, 1)]


@needs_cpu
@pytest.mark.parametrize("sizes", LARGE, ids=["float32", "bfloat16"])
def test_c_equals_torch_over_many_positions(sizes):
    case = Case(*sizes)
    check(case.by(cpu), case.exact(), case.dtype)


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_triton_equals_torch(dtype, monkeypatch):
    """In triton's interpreter where there is no GPU; in two chunks of positions and two blocks of channels."""
    monkeypatch.setattr(gpu, "CHUNK", 16)
    monkeypatch.setattr(gpu, "WIDTH", 32)
    case = Case(1, 16, 3, (3, 7), dtype, True, dtype == torch.float32, 0)
    check(case.by(gpu), case.exact(), case.dtype)


@needs_cpu
def test_a_mean_far_from_zero_costs_no_digits():
    case = Case(2, 16, 4, (16, 16), torch.float32, False, False, 0)
    case.x += 1000
    y = cpu.forward(*case.inputs, case.groups, EPS, case.silu)[0]
    assert (y - case.exact()[0]).abs().max() < 1e-3  # x itself is rounded to 6e-5


@needs_cpu
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_example(value):
    for dtype in TOLERANCE:
        case = Case(2, 8, 4, (3, 5), dtype, True, True, 0)
        case.x[1, 5, 1, 1] = value
        y, dx, *_ = case.by(cpu)
        assert not y[1, 4:8].isfinite().any() and not dx[1, 4:8].isfinite().any()
        assert y[0].isfinite().all() and dx[0].isfinite().all() and y[1, :4].isfinite().all()


@needs_cpu
def test_an_example_does_not_depend_on_batch_and_threads():
    case = Case(3, 24, 8, (8, 8), torch.bfloat16, True, True, 0)
    whole = cpu.forward(*case.inputs, case.groups, EPS, True)[0]
    alone = cpu.forward(case.x[1:2], case.weight, case.bias, case.scale_shift[1:2], case.groups, EPS, True)[0]
    assert torch.equal(whole[1:2], alone)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(cpu.forward(*case.inputs, case.groups, EPS, True)[0], whole)
    finally:
        torch.set_num_threads(before)


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_and_shifts_may_be_short(dtype):
    case = Case(2, 8, 4, (3, 5), torch.bfloat16, True, True, 0)
    weight, bias, moved = case.weight.to(dtype), case.bias.to(dtype), case.scale_shift.to(dtype)
    y, saved = group_norm.forward(case.x, weight, bias, moved, 8, EPS, True)
    found = group_norm.backward(case.grad, case.x, weight, bias, moved, 8, True, saved)
    assert [t.dtype for t in (y, *found)] == [torch.bfloat16, torch.bfloat16, dtype, dtype, dtype]
    case.weight, case.bias, case.scale_shift = weight.float(), bias.float(), moved.float()
    wanted = case.exact()
    for got, want in zip((y, *found), wanted, strict=True):
        assert (got.double() - want).abs().max() <= 2**-7 * want.abs().max()
