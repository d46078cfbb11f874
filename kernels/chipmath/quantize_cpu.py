"""The block quantizer compiled for the CPU by Numba: the bytes of `chipmath.quantize`, about as fast as a copy.

One pass over x in tiles of 64 blocks, which stay in the first cache: the largest magnitude of every block, the scale
bytes, the elements. The loops are written so that LLVM turns them into vector instructions of whatever CPU is here.

An element is rounded by one float32 addition. Let y = |x| / scale and 2**e the power of two at or below y, but not
below the format's 2**emin, so that its numbers near y are 2**(e - mantissa_bits) apart. So are the float32 numbers from
M = 2**(e - mantissa_bits + 23) on. Hence y + M is y rounded to nearest even, and the last bits of the sum count the
steps. All else is integer arithmetic on the bits of float32. A processor that flushes subnormal numbers gives the same
sums: M is none, and where y is one, it is far below half a step.

The first call for a dtype and an element format compiles them, in about a second; the first call of all takes three or
four, as Numba is loaded. The code lives as long as the process, and the scale rule is an argument of it. Calls from
several threads are safe. Numba is an optional dependency.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import log2
from threading import Lock
from types import ModuleType

import numpy as np
import torch
from numpy import float32, int16, int32
from torch import Tensor

from chipmath.formats import E8M0, FLOAT32_BIAS, FRACTION, FRACTION_BITS, INFINITY, MAGNITUDE, ElementFormat
from chipmath.quantize import MXTensor, check_input, scale_constant

BLOCK = 32
TILE = 64  # blocks
NAN_SCALE, LARGEST_SCALE = E8M0.nan_code, E8M0.max_code
THREAD_ELEMENTS = 1 << 17  # the least that is worth waking a thread for: some 30 microseconds of work
PARTS = 4  # a thread
COMPILING = Lock()  # functools.cache alone would let every thread compile what another is compiling


def quantize(x: Tensor, fmt: ElementFormat, scale_rule: str) -> MXTensor:
    """Quantize ``x`` in blocks of 32 along its last axis; `chipmath.quantize.quantize` says what that means.

    x  float32, bfloat16 or float16 on the CPU, any rank; where it is not contiguous, it is copied first

    Uses up to ``torch.get_num_threads()`` threads. Raises ModuleNotFoundError, naming the package, without Numba.
    """
    check_input(x, -1, BLOCK)
    elements = torch.empty(x.shape, dtype=torch.uint8)
    scales = torch.empty(*x.shape[:-1], x.shape[-1] // BLOCK, dtype=torch.uint8)
    quantize_into(x, fmt, scale_rule, elements, scales)
    return MXTensor(elements, scales, fmt, -1, BLOCK)


def quantize_into(x: Tensor, fmt: ElementFormat, scale_rule: str, elements: Tensor, scales: Tensor) -> None:
    """Write what `quantize` returns into tensors that are there already: new pages cost as much as the work.

    x         as for `quantize`
    elements  uint8, shape of x, contiguous, on the CPU
    scales    uint8, shape of x with the last axis divided by 32, contiguous, on the CPU
    """
    check_input(x, -1, BLOCK)
    if x.device.type != "cpu":
        raise ValueError(f"x must be on the CPU, got {x.device}")
    _check_output("elements", elements, x.shape)
    _check_output("scales", scales, (*x.shape[:-1], x.shape[-1] // BLOCK))
    constant = scale_constant(fmt, scale_rule)
    with COMPILING:
        kernel = _kernel(x.dtype, fmt)
    words = _words(x).reshape(-1, BLOCK)
    _share_out(kernel, words, elements.numpy().reshape(-1, BLOCK), scales.numpy().reshape(-1), constant)


def _check_output(name: str, output: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what would be copied before it is written, and so stay as it is."""
    if not isinstance(output, Tensor):
        raise TypeError(f"{name} must be a tensor, got a {type(output).__name__}: {reprlib.repr(output)}")
    if output.dtype != torch.uint8 or output.device.type != "cpu" or not output.is_contiguous():
        kind = "contiguous" if output.is_contiguous() else "strided"
        raise ValueError(f"{name} must be contiguous uint8 on the CPU, got {kind} {output.dtype} on {output.device}")
    if output.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(output.shape)}")


def _words(x: Tensor) -> np.ndarray:
    """The bits of x as signed integers."""
    plain = x.detach().resolve_neg().contiguous()
    return plain.view(torch.int32 if x.dtype == torch.float32 else torch.int16).numpy()


def _share_out(kernel: Callable, words: np.ndarray, elements: np.ndarray, scales: np.ndarray, constant: int) -> None:
    """Run the kernel, which releases Python's lock, on as many threads as torch may use and the work deserves."""

    def run(part: slice) -> None:
        kernel(words[part], elements[part], scales[part], constant)

    threads = min(torch.get_num_threads(), words.size // THREAD_ELEMENTS)
    if threads < 2:
        run(slice(None))
        return
    others = _pool(torch.get_num_threads() - 1, os.getpid())
    work = [(others.submit(run, part), part) for part in _parts(len(scales), PARTS * threads)]
    # From the other end this thread takes whatever no other has begun. One that the system holds up loses its share.
    for future, part in reversed(work):
        if future.cancel():
            run(part)
        else:
            future.result()


def _parts(blocks: int, count: int) -> list[slice]:
    starts = [blocks * part // count // TILE * TILE for part in range(count)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], None])]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept between calls; threads do not survive a fork, so every process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="chipmath-quantize")


def _numba() -> ModuleType:
    try:
        import numba
    except ModuleNotFoundError:
        message = "chipmath.quantize_cpu is compiled by Numba, which is not installed: pip install numba"
        raise ModuleNotFoundError(message, name="numba") from None
    return numba


# --- the kernel: Python functions for Numba, put together for one dtype and one format --------------------------------
# Numba computes in 64 bits unless told otherwise. int32(...) stands wherever the upper half would have to be computed
# in earnest, which would halve the numbers a vector holds.


@cache
def _kernel(dtype: torch.dtype, fmt: ElementFormat) -> Callable:
    """``kernel(words, elements, scales, constant)`` on arrays (blocks, 32), (blocks, 32) and (blocks,)."""
    numba = _numba()
    inline = numba.njit(forceinline=True, error_model="numpy")
    word = _word(inline, dtype)
    do_tile = _tile(inline, _scale_finder(inline, word, fmt), _element_writer(inline, word, fmt))

    def kernel(words, elements, scales, constant):
        largest = np.empty(TILE, words.dtype)
        whole = len(scales) // TILE * TILE
        for i in range(0, whole, TILE):
            do_tile(words[i : i + TILE], elements[i : i + TILE], scales[i : i + TILE], largest, constant)
        rest = len(scales) - whole
        if rest:
            last_words = np.zeros((TILE, BLOCK), words.dtype)
            last_elements = np.empty((TILE, BLOCK), elements.dtype)
            last_scales = np.empty(TILE, scales.dtype)
            last_words[:rest] = words[whole:]
            do_tile(last_words, last_elements, last_scales, largest, constant)
            elements[whole:] = last_elements[:rest]
            scales[whole:] = last_scales[:rest]

    words, elements = numba.from_dtype(np.dtype(word.dtype))[:, ::1], numba.uint8[:, ::1]
    signature = numba.void(words, elements, numba.uint8[::1], numba.int32)
    return numba.njit(signature, nogil=True, error_model="numpy")(kernel)


@dataclass(frozen=True)
class _Word:
    """The bits of one number of x. Magnitudes compare as integers, NaN above Inf above every number."""

    dtype: type  # of the signed integer
    mask: int  # all but the sign
    infinity: int  # magnitude of Inf
    bits: Callable  # magnitude -> bits of the float32, but for an exponent field that may be below 1: no subnormals
    normal_bits: Callable  # the same and cheaper, for numbers that are normal in float32


def _word(inline: Callable, dtype: torch.dtype) -> _Word:
    @inline
    def normalize(bits):  # as formats.normalize
        return bits if bits > FRACTION else int32(float32(bits).view(int32) - (149 << FRACTION_BITS))

    if dtype == torch.float32:
        return _Word(int32, MAGNITUDE, INFINITY, normalize, inline(lambda magnitude: magnitude))

    if dtype == torch.bfloat16:
        widen = inline(lambda magnitude: int32(int32(magnitude) << 16))
        return _Word(int16, 0x7FFF, INFINITY >> 16, inline(lambda magnitude: normalize(widen(magnitude))), widen)

    @inline
    def from_half(magnitude):  # a subnormal one counts units of 2**-24
        counted = int32(float32(magnitude).view(int32) - (24 << FRACTION_BITS))
        return counted if magnitude < 0x400 else int32((int32(magnitude) << 13) + (112 << FRACTION_BITS))

    return _Word(int16, 0x7FFF, 0x7C00, from_half, from_half)


def _tile(inline: Callable, find_scales: Callable, write_elements: Callable) -> Callable:
    @inline
    def do_tile(words, elements, scales, largest, constant):
        find_scales(words, scales, largest, constant)
        for i in range(TILE):
            write_elements(words[i], elements[i], scales[i])

    return do_tile


def _scale_finder(inline: Callable, word: _Word, fmt: ElementFormat) -> Callable:
    signed, mask, infinity, bits, emax = word.dtype, word.mask, word.infinity, word.bits, fmt.emax

    @inline
    def scale_byte(magnitude, constant):
        byte = (int32(bits(magnitude) + constant) >> FRACTION_BITS) - emax
        return NAN_SCALE if magnitude >= infinity else min(max(byte, 0), LARGEST_SCALE)

    @inline
    def find_scales(words, scales, largest, constant):
        # Four blocks a turn: LLVM would unroll a loop over one block entirely and then see no vector in it.
        for i in range(0, TILE, 4):
            a = b = c = d = signed(0)
            for j in range(BLOCK):
                a = max(a, signed(words[i, j] & mask))
                b = max(b, signed(words[i + 1, j] & mask))
                c = max(c, signed(words[i + 2, j] & mask))
                d = max(d, signed(words[i + 3, j] & mask))
            largest[i], largest[i + 1], largest[i + 2], largest[i + 3] = a, b, c, d
        for i in range(TILE):
            scales[i] = scale_byte(largest[i], int32(constant))

    return find_scales


def _element_writer(inline: Callable, word: _Word, fmt: ElementFormat) -> Callable:
    mask, bits, normal_bits = word.mask, word.bits, word.normal_bits
    code, with_sign = _code(inline, fmt), _with_sign(inline, fmt)
    nan_code = fmt.nan_code if fmt.has_nan else 0
    # From this scale byte on, a subnormal float32 ends below half the smallest element, and so does what normal_bits
    # makes of it: both are below 2**(1 - scale_byte).
    normal_from = 2 - int(log2(fmt.min_subnormal))

    @inline
    def write_elements(words, elements, scale_byte):
        shift = int32((int32(scale_byte) - FLOAT32_BIAS) << FRACTION_BITS)
        if scale_byte == NAN_SCALE:
            elements[:] = nan_code
        elif scale_byte >= normal_from:
            for j in range(BLOCK):
                elements[j] = with_sign(code(int32(normal_bits(words[j] & mask) - shift)), words[j])
        else:
            for j in range(BLOCK):
                elements[j] = with_sign(code(int32(bits(words[j] & mask) - shift)), words[j])

    return write_elements


def _code(inline: Callable, fmt: ElementFormat) -> Callable:
    """Bits of a scaled magnitude -> an integer whose last eight bits are its code.

    The bits are a float32's but for the exponent field, which may be negative.
    """
    dropped = FRACTION_BITS - fmt.mantissa_bits
    least_power = (fmt.emin + FLOAT32_BIAS) << FRACTION_BITS
    largest = int(float32(fmt.max).view(int32))
    # From the power of two to M. M also carries an offset in its last bits, which leads from steps to the code: an even
    # one, so that nearest even stays what it is.
    to_m = (dropped << FRACTION_BITS) + (-(least_power >> dropped) & 0xFF)

    @inline
    def code(scaled):
        y = int32(min(max(scaled, 0), largest))
        power = int32(max(y & INFINITY, least_power))
        steps = float32(y.view(float32) + int32(power + to_m).view(float32)).view(int32)
        return int32(steps + (power >> dropped))

    return code


def _with_sign(inline: Callable, fmt: ElementFormat) -> Callable:
    sign_code, mask = fmt.sign_code, (1 << fmt.bits) - 1

    @inline
    def sign_and_magnitude(code, word):
        return code | ((int32(word) >> 31) & sign_code)

    @inline
    def twos_complement(code, word):
        minus = int32(word) >> 31
        return ((code ^ minus) - minus) & mask

    return sign_and_magnitude if fmt.exponent_bits else twos_complement
