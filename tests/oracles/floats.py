"""Floating point that both emulators need: sums that are rounded once, bfloat16, and numbers of 8 bits.

Written apart from `chipmath.formats`, which tests hold it against.
"""

from __future__ import annotations

import numpy as np


def multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of numbers with 24 bits or fewer, as float64 that is rounded to odd.

    The product is exact in float64. Of a sum rounded to odd, one more rounding, to float32 or narrower, gives what the
    exact sum would have.
    """
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    even = np.ascontiguousarray(total).view(np.int64) % 2 == 0
    return np.where((lost != 0) & even & np.isfinite(total), np.nextafter(total, np.copysign(np.inf, lost)), total)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float64 values of bfloat16 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of float64 values rounded to nearest even, once: by way of a float32 that is rounded to odd."""
    single = values.astype(np.float32)
    beyond = np.abs(single.astype(np.float64)) > np.abs(values)
    toward_zero = np.where(beyond, np.nextafter(single, np.float32(0)), single)
    inexact = (toward_zero.astype(np.float64) != values) & np.isfinite(values)
    bits = toward_zero.view(np.uint32) | inexact.astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def magnitudes(mantissa_bits: int, bias: int, count: int) -> np.ndarray:
    """The numbers that codes 0 to ``count`` - 1 of an 8-bit format mean, as float64."""
    code = np.arange(count)
    exponent, fraction = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    subnormal = exponent == 0
    mantissa = fraction + np.where(subnormal, 0, 1 << mantissa_bits)
    return np.ldexp(mantissa.astype(float), np.where(subnormal, 1, exponent) - bias - mantissa_bits)


# OCP 8-bit floating point specification, section 5: finite numbers, and all 256 codes.
E4M3, E5M2 = magnitudes(3, 7, 0x7F), magnitudes(2, 15, 0x7C)
E4M3_CODES = np.concatenate([E4M3, [np.nan], -E4M3, [np.nan]])
E5M2_CODES = np.concatenate([E5M2, [np.inf] + 3 * [np.nan], -E5M2, [-np.inf] + 3 * [np.nan]])


def nearest_code(numbers: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """The code of the number that is nearest, an even one of two; ``numbers.size`` if that would lie beyond the last.

    numbers  of a format, float64, ascending from 0. What follows the last is as far from it as the one before
    """
    at = np.searchsorted(numbers, magnitude)  # numbers[at - 1] < magnitude <= numbers[at]
    below, above = numbers[np.maximum(at - 1, 0)], np.append(numbers, 2 * numbers[-1] - numbers[-2])[at]
    up = magnitude - below > above - magnitude
    tie = magnitude - below == above - magnitude
    return np.where(at == 0, 0, at - 1 + (up | (tie & (at % 2 == 0))))
