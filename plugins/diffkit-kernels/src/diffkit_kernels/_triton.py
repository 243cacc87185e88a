"""Triton kernels: sums over positions, coefficients of each group, and one pass that applies them; both ways.

Data is (B, N, C) in memory, B examples of N positions of C channels; coefficients are float32. Sums are taken over
chunks of positions, so that few large images occupy a GPU as many small ones do.
"""

# triton's kernels carry no types
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def act_gradient(dy, u, SILU: tl.constexpr):
    """Return the gradient of SiLU at u, or of the identity, times that of the result."""
    if SILU:
        s = 1 / (1 + tl.exp(-u))
        dy = dy * s * (1 + u * (1 - s))
    return dy


@triton.jit
def scale_and_shift(gamma, beta, scale_shift, b, c, C, inside, SHIFTED: tl.constexpr):
    """Return factor and offset of the normalized data, of channels c of example b."""
    factor = tl.load(gamma + c, inside, 0.0).to(tl.float32)
    offset = tl.load(beta + c, inside, 0.0).to(tl.float32)
    if SHIFTED:
        grown = 1 + tl.load(scale_shift + b * 2 * C + c, inside, 0.0).to(tl.float32)
        factor = factor * grown
        offset = offset * grown + tl.load(scale_shift + (b * 2 + 1) * C + c, inside, 0.0).to(tl.float32)
    return factor, offset


@triton.jit
def sums(x, out, N, C, CHUNK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of x - first and of its square over a chunk of positions, where first is the value at position 0."""
    b, chunk, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    start = b.to(tl.int64) * N * C
    first = tl.load(x + start + c, c < C, 0.0).to(tl.float32)
    s = tl.zeros((WIDTH,), tl.float32)
    q = tl.zeros((WIDTH,), tl.float32)
    for begin in range(0, CHUNK, ROWS):
        n = chunk * CHUNK + begin + tl.arange(0, ROWS)
        inside = (n < N)[:, None] & (c < C)[None, :]
        v = tl.load(x + start + n[:, None] * C + c[None, :], inside, 0.0).to(tl.float32)
        v = tl.where(inside, v - first[None, :], 0.0)
        s += tl.sum(v, 0)
        q += tl.sum(v * v, 0)
    place = out + (b * tl.num_programs(1) + chunk) * 2 * C + c
    tl.store(place, s, c < C)
    tl.store(place + C, q, c < C)


@triton.jit
def coefficients(x, partial, gamma, beta, scale_shift, mean, rstd, out, N, C, eps, chunks: tl.constexpr,
                 D: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr):  # fmt: skip
    """Mean and reciprocal standard deviation of a group, and with them factor and offset of its D channels."""
    b, g, j = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDTH)
    c, inside = g * D + j, j < D
    first = tl.load(x + b.to(tl.int64) * N * C + c, inside, 0.0).to(tl.float32)
    s = tl.zeros((WIDTH,), tl.float32)
    q = tl.zeros((WIDTH,), tl.float32)
    for chunk in range(chunks):
        place = partial + (b * chunks + chunk) * 2 * C + c
        s += tl.load(place, inside, 0.0)
        q += tl.load(place + C, inside, 0.0)
    m = tl.sum(tl.where(inside, first + s / N, 0.0), 0) / D
    away = tl.where(inside, first - m, 0.0)
    variance = tl.sum(q + 2 * away * s + N * away * away, 0) / (D * N)
    r = 1 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)
    tl.store(mean + b * tl.num_programs(1) + g, m)
    tl.store(rstd + b * tl.num_programs(1) + g, r)
    factor, offset = scale_and_shift(gamma, beta, scale_shift, b, c, C, inside, SHIFTED)
    tl.store(out + b * 2 * C + c, factor * r, inside)
    tl.store(out + (b * 2 + 1) * C + c, offset - m * factor * r, inside)


@triton.jit
def apply(x, y, found, N, C, ROWS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr):
    """``y = act(factor x + offset)``."""
    b, n = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = (n < N)[:, None] & (c < C)[None, :]
    place = b.to(tl.int64) * N * C + n[:, None] * C + c[None, :]
    factor = tl.load(found + b * 2 * C + c, c < C, 0.0)[None, :]
    offset = tl.load(found + (b * 2 + 1) * C + c, c < C, 0.0)[None, :]
    u = tl.load(x + place, inside, 0.0).to(tl.float32) * factor + offset
    if SILU:
        u = u / (1 + tl.exp(-u))
    tl.store(y + place, u.to(y.dtype.element_ty), inside)


@triton.jit
def gradient_sums(dy, x, gamma, beta, scale_shift, mean, rstd, out, N, C, D, CHUNK: tl.constexpr,
                  ROWS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr, SHIFTED: tl.constexpr):  # fmt: skip
    """Sums of du and du h over a chunk of positions, where h is the normalized data and u what act is applied to."""
    b, chunk, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    factor, offset = scale_and_shift(gamma, beta, scale_shift, b, c, C, c < C, SHIFTED)
    m = tl.load(mean + b * (C // D) + c // D, c < C, 0.0)[None, :]
    r = tl.load(rstd + b * (C // D) + c // D, c < C, 0.0)[None, :]
    s = tl.zeros((WIDTH,), tl.float32)
    t = tl.zeros((WIDTH,), tl.float32)
    for begin in range(0, CHUNK, ROWS):
        n = chunk * CHUNK + begin + tl.arange(0, ROWS)
        inside = (n < N)[:, None] & (c < C)[None, :]
        place = b.to(tl.int64) * N * C + n[:, None] * C + c[None, :]
        h = (tl.load(x + place, inside, 0.0).to(tl.float32) - m) * r
        du = tl.load(dy + place, inside, 0.0).to(tl.float32)
        du = act_gradient(du, h * factor[None, :] + offset[None, :], SILU)
        s += tl.sum(tl.where(inside, du, 0.0), 0)
        t += tl.sum(tl.where(inside, du * h, 0.0), 0)
    place = out + (b * tl.num_programs(1) + chunk) * 2 * C + c
    tl.store(place, s, c < C)
    tl.store(place + C, t, c < C)


@triton.jit
def gradient_coefficients(partial, gamma, beta, scale_shift, totals, found, N, C, chunks: tl.constexpr,
                          D: tl.constexpr, WIDTH: tl.constexpr, SHIFTED: tl.constexpr):  # fmt: skip
    """Sums over all positions, (B, 2, C), and the two means of a group that the gradient of x needs, (B, 2, C / D)."""
    b, g, j = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDTH)
    c, inside = g * D + j, j < D
    s = tl.zeros((WIDTH,), tl.float32)
    t = tl.zeros((WIDTH,), tl.float32)
    for chunk in range(chunks):
        place = partial + (b * chunks + chunk) * 2 * C + c
        s += tl.load(place, inside, 0.0)
        t += tl.load(place + C, inside, 0.0)
    tl.store(totals + b * 2 * C + c, s, inside)
    tl.store(totals + (b * 2 + 1) * C + c, t, inside)
    factor, _ = scale_and_shift(gamma, beta, scale_shift, b, c, C, inside, SHIFTED)
    groups = tl.num_programs(1)
    tl.store(found + b * 2 * groups + g, tl.sum(factor * s, 0) / (D * N))
    tl.store(found + (b * 2 + 1) * groups + g, tl.sum(factor * t, 0) / (D * N))


@triton.jit
def gradient(dy, x, gamma, beta, scale_shift, mean, rstd, found, dx, N, C, D, ROWS: tl.constexpr,
             WIDTH: tl.constexpr, SILU: tl.constexpr, SHIFTED: tl.constexpr):  # fmt: skip
    """``dx = rstd (factor du - mean_group(factor du) - h mean_group(factor du h))``."""
    b, n = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = (n < N)[:, None] & (c < C)[None, :]
    place = b.to(tl.int64) * N * C + n[:, None] * C + c[None, :]
    groups = C // D
    factor, offset = scale_and_shift(gamma, beta, scale_shift, b, c, C, c < C, SHIFTED)
    m = tl.load(mean + b * groups + c // D, c < C, 0.0)[None, :]
    r = tl.load(rstd + b * groups + c // D, c < C, 0.0)[None, :]
    p = tl.load(found + b * 2 * groups + c // D, c < C, 0.0)[None, :]
    q = tl.load(found + (b * 2 + 1) * groups + c // D, c < C, 0.0)[None, :]
    h = (tl.load(x + place, inside, 0.0).to(tl.float32) - m) * r
    du = tl.load(dy + place, inside, 0.0).to(tl.float32)
    du = act_gradient(du, h * factor[None, :] + offset[None, :], SILU)
    tl.store(dx + place, (r * (du * factor[None, :] - p - h * q)).to(dx.dtype.element_ty), inside)
