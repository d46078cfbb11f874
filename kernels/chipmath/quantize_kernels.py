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
scaled   gfx950: v_cvt_scalef32_pk_fp8_f32 and ..._bf8_f32. With the bit FP16_OVFL of the MODE register they saturate
         what is finite; Triton sets it in every kernel that casts to FP8, since its version 3.5
         (https://github.com/triton-lang/triton/pull/7337). They keep the sign of NaN, so a negative NaN of x is first
         made -Inf: its product with the reciprocal's NaN is that NaN, a positive one. Which of E5M2's three NaN codes
         they write, 0x7D to 0x7F, no document of AMD's says (CDNA4 ISA, section 7.3 and table 30)
fnuz     gfx942: v_cvt_pk_fp8_f32 and ..._bf8_f32 write the FNUZ formats, whose codes are those of OCP's formats for
         numbers half as large. So half the number is converted; the sign is set afterwards, as FNUZ has no -0
integer  everywhere: one float32 addition rounds (`chipmath.quantize_cpu` says why), the rest is integer arithmetic

A Gluon kernel gives every thread a patch of neighbouring rows and columns. Then both directions find their blocks
within the thread and a few neighbours: the maxima need shuffles, and no element goes through shared memory.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

BLOCK = 32
QUIET_NAN = tl.constexpr(0x7FC00000)
INFINITY = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)


# --- one element, one block -------------------------------------------------------------------------------------------


@triton.jit
def widen(words, DTYPE: tl.constexpr, ENCODER: tl.constexpr):
    """The float32 values of bfloat16, float16 or float32 numbers given as integers.

    Exact, but where the converter keeps a NaN's sign, negative NaN become -Inf, which their blocks treat alike. Without
    sign those are the largest integers, so one minimum does it, for two 16-bit numbers at once.
    """
    if ENCODER == "scaled":
        if DTYPE == "bfloat16":
            words = tl.minimum(words.to(tl.uint16, bitcast=True), 0xFF80)
        elif DTYPE == "float16":  # before Triton 3.9 the constant makes 32 bits of them
            words = tl.minimum(words.to(tl.uint16, bitcast=True), 0xFC00).to(tl.uint16)
        else:
            words = tl.minimum(words.to(tl.uint32, bitcast=True), 0xFF800000)
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
def reciprocal(amax, CONSTANT: tl.constexpr, EMAX: tl.constexpr):
    """Reciprocal of the scale of a block; NaN for one that holds NaN or Inf.

    amax  bits of the block's largest magnitude
    """
    invalid = (amax >= INFINITY) | (amax < 0)  # one comparison without sign; a maximum's NaN may have either
    power = tl.maximum((amax + CONSTANT) & INFINITY, EMAX << 23)  # scale times 2**emax
    bits = tl.where(invalid, QUIET_NAN, (254 << 23) - (power - (EMAX << 23)))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scale_byte(bits):
    """The E8M0 byte of a scale by its reciprocal's bits: 254 minus the exponent field; 255, modulo 256, for NaN."""
    return (254 - (bits >> 23)).to(tl.uint8)


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

    A block lies inside or outside as a whole, so what a masked load leaves in a register reaches no result.
    """
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    inside = block < blocks - first
    at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    words = tl.load(x + first * 32 + at) if EVEN else tl.load(x + first * 32 + at, mask=inside[:, None])
    values = widen(words, DTYPE, ENCODER)
    inverse = reciprocal(largest_magnitude(values, 1, FLOAT_MAX), CONSTANT, EMAX)
    byte = scale_byte(inverse.to(tl.int32, bitcast=True))
    codes = encode(values * inverse[:, None], FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
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
    """A tile of x; anything outside, where only whole blocks are.

    BUFFER: AMD's loads from a scalar base, which need one register an address.
    """
    if BUFFER:
        if EVEN:
            return gl.amd.cdna3.buffer_load(pointer, offsets)
        else:
            return gl.amd.cdna3.buffer_load(pointer, offsets, mask=inside)
    elif EVEN:
        return gl.load(pointer + offsets)
    else:
        return gl.load(pointer + offsets, mask=inside)


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


@gluon.constexpr_function
def sliced(layout, axis, rank):
    """The layout of one axis of a tensor: all others sliced away."""
    for other in reversed(range(rank)):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def axis_index(SIZE: gl.constexpr, AXIS: gl.constexpr, RANK: gl.constexpr, LAYOUT: gl.constexpr):
    """0 to SIZE - 1 along one axis of a tensor of this layout, 1 along the others."""
    index = gl.arange(0, SIZE, layout=sliced(LAYOUT, AXIS, RANK))
    for other in gl.static_range(RANK):
        if other != AXIS:
            index = gl.expand_dims(index, other)
    return index


@gluon.jit
def tile_index(ROW_BLOCKS: gl.constexpr, COLUMN_BLOCKS: gl.constexpr, LAYOUT: gl.constexpr):
    """Row and column in the tile, for every element that a thread holds in this layout of four axes."""
    row = axis_index(ROW_BLOCKS, 0, 4, LAYOUT) * 32 + axis_index(32, 1, 4, LAYOUT)
    column = axis_index(COLUMN_BLOCKS, 2, 4, LAYOUT) * 32 + axis_index(32, 3, 4, LAYOUT)
    return row, column


@gluon.jit
def within(place, size, WHOLE_BLOCKS: gl.constexpr):
    """place < size; WHOLE_BLOCKS: size is a multiple of 32, so one comparison serves all that a thread holds."""
    if WHOLE_BLOCKS:
        place = place // 32 * 32
    return place < size


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
    PATCH_ROWS: gl.constexpr,
    PATCH_COLUMNS: gl.constexpr,
    LAYOUT: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ROW_SCALES: gl.constexpr,
    COLUMN_SCALES: gl.constexpr,
    COLUMN_WORDS: gl.constexpr,
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
    ROW_SCALES, COLUMN_SCALES      which thread writes which scale: `share_out`
    COLUMN_WORDS                   the same where EVEN: `gathered`
    """
    TILE_M: gl.constexpr = 32 * ROW_BLOCKS
    TILE_K: gl.constexpr = 32 * COLUMN_BLOCKS
    m = (gl.program_id(2) * gl.num_programs(0) + gl.program_id(0)) * TILE_M
    k = gl.program_id(1) * TILE_K

    row, column = tile_index(ROW_BLOCKS, COLUMN_BLOCKS, LAYOUT)
    inside = within(row, M - m, COLUMNS) & within(column, K - k, ROWS)
    start = m.to(gl.int64) * K + k
    values = widen(read(x + start, row * K + column, inside, EVEN, BUFFER), DTYPE, ENCODER)
    if ROWS:
        inverse = reciprocal(largest_magnitude(values, 3, FLOAT_MAX), CONSTANT, EMAX)
        codes = encode(values * gl.expand_dims(inverse, 3), FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        write(row_elements + start, row * K + column, codes, inside, EVEN, BUFFER)
        bits = gl.permute(inverse.to(gl.int32, bitcast=True), (2, 0, 1))
        bits, block, line = share_out(bits, PATCH_ROWS, 32 // PATCH_COLUMNS, ROW_SCALES)
        write_scales(row_scales, scale_byte(bits), block, line, m, M, k, K, SCALES_128X4, EVEN, BUFFER, COLUMN_BLOCKS)
    if COLUMNS:
        inverse = reciprocal(largest_magnitude(values, 1, FLOAT_MAX), CONSTANT, EMAX)
        y = gl.convert_layout(values * gl.expand_dims(inverse, 1), TRANSPOSED)
        codes = encode(y, FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        row, column = tile_index(ROW_BLOCKS, COLUMN_BLOCKS, TRANSPOSED)
        inside = within(row, M - m, COLUMNS) & within(column, K - k, ROWS)
        write(column_elements + k.to(gl.int64) * M + m, column * M + row, codes, inside, EVEN, BUFFER)
        bits = inverse.to(gl.int32, bitcast=True)
        if EVEN:
            byte, block, line = gathered(scale_byte(bits), COLUMN_WORDS)
        else:
            bits, block, line = share_out(bits, PATCH_COLUMNS, 32 // PATCH_ROWS, COLUMN_SCALES)
            byte = scale_byte(bits)
        write_scales(column_scales, byte, block, line, k, K, m, M, SCALES_128X4, EVEN, BUFFER, ROW_BLOCKS)


@gluon.jit
def share_out(bits, HELD: gl.constexpr, LANES: gl.constexpr, LAYOUT: gl.constexpr):
    """Scales of which LANES lanes hold the same HELD: each keeps its share, so that every byte is written once.

    bits     (blocks, blocks of lines, 32), where a line is the row or column that a scale belongs to
    returns  (blocks, blocks of lines, 32 / HELD, HELD / LANES, LANES), and the block and the line of each

    Selecting among a thread's own registers costs less than `convert_layout`, which moves them between lanes.
    """
    BLOCKS: gl.constexpr = bits.shape[0]
    LINES: gl.constexpr = bits.shape[1]
    bits = gl.reshape(bits, (BLOCKS, LINES, 32 // HELD, LANES, HELD // LANES))
    bits = gl.expand_dims(gl.convert_layout(bits, gl.SliceLayout(5, LAYOUT)), 5)
    mine = axis_index(LANES, 3, 6, LAYOUT) == axis_index(LANES, 5, 6, LAYOUT)
    bits = gl.max(gl.where(mine, bits, 0), 3)
    kept: gl.constexpr = gl.SliceLayout(3, LAYOUT)
    share: gl.constexpr = HELD // LANES
    line = (axis_index(32 // HELD, 2, 5, kept) * LANES + axis_index(LANES, 4, 5, kept)) * share
    line = axis_index(LINES, 1, 5, kept) * 32 + line + axis_index(share, 3, 5, kept)
    return bits, axis_index(BLOCKS, 0, 5, kept), line


@gluon.jit
def gathered(byte, LAYOUT: gl.constexpr):
    """Scale bytes so that a thread holds all of a line in the tile, to write them as a word: block, line of each, too.

    byte     (blocks, blocks of lines, 32), spread over lanes and warps
    returns  (blocks, lines)

    Through shared memory, as the warps hold different blocks: one byte of it for every 32 elements.
    """
    BLOCKS: gl.constexpr = byte.shape[0]
    LINES: gl.constexpr = byte.shape[1] * 32
    byte = gl.convert_layout(gl.reshape(byte, (BLOCKS, LINES)), LAYOUT)
    return byte, axis_index(BLOCKS, 0, 2, LAYOUT), axis_index(LINES, 1, 2, LAYOUT)


@gluon.jit
def write_scales(
    scales,
    byte,
    block,
    line,
    first_line,
    lines,
    first,
    length,
    SCALES_128X4: gl.constexpr,
    EVEN: gl.constexpr,
    BUFFER: gl.constexpr,
    BLOCKS: gl.constexpr,
):
    """The tile's scale bytes of one direction.

    byte, block, line  a scale, and where in the tile it belongs: which block of which line, a row or column
    lines              rows (of x or, for columns, of its transpose), of which the tile begins with first_line
    length             of a line, of which the tile begins at first
    BLOCKS             of a line in a tile
    """
    inside = (line < lines - first_line) & (block * 32 < length - first)
    if SCALES_128X4:  # `chipmath.quantize.to_blocked`; the program's tile is part of one 128x4 tile, or whole ones
        tiles = (length + 127) // 128
        start = ((first_line // 128).to(gl.int64) * tiles + first // 128) * 512
        start += first_line % 128 // 32 * 4
        if BLOCKS % 4:  # or the tile begins one of four blocks, which Triton sees from 3.9 on: so it stores a word
            start += first % 128 // 32
        offsets = (line // 128 * tiles + block // 4) * 512 + line % 32 * 16 + line % 128 // 32 * 4 + block % 4
    else:
        blocks = length // 32
        start_block = first // 32
        if EVEN:  # written so that the compiler sees what divides an address, and stores whole words
            blocks = length // (32 * BLOCKS) * BLOCKS
            start_block = first // (32 * BLOCKS) * BLOCKS
        start = first_line.to(gl.int64) * blocks + start_block
        offsets = line * blocks + block
    write(scales + start, offsets, byte, inside, EVEN, BUFFER)


def patch_layouts(wave_lanes: int, rows: int, columns: int, warps: int) -> dict:
    """What `patches_kernel` takes from ROW_BLOCKS on, for patches of rows x columns a thread.

    rows, columns  powers of two up to 32, with a product of 32 or more
    warps          1, 2 or 4

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
    # Axes of `share_out`. Rows' scales are alike in the lanes of a block, columns' in those one below the other.
    row_scales = gl.BlockedLayout(
        [1, 1, 1, lanes_in_block, rows // lanes_in_block, 1],
        [blocks, 1, lanes_m, 1, 1, lanes_in_block],
        [1, warps, 1, 1, 1, 1],
        [5, 0, 2, 4, 3, 1],
    )
    column_scales = gl.BlockedLayout(
        [1, 1, 1, lanes_m, columns // lanes_m, 1],
        [1, blocks, lanes_in_block, 1, 1, lanes_m],
        [warps, 1, 1, 1, 1, 1],
        [2, 1, 5, 4, 3, 0],
    )
    return {
        "ROW_BLOCKS": warps,
        "COLUMN_BLOCKS": blocks,
        "PATCH_ROWS": rows,
        "PATCH_COLUMNS": columns,
        "LAYOUT": layout,
        "TRANSPOSED": transposed,
        "ROW_SCALES": row_scales,
        "COLUMN_SCALES": column_scales,
        "COLUMN_WORDS": gl.BlockedLayout([warps, 1], [1, wave_lanes], [1, warps], [0, 1]),
    }
