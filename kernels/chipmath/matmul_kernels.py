"""The Triton kernels of `chipmath.matmul_gpu`: one loop over K, three ways to bring the scales in.

All compute C = A B' for groups of rows of A, each with a B of its own; a plain product has one group.

a, b           (M, K) and (groups * N, K) codes, viewed as FP8, rows contiguous; K a multiple of 32
tiles          (tiles_m, 3) int32: group, first row, and the row after the group's last, for each tile of rows
c              (M, N) float32
grid           (tiles_m * ceil(N / TILE_N),)

Rows and columns beyond the edge are read from row or column 0 and never stored, so that the loop needs no mask; EVEN_K
says that TILE_K divides K, and only then it has none.
"""

import triton
import triton.language as tl

BAND = tl.constexpr(8)  # tiles of rows that programs walk together, so that they find each other's B in the cache
BLOCK = tl.constexpr(32)  # elements of an MX block


@triton.jit
def _tile(tiles, tiles_m, N, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """This program's rows of A and C, columns of C, rows of B, and which of them exist."""
    program, tiles_n = tl.program_id(0), tl.cdiv(N, TILE_N)
    first = program // (BAND * tiles_n) * BAND
    height = tl.minimum(tiles_m - first, BAND)
    inside = program % (BAND * tiles_n)
    tile = tiles + (first + inside % height) * 3
    m = tl.load(tile + 1) + tl.arange(0, TILE_M)
    n = inside // height * TILE_N + tl.arange(0, TILE_N)
    has_m, has_n = m < tl.load(tile + 2), n < N
    m, n = tl.where(has_m, m, 0).to(tl.int64), tl.where(has_n, n, 0)
    return m, n, tl.load(tile).to(tl.int64) * N + n, has_m, has_n


@triton.jit
def _load(at, k, K, EVEN_K: tl.constexpr):
    """Elements (or scales) at k of K; beyond the end, zeros."""
    if EVEN_K:
        return tl.load(at)
    return tl.load(at, mask=k < K, other=0.0)


@triton.jit
def _store(c, m, n, N, has_m, has_n, total):
    tl.store(c + m[:, None] * N + n[None, :], total, mask=has_m[:, None] & has_n[None, :])


@triton.jit
def dot_scaled(
    a, a_scales, b, b_scales, c, tiles, tiles_m, N, K,
    A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Scales as E8M0 bytes (rows, K / 32), handed to `tl.dot_scaled`; formats "e4m3" or "e5m2"."""
    m, n, b_row, has_m, has_n = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    k, block = tl.arange(0, TILE_K), tl.arange(0, TILE_K // BLOCK)
    a_at, b_at = a + m[:, None] * K + k[None, :], b + b_row[None, :] * K + k[:, None]
    blocks = K // BLOCK
    a_scales_at = a_scales + m[:, None] * blocks + block[None, :]
    b_scales_at = b_scales + b_row[:, None] * blocks + block[None, :]
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        left = _load(a_at, start + k[None, :], K, EVEN_K)
        right = _load(b_at, start + k[:, None], K, EVEN_K)
        if EVEN_K:
            left_scales, right_scales = tl.load(a_scales_at), tl.load(b_scales_at)
        else:
            exists = start // BLOCK + block[None, :] < blocks
            left_scales = tl.load(a_scales_at, mask=exists, other=127)
            right_scales = tl.load(b_scales_at, mask=exists, other=127)
        total = tl.dot_scaled(left, left_scales, A_FORMAT, right, right_scales, B_FORMAT, total)
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += TILE_K // BLOCK
        b_scales_at += TILE_K // BLOCK
    _store(c, m, n, N, has_m, has_n, total)


@triton.jit
def _power(exponent):
    """2**exponent as float32, for exponents of normal numbers."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def fp16_relative(
    a, a_scales, a_exponents, b, b_scales, b_exponents, c, tiles, tiles_m, N, K,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Scales as float16 (rows, K / 32), relative to 2**exponent of the row; exponents int32 (rows,).

    An element times its relative scale is a float16, exactly (`chipmath.matmul_gpu.relative_scales`). The rows' own
    powers of two are put back once, at the end: in two halves, as their product may be beyond float32 where C is not.
    """
    m, n, b_row, has_m, has_n = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    k, block = tl.arange(0, TILE_K), tl.arange(0, TILE_K // BLOCK)
    a_at, b_at = a + m[:, None] * K + k[None, :], b + b_row[:, None] * K + k[None, :]
    blocks = K // BLOCK
    a_scales_at = a_scales + m[:, None] * blocks + block[None, :]
    b_scales_at = b_scales + b_row[:, None] * blocks + block[None, :]
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        left = _load(a_at, start + k[None, :], K, EVEN_K).to(tl.float16)
        right = _load(b_at, start + k[None, :], K, EVEN_K).to(tl.float16)
        left_scales = _load(a_scales_at, start // BLOCK + block[None, :], blocks, EVEN_K)
        right_scales = _load(b_scales_at, start // BLOCK + block[None, :], blocks, EVEN_K)
        left = left.reshape(TILE_M, TILE_K // BLOCK, BLOCK) * left_scales[:, :, None]
        right = right.reshape(TILE_N, TILE_K // BLOCK, BLOCK) * right_scales[:, :, None]
        total = tl.dot(left.reshape(TILE_M, TILE_K), tl.trans(right.reshape(TILE_N, TILE_K)), total)
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += TILE_K // BLOCK
        b_scales_at += TILE_K // BLOCK
    exponent = tl.load(a_exponents + m)[:, None] + tl.load(b_exponents + b_row)[None, :]
    exponent = tl.maximum(exponent, -252)  # below it C is 0 anyway
    half = exponent >> 1
    _store(c, m, n, N, has_m, has_n, total * _power(half) * _power(exponent - half))


@triton.jit
def folded_128(
    a, a_scales, b, b_scales, c, tiles, tiles_m, N, K, a_rows, b_rows,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Scales as float32, (K / 128, rows): FP8 tensor cores add up 128 products, float32 the scaled sums.

    TILE_K is 128 and K a multiple of it. Two operations an accumulator and 128 of K are left outside the tensor cores.
    """
    tl.static_assert(EVEN_K)
    m, n, b_row, has_m, has_n = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    k = tl.arange(0, TILE_K)
    a_at, b_at = a + m[:, None] * K + k[None, :], b + b_row[None, :] * K + k[:, None]
    a_scales_at, b_scales_at = a_scales + m, b_scales + b_row
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for _ in range(0, K, TILE_K):
        scales = tl.load(a_scales_at)[:, None] * tl.load(b_scales_at)[None, :]
        total += tl.dot(tl.load(a_at), tl.load(b_at)) * scales
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += a_rows
        b_scales_at += b_rows
    _store(c, m, n, N, has_m, has_n, total)


@triton.jit
def dequantize(codes, scales, target, blocks, BLOCKS: tl.constexpr):
    """target = bfloat16(code * scale), BLOCKS MX blocks a program; exact for scales that `bf16_scales` allows.

    Grid (blocks / BLOCKS,), rounded up.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    exists = block < blocks
    byte = tl.load(scales + block, mask=exists, other=127).to(tl.int32)
    scale = tl.where(byte == 255, float("nan"), (byte << 23).to(tl.float32, bitcast=True))
    values = tl.load(codes + at, mask=exists[:, None], other=0.0).to(tl.float32) * scale[:, None]
    tl.store(target + at, values.to(tl.bfloat16), mask=exists[:, None])
