"""Quantizers on the way to those of `chipmath.quantize_kernels`: the same bytes, one idea short.

A tile of x a program, in plain Triton: both directions by reshaping, columns transposed through shared memory. LOG2
takes the scale from a logarithm, as one would write it first; the bytes are then only nearly the same.
"""

import triton
import triton.language as tl

from chipmath.quantize_kernels import encode, largest_magnitude, reciprocal, scale_byte, widen


@triton.jit
def logarithmic_scale(amax, MAX: tl.constexpr):
    """By rceil: reciprocal and byte of 2**ceil(log2(amax / MAX)), for finite blocks."""
    exponent = tl.ceil(tl.log2(amax / MAX))
    exponent = tl.minimum(tl.maximum(exponent, -127.0), 127.0)
    return tl.exp2(-exponent), (exponent + 127.0).to(tl.uint8)


@triton.jit
def tile_kernel(
    x,
    row_elements,
    row_scales,
    column_elements,
    column_scales,
    M,
    K,
    CONSTANT: tl.constexpr,
    EMAX: tl.constexpr,
    EMIN: tl.constexpr,
    MANTISSA_BITS: tl.constexpr,
    MAX: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    ENCODER: tl.constexpr,
    FLOAT_MAX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_K: tl.constexpr,
    LOG2: tl.constexpr,
):
    """Grid (M / TILE_M, K / TILE_K); arguments as for `chipmath.quantize_kernels.patches_kernel`, tiles divide x."""
    m, k = tl.program_id(0) * TILE_M, tl.program_id(1) * TILE_K
    row, column = tl.arange(0, TILE_M), tl.arange(0, TILE_K)
    start = m.to(tl.int64) * K + k
    at = row[:, None] * K + column[None, :]
    values = widen(tl.load(x + start + at), DTYPE, ENCODER)
    if ROWS:
        blocks = tl.reshape(values, (TILE_M, TILE_K // 32, 32))
        if LOG2:
            inverse, byte = logarithmic_scale(tl.max(tl.abs(blocks), 2), MAX)
        else:
            inverse = reciprocal(largest_magnitude(blocks, 2, FLOAT_MAX), CONSTANT, EMAX)
            byte = scale_byte(inverse.to(tl.int32, bitcast=True))
        codes = encode(blocks * tl.expand_dims(inverse, 2), FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        tl.store(row_elements + start + at, tl.reshape(codes, (TILE_M, TILE_K)))
        block = tl.arange(0, TILE_K // 32)
        start = m.to(tl.int64) * (K // 32) + k // 32
        tl.store(row_scales + start + row[:, None] * (K // 32) + block[None, :], byte)
    if COLUMNS:
        blocks = tl.reshape(values, (TILE_M // 32, 32, TILE_K))
        inverse = reciprocal(largest_magnitude(blocks, 1, FLOAT_MAX), CONSTANT, EMAX)
        byte = scale_byte(inverse.to(tl.int32, bitcast=True))
        codes = encode(blocks * tl.expand_dims(inverse, 1), FORMAT, MANTISSA_BITS, EMIN, MAX, ENCODER)
        codes = tl.reshape(codes, (TILE_M, TILE_K))
        start = k.to(tl.int64) * M + m
        tl.store(column_elements + start + column[:, None] * M + row[None, :], tl.trans(codes))
        block = tl.arange(0, TILE_M // 32)
        start = k.to(tl.int64) * (M // 32) + m // 32
        tl.store(column_scales + start + column[:, None] * (M // 32) + block[None, :], tl.trans(byte))
