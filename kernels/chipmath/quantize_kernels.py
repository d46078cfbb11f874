"""Device code of the block quantizers: Triton for a stream of rows, Gluon for whatever needs to know its columns.

Imported by `chipmath.quantize_gpu`, which says what the kernels promise and chooses their configurations. Needs Triton;
all that depends on Gluon, which is experimental upstream, is in this file.

Every kernel takes x as integers, so that no conversion of a loaded number is left to chance, and works in four steps:
widen to float32; the largest magnitude of each block; its scale byte, by one integer addition (`chipmath.quantize`,
`scale_constant`); multiply by the scale's reciprocal and round to the element format.

The reciprocal is exact and never subnormal: a scale byte before NaN is at most 255 - emax, which leaves emax - 1 or
more for the exponent field of its reciprocal, 254 - byte. A product that is itself subnormal is far below half the
smallest element, so it may be flushed. A NaN byte gives a NaN as reciprocal, and so NaN as every element of its block.

How an element is rounded is the constant ENCODER:

cvt      NVIDIA, sm_90 and later: cvt.rn.satfinite saturates, and makes 0x7F of any NaN (PTX ISA, cvt)
scaled   gfx950: v_cvt_scalef32_pk_fp8_f32 and ..._bf8_f32, which overflow to NaN or Inf and keep the sign of NaN. So x
         is first made finite, to leave the reciprocal's positive NaN the only one; where the rule clips, by clamping it
         to what its block can hold
fnuz     gfx942: v_cvt_pk_fp8_f32 and ..._bf8_f32 write the FNUZ formats, whose codes are those of OCP's formats for
         numbers half as large. So half the number is converted; the sign is set afterwards, as FNUZ has no -0
integer  everywhere: one float32 addition rounds (`chipmath.quantize_cpu` says why), the rest is integer arithmetic

A Gluon kernel gives every thread a patch of neighbouring rows and columns. Then both directions find their blocks
within the thread and a few neighbours: the maxima need shuffles, and nothing goes through shared memory.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

BLOCK = 32
QUIET_NAN = tl.constexpr(0x7FC00000)
INFINITY = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
FLOAT32_MAX = tl.constexpr(0x7F7FFFFF)


# --- one element, one block -------------------------------------------------------------------------------------------


@triton.jit
def widen(words, DTYPE: tl.constexpr):
    """The float32 values of bfloat16, float16 or float32 numbers given as integers; exact."""
    if DTYPE == "bfloat16":
        return (words.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "float16":
        return words.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return words.to(tl.float32, bitcast=True)


@triton.jit
def larger(a, b):
    """The larger number, or NaN if there is one."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest_magnitude(x, AXIS: tl.constexpr, FLOAT_MAX: tl.constexpr):
    """Bits of the largest |x|; of some NaN where there is one.

    FLOAT_MAX saves clearing the signs, where one instruction takes the maximum and keeps a NaN (sm_80, gfx950).
    """
    if FLOAT_MAX:
        return tl.reduce(tl.abs(x), AXIS, larger).to(tl.int32, bitcast=True)
    else:
        return tl.max(x.to(tl.int32, bitcast=True) & MAGNITUDE, AXIS)


@triton.jit
def block_scale(amax, CONSTANT: tl.constexpr, EMAX: tl.constexpr, MAX_FRACTION: tl.constexpr):
    """Reciprocal of the scale, its E8M0 byte, and the largest number that a block with this scale holds.

    amax  bits of the block's largest magnitude; a NaN gives reciprocal NaN, byte 255 and some finite limit

    All bytes come out of the exponent field of the reciprocal, 254 - byte: 255 as well, of NaN's field, modulo 256.
    """
    invalid = (amax >= INFINITY) | (amax < 0)  # one comparison without sign; a maximum's NaN may have either
    power = tl.maximum((amax + CONSTANT) & INFINITY, EMAX << 23)  # scale times 2**emax
    bits = tl.where(invalid, QUIET_NAN, (254 << 23) - (power - (EMAX << 23)))
    byte = (254 - (bits >> 23)).to(tl.uint8)
    limit = tl.minimum(power + MAX_FRACTION, FLOAT32_MAX)
    return bits.to(tl.float32, bitcast=True), byte, limit.to(tl.float32, bitcast=True)


@triton.jit
def scaled(x, inverse, limit, AXIS: tl.constexpr, CLAMP: tl.constexpr):
    """x / scale, NaN throughout a NaN block; inverse and limit lack the axis of the block."""
    if CLAMP:
        limit = tl.expand_dims(limit, AXIS)
        x = tl.clamp(x, -limit, limit)
    return x * tl.expand_dims(inverse, AXIS)


@triton.jit
def finite(x):
    """Some finite number for Inf and NaN, all else as it is."""
    return tl.clamp(x, -3.4028234663852886e38, 3.4028234663852886e38)


@triton.jit
def encode(
    y, FORMAT: tl.constexpr, MANTISSA_BITS: tl.constexpr, EMIN: tl.constexpr, MAX: tl.constexpr, ENCODER: tl.constexpr
):
    """Codes of y, to nearest even, saturating; 0x7F for NaN."""
    if ENCODER == "integer":
        return encode_by_integers(y, MANTISSA_BITS, EMIN, MAX)
    elif ENCODER == "fnuz":
        half = tl.clamp(y * 0.5, -0.5 * MAX, 0.5 * MAX)
        if FORMAT == "E4M3":
            code = half.to(tl.float8e4b8).to(tl.uint8, bitcast=True)
        else:
            code = half.to(tl.float8e5b16).to(tl.uint8, bitcast=True)
        code = code | ((y.to(tl.int32, bitcast=True) >> 24) & 0x80).to(tl.uint8)
        return tl.where(y != y, 0x7F, code)
    elif FORMAT == "E4M3":
        return y.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        return y.to(tl.float8e5).to(tl.uint8, bitcast=True)


@triton.jit
def encode_by_integers(y, MANTISSA_BITS: tl.constexpr, EMIN: tl.constexpr, MAX: tl.constexpr):
    """The same with no converter. power + magic is 2**23 steps of the format, so adding it rounds to a whole step."""
    bits = y.to(tl.int32, bitcast=True)
    magnitude = tl.minimum(tl.abs(y), MAX)
    least = (EMIN + 127) << 23
    power = tl.maximum(magnitude.to(tl.int32, bitcast=True) & INFINITY, least)
    magic = power + ((23 - MANTISSA_BITS) << 23)
    steps = (magnitude + magic.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) - magic
    code = ((power - least) >> (23 - MANTISSA_BITS)) + steps
    code = code | ((bits >> 24) & 0x80)
    return tl.where((bits & MAGNITUDE) > INFINITY, 0x7F, code).to(tl.uint8)


@triton.jit
def place_128x4(row, block, blocks_a_row):
    """Where the scale of a row's block lies in the tensor cores' order: `chipmath.quantize.to_blocked`."""
    tile = (row // 128).to(tl.int64) * ((blocks_a_row + 3) // 4) + block // 4
    return tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + block % 4


# --- rows: a stream of blocks -----------------------------------------------------------------------------------------


@triton.jit
def rows_kernel(
    x,
    elements,
    scales,
    blocks,
    CONSTANT: tl.constexpr,
    EMAX: tl.constexpr,
    EMIN: tl.constexpr,
    MANTISSA_BITS: tl.constexpr,
    MAX: tl.constexpr,
    MAX_FRACTION: tl.constexpr,
    CLIPS: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    ENCODER: tl.constexpr,
    FLOAT_MAX: tl.constexpr,
    EVEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE blocks a program, grid (blocks / TILE,): blocks along K are one stream, whatever the shape of x.

    x         ``blocks`` times 32 numbers, contiguous, as integers of their width
    elements  as many uint8 codes
    scales    a byte a block, in the same order
    EVEN      TILE divides ``blocks``: nothing is masked
    """
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    inside = block < blocks - first
    at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    words = tl.load(x + first * 32 + at) if EVEN else tl.load(x + first * 32 + at, mask=inside[:, None], other=0)
    values = widen(words, DTYPE)
    inverse, byte, limit = block_scale(largest_magnitude(values, 1, FLOAT_MAX), CONSTANT, EMAX, MAX_FRACTION)
    if ENCODER == "scaled" and not CLIPS:
        values = finite(values)
    y = scaled(values, inverse, limit, 1, ENCODER == "scaled" and CLIPS)
    codes = encode(y, FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
    if EVEN:
        tl.store(elements + first * 32 + at, codes)
        tl.store(scales + first + block, byte)
    else:
        tl.store(elements + first * 32 + at, codes, mask=inside[:, None])
        tl.store(scales + first + block, byte, mask=inside)


# --- columns, both, and the tensor cores' scales: a patch a thread ---------------------------------------------------
# A tile has four axes: 32-row block, row in it, 32-column block, column in it. Blocks along M are axis 1, along K
# axis 3.


@gluon.jit
def read(pointer, offsets, inside, EVEN: gl.constexpr, BUFFER: gl.constexpr):
    """A tile of x; zeros outside. BUFFER: AMD's loads from a scalar base, which need one register an address."""
    if BUFFER:
        if EVEN:
            return gl.amd.cdna3.buffer_load(pointer, offsets)
        else:
            return gl.amd.cdna3.buffer_load(pointer, offsets, mask=inside, other=0)
    elif EVEN:
        return gl.load(pointer + offsets)
    else:
        return gl.load(pointer + offsets, mask=inside, other=0)


@gluon.jit
def write(pointer, offsets, value, inside, EVEN: gl.constexpr, BUFFER: gl.constexpr):
    """A tile of codes or scales."""
    if BUFFER:
        if EVEN:
            gl.amd.cdna3.buffer_store(value, pointer, offsets)
        else:
            gl.amd.cdna3.buffer_store(value, pointer, offsets, mask=inside)
    elif EVEN:
        gl.store(pointer + offsets, value)
    else:
        gl.store(pointer + offsets, value, mask=inside)


@gluon.jit
def tile_index(ROW_BLOCKS: gl.constexpr, COLUMN_BLOCKS: gl.constexpr, LAYOUT: gl.constexpr):
    """Row and column in the tile, for every element that a thread holds in this layout of four axes."""
    a: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    b: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    c: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, LAYOUT)))
    d: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    row = gl.arange(0, ROW_BLOCKS, layout=a)[:, None, None, None] * 32
    row = row + gl.arange(0, 32, layout=b)[None, :, None, None]
    column = gl.arange(0, COLUMN_BLOCKS, layout=c)[None, None, :, None] * 32
    column = column + gl.arange(0, 32, layout=d)[None, None, None, :]
    return row, column


@gluon.jit
def patches_kernel(
    x,
    row_elements,
    row_scales,
    column_elements,
    column_scales,
    M,
    K,
    CONSTANT: gl.constexpr,
    EMAX: gl.constexpr,
    EMIN: gl.constexpr,
    MANTISSA_BITS: gl.constexpr,
    MAX: gl.constexpr,
    MAX_FRACTION: gl.constexpr,
    CLIPS: gl.constexpr,
    FORMAT: gl.constexpr,
    DTYPE: gl.constexpr,
    ENCODER: gl.constexpr,
    FLOAT_MAX: gl.constexpr,
    SCALES_128X4: gl.constexpr,
    EVEN: gl.constexpr,
    BUFFER: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    ROW_BLOCKS: gl.constexpr,
    COLUMN_BLOCKS: gl.constexpr,
    LAYOUT: gl.constexpr,
    TRANSPOSED: gl.constexpr,
):
    """One tile of 32 ROW_BLOCKS x 32 COLUMN_BLOCKS a program.

    The grid is (tiles along M in a group, tiles along K, groups): the tiles of a group run one after another, so that
    the few bytes that each writes of a column's scales meet in the cache, while rows are still read far along K.

    x                              (M, K), contiguous, as integers of their width
    row_elements, row_scales       (M, K) and (M, K / 32) uint8; unused without ROWS
    column_elements, column_scales (K, M) and (K, M / 32) uint8: transposed, so that blocks are contiguous; COLUMNS
    SCALES_128X4                   both scale matrices, as they are named here, in the tensor cores' order
    EVEN                           the tile divides M and K: nothing is masked
    LAYOUT                         which thread holds what: `patch_layouts`; TRANSPOSED orders the same registers
                                   along M, so that a thread's neighbours in memory are neighbours there, too
    """
    TILE_M: gl.constexpr = 32 * ROW_BLOCKS
    TILE_K: gl.constexpr = 32 * COLUMN_BLOCKS
    m = (gl.program_id(2) * gl.num_programs(0) + gl.program_id(0)) * TILE_M
    k = gl.program_id(1) * TILE_K

    row, column = tile_index(ROW_BLOCKS, COLUMN_BLOCKS, LAYOUT)
    inside = (row < M - m) & (column < K - k)
    start = m.to(gl.int64) * K + k
    values = widen(read(x + start, row * K + column, inside, EVEN, BUFFER), DTYPE)
    if ROWS:
        row_amax = largest_magnitude(values, 3, FLOAT_MAX)
    if COLUMNS:
        column_amax = largest_magnitude(values, 1, FLOAT_MAX)
    if ENCODER == "scaled" and not CLIPS:
        values = finite(values)
    if ROWS:
        inverse, byte, limit = block_scale(row_amax, CONSTANT, EMAX, MAX_FRACTION)
        y = scaled(values, inverse, limit, 3, ENCODER == "scaled" and CLIPS)
        codes = encode(y, FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        write(row_elements + start, row * K + column, codes, inside, EVEN, BUFFER)
        write_row_scales(row_scales, byte, M, K, m, k, SCALES_128X4, EVEN, BUFFER, ROW_BLOCKS, COLUMN_BLOCKS, LAYOUT)
    if COLUMNS:
        inverse, byte, limit = block_scale(column_amax, CONSTANT, EMAX, MAX_FRACTION)
        y = gl.convert_layout(scaled(values, inverse, limit, 1, ENCODER == "scaled" and CLIPS), TRANSPOSED)
        codes = encode(y, FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        row, column = tile_index(ROW_BLOCKS, COLUMN_BLOCKS, TRANSPOSED)
        inside = (row < M - m) & (column < K - k)
        write(column_elements + k.to(gl.int64) * M + m, column * M + row, codes, inside, EVEN, BUFFER)
        write_column_scales(
            column_scales, byte, M, K, m, k, SCALES_128X4, EVEN, BUFFER, ROW_BLOCKS, COLUMN_BLOCKS, LAYOUT
        )


@gluon.jit
def write_row_scales(
    scales,
    byte,
    M,
    K,
    m,
    k,
    SCALES_128X4: gl.constexpr,
    EVEN: gl.constexpr,
    BUFFER: gl.constexpr,
    ROW_BLOCKS: gl.constexpr,
    COLUMN_BLOCKS: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """The tile's scale bytes of blocks along K: axes 32-row block, row in it, block of the row."""
    kept: gl.constexpr = gl.SliceLayout(3, LAYOUT)
    row = gl.arange(0, ROW_BLOCKS, layout=gl.SliceLayout(1, gl.SliceLayout(2, kept)))[:, None, None] * 32
    row = row + gl.arange(0, 32, layout=gl.SliceLayout(0, gl.SliceLayout(2, kept)))[None, :, None]
    block = gl.arange(0, COLUMN_BLOCKS, layout=gl.SliceLayout(0, gl.SliceLayout(1, kept)))[None, None, :]
    inside = (row < M - m) & (block * 32 < K - k)
    if SCALES_128X4:
        gl.store(scales + place_128x4(m + row, k // 32 + block, K // 32), byte, mask=inside)
    else:
        start = m.to(gl.int64) * (K // 32) + k // 32
        write(scales + start, row * (K // 32) + block, byte, inside, EVEN, BUFFER)


@gluon.jit
def write_column_scales(
    scales,
    byte,
    M,
    K,
    m,
    k,
    SCALES_128X4: gl.constexpr,
    EVEN: gl.constexpr,
    BUFFER: gl.constexpr,
    ROW_BLOCKS: gl.constexpr,
    COLUMN_BLOCKS: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """The tile's scale bytes of blocks along M: axes 32-row block, 32-column block, column in it."""
    kept: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    block = gl.arange(0, ROW_BLOCKS, layout=gl.SliceLayout(1, gl.SliceLayout(2, kept)))[:, None, None]
    column = gl.arange(0, COLUMN_BLOCKS, layout=gl.SliceLayout(0, gl.SliceLayout(2, kept)))[None, :, None] * 32
    column = column + gl.arange(0, 32, layout=gl.SliceLayout(0, gl.SliceLayout(1, kept)))[None, None, :]
    inside = (block * 32 < M - m) & (column < K - k)
    if SCALES_128X4:
        gl.store(scales + place_128x4(k + column, m // 32 + block, M // 32), byte, mask=inside)
    else:
        start = k.to(gl.int64) * (M // 32) + m // 32
        write(scales + start, column * (M // 32) + block, byte, inside, EVEN, BUFFER)


def patch_layouts(wave_lanes: int, rows: int, columns: int, warps: int) -> dict:
    """LAYOUT, TRANSPOSED, ROW_BLOCKS and COLUMN_BLOCKS for patches of rows x columns (powers of two up to 32) a thread.

    A warp covers one block of 32 rows: 32 / rows lanes along M, the others along K. Warps are stacked along M, so that
    together they write 32 bytes a warp of every column of codes, one cache line for four warps.
    """
    lanes_m, lanes_in_block = 32 // rows, 32 // columns
    blocks = wave_lanes // lanes_m // lanes_in_block
    layout = gl.BlockedLayout(
        [1, rows, 1, columns], [1, lanes_m, blocks, lanes_in_block], [warps, 1, 1, 1], [3, 2, 1, 0]
    )
    along = {axis: [int(axis == i) for i in range(4)] for axis in range(4)}

    def bits(axis: int, first: int, end: int) -> list[list[int]]:
        powers = [first << bit for bit in range((end // first).bit_length() - 1)]
        return [[power * unit for unit in along[axis]] for power in powers]

    # The same places as in `layout`, but the registers count along M first.
    transposed = gl.DistributedLinearLayout(
        reg_bases=bits(1, 1, rows) + bits(3, 1, columns),
        lane_bases=bits(3, columns, 32) + bits(2, 1, blocks) + bits(1, rows, 32),
        warp_bases=bits(0, 1, warps),
        block_bases=[],
        shape=[warps, 32, blocks, 32],
    )
    return {"LAYOUT": layout, "TRANSPOSED": transposed, "ROW_BLOCKS": warps, "COLUMN_BLOCKS": blocks}
