"""The Triton kernels of `chipmath.matmul_gpu`: one loop over K, three ways to bring the scales in.

All compute C = A B' for groups of rows of A, each with a B of its own; a plain product has one group.

a, b           (M, K) and (groups * N, K) codes, viewed as FP8, rows contiguous; K a multiple of 32
tiles          (tiles_m, 3) int32: group, first row, and the row after the group's last, for each tile of rows
c              (M, N) float32
grid           (tiles_m * ceil(N / TILE_N),)

Rows and columns beyond the edge are read from the tile's first row or column and never stored, so that the loop needs
no mask; EVEN_K says that TILE_K divides K, and only then it has none.

Scales that are float32 lie as programs read them ("by tile"): a row for each block of K, and in it TILE_M (or TILE_N)
scales for each tile, one tile of a group after the other. So a tile's scales are contiguous and aligned, whatever its
first row. Triton copies fp16_relative's of later steps ahead of time, as it does the codes; folded_128's it loads in
their own step, before the product that they are to be multiplied with.

Within a tile, addresses are 32-bit offsets from one 64-bit address: that many registers less.
"""

import triton
import triton.language as tl

BAND = tl.constexpr(8)  # tiles of rows that programs walk together, so that they find each other's B in the cache
BLOCK = tl.constexpr(32)  # elements of an MX block


@triton.jit
def _tile(tiles, tiles_m, N, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
    """This program's first row of A (int64), how many exist from there, first column of C and first row of B (int64).

    And where its scales by tile begin, A's and B's.
    """
    program, tiles_n = tl.program_id(0), tl.cdiv(N, TILE_N)
    first = program // (BAND * tiles_n) * BAND
    height = tl.minimum(tiles_m - first, BAND)
    inside = program % (BAND * tiles_n)
    row, column = first + inside % height, inside // height
    group, m = tl.load(tiles + row * 3), tl.load(tiles + row * 3 + 1)
    rows = tl.load(tiles + row * 3 + 2) - m
    n = column * TILE_N
    a_tile, b_tile = row * TILE_M, (group * tiles_n + column) * TILE_N
    return m.to(tl.int64), rows, n, group.to(tl.int64) * N + n, a_tile, b_tile


@triton.jit
def _existing(count, SIZE: tl.constexpr):
    """0, 1, …, and 0 again from ``count`` on."""
    at = tl.arange(0, SIZE)
    return tl.where(at < count, at, 0)


@triton.jit
def _load(at, k, K, EVEN_K: tl.constexpr):
    """Elements at k of K; beyond the end, zeros."""
    if EVEN_K:
        return tl.load(at)
    return tl.load(at, mask=k < K, other=0.0)


@triton.jit
def _store(c, m, rows, n, N, total):
    row, column = tl.arange(0, total.shape[0]), tl.arange(0, total.shape[1])
    exists = (row < rows)[:, None] & (column < N - n)[None, :]
    tl.store(c + m * N + n + (row[:, None] * N + column[None, :]), total, mask=exists)


@triton.jit
def dot_scaled(
    a, a_scales, b, b_scales, c, tiles, tiles_m, N, K,
    A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Scales as E8M0 bytes (rows, K / 32), handed to `tl.dot_scaled`; formats "e4m3" or "e5m2"."""
    m, rows, n, b_first, _, _ = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    row, column = _existing(rows, TILE_M), _existing(N - n, TILE_N)
    k, block = tl.arange(0, TILE_K), tl.arange(0, TILE_K // BLOCK)
    a_at = a + m * K + (row[:, None] * K + k[None, :])
    b_at = b + b_first * K + (column[None, :] * K + k[:, None])
    blocks = K // BLOCK
    if EVEN_K:
        blocks = tl.multiple_of(blocks, TILE_K // BLOCK)  # so that scales of a step are loaded together
    a_scales_at = a_scales + m * blocks + (row[:, None] * blocks + block[None, :])
    b_scales_at = b_scales + b_first * blocks + (column[:, None] * blocks + block[None, :])
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
    _store(c, m, rows, n, N, total)


@triton.jit
def _power(exponent):
    """2**exponent as float32, for exponents of normal numbers."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _put_back(total, a_exponents, b_exponents):
    """total * 2**(a + b): by two halves, as the whole power may be beyond float32 where the result is not.

    No half is beyond it: exponents lie between -135 and 127, and one half rounds a down and b up, the other the
    reverse. Where a half is below 2**-126, the result is 0 anyway.
    """
    a_low, b_low = a_exponents >> 1, b_exponents >> 1
    total = total * _power(a_low)[:, None] * _power(b_exponents - b_low)[None, :]
    return total * (_power(a_exponents - a_low)[:, None] * _power(b_low)[None, :])


@triton.jit
def _scaled(codes, scales_at, FOUR_BYTES: tl.constexpr):
    """(rows, K) codes as float16, times their blocks' scales (K / 32, rows).

    FOUR_BYTES changes the order of K, within each 16 of it, to pairs 0, 2, 4, 6, 1, 3, 5, 7. Where registers hold A,
    Hopper's wgmma wants of every 16 two pairs from a lane that are eight elements apart. In this order those two lie
    side by side in memory, and Triton reads them by ldmatrix instead of one by one. With A and B in one order, no
    product changes.
    """
    ROWS: tl.constexpr = codes.shape[0]
    K: tl.constexpr = codes.shape[1]
    scales = tl.trans(tl.load(scales_at).to(tl.float16))
    values = codes.to(tl.float16).reshape(ROWS, K // BLOCK, BLOCK) * scales[:, :, None]
    if FOUR_BYTES:
        values = values.reshape(ROWS, K // 16, 4, 2, 2).permute(0, 1, 3, 2, 4)
    return values.reshape(ROWS, K)


@triton.jit
def fp16_relative(
    a, a_scales, a_exponents, b, b_scales, b_exponents, c, tiles, tiles_m, N, K, a_width, b_width,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr, FOUR_BYTES: tl.constexpr,
):  # fmt: skip
    """Scales by tile, relative to 2**exponent of the row and zeros up to a whole step; a_width, b_width for each block.

    Exponents are int32, by tile. An element times its relative scale is a float16, exactly
    (`chipmath.matmul_gpu.relative_scales`). The rows' own powers of two are put back once, at the end.
    """
    m, rows, n, b_first, a_tile, b_tile = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    k, block = tl.arange(0, TILE_K), tl.arange(0, TILE_K // BLOCK)
    row, column = tl.arange(0, TILE_M), tl.arange(0, TILE_N)
    a_at = a + m * K + (_existing(rows, TILE_M)[:, None] * K + k[None, :])
    b_at = b + b_first * K + (_existing(N - n, TILE_N)[:, None] * K + k[None, :])
    a_scales_at = a_scales + a_tile + (block[:, None] * a_width + row[None, :])
    b_scales_at = b_scales + b_tile + (block[:, None] * b_width + column[None, :])
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        left = _scaled(_load(a_at, start + k[None, :], K, EVEN_K), a_scales_at, FOUR_BYTES)
        right = _scaled(_load(b_at, start + k[None, :], K, EVEN_K), b_scales_at, FOUR_BYTES)
        total = tl.dot(left, tl.trans(right), total)
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += TILE_K // BLOCK * a_width
        b_scales_at += TILE_K // BLOCK * b_width
    total = _put_back(total, tl.load(a_exponents + a_tile + row), tl.load(b_exponents + b_tile + column))
    _store(c, m, rows, n, N, total)


@triton.jit
def folded_128(
    a, a_scales, b, b_scales, c, tiles, tiles_m, N, K, a_width, b_width,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Scales by tile, one for 128 of K: FP8 tensor cores add up 128 products, float32 the scaled sums.

    TILE_K is 128 and K a multiple of it. Two operations an accumulator and 128 of K are left outside the tensor cores.
    """
    tl.static_assert(EVEN_K)
    m, rows, n, b_first, a_tile, b_tile = _tile(tiles, tiles_m, N, TILE_M, TILE_N)
    k = tl.arange(0, TILE_K)
    a_at = a + m * K + (_existing(rows, TILE_M)[:, None] * K + k[None, :])
    b_at = b + b_first * K + (_existing(N - n, TILE_N)[None, :] * K + k[:, None])
    a_scales_at, b_scales_at = a_scales + a_tile + tl.arange(0, TILE_M), b_scales + b_tile + tl.arange(0, TILE_N)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for _ in range(0, K, TILE_K):
        scales = tl.load(a_scales_at)[:, None] * tl.load(b_scales_at)[None, :]
        total += tl.dot(tl.load(a_at), tl.load(b_at)) * scales
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += a_width
        b_scales_at += b_width
    _store(c, m, rows, n, N, total)


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


@triton.jit
def _part(down):
    """2**-down as float16, for 0 to 24; from 15 on it is a subnormal number."""
    bits = tl.where(down < 15, (15 - down) << 10, (1 << 24 - down))
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def fold(codes, words, scales, folded, folded_scales, blocks, PARTS: tl.constexpr, BLOCKS: tl.constexpr):
    """`matmul_gpu.fold` in one pass: PARTS MX blocks to a new one, BLOCKS new ones a program.

    codes, folded  viewed as FP8; words: the codes once more, four to an int32, which shows blocks of zeros soonest
    Grid (blocks / BLOCKS,), rounded up.

    A code is an exact float16, and so is each of its quotients, but for those that round to zero whatever they are.
    Half of E4M3's smallest step is 2**-10, and 20 binades down its largest number is less; for E5M2 it is 2**-17, and
    34 binades, which are taken in two halves, as float16 has no number below 2**-24.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    part = block[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    exists = (block < blocks)[:, None]
    byte = tl.load(scales + part, mask=exists, other=255).to(tl.int32)
    word = tl.load(words + part[:, :, None] * (BLOCK // 4) + tl.arange(0, BLOCK // 4), mask=exists[:, :, None], other=0)
    live = (tl.max(word & 0x7F7F7F7F, 2) != 0) & (byte != 255)
    top = tl.max(tl.where(live, byte, -1), 1)
    top = tl.where(top < 0, 127, top)  # nothing but zeros and NaN: 2**0
    IS_E5M2: tl.constexpr = codes.dtype.element_ty == tl.float8e5
    down = tl.minimum(tl.where(live, top[:, None] - byte, 0), 34 if IS_E5M2 else 20)
    first = down >> 1 if IS_E5M2 else down
    power = tl.where(byte == 255, float("nan"), _part(first))
    at = part[:, :, None] * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + at, mask=exists[:, :, None], other=0.0)
    number = code.to(tl.float16)
    divided = number * power[:, :, None]
    if IS_E5M2:
        divided *= _part(down - first)[:, :, None]
    new = divided.to(code.dtype)
    if IS_E5M2:  # conversions make Inf the largest number
        is_inf = (code.to(tl.uint8, bitcast=True) & 0x7F) == 0x7C
        new = tl.where(is_inf & (byte != 255)[:, :, None], code, new)
    tl.store(folded + at, new, mask=exists[:, :, None])
    tl.store(folded_scales + block, top.to(tl.uint8), mask=block < blocks)
