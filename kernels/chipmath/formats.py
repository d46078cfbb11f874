"""Element and scale formats of OCP MX v1.0 as records: a few facts each, everything else derived from them.

Codes are uint8 tensors, one code a byte in its low bits; values are float32. Encoding is integer arithmetic on the bits
of a float32, so that the bytes depend neither on how a library's own 8-bit cast treats overflow (torch changed it,
ml_dtypes differs) nor on whether a device flushes subnormal numbers. Rounding is to nearest, ties to even; what is too
large becomes ±max, infinities included (OCP OFP8 v1.0 calls this the saturating mode).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF  # mask: a float32 without its sign
INFINITY = 0x7F800000  # bits of +Inf; larger magnitudes are NaN
QUIET_NAN = 0x7FC00000  # bits of the usual NaN
FRACTION_BITS = 23  # of a float32
FRACTION = (1 << FRACTION_BITS) - 1  # mask: the fraction of a float32
FLOAT32_BIAS = 127


@dataclass(frozen=True)
class ElementFormat:
    """A private element of an MX block (OCP MX v1.0, sec. 5.3): a small float, or INT8 as fixed point.

    Raises ValueError for fields that contradict each other, or whose numbers float32 cannot hold.
    """

    name: str  # as in the specification's tables
    bits: int  # width of a code, sign included
    exponent_bits: int  # width of the exponent field; 0 means two's complement with an implied scale, as in INT8
    mantissa_bits: int  # stored fraction bits; for INT8 the bits after the binary point
    bias: int  # exponent field minus exponent; 0 for INT8
    reserved: str = "none"  # codes that are no number: "none", "last" (all ones) or "top" (the whole last exponent)

    def __post_init__(self):
        """Refuse what would show only in wrong codes; every field is in the message."""
        for holds, demand in self._demands():
            if not holds:
                raise ValueError(f"{demand}, got {self!r}")

    def _demands(self) -> Iterator[tuple[bool, str]]:
        """What the fields must satisfy, in words; each relies on those before."""
        numbers = (self.bits, self.exponent_bits, self.mantissa_bits, self.bias)
        yield all(type(number) is int for number in numbers), "bits and bias must be whole numbers"
        yield min(numbers[:3]) >= 0 and 2 <= self.bits <= 8, "a code must have 2 to 8 bits"
        yield self.reserved in ("none", "last", "top"), 'reserved must be "none", "last" or "top"'
        if self.exponent_bits:
            yield self.bits == 1 + self.exponent_bits + self.mantissa_bits, "sign, exponent and mantissa must fill bits"
            yield self.max_code > 0, "some code must be a number other than zero"
            exponents = self.emin - self.mantissa_bits, max(self.max_code >> self.mantissa_bits, 1) - self.bias
            yield exponents[0] >= -149 and exponents[1] <= 127, "float32 must hold every number"
        else:
            yield self.bits == 2 + self.mantissa_bits, "two's complement must have one bit before the binary point"
            yield self.bias == 0 and self.reserved == "none", "two's complement has no bias and no reserved code"

    def __str__(self) -> str:
        """The name alone, for sentences and tables."""
        return self.name

    @property
    def max_code(self) -> int:
        """Code of the largest number."""
        return self.sign_code - 1 - {"none": 0, "last": 1, "top": 1 << self.mantissa_bits}[self.reserved]

    @property
    def sign_code(self) -> int:
        """The sign bit on its own: -0 for a float, -2 for INT8."""
        return 1 << (self.bits - 1)

    @property
    def max(self) -> float:
        """Largest number."""
        return self._value(self.max_code)

    @property
    def emax(self) -> int:
        """Exponent of the largest number: the largest power of two is 2**emax."""
        return math.frexp(self.max)[1] - 1

    @property
    def emin(self) -> int:
        """Exponent below which the spacing of the numbers stays the same."""
        return 1 - self.bias if self.exponent_bits else 0

    @property
    def min_subnormal(self) -> float:
        """Smallest positive number, also the finest spacing."""
        return 2.0 ** (self.emin - self.mantissa_bits)

    @property
    def min_normal(self) -> float:
        """Smallest positive number that is not subnormal; INT8 has no subnormals, so there it is the step."""
        return 2.0**self.emin if self.exponent_bits else self.min_subnormal

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.nan_codes > 0

    @property
    def has_inf(self) -> bool:
        """Whether some code is infinite."""
        return self.inf_codes > 0

    @property
    def nan_code(self) -> int:
        """The NaN that ``encode`` writes for a positive NaN: all ones below the sign. Needs ``has_nan``."""
        if not self.has_nan:
            raise ValueError(f"{self.name} has no NaN")
        return self.sign_code - 1

    @property
    def nan_codes(self) -> int:
        """How many codes are NaN, both signs."""
        return (1 << self.bits) - self.finite_codes - self.inf_codes

    @property
    def inf_codes(self) -> int:
        """How many codes are infinite, both signs."""
        return 2 if self.reserved == "top" else 0

    @property
    def finite_codes(self) -> int:
        """How many codes are numbers; +0 and -0 count as two, and so does INT8's 0x80."""
        return 2 * (self.max_code + 1)

    @property
    def binades(self) -> float:
        """Dynamic range, smallest positive to largest number, in powers of two."""
        return math.log2(self.max / self.min_subnormal)

    @property
    def decades(self) -> float:
        """Dynamic range, smallest positive to largest number, in powers of ten."""
        return math.log10(self.max / self.min_subnormal)

    def decode(self, codes: Tensor) -> Tensor:
        """Values of ``codes`` (uint8, any shape) as float32; NaN and Inf codes decode as such, with their sign."""
        _require_dtype(codes, "codes", torch.uint8)
        if self.bits < 8 and codes.numel() and (largest := int(codes.max())) >= 1 << self.bits:
            raise ValueError(f"{self.name} has {self.bits}-bit codes, got {largest:#04x}")
        values = torch.tensor([self._value(code) for code in range(1 << self.bits)], dtype=torch.float32)
        return values.to(codes.device).index_select(0, codes.reshape(-1).int()).view(codes.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x`` (float32, any shape) as uint8: nearest, ties to even, saturating to ±max.

        The sign of zero is kept by the floats; INT8 has one zero and never becomes 0x80 (sec. 5.3.4 lets it go unused).
        NaN keeps its sign and becomes all ones for E4M3 and E5M2, and is a ValueError for formats without NaN.
        """
        _require_dtype(x, "x", torch.float32)
        if not self.has_nan and bool(x.isnan().any()):
            raise ValueError(f"x holds NaN, which {self.name} cannot hold")
        return in_chunks(self.encode_bits, float32_bits(x).reshape(-1)).view(x.shape)

    def encode_bits(self, bits: Tensor, scale_exponent: Tensor | int = 0) -> Tensor:
        """Codes of ``x / 2**scale_exponent``, rounded once, from ``float32_bits(x)``; both int32, broadcasting.

        ``quantize`` comes in here: where x or the scale is subnormal, a float product with 2**-scale_exponent could be
        flushed to zero. A NaN that the format cannot hold becomes ±max.
        """
        magnitude = bits & MAGNITUDE
        normal = normalize(magnitude)
        exponent = (normal >> FRACTION_BITS) - FLOAT32_BIAS - scale_exponent
        significand = (normal & FRACTION) | (1 << FRACTION_BITS)

        # Bits to drop: down to the mantissa, and one more for each exponent below emin, where the spacing is constant.
        # At mantissa_bits + 2 of those nothing is left, not even a tie.
        subnormal = (self.emin - exponent).clamp_(0, self.mantissa_bits + 2)
        drop = subnormal + (FRACTION_BITS - self.mantissa_bits)
        # Nearest even: add just under half of the last kept bit, and that little more when the kept part is odd.
        odd = (significand >> drop) & 1
        rounded = (significand + (1 << (drop - 1)) - 1 + odd) >> drop

        # A rounded normal brings its leading one, which adds the 1 missing in the exponent field; a carry adds another.
        code = ((exponent - self.emin).clamp_(min=0) << self.mantissa_bits).add_(rounded).clamp_(max=self.max_code)
        if self.has_nan:
            code = torch.where(magnitude > INFINITY, self.nan_code, code)
        signed = code | self.sign_code if self.exponent_bits else -code & (1 << self.bits) - 1
        return torch.where(bits < 0, signed, code).to(torch.uint8)

    def _value(self, code: int) -> float:
        """Value of one code, straight from the definition of the encoding (OCP MX v1.0, sec. 5.3; OCP OFP8 v1.0)."""
        if not self.exponent_bits:
            return (code - ((code & self.sign_code) << 1)) * self.min_subnormal
        sign = -1.0 if code & self.sign_code else 1.0
        magnitude = code & (self.sign_code - 1)
        if magnitude > self.max_code:
            infinite = self.has_inf and magnitude == self.max_code + 1
            return math.copysign(math.inf if infinite else math.nan, sign)
        field, fraction = divmod(magnitude, 1 << self.mantissa_bits)
        leading = 1 << self.mantissa_bits if field else 0
        return sign * math.ldexp(leading + fraction, max(field, 1) - self.bias - self.mantissa_bits)


E4M3 = ElementFormat("E4M3", bits=8, exponent_bits=4, mantissa_bits=3, bias=7, reserved="last")
E5M2 = ElementFormat("E5M2", bits=8, exponent_bits=5, mantissa_bits=2, bias=15, reserved="top")
E3M2 = ElementFormat("E3M2", bits=6, exponent_bits=3, mantissa_bits=2, bias=3)
E2M3 = ElementFormat("E2M3", bits=6, exponent_bits=2, mantissa_bits=3, bias=1)
E2M1 = ElementFormat("E2M1", bits=4, exponent_bits=2, mantissa_bits=1, bias=1)
INT8 = ElementFormat("INT8", bits=8, exponent_bits=0, mantissa_bits=6, bias=0)

FORMATS = {fmt.name: fmt for fmt in (E4M3, E5M2, E3M2, E2M3, E2M1, INT8)}


@dataclass(frozen=True)
class ScaleFormat:
    """A power of two without sign, zero or infinity: the shared scale of a block (OCP MX v1.0, sec. 5.4.1)."""

    name: str  # as in the specification
    bits: int  # width of a code
    bias: int  # code minus exponent

    def __post_init__(self):
        """Refuse another layout than a float32's exponent field, as which ``decode`` reads a code."""
        if (self.bits, self.bias) != (8, FLOAT32_BIAS):
            raise ValueError(f"a scale must have 8 bits and the bias {FLOAT32_BIAS}, got {self!r}")

    @property
    def nan_code(self) -> int:
        """The all-ones code, NaN: every value of such a block is NaN."""
        return (1 << self.bits) - 1

    @property
    def max_code(self) -> int:
        """Code of the largest scale."""
        return self.nan_code - 1

    @property
    def min(self) -> float:
        """Smallest scale, code 0: not zero, and in float32 and bfloat16 a subnormal number."""
        return 2.0**-self.bias

    @property
    def max(self) -> float:
        """Largest scale."""
        return 2.0 ** (self.max_code - self.bias)

    @property
    def binades(self) -> float:
        """Dynamic range in powers of two."""
        return math.log2(self.max / self.min)

    @property
    def decades(self) -> float:
        """Dynamic range in powers of ten."""
        return math.log10(self.max / self.min)

    def encode(self, exponents: Tensor) -> Tensor:
        """Codes of ``2**exponents`` (int32 or int64), clamped to the smallest and the largest scale; never NaN."""
        _require_dtype(exponents, "exponents", torch.int32, torch.int64)
        return exponents.clamp(-self.bias, self.max_code - self.bias).add_(self.bias).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """Scales of ``codes`` (uint8) as float32, exact."""
        _require_dtype(codes, "codes", torch.uint8)
        # A code is the exponent field of a float32 but for 0: there that means subnormal, 2**-127 the top fraction bit.
        bits = torch.where(codes == 0, 1 << (FRACTION_BITS - 1), codes.int() << FRACTION_BITS)
        return torch.where(codes == self.nan_code, QUIET_NAN, bits).view(torch.float32)


E8M0 = ScaleFormat("E8M0", bits=8, bias=127)


def float32_bits(x: Tensor) -> Tensor:
    """The bits of a float32 tensor as int32, without a copy."""
    return x.detach().resolve_neg().view(torch.int32)  # z.conj().imag is negated lazily and has no bits of its own yet


def normalize(magnitude: Tensor) -> Tensor:
    """Bits of nonnegative float32 numbers as if the exponent field could go below zero.

    The bits of a subnormal number are its value in units of 2**-149. Converted to a float, that count has a leading one
    and an exponent field 149 too high. Afterwards ``>> 23`` is exponent + 127 for every positive number; zero gets the
    field -149, lower than any. No subnormal number enters float arithmetic, so nothing can be flushed.
    """
    counted = magnitude.float().view(torch.int32) - (149 << FRACTION_BITS)
    return torch.where(magnitude > FRACTION, magnitude, counted)


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` for a function that treats each row by itself, worked off in groups of rows.

    On a CPU the temporaries then stay in the cache, and torch works such sizes off on one thread. Thirty short parallel
    operations would wait thirty times for the slowest thread, which on a busy machine costs seconds and on an idle one
    gains little. Elsewhere the limit only keeps memory in bounds.
    """
    elements = 1 << 14 if tensors[0].device.type == "cpu" else 1 << 24
    rows = max(elements // max(tensors[0][:1].numel(), 1), 1)
    return torch.cat([function(*part) for part in zip(*(tensor.split(rows) for tensor in tensors))])


def _require_dtype(x: Tensor, name: str, *dtypes: torch.dtype) -> None:
    expected = " or ".join(str(dtype) for dtype in dtypes)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a {expected} tensor, got a {type(x).__name__}: {reprlib.repr(x)}")
    if x.dtype not in dtypes:
        raise TypeError(f"{name} must be {expected}, got {x.dtype}")
