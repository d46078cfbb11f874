"""Element and scale formats: hand-worked codes, the definition of rounding, and other projects' codecs."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from chipmath.formats import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, FORMATS, INT8, ElementFormat, ScaleFormat

ALL = list(FORMATS.values())
FLOATS = [fmt for fmt in ALL if fmt is not INT8]
NAN = float("nan")
INF = float("inf")

# OCP MX v1.0 tables 2 to 6 and OFP8 v1.0 table 1:
# bits, emax, max, min normal, min subnormal, codes that are finite, NaN, Inf
SPECIFICATION = {
    "E4M3": (8, 8, 448.0, 2**-6, 2**-9, 254, 2, 0),
    "E5M2": (8, 15, 57344.0, 2**-14, 2**-16, 248, 6, 2),
    "E3M2": (6, 4, 28.0, 0.25, 0.0625, 64, 0, 0),
    "E2M3": (6, 2, 7.5, 1.0, 0.125, 64, 0, 0),
    "E2M1": (4, 2, 6.0, 1.0, 0.5, 16, 0, 0),
    "INT8": (8, 0, 127 / 64, 1 / 64, 1 / 64, 256, 0, 0),
}

# code -> value, worked by hand from sign, exponent field and fraction
DECODED = {
    "E4M3": {
        0x00: 0.0,
        0x01: 2**-9,  # the smallest subnormal: 1/8 * 2**-6
        0x07: 7 * 2**-9,
        0x08: 2**-6,  # the smallest normal
        0x38: 1.0,
        0x78: 256.0,  # the last exponent is an ordinary one ...
        0x7E: 448.0,
        0x7F: NAN,  # ... but for its all-ones fraction
        0xC0: -2.0,
        0xFE: -448.0,
    },
    "E5M2": {0x01: 2**-16, 0x04: 2**-14, 0x3C: 1.0, 0x7B: 57344.0, 0x7C: INF, 0x7D: NAN, 0x7F: NAN, 0xFC: -INF},
    "E3M2": {0x01: 0.0625, 0x03: 0.1875, 0x04: 0.25, 0x0C: 1.0, 0x1F: 28.0, 0x3F: -28.0},
    "E2M3": {0x01: 0.125, 0x07: 0.875, 0x08: 1.0, 0x1F: 7.5, 0x3F: -7.5},
    "E2M1": {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0, 9: -0.5, 15: -6.0},
    "INT8": {0x00: 0.0, 0x01: 1 / 64, 0x40: 1.0, 0x7F: 127 / 64, 0x80: -2.0, 0x81: -127 / 64, 0xFF: -1 / 64},
}

# value -> code; between two numbers of the format the nearest, and the even one from the middle
ENCODED = {
    "E4M3": {
        0.0: 0x00,
        1.2: 0x3A,  # between 1.125 and 1.25
        1.0625: 0x38,  # the middle of 1 and 1.125: 1 is even
        1.1875: 0x3A,  # the middle of 1.125 and 1.25: 1.25 is even
        2**-10: 0x00,  # half the smallest subnormal: 0 is even
        3 * 2**-10: 0x02,
        7.5 * 2**-9: 0x08,  # the middle of the largest subnormal and the smallest normal
        440.0: 0x7E,
        464.0: 0x7E,  # where other casts begin to overflow
        1e30: 0x7E,
        INF: 0x7E,
        -INF: 0xFE,
        -1.0: 0xB8,
        2**-149: 0x00,
    },
    "E5M2": {1.125: 0x3C, 1.375: 0x3E, 61440.0: 0x7B, INF: 0x7B, -1e38: 0xFB, 2**-17: 0x00, 3 * 2**-17: 0x02},
    "E3M2": {1.125: 0x0C, 1.375: 0x0E, 30.0: 0x1F, -INF: 0x3F, 0.03125: 0x00, 0.09375: 0x02},
    "E2M3": {1.0625: 0x08, 1.1875: 0x0A, 8.0: 0x1F, -100.0: 0x3F, 0.9375: 0x08},
    "E2M1": {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6, 5.1: 7, 1e9: 7, -0.3: 9, -2.6: 13},
    "INT8": {1.0: 0x40, 1 / 128: 0x00, 3 / 128: 0x02, 1.99: 0x7F, 3.0: 0x7F, -2.0: 0x81, -INF: 0x81, -0.2: 0xF3},
}


def cases(table):
    return [(FORMATS[name], x, y) for name, rows in table.items() for x, y in rows.items()]


def codes_of(fmt):
    return torch.arange(1 << fmt.bits, dtype=torch.uint8)


def floats(values):
    return torch.tensor(values, dtype=torch.float32)


def bits_of(x):
    return np.asarray(x, np.float32).view(np.uint32)


def expand(high, low):
    """Every float32 whose upper half is in ``high`` and lower half in ``low``."""
    return ((high.astype(np.uint32) << 16)[:, None] | low.astype(np.uint32)).ravel().view(np.float32)


def encode(fmt, x):
    return fmt.encode(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("name", SPECIFICATION)
def test_derived_facts_match_the_specification(name):
    fmt = FORMATS[name]
    derived = (fmt.bits, fmt.emax, fmt.max, fmt.min_normal, fmt.min_subnormal)
    assert (*derived, fmt.finite_codes, fmt.nan_codes, fmt.inf_codes) == SPECIFICATION[name]
    assert (fmt.name, fmt.has_nan, fmt.has_inf) == (name, name in ("E4M3", "E5M2"), name == "E5M2")


def test_dynamic_range():
    assert E2M1.binades == pytest.approx(np.log2(12))
    assert E4M3.binades == pytest.approx(17.807, abs=5e-4)
    assert E4M3.decades == pytest.approx(5.361, abs=5e-4)
    assert (E8M0.min, E8M0.max, E8M0.binades) == (2.0**-127, 2.0**127, 254)


@pytest.mark.parametrize(("fmt", "code", "value"), cases(DECODED), ids=str)
def test_decode_by_hand(fmt, code, value):
    assert bits_of(fmt.decode(torch.tensor([code], dtype=torch.uint8))) == bits_of([value])


@pytest.mark.parametrize(("fmt", "value", "code"), cases(ENCODED), ids=str)
def test_encode_by_hand(fmt, value, code):
    assert fmt.encode(floats([value])).tolist() == [code]


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_sign_of_zero_is_kept(fmt):
    assert fmt.encode(floats([0.0, -0.0, 1e-40, -1e-40])).tolist() == [0, fmt.sign_code, 0, fmt.sign_code]
    assert bits_of(fmt.decode(torch.tensor([fmt.sign_code], dtype=torch.uint8))) == 0x80000000


def test_int8_has_one_zero():
    assert INT8.encode(floats([0.0, -0.0, -1e-40, -1 / 128])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_nan_keeps_its_sign(fmt):
    bits = torch.tensor([0x7FC00000, -0x400000, 0x7F800001, -1], dtype=torch.int32)
    assert fmt.encode(bits.view(torch.float32)).tolist() == [0x7F, 0xFF, 0x7F, 0xFF]
    assert fmt.encode(fmt.decode(torch.tensor([0x7F, 0xFF], dtype=torch.uint8))).tolist() == [0x7F, 0xFF]


@pytest.mark.parametrize("fmt", [E3M2, E2M3, E2M1, INT8], ids=str)
def test_nan_has_no_code_in_the_smaller_formats(fmt):
    with pytest.raises(ValueError, match=f"x holds NaN, which {fmt.name} cannot hold"):
        fmt.encode(floats([0.0, NAN]))
    with pytest.raises(ValueError, match=f"{fmt.name} has no NaN"):
        _ = fmt.nan_code


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_encode_is_nearest_even_on_both_sides_of_every_boundary(fmt):
    """The definition itself: below the middle of two neighbours the lower, above it the upper, on it the even code."""
    codes = np.arange(fmt.max_code + 1, dtype=np.uint8)
    values = fmt.decode(torch.from_numpy(codes)).double().numpy()
    middles = ((values[:-1] + values[1:]) / 2).astype(np.float32)  # one bit more than the format: exact
    below, above = np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(INF))
    even = codes[:-1] + codes[:-1] % 2
    for x, expected in ((middles, even), (below, codes[:-1]), (above, codes[1:]), (values.astype(np.float32), codes)):
        negative = expected | fmt.sign_code if fmt is not INT8 else (-expected.astype(int) % 256).astype(np.uint8)
        np.testing.assert_array_equal(encode(fmt, x), expected)
        np.testing.assert_array_equal(encode(fmt, -x), negative)


def test_int8_never_emits_its_extra_code():
    x = expand(np.arange(1 << 16), np.array([0, 0xFFFF]))
    codes = encode(INT8, x[~np.isnan(x)])
    assert 0x80 not in codes
    assert {0x7F, 0x81} <= set(codes.tolist())


def test_flushing_subnormals_changes_no_code():
    """A processor that treats subnormal floats as zero must give the same codes and scales."""
    codes = torch.arange(256, dtype=torch.uint8)
    tiny = floats([2**-149, -(2**-149), 1.5 * 2**-127])
    expected = [E4M3.encode(tiny), E5M2.decode(codes), E8M0.decode(codes)]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert float(tiny[2] * 2) == 0  # flushed, as 1.5 * 2**-127 is read as zero
        got = [E4M3.encode(tiny), E5M2.decode(codes), E8M0.decode(codes)]
    finally:
        torch.set_flush_denormal(False)
    for one, other in zip(got, expected):
        np.testing.assert_array_equal(one.view(torch.uint8), other.view(torch.uint8))


def test_strided_scalar_and_empty_tensors():
    x = torch.randn(6, 10, generator=torch.manual_seed(0))
    assert torch.equal(E4M3.encode(x.T[::2]), E4M3.encode(x.T[::2].contiguous()))
    assert E4M3.decode(E4M3.encode(torch.tensor(448.0))).item() == 448.0
    assert E4M3.encode(torch.empty(0, 3)).shape == E4M3.decode(torch.empty(0, 3, dtype=torch.uint8)).shape == (0, 3)
    lazily_negated = torch.tensor([1 + 2j]).conj().imag
    assert E4M3.encode(lazily_negated).tolist() == [0xC0]  # -2


@pytest.mark.parametrize(("fmt", "code"), [(E2M1, 0x10), (E3M2, 0x40), (E2M3, 0xFF)], ids=str)
def test_codes_wider_than_the_format_are_rejected(fmt, code):
    with pytest.raises(ValueError, match=f"{fmt.name} has {fmt.bits}-bit codes, got {code:#x}"):
        fmt.decode(torch.tensor([0, code], dtype=torch.uint8))


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_no_codes_are_no_values(fmt):
    assert fmt.decode(torch.empty(0, 3, dtype=torch.uint8)).shape == (0, 3)
    assert fmt.encode(torch.empty(0, 3)).shape == (0, 3)


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match=r"x must be torch.float32, got torch.float64"):
        E4M3.encode(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"x must be torch.float32, got torch.bfloat16"):
        E4M3.encode(torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"x must be a torch.float32 tensor, got a float: 1.5"):
        E4M3.encode(1.5)
    with pytest.raises(TypeError, match=r"codes must be torch.uint8, got torch.int64"):
        E4M3.decode(torch.tensor([1]))
    with pytest.raises(TypeError, match=r"codes must be torch.uint8, got torch.int64"):
        E8M0.decode(torch.tensor([1]))
    with pytest.raises(TypeError, match=r"exponents must be torch.int32 or torch.int64, got torch.float32"):
        E8M0.encode(torch.zeros(1))


CONTRADICTIONS = {
    "must be whole numbers, got .*bits=8.0": {"bits": 8.0},
    "must be whole numbers, got .*bias=True": {"bias": True},
    "2 to 8 bits, got .*bits=9": {"bits": 9, "mantissa_bits": 4},
    "2 to 8 bits, got .*mantissa_bits=-1": {"bits": 4, "mantissa_bits": -1},
    'reserved must be "none", "last" or "top", got .*\'first\'': {"reserved": "first"},
    "must fill bits, got .*bits=7, exponent_bits=4, mantissa_bits=3": {"bits": 7},
    "some code must be a number other than zero": {
        "bits": 2,
        "exponent_bits": 1,
        "mantissa_bits": 0,
        "reserved": "top",
    },
    "float32 must hold every number, got .*bias=148": {"bias": 148},  # 2**-150 is the smallest
    "float32 must hold every number, got .*bias=-113": {"bias": -113},  # 2**128 is the largest exponent
    "one bit before the binary point, got .*exponent_bits=0, mantissa_bits=3": {"exponent_bits": 0},
    "has no bias and no reserved code, got .*bias=7": {"exponent_bits": 0, "mantissa_bits": 6},
}


@pytest.mark.parametrize("demand", CONTRADICTIONS)
def test_a_format_that_contradicts_itself_is_refused(demand):
    fields = {"bits": 8, "exponent_bits": 4, "mantissa_bits": 3, "bias": 7, "reserved": "none"}
    with pytest.raises(ValueError, match=demand):
        ElementFormat("mine", **fields | CONTRADICTIONS[demand])


def test_a_scale_of_another_layout_is_refused():
    with pytest.raises(ValueError, match=r"8 bits and the bias 127, got .*bits=8, bias=126"):
        ScaleFormat("mine", bits=8, bias=126)


@pytest.mark.parametrize(("bits", "exponent_bits"), [(b, e) for b in range(2, 9) for e in range(b)])
def test_a_format_of_ones_own_gives_its_codes_back(bits, exponent_bits):
    """Any that is accepted: its numbers as their definition has them, and each encoded as its own code."""
    mantissa_bits = bits - 1 - (exponent_bits or 1)
    bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits else 0
    fmt = ElementFormat("mine", bits, exponent_bits, mantissa_bits, bias)
    values, half = fmt.decode(codes_of(fmt)), fmt.sign_code
    if exponent_bits:
        field, fraction = np.divmod(np.arange(half), 1 << mantissa_bits)
        expected = np.ldexp(fraction + (field > 0) * 2.0**mantissa_bits, np.maximum(field, 1) - bias - mantissa_bits)
        expected = [*expected, *-expected]
    else:
        expected = np.arange(1 << bits) / 2**mantissa_bits
        expected[half:] -= 4  # two's complement: the sign bit counts -2 instead of 2
    np.testing.assert_array_equal(bits_of(values), bits_of(expected))
    coded = fmt.encode(values).tolist()
    if not exponent_bits:  # the lowest number has no opposite and is never written
        assert coded.pop(half) == half + 1
        assert coded == [code for code in range(1 << bits) if code != half]
    else:
        assert coded == list(range(1 << bits))


def test_scale_codes():
    """Every scale against exact arithmetic: code 0 is 2**-127, code 254 is 2**127, 255 is NaN."""
    codes = torch.arange(256, dtype=torch.uint8)
    scales = E8M0.decode(codes)
    for code in range(255):
        assert Fraction(float(scales[code])) == Fraction(2) ** (code - 127)
    assert scales[255].isnan()
    assert bits_of([scales[0]]).tolist() == [0x00400000]


def test_scale_exponents_are_clamped():
    exponents = torch.tensor([-300, -128, -127, -1, 0, 126, 127, 128, 300], dtype=torch.int32)
    assert E8M0.encode(exponents).tolist() == [0, 0, 0, 126, 127, 253, 254, 254, 254]


# --- against other projects -------------------------------------------------------------------------------------------

ML_DTYPES = {
    "E4M3": "float8_e4m3fn",
    "E5M2": "float8_e5m2",
    "E3M2": "float6_e3m2fn",
    "E2M3": "float6_e2m3fn",
    "E2M1": "float4_e2m1fn",
}


@pytest.mark.peer
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_decode_agrees_with_ml_dtypes(fmt):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = codes_of(fmt).numpy().view(getattr(ml_dtypes, ML_DTYPES[fmt.name])).astype(np.float32)
    ours = fmt.decode(codes_of(fmt)).numpy()
    finite = ~np.isnan(theirs)
    np.testing.assert_array_equal(bits_of(ours[finite]), bits_of(theirs[finite]))
    np.testing.assert_array_equal(np.isnan(ours), ~finite)


@pytest.mark.peer
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_decode_agrees_with_gfloat(fmt):
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    info = getattr(formats, f"format_info_ocp_{fmt.name.lower()}")
    np.testing.assert_array_equal(fmt.decode(codes_of(fmt)).numpy(), gfloat.decode_ndarray(info, codes_of(fmt).numpy()))
    assert (fmt.max, fmt.emax, fmt.min_subnormal) == (info.max, info.emax, info.smallest)


@pytest.mark.peer
def test_scales_agree_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        E8M0.decode(torch.from_numpy(codes)).numpy(), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    )


def stratified(seed, low_halves):
    """Every upper half of a float32 (sign, exponent, 7 fraction bits: all binades, all ties) with chosen and drawn
    lower halves; the neighbours of a tie have the same upper half with 0x0001, or the one before with 0xFFFF."""
    low = np.array([0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF])
    drawn = np.random.default_rng(seed).integers(0, 1 << 16, low_halves - len(low))
    x = expand(np.arange(1 << 16), np.concatenate([low, drawn]))
    return x[~np.isnan(x)]


def saturated(fmt, x):
    """The other encoders overflow, each in its way; within ±max all agree on what nearest even means."""
    return np.clip(x, np.float32(-fmt.max), np.float32(fmt.max))


def oracle_codes(fmt, x):
    if fmt is INT8:
        return np.rint(saturated(fmt, x).astype(np.float64) * 64).astype(np.int8).view(np.uint8)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return saturated(fmt, x).astype(getattr(ml_dtypes, ML_DTYPES[fmt.name])).view(np.uint8)


@pytest.mark.peer
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_encode_agrees_with_ml_dtypes_in_every_binade(fmt):
    """Some 2 million values a format; INT8 against numpy's rint."""
    x = stratified(seed=fmt.bits, low_halves=30)
    np.testing.assert_array_equal(encode(fmt, x), oracle_codes(fmt, x))


@pytest.mark.slow
@pytest.mark.peer
def test_e4m3_agrees_with_ml_dtypes_on_every_positive_float32_that_it_distinguishes():
    """From below half the smallest number to beyond the largest; of what is rounded to 0 or 448, every 251st.

    All others: `tests/oracles/every_float32.py`.
    """
    low, high, end = (int(np.float32(x).view(np.uint32)) for x in (E4M3.min_subnormal / 4, 2 * E4M3.max, np.inf))
    for start in range(low, high, 1 << 22):
        x = np.arange(start, min(start + (1 << 22), high), dtype=np.uint32).view(np.float32)
        np.testing.assert_array_equal(encode(E4M3, x), oracle_codes(E4M3, x))
    for first, last in ((0, low), (high, end + 1)):
        x = np.arange(first, last, 251, dtype=np.uint32).view(np.float32)
        np.testing.assert_array_equal(encode(E4M3, x), oracle_codes(E4M3, x))


@pytest.mark.peer
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_encode_agrees_with_gfloat(fmt):
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    info = getattr(formats, f"format_info_ocp_{fmt.name.lower()}")
    x = saturated(fmt, expand(np.arange(0, 1 << 16, 3), np.array([0, 1, 0xFFFF])))
    x = x[~np.isnan(x)]
    theirs = gfloat.encode_ndarray(info, gfloat.round_ndarray(info, x.astype(np.float64), sat=True))
    np.testing.assert_array_equal(encode(fmt, x), theirs)


@pytest.mark.parametrize(("fmt", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=str)
def test_fp8_agrees_with_torch_casts(fmt, dtype):
    x = saturated(fmt, stratified(seed=1, low_halves=10))
    np.testing.assert_array_equal(encode(fmt, x), torch.from_numpy(x).to(dtype).view(torch.uint8).numpy())
    codes = codes_of(fmt)
    np.testing.assert_array_equal(fmt.decode(codes).numpy(), codes.view(dtype).float().numpy())
