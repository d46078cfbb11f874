"""Block quantization by OCP MX v1.0 (sec. 5 and 6.3): the definition of correct for every faster version here.

Thirty-two values share one power of two, the scale; each is stored as a small element, value = scale * element. The
scale comes from the largest magnitude in the block, amax, by one of four rules; the elements are then rounded to
nearest even. The scale is integer arithmetic on the bits of amax, as a floating-point logarithm errs near the steps.

Choices that the specification leaves open: a block that holds NaN *or Inf* is NaN as a whole (scale byte 0xFF); a block
of zeros has scale byte 0 and keeps the signs of its zeros; scales beyond 2**-127 .. 2**127 are clamped to that range.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from math import inf, log10

import torch
from torch import Tensor

from chipmath.formats import (
    E8M0,
    FLOAT32_BIAS,
    FRACTION,
    FRACTION_BITS,
    INFINITY,
    MAGNITUDE,
    QUIET_NAN,
    ElementFormat,
    float32_bits,
    in_chunks,
    normalize,
)

SCALE_RULES = ("floor", "ceil", "rceil", "even")


@dataclass(frozen=True, eq=False)
class MXTensor:
    """A block-scaled tensor: what ``quantize`` returns."""

    elements: Tensor  # uint8 element codes, logical shape of the input; memory may be a transposed view
    scales: Tensor  # uint8 E8M0 bytes, the same shape with the blocked axis divided by ``block``
    fmt: ElementFormat  # of the elements
    axis: int  # the blocked axis, as given to ``quantize``
    block: int  # elements that share a scale

    def __post_init__(self):
        """Refuse elements and scales that do not belong together, whoever made them."""
        for name in ("elements", "scales"):
            _require_bytes(getattr(self, name), name)
        _require_format(self.fmt)
        expected = _scales_shape(self.elements, self.axis, self.block)
        if list(self.scales.shape) != expected:
            raise ValueError(
                f"scales must have shape {tuple(expected)} for elements of shape {tuple(self.elements.shape)} "
                f"in blocks of {self.block} along axis {self.axis}, got {tuple(self.scales.shape)}"
            )
        if self.elements.device != self.scales.device:
            raise ValueError(f"elements are on {self.elements.device}, scales on {self.scales.device}")

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale times element, as float32, float64, bfloat16 or float16.

        float32 is exact, subnormal results included, unless a product is beyond its range, which gives ±Inf (sec. 5.1
        leaves that open; it takes a scale above 2**112). float64 is always exact. The 16-bit types are the
        float32 result rounded once.
        """
        if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        product = self._float64_blocks if dtype == torch.float64 else self._float32_blocks
        elements = _blocks(self.elements, self.axis, self.block)
        scales = self.scales.movedim(self.axis, -1).reshape(-1, 1)
        values = in_chunks(lambda *parts: product(*parts).to(dtype), elements, scales)
        return _unblock(values, self.elements.shape, self.axis)

    def _float64_blocks(self, elements: Tensor, scales: Tensor) -> Tensor:
        # No scale is near the limits of float64, and the product needs no more bits than the element has.
        field = (scales.long() - E8M0.bias + 1023) << 52
        scale = torch.where(scales == E8M0.nan_code, torch.nan, field.view(torch.float64))
        return self.fmt.decode(elements).double() * scale

    def _float32_blocks(self, elements: Tensor, scales: Tensor) -> Tensor:
        # Moves the exponent field instead of multiplying: some scales and products are subnormal, which a device may
        # flush. Those products drop only zeros: no format has bits below 2**-16, and 2**-16 * 2**-127 > 2**-149.
        bits = self.fmt.decode(elements).view(torch.int32)
        magnitude = bits & MAGNITUDE
        exponent = scales.int() - E8M0.bias
        field = (magnitude >> FRACTION_BITS) + exponent
        subnormal = (magnitude & FRACTION | (1 << FRACTION_BITS)) >> (1 - field).clamp_(0, 31)
        product = torch.where(field > 0, magnitude + (exponent << FRACTION_BITS), subnormal)
        product = torch.where(field > 254, INFINITY, product)
        product = torch.where((magnitude == 0) | (magnitude >= INFINITY), magnitude, product)
        product = torch.where(scales == E8M0.nan_code, QUIET_NAN, product)
        return (product | (bits & ~MAGNITUDE)).view(torch.float32)


def quantize(x: Tensor, fmt: ElementFormat, scale_rule: str, *, axis: int = -1, block: int = 32) -> MXTensor:
    """Quantize ``x`` in blocks along ``axis``.

    x           float32, bfloat16 or float16, any rank and strides; ``x.shape[axis]`` a multiple of ``block``
    fmt         element format, one of ``formats.FORMATS.values()``
    scale_rule  "floor" (the rule of sec. 6.3; may clip), "ceil", "rceil" or "even", see ``scale_constant``
    returns     elements rounded to nearest even and saturated to ±max; a block with NaN or Inf has scale byte 0xFF and
                holds ``fmt.nan_code``, or +0 where the format has no NaN (the scale alone makes its values NaN)
    """
    check_input(x, axis, block)
    constant = scale_constant(fmt, scale_rule)
    blocks = _blocks(x, axis, block)
    scales = in_chunks(lambda part: _block_scales(_block_bits(part), fmt, constant), blocks)
    elements = in_chunks(lambda part, scale: _block_elements(_block_bits(part), scale, fmt), blocks, scales)
    scales = _unblock(scales, _scales_shape(x, axis, block), axis)
    return MXTensor(_unblock(elements, x.shape, axis), scales, fmt, axis, block)


def scale_constant(fmt: ElementFormat, scale_rule: str) -> int:
    """The integer that turns the exponent field of amax into the scale exponent of ``scale_rule``, exactly.

    With ``b`` the bits of a normal float32 amax = m * 2**e, 1 <= m < 2, the scale byte is, before clamping,
    ``((b + c) >> 23) - fmt.emax``: adding c carries into the exponent field just where the rule steps up a power of
    two. A fraction f (23 bits) carries when f + c >= 2**23. With fmt.max = m_max * 2**emax the constants are:

    floor   2**(floor(log2(amax)) - emax)            never steps up            c = 0
    ceil    2**(ceil(log2(amax)) - emax)             f > 0                     c = 2**23 - 1
    rceil   2**ceil(log2(amax / fmt.max))            m > m_max: f > f_max      c = 2**23 - 1 - f_max
    even    floor, of amax rounded to M fraction bits; that is 2 when m is at least half a step below 2 (a tie goes
            up, as the fraction below it is odd): f >= 2**23 - 2**(22 - M)     c = 2**(22 - M)
    """
    _require_format(fmt)
    if scale_rule not in SCALE_RULES:
        raise ValueError(f"scale_rule must be one of {', '.join(SCALE_RULES)}, got {reprlib.repr(scale_rule)}")
    largest_fraction = int((fmt.max / 2**fmt.emax - 1) * 2**FRACTION_BITS)
    return {
        "floor": 0,
        "ceil": FRACTION,
        "rceil": FRACTION - largest_fraction,
        "even": 1 << (FRACTION_BITS - 1 - fmt.mantissa_bits),
    }[scale_rule]


def clipped(x: Tensor, quantized: MXTensor) -> Tensor:
    """Where ``|x|`` is beyond the largest number its block can hold (bool, shape of x); never in a NaN block."""
    bits, scales, fmt = *_same_blocks(x, quantized), quantized.fmt
    largest = int(float32_bits(torch.tensor(fmt.max)))
    # int64: the largest number of a block may lie beyond float32's exponents.
    limit = (scales.long() - E8M0.bias << FRACTION_BITS) + largest
    beyond = (normalize(bits & MAGNITUDE) > limit) & (scales != E8M0.nan_code)
    return _unblock(beyond, x.shape, quantized.axis)


def flushed(x: Tensor, quantized: MXTensor) -> Tensor:
    """Where a nonzero ``x`` became a zero element (bool, shape of x); never in a NaN block."""
    bits, scales, fmt = *_same_blocks(x, quantized), quantized.fmt
    codes = _blocks(quantized.elements, quantized.axis, quantized.block)
    zero = (codes == 0) | (codes == fmt.sign_code) if fmt.exponent_bits else codes == 0
    return _unblock(zero & (bits & MAGNITUDE != 0) & (scales != E8M0.nan_code), x.shape, quantized.axis)


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise, 10 log10(sum of reference**2 / sum of (reference - approximation)**2), in decibels.

    Real tensors of one shape, summed in float64; inf where the two are equal, -inf where the approximation overflowed,
    NaN where either holds one.
    """
    for name, tensor in (("reference", reference), ("approximation", approximation)):
        _require_tensor(tensor, name)
        if tensor.is_complex():
            raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if reference.shape != approximation.shape:
        raise ValueError(f"shapes differ: {tuple(reference.shape)} and {tuple(approximation.shape)}")
    exact = reference.double()
    signal, noise = float(exact.square().sum()), float((exact - approximation.double()).square().sum())
    if noise == 0:
        return inf
    ratio = signal / noise
    return 10 * log10(ratio) if ratio else -inf


def to_blocked(scales: Tensor) -> Tensor:
    """Scale bytes (rows, K blocks) in the order in which Blackwell's tensor cores read them, one run of uint8.

    Tiles of 128 rows x 4 blocks, row by row; in a tile, row r, block c is byte (r % 32) * 16 + (r // 32) * 4 + c. Rows
    are padded to a multiple of 128 and blocks to a multiple of 4, with byte 0. Source: NVIDIA CUTLASS documentation,
    Blackwell functionality, scale factor layouts; cuBLAS documentation, 1D block scaling factors layout.
    """
    _require_bytes(scales, "scales")
    if scales.ndim != 2:
        raise ValueError(f"scales must be (rows, K blocks), got shape {tuple(scales.shape)}")
    rows, columns = scales.shape
    padded = torch.nn.functional.pad(scales, (0, -columns % 4, 0, -rows % 128))
    tiles = padded.view(-(-rows // 128), 4, 32, -(-columns // 4), 4)  # tile row, r // 32, r % 32, tile column, c
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def _block_bits(blocks: Tensor) -> Tensor:
    return float32_bits(blocks.float())  # bfloat16 and float16 are exact in float32


def _block_scales(bits: Tensor, fmt: ElementFormat, constant: int) -> Tensor:
    """Scale bytes (blocks, 1). Magnitudes compare as integers, NaN above Inf above every number."""
    amax = (bits & MAGNITUDE).amax(-1, keepdim=True)
    field = (normalize(amax) + constant) >> FRACTION_BITS
    scales = E8M0.encode(field - FLOAT32_BIAS - fmt.emax)
    return torch.where(amax >= INFINITY, E8M0.nan_code, scales)


def _block_elements(bits: Tensor, scales: Tensor, fmt: ElementFormat) -> Tensor:
    codes = fmt.encode_bits(bits, scales.int() - E8M0.bias)
    return torch.where(scales == E8M0.nan_code, fmt.nan_code if fmt.has_nan else 0, codes)


def _blocks(x: Tensor, axis: int, block: int) -> Tensor:
    """One block a row."""
    return x.movedim(axis, -1).reshape(-1, block)


def _unblock(blocks: Tensor, shape: torch.Size | list[int], axis: int) -> Tensor:
    """Inverse of ``_blocks``: a view in which ``axis`` is contiguous."""
    moved = list(shape)
    moved.append(moved.pop(axis))
    return blocks.view(moved).movedim(-1, axis)


def _same_blocks(x: Tensor, quantized: MXTensor) -> tuple[Tensor, Tensor]:
    """Bits of x, one block a row, and the scale byte of each row."""
    _require_tensor(x, "x")
    if not isinstance(quantized, MXTensor):
        raise TypeError(f"quantized must be an MXTensor, got a {type(quantized).__name__}: {reprlib.repr(quantized)}")
    if x.shape != quantized.elements.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, the quantized tensor {tuple(quantized.elements.shape)}")
    check_input(x, quantized.axis, quantized.block)
    scales = quantized.scales.movedim(quantized.axis, -1).reshape(-1, 1)
    return _block_bits(_blocks(x, quantized.axis, quantized.block)), scales


def _scales_shape(x: Tensor, axis: int, block: int) -> list[int]:
    """Shape of the scales of ``x``, after checking that it can be cut into such blocks."""
    _check_blocks(x, axis, block)
    shape = list(x.shape)
    shape[axis] //= block
    return shape


def check_input(x: Tensor, axis: int, block: int) -> None:
    """Refuse what no quantizer here takes, with the value in the message."""
    _require_tensor(x, "x")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    _check_blocks(x, axis, block)


def check_block(block: int) -> None:
    """Refuse what is no number of elements that could share a scale, with the value in the message."""
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise ValueError(f"block must be a positive integer, got {reprlib.repr(block)}")


def _check_blocks(x: Tensor, axis: int, block: int) -> None:
    check_block(block)
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis must be an integer, got {reprlib.repr(axis)}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is out of range for a tensor of {x.ndim} dimensions")
    if x.shape[axis] % block:
        raise ValueError(f"axis {axis} has size {x.shape[axis]}, which is not a multiple of the block, {block}")


def _require_tensor(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got a {type(x).__name__}: {reprlib.repr(x)}")


def _require_bytes(x: Tensor, name: str) -> None:
    _require_tensor(x, name)
    if x.dtype != torch.uint8:
        raise TypeError(f"{name} must be torch.uint8, got {x.dtype}")


def _require_format(fmt: ElementFormat) -> None:
    if not isinstance(fmt, ElementFormat):
        raise TypeError(f"fmt must be an ElementFormat such as formats.E4M3, got {reprlib.repr(fmt)}")
