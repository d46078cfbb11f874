"""What CDNA's ALU instructions compute: opcode -> kinds of results and sources, and a function of arrays.

The other half of `cdna`, whose docstring says which documents these follow, and what is done where they are silent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from oracles.floats import E4M3, E5M2, magnitudes, multiply_add, nearest_code

QUIET_NAN = 0x7FC00000
U32, I32, F32, U64, I64 = np.uint32, np.int32, np.float32, np.uint64, np.int64

# Kinds of values, besides "mask": a bit a lane of a pair of SGPRs.
DTYPES = {"u32": U32, "i32": I32, "f32": F32, "u64": U64, "i64": I64, "u16": np.uint16, "i16": np.int16}


@dataclass(frozen=True)
class Operation:
    """What an opcode computes: kinds of results and sources, and a function of arrays."""

    results: tuple[str, ...]
    sources: tuple[str, ...]
    compute: Callable
    named: tuple[str, ...] = ()  # modifiers that it takes as numbers


def _operation(signature: str, compute: Callable, *named: str) -> Operation:
    results, sources = signature.split("<-")
    return Operation(tuple(results.split()), tuple(sources.split()), compute, named)


def as_words(value: np.ndarray, kind: str) -> np.ndarray:
    """A result as uint32 (words, …)."""
    if kind == "f32":
        return np.ascontiguousarray(value, F32).view(U32)[None]
    if kind.endswith("64"):
        value = np.ascontiguousarray(value, DTYPES[kind]).view(U64)
        return np.stack([value & U64(0xFFFFFFFF), value >> U64(32)]).astype(U32)
    if kind == "i16":
        return value.view(np.uint16).astype(U32)[None]
    return np.ascontiguousarray(value, I32 if kind == "i32" else U32).view(U32)[None]


def _nan_aware(compute: Callable) -> Callable:
    """IEEE arithmetic on float32 whose NaN are those of the module's docstring (numpy's own depend on the CPU)."""

    def wrapped(*sources):
        sources = np.broadcast_arrays(*sources)
        result = compute(*sources).astype(F32)
        nans = np.isnan(result)
        if nans.any():
            bits = np.full(result.shape, QUIET_NAN, U32)
            for source in sources:  # the last that is taken wins: a negative one, if there is
                number, is_nan = np.ascontiguousarray(source).view(U32), np.isnan(source)
                take = is_nan & ((bits < 1 << 31) | (number >= 1 << 31))
                bits = np.where(take, number | 0x00400000, bits).astype(U32)
            result = np.where(nans, bits, result.view(U32)).astype(U32).view(F32)
        return result

    return wrapped


def _smaller(a, b):
    """V_MIN_F32, pseudocode with IEEE mode: the number of a number and a quiet NaN; -0 is below +0."""
    least = np.where((a < b) | ((a == b) & np.signbit(a)), a, b)
    return np.where(_signals(a) | _signals(b), _quiet(a, b), np.where(np.isnan(a), b, np.where(np.isnan(b), a, least)))


def _larger(a, b):
    """V_MAX_F32, pseudocode with IEEE mode."""
    most = np.where((a > b) | ((a == b) & ~np.signbit(a)), a, b)
    return np.where(_signals(a) | _signals(b), _quiet(a, b), np.where(np.isnan(a), b, np.where(np.isnan(b), a, most)))


def _signals(a):
    return np.isnan(a) & (np.ascontiguousarray(a).view(U32) & 0x00400000 == 0)


def _quiet(a, b):
    first = np.where(_signals(a), np.ascontiguousarray(a).view(U32), np.ascontiguousarray(b).view(U32))
    return (first | 0x00400000).astype(U32).view(F32)


def _median(a, b, c):
    """V_MED3_F32, pseudocode: with a NaN the minimum of the three, which leaves NaN out; else the middle one."""
    least, most = _smaller(_smaller(a, b), c), _larger(_larger(a, b), c)
    middle = np.where(most == a, _larger(b, c), np.where(most == b, _larger(a, c), _larger(a, b)))
    return np.where(np.isnan(a) | np.isnan(b) | np.isnan(c), least, middle)


def _maximum3(a, b, c):
    """V_MAXIMUM3_F32 (CDNA4), pseudocode: V_MAX_F32 but that any NaN makes NaN."""
    return np.where(np.isnan(a) | np.isnan(b) | np.isnan(c), F32(np.nan), _larger(_larger(a, b), c))


def _permute_bytes(a, b, selector):
    """V_PERM_B32, pseudocode: bytes of {S0, S1}, S1 the low ones; 12 is 0x00, from 13 on 0xFF."""
    pair = (a.astype(U64) << U64(32)) | b
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), U32)
    for place in range(4):
        choice = (selector >> U32(8 * place)) & U32(0xFF)
        if ((choice >= 8) & (choice < 12)).any():
            raise NotImplementedError("v_perm_b32 with a sign selector")
        byte = (pair >> (U64(8) * np.minimum(choice, 7).astype(U64))) & U64(0xFF)
        byte = np.where(choice < 8, byte, np.where(choice == 12, 0, 0xFF)).astype(U32)
        out |= byte << U32(8 * place)
    return out


def _pair_of_bfloat16(a, b):
    """V_CVT_PK_BF16_F32 (CDNA4): to nearest even, the first source in the low half; NaN stays NaN."""

    def half(x):
        bits = np.ascontiguousarray(x).view(U32)
        rounded = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))
        return np.where(np.isnan(x), bits | U32(0x00400000), rounded) >> U32(16)

    return half(a) | half(b) << U32(16)


def _float16(a):
    """V_CVT_F16_F32: to nearest even, subnormal numbers too; the upper half becomes 0."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(a).astype(np.float16).view(np.uint16).astype(U32)


def _pair_of_float16(a, b):
    """V_CVT_PK_F16_F32 (CDNA4): the same of two, the first source in the low half."""
    return _float16(a) | _float16(b) << U32(16)


def _truth_table(a, b, c, bitop3):
    """V_BITOP3 (CDNA4), pseudocode: bit 4a + 2b + c of the table."""
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), a.dtype)
    for bit in range(8):
        if bitop3 >> bit & 1:
            out |= (a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c)
    return out


def _field(a, offset, width):
    """V_BFE: offset and width are 5 bits each; a signed ``a`` extends the field's top bit."""
    offset, width = (offset & U32(31)), (width & U32(31))
    up = np.where(width == 0, 0, 32 - width - np.minimum(offset, 32 - width)).astype(a.dtype)
    fits = offset + width <= 32
    if not fits.all():
        raise NotImplementedError("a bit field beyond bit 31")
    shifted = (a << up) >> (up + offset.astype(a.dtype))
    return np.where(width == 0, 0, shifted).astype(a.dtype)


def _reversed_bits(a):
    return np.packbits(
        np.unpackbits(np.ascontiguousarray(a).view(np.uint8), bitorder="little")
        .reshape(-1, 32)[:, ::-1], bitorder="little",
    ).view(U32).reshape(a.shape)  # fmt: skip


def _multiply_add(a, b, c):
    """V_MAD_U64_U32 and V_MAD_I64_I32, pseudocode: the low 64 bits, and bit 64 of the exact sum."""
    product = a.astype(c.dtype) * b.astype(c.dtype)
    total = product + c
    if c.dtype == U64:
        return total, total < c
    overflowed = ((product < 0) == (c < 0)) & ((total < 0) != (c < 0))
    return total, (total < 0) ^ overflowed


def _with_carry(compute: Callable) -> Callable:
    """Unsigned sum or difference of a lane, and whether it left 32 bits."""

    def wrapped(a, b, carry=False):
        exact = compute(a.astype(I64), b.astype(I64), np.asarray(carry).astype(I64))
        return (exact & 0xFFFFFFFF).astype(U32), (exact < 0) | (exact >> 32 > 0)

    return wrapped


def _shift(shift: Callable, bits: int, by_first: bool = True):
    """Shifts take the low bits of their count; "rev" ones have it first."""

    def compute(a, b):
        value, count = (b, a) if by_first else (a, b)
        return shift(value, (count & count.dtype.type(bits - 1)).astype(value.dtype))

    return compute


COMPARISONS = {
    "lt": np.less, "eq": np.equal, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": np.not_equal, "lg": lambda a, b: (a < b) | (a > b),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b), "nlg": lambda a, b: ~((a < b) | (a > b)), "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b), "neq": lambda a, b: ~(a == b), "nlt": lambda a, b: ~(a < b),
}  # fmt: skip

# Vector ALU: CDNA4 ISA, chapter 6 and sections 12.7 to 12.11. Results of 16 bits clear the rest (LLVM,
# zeroesHigh16BitsOfDest: chips before gfx10).
VECTOR = {
    "v_mov_b32": _operation("u32 <- u32", lambda a: a),
    "v_mov_b64": _operation("u64 <- u64", lambda a: a),
    "v_not_b32": _operation("u32 <- u32", np.invert),
    "v_bfrev_b32": _operation("u32 <- u32", _reversed_bits),
    "v_cvt_f32_f16": _operation("f32 <- f16", lambda a: a.view(np.float16).astype(F32)),
    "v_cvt_f16_f32": _operation("u32 <- f32", _float16),
    "v_cvt_f32_u32": _operation("f32 <- u32", lambda a: a.astype(F32)),
    "v_cvt_u32_f32": _operation(
        "u32 <- f32", lambda a: np.clip(np.nan_to_num(a, nan=0.0).astype(float), 0, 0xFFFFFFFF)
    ),
    "v_cvt_i32_f32": _operation(
        "i32 <- f32", lambda a: np.clip(np.trunc(np.nan_to_num(a, nan=0.0)).astype(float), -(2**31), 2**31 - 1)
    ),
    "v_rcp_f32": _operation("f32 <- f32", _nan_aware(np.reciprocal)),  # within 1 ulp, say the documents
    "v_rcp_iflag_f32": _operation("f32 <- f32", _nan_aware(np.reciprocal)),  # it raises another exception
    "v_cvt_pk_bf16_f32": _operation("u32 <- f32 f32", _pair_of_bfloat16),
    "v_cvt_pk_f16_f32": _operation("u32 <- f32 f32", _pair_of_float16),
    "v_accvgpr_read_b32": _operation("u32 <- u32", lambda a: a),
    "v_accvgpr_write_b32": _operation("u32 <- u32", lambda a: a),
    "v_accvgpr_mov_b32": _operation("u32 <- u32", lambda a: a),
    "v_and_b32": _operation("u32 <- u32 u32", np.bitwise_and),
    "v_or_b32": _operation("u32 <- u32 u32", np.bitwise_or),
    "v_xor_b32": _operation("u32 <- u32 u32", np.bitwise_xor),
    "v_add_u32": _operation("u32 <- u32 u32", np.add),
    "v_sub_u32": _operation("u32 <- u32 u32", np.subtract),
    "v_subrev_u32": _operation("u32 <- u32 u32", lambda a, b: b - a),
    "v_add_co_u32": _operation("u32 mask <- u32 u32", _with_carry(lambda a, b, c: a + b)),
    "v_sub_co_u32": _operation("u32 mask <- u32 u32", _with_carry(lambda a, b, c: a - b)),
    "v_addc_co_u32": _operation("u32 mask <- u32 u32 mask", _with_carry(lambda a, b, c: a + b + c)),
    "v_subb_co_u32": _operation("u32 mask <- u32 u32 mask", _with_carry(lambda a, b, c: a - b - c)),
    "v_add_u16": _operation("u16 <- u16 u16", np.add),
    "v_sub_u16": _operation("u16 <- u16 u16", np.subtract),
    "v_max_u16": _operation("u16 <- u16 u16", np.maximum),
    "v_min_u16": _operation("u16 <- u16 u16", np.minimum),
    "v_min_u32": _operation("u32 <- u32 u32", np.minimum),
    "v_max_u32": _operation("u32 <- u32 u32", np.maximum),
    "v_min_i32": _operation("i32 <- i32 i32", np.minimum),
    "v_max_i32": _operation("i32 <- i32 i32", np.maximum),
    "v_mul_lo_u32": _operation("u32 <- u32 u32", np.multiply),
    "v_mul_hi_u32": _operation("u32 <- u32 u32", lambda a, b: ((a.astype(U64) * b) >> U64(32)).astype(U32)),
    "v_mul_u32_u24": _operation("u32 <- u32 u32", lambda a, b: (a & U32(0xFFFFFF)) * (b & U32(0xFFFFFF))),
    "v_lshlrev_b32": _operation("u32 <- u32 u32", _shift(np.left_shift, 32)),
    "v_lshrrev_b32": _operation("u32 <- u32 u32", _shift(np.right_shift, 32)),
    "v_ashrrev_i32": _operation("i32 <- u32 i32", _shift(np.right_shift, 32)),
    "v_lshlrev_b16": _operation("u16 <- u16 u16", _shift(np.left_shift, 16)),
    "v_lshrrev_b16": _operation("u16 <- u16 u16", _shift(np.right_shift, 16)),
    "v_ashrrev_i16": _operation("i16 <- u16 i16", _shift(np.right_shift, 16)),
    "v_lshlrev_b64": _operation("u64 <- u32 u64", _shift(np.left_shift, 64)),
    "v_lshrrev_b64": _operation("u64 <- u32 u64", _shift(np.right_shift, 64)),
    "v_ashrrev_i64": _operation("i64 <- u32 i64", _shift(np.right_shift, 64)),
    "v_add3_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: a + b + c),
    "v_or3_b32": _operation("u32 <- u32 u32 u32", lambda a, b, c: a | b | c),
    "v_and_or_b32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a & b) | c),
    "v_xad_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a ^ b) + c),
    "v_lshl_or_b32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a << (b & U32(31))) | c),
    "v_lshl_add_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a << (b & U32(31))) + c),
    "v_add_lshl_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a + b) << (c & U32(31))),
    "v_lshl_add_u64": _operation("u64 <- u64 u32 u64", lambda a, b, c: (a << (b & U32(7)).astype(U64)) + c),
    "v_bfe_u32": _operation("u32 <- u32 u32 u32", _field),
    "v_bfe_i32": _operation("i32 <- i32 u32 u32", _field),
    "v_bfi_b32": _operation("u32 <- u32 u32 u32", lambda a, b, c: (a & b) | (~a & c)),
    "v_alignbit_b32": _operation(
        "u32 <- u32 u32 u32", lambda a, b, c: (((a.astype(U64) << U64(32)) | b) >> (c & U32(31))).astype(U32)
    ),
    "v_perm_b32": _operation("u32 <- u32 u32 u32", _permute_bytes),
    "v_bitop3_b32": _operation("u32 <- u32 u32 u32", _truth_table, "bitop3"),
    "v_bitop3_b16": _operation("b16 <- u16 u16 u16", _truth_table, "bitop3"),
    "v_mad_u64_u32": _operation("u64 mask <- u32 u32 u64", _multiply_add),
    "v_mad_i64_i32": _operation("i64 mask <- i32 i32 i64", _multiply_add),
    "v_max3_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_max3_i32": _operation("i32 <- i32 i32 i32", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_u32": _operation("u32 <- u32 u32 u32", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_cndmask_b32": _operation("u32 <- u32 u32 mask", lambda a, b, mask: np.where(mask, b, a)),
    "v_mul_f32": _operation("f32 <- f32 f32", _nan_aware(np.multiply)),
    "v_add_f32": _operation("f32 <- f32 f32", _nan_aware(np.add)),
    "v_sub_f32": _operation("f32 <- f32 f32", _nan_aware(np.subtract)),
    "v_subrev_f32": _operation("f32 <- f32 f32", _nan_aware(lambda a, b: b - a)),
    "v_min_f32": _operation("f32 <- f32 f32", _smaller),
    "v_max_f32": _operation("f32 <- f32 f32", _larger),
    "v_max3_f32": _operation("f32 <- f32 f32 f32", lambda a, b, c: _larger(_larger(a, b), c)),
    "v_min3_f32": _operation("f32 <- f32 f32 f32", lambda a, b, c: _smaller(_smaller(a, b), c)),
    "v_fma_f32": _operation("f32 <- f32 f32 f32", _nan_aware(multiply_add)),
    "v_med3_f32": _operation("f32 <- f32 f32 f32", _median),
    "v_maximum3_f32": _operation("f32 <- f32 f32 f32", _nan_aware(_maximum3)),
}
# Two results of 16 bits in a register: CDNA4 ISA, section 6.7.
PACKED_16 = {
    "v_pk_lshlrev_b16": _shift(np.left_shift, 16),
    "v_pk_lshrrev_b16": _shift(np.right_shift, 16),
    "v_pk_add_u16": np.add,
    "v_pk_sub_u16": np.subtract,
    "v_pk_max_u16": np.maximum,
    "v_pk_min_u16": np.minimum,
    "v_pk_mul_lo_u16": np.multiply,
    "v_pk_mul_f16": lambda a, b: (a.view(np.float16) * b.view(np.float16)).view(np.uint16),
}
for _name, _kind in itertools.product(COMPARISONS, ("f32", "i32", "u32", "i64", "u64", "i16", "u16")):
    if _kind == "f32" or _name in ("lt", "eq", "le", "gt", "ge", "ne"):
        VECTOR[f"v_cmp_{_name}_{_kind}"] = _operation(f"mask <- {_kind} {_kind}", COMPARISONS[_name])


def _flagged(compute: Callable) -> Callable:
    """A scalar operation that sets SCC where its result is not zero."""

    def wrapped(*sources):
        result = compute(*sources)
        return result, result != 0

    return wrapped


def _signed_overflow(compute: Callable) -> Callable:
    def wrapped(a, b):
        exact = compute(a.astype(I64), b.astype(I64))
        return exact.astype(I32), exact != exact.astype(I32)

    return wrapped


def _scalar_field(a, spec):
    """S_BFE: offset in bits 4:0, width in bits 22:16."""
    width = (spec >> U32(16)) & U32(0x7F)
    if (width > 31).any():
        raise NotImplementedError(f"a bit field of {width.max()} bits")
    return _field(a, spec, width)


# The lane of its row that a lane reads, by DPP control and its value; what is below 0 or above 15 is out of bounds.
DPP = {
    "quad_perm": lambda lane, value: lane // 4 * 4 + np.array([int(at) for at in value[1:-1].split(",")])[lane % 4],
    "row_mirror": lambda lane, value: 15 - lane,
    "row_half_mirror": lambda lane, value: lane // 8 * 8 + 7 - lane % 8,
    "row_ror": lambda lane, value: (lane - int(value)) % 16,
    "row_shr": lambda lane, value: lane - int(value),
    "row_shl": lambda lane, value: lane + int(value),
}

# Scalar ALU: CDNA4 ISA, chapter 5 and sections 12.1 to 12.4. "scc" as a source is the flag, as a result it sets it.
SCALAR = {
    "s_mov_b32": _operation("u32 <- u32", lambda a: a),
    "s_mov_b64": _operation("u64 <- u64", lambda a: a),
    "s_movk_i32": _operation("i32 <- i32", lambda a: a.astype(np.int16).astype(I32)),
    "s_brev_b32": _operation("u32 <- u32", _reversed_bits),
    "s_abs_i32": _operation("i32 scc <- i32", _flagged(np.abs)),
    "s_not_b32": _operation("u32 scc <- u32", _flagged(np.invert)),
    "s_not_b64": _operation("u64 scc <- u64", _flagged(np.invert)),
    "s_add_u32": _operation("u32 scc <- u32 u32 zero", _with_carry(lambda a, b, c: a + b)),
    "s_sub_u32": _operation("u32 scc <- u32 u32 zero", _with_carry(lambda a, b, c: a - b)),
    "s_addc_u32": _operation("u32 scc <- u32 u32 scc", _with_carry(lambda a, b, c: a + b + c)),
    "s_subb_u32": _operation("u32 scc <- u32 u32 scc", _with_carry(lambda a, b, c: a - b - c)),
    "s_add_i32": _operation("i32 scc <- i32 i32", _signed_overflow(np.add)),
    "s_sub_i32": _operation("i32 scc <- i32 i32", _signed_overflow(np.subtract)),
    "s_mul_i32": _operation("u32 <- u32 u32", np.multiply),
    "s_mul_hi_i32": _operation("i32 <- i32 i32", lambda a, b: ((a.astype(I64) * b) >> 32).astype(I32)),
    "s_mul_hi_u32": _operation("u32 <- u32 u32", lambda a, b: ((a.astype(U64) * b) >> U64(32)).astype(U32)),
    "s_lshl_b32": _operation("u32 scc <- u32 u32", _flagged(_shift(np.left_shift, 32, False))),
    "s_lshr_b32": _operation("u32 scc <- u32 u32", _flagged(_shift(np.right_shift, 32, False))),
    "s_ashr_i32": _operation("i32 scc <- i32 u32", _flagged(_shift(np.right_shift, 32, False))),
    "s_lshl_b64": _operation("u64 scc <- u64 u32", _flagged(_shift(np.left_shift, 64, False))),
    "s_lshr_b64": _operation("u64 scc <- u64 u32", _flagged(_shift(np.right_shift, 64, False))),
    "s_ashr_i64": _operation("i64 scc <- i64 u32", _flagged(_shift(np.right_shift, 64, False))),
    "s_bfe_u32": _operation("u32 scc <- u32 u32", _flagged(_scalar_field)),
    "s_bfe_i32": _operation("i32 scc <- i32 u32", _flagged(_scalar_field)),
    "s_cselect_b32": _operation("u32 <- u32 u32 scc", lambda a, b, scc: np.where(scc, a, b)),
    "s_cselect_b64": _operation("u64 <- u64 u64 scc", lambda a, b, scc: np.where(scc, a, b)),
    "s_min_i32": _operation("i32 scc <- i32 i32", lambda a, b: (np.minimum(a, b), a < b)),
    "s_max_i32": _operation("i32 scc <- i32 i32", lambda a, b: (np.maximum(a, b), a >= b)),
    "s_min_u32": _operation("u32 scc <- u32 u32", lambda a, b: (np.minimum(a, b), a < b)),
    "s_max_u32": _operation("u32 scc <- u32 u32", lambda a, b: (np.maximum(a, b), a >= b)),
}
for _width in ("32", "64"):
    SCALAR |= {
        f"s_{_name}_b{_width}": _operation(f"u{_width} scc <- u{_width} u{_width}", _flagged(_compute))
        for _name, _compute in {
            "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
            "andn2": lambda a, b: a & ~b, "orn2": lambda a, b: a | ~b,
        }.items()
    }  # fmt: skip
for _count in (1, 2, 3, 4):  # S_LSHL<n>_ADD_U32: the carry is that of a 64-bit sum
    SCALAR[f"s_lshl{_count}_add_u32"] = _operation(
        "u32 scc <- u32 u32 zero", _with_carry(lambda a, b, c, count=_count: (a << count) + b)
    )
for _name, _kind in itertools.product(("lt", "eq", "le", "gt", "ge", "lg"), ("i32", "u32", "u64")):
    SCALAR[f"s_cmp_{_name}_{_kind}"] = _operation(f"scc <- {_kind} {_kind}", COMPARISONS[_name])
for _bit in (0, 1):  # S_BITCMP<b>_B32: whether that bit of the first operand is b
    SCALAR[f"s_bitcmp{_bit}_b32"] = _operation("scc <- u32 u32", lambda a, at, bit=_bit: (a >> (at & 31) & 1) == bit)


# CDNA4 ISA, table 30; CDNA3's formats have no -0: 0x80 is the only NaN (CDNA3 ISA, section 7.2, "FP8 formats").
SMALL_FLOATS = {
    ("gfx950", "fp8"): E4M3,
    ("gfx950", "bf8"): E5M2,
    ("gfx942", "fp8"): magnitudes(3, 8, 0x80),
    ("gfx942", "bf8"): magnitudes(2, 16, 0x80),
}
OVERFLOWN = {("gfx950", "fp8"): 0x7F, ("gfx950", "bf8"): 0x7C, ("gfx942", "fp8"): 0x80, ("gfx942", "bf8"): 0x80}
NAN_CODE = OVERFLOWN | {("gfx950", "bf8"): 0x7E}  # table 30 has 0x7D to 0x7F, and no rule which


def convert(x: np.ndarray, chip: str, kind: str, saturate: np.ndarray) -> np.ndarray:
    """Codes of float64 ``x`` in the chip's "fp8" or "bf8", to nearest even (CDNA4 ISA, section 7.3).

    saturate  MODE.FP16_OVFL: what is beyond the largest number, Inf too, becomes that number, not NaN or Inf
    """
    numbers, fnuz = SMALL_FLOATS[chip, kind], chip == "gfx942"
    code = nearest_code(numbers, np.abs(x))
    over = (code >= len(numbers)) | np.isinf(x)
    code = np.where(over, np.where(saturate, len(numbers) - 1, OVERFLOWN[chip, kind]), code)
    sign = np.where(np.signbit(x), 0x80, 0)
    code = np.where((code == 0) & fnuz, 0, code | sign)
    return np.where(np.isnan(x), NAN_CODE[chip, kind] | sign, code).astype(U32)
