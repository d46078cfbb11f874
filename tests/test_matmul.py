"""Products of block-scaled tensors against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from chipmath.formats import E2M1, E4M3, E5M2, E8M0, FORMATS, INT8
from chipmath.matmul import grouped_matmul, matmul
from chipmath.quantize import MXTensor, quantize, sqnr_db

NAN = float("nan")
INF = float("inf")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(value, exponent, fmt=E4M3, rows=1, k=32):
    """Rows of one repeated element with one scale exponent."""
    codes = fmt.encode(torch.full((rows, k), float(value)))
    return MXTensor(codes, E8M0.encode(torch.full((rows, k // 32), exponent)), fmt, -1, 32)


def any_codes(rows, k, fmt, exponents, seed):
    """Finite codes drawn alike, scale exponents from a range."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, fmt.max_code + 1, (rows, k), generator=generator)
    codes += torch.randint(0, 2, (rows, k), generator=generator) * fmt.sign_code
    scales = torch.randint(*exponents, (rows, k // 32), generator=generator)
    return MXTensor(codes.to(torch.uint8), E8M0.encode(scales), fmt, -1, 32)


def fractions(mx):
    """Rows of exact values: sec. 5.1, v = X * P, without float arithmetic on either."""
    rows = zip(mx.fmt.decode(mx.elements).tolist(), mx.scales.tolist())
    return [[Fraction(p) * Fraction(2) ** (codes[k // mx.block] - 127) for k, p in enumerate(ps)] for ps, codes in rows]


def nearest_float32(exact):
    """Round a rational once, ties to even; for results in the normal range."""
    if not exact:
        return 0.0
    e = math.frexp(float(exact))[1] - 24
    return float(round(exact / Fraction(2) ** e) * Fraction(2) ** e)


def exact_product(a, b):
    rows, columns = fractions(a), fractions(b)
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in rows]


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (constant(1, 0), constant(1, 0), 32.0),
        (constant(-448, 1), constant(0.5, -3), -448 * 0.5 * 32 / 4),
        (constant(6, 0, E2M1), constant(127 / 64, 0, INT8), 6 * 127 / 64 * 32),
        (constant(57344, 0, E5M2), constant(2**-9, 0), 57344 / 512 * 32),
        # Scales far outside the range in which float32 holds scale * element, and whose product is 1.
        (constant(448, 127), constant(448, -127), 448.0 * 448 * 32),
        (constant(2**-9, -127), constant(448, 127), 448 / 512 * 32),
        # Beyond float32 at the end: 2**127 * 32 and 2**-254 * 32.
        (constant(1, 127), constant(-1, 0), -INF),
        (constant(1, -127), constant(1, -127), 0.0),
    ],
)
def test_one_block_by_hand(a, b, expected):
    assert matmul(a, b).tolist() == [[expected]]


def test_each_block_has_its_own_scales():
    a = MXTensor(constant(1, 0, k=96).elements, E8M0.encode(torch.tensor([[0, 1, 2]])), E4M3, -1, 32)
    b = MXTensor(constant(1, 0, k=96).elements, E8M0.encode(torch.tensor([[0, 3, -2]])), E4M3, -1, 32)
    assert matmul(a, b).tolist() == [[32.0 * (1 + 16 + 1)]]
    assert matmul(a, a).tolist() == [[32.0 * (1 + 4 + 16)]]


def test_rows_of_a_meet_rows_of_b():
    a, b = torch.zeros(2, 32), torch.zeros(3, 32)
    a[0, 0], a[1, 1] = 1.0, 2.0
    b[0, 0], b[1, 1], b[2, 0], b[2, 1] = 1.0, 1.0, 3.0, 5.0
    out = matmul(quantize(a, E4M3, "rceil"), quantize(b, E4M3, "rceil"))
    assert out.tolist() == [[1.0, 0.0, 3.0], [0.0, 2.0, 10.0]]


def test_small_terms_survive_large_ones():
    """2**40 - 2**40 + 1: an accumulator of float32 would lose the 1."""
    a = MXTensor(constant(1, 0, k=96).elements.clone(), E8M0.encode(torch.tensor([[40, 40, 0]])), E4M3, -1, 32)
    a.elements[0, 32:64] = E4M3.encode(torch.tensor(-1.0))
    assert matmul(a, constant(1, 0, k=96)).tolist() == [[32.0]]


# --- exact arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt_b", FORMATS.values(), ids=str)
@pytest.mark.parametrize("fmt_a", [fmt for fmt in FORMATS.values() if fmt is not E5M2], ids=str)
def test_bytes_of_exact_sums(fmt_a, fmt_b):
    """Scales between 1/2 and 2: 53 bits hold the sums of every pair without E5M2, so one rounding is left."""
    a, b = any_codes(4, 128, fmt_a, (-1, 2), seed=1), any_codes(3, 128, fmt_b, (-1, 2), seed=2)
    out, exact = matmul(a, b), exact_product(a, b)
    assert out.dtype == torch.float32
    if fmt_b is E5M2:  # 55 bits with E4M3: nearly always the same, not always
        np.testing.assert_allclose(out, np.array(exact, float), rtol=2**-23)
    else:
        assert out.tolist() == [[nearest_float32(value) for value in row] for row in exact]


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_error_bound_with_any_scales(fmt):
    """|out - exact| <= 2**-24 |exact| + (K - 1) 2**-53 sum |a b|: one rounding to float32, float64 before."""
    k = 256
    a, b = any_codes(4, k, fmt, (-40, 41), seed=3), any_codes(4, k, fmt, (-40, 41), seed=4)
    magnitude = 2**7 - 1
    sizes = exact_product(
        MXTensor(a.elements & magnitude, a.scales, fmt, -1, 32), MXTensor(b.elements & magnitude, b.scales, fmt, -1, 32)
    )
    for got_row, exact_row, size_row in zip(matmul(a, b).tolist(), exact_product(a, b), sizes):
        for got, exact, size in zip(got_row, exact_row, size_row):
            bound = abs(exact) / 2**24 + (k - 1) * size / 2**53 * (1 + Fraction(1, 2**20))
            assert abs(Fraction(got) - exact) <= bound


def test_gaussian_product_has_the_predicted_noise():
    """Floor loses 30.65 dB on each operand, so 30.65 - 3.01 = 27.64 dB on the product; a right kernel adds nothing."""
    x, y = drawn(256, 1024, seed=5), drawn(256, 1024, seed=6)
    out = matmul(quantize(x, E4M3, "floor"), quantize(y, E4M3, "floor"))
    assert sqnr_db(x.double() @ y.double().T, out) == pytest.approx(27.64, abs=0.1)


# --- NaN and Inf ------------------------------------------------------------------------------------------------------


def test_nan_scale_takes_its_row_only():
    x, y = drawn(4, 96), drawn(5, 96, seed=1)
    y[3] = 0.0  # NaN * 0 is NaN too
    clean = matmul(quantize(x, E4M3, "rceil"), quantize(y, E4M3, "rceil"))
    x[1, 40] = NAN
    y[4, 95] = INF  # quantized to a NaN block as well
    out = matmul(quantize(x, E2M1, "rceil"), quantize(y, E4M3, "rceil"))
    nan = torch.zeros(4, 5, dtype=torch.bool)
    nan[1, :] = nan[:, 4] = True
    assert torch.equal(out.isnan(), nan)
    again = matmul(quantize(x, E4M3, "rceil"), quantize(y, E4M3, "rceil"))
    assert torch.equal(again[~nan], clean[~nan])


def test_special_elements_follow_ieee():
    a = constant(1, 0, E5M2, rows=3)
    a.elements[0, 0] = 0x7C  # +Inf
    a.elements[1, 0], a.elements[1, 1] = 0x7C, 0xFC  # Inf - Inf
    a.elements[2, 5] = 0x7E  # NaN
    out = matmul(a, constant(1, 0, E5M2))
    assert out[0].item() == INF
    assert out[1:].isnan().all()


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [[3, 0, 5], torch.tensor([3, 0, 5]), (3, 0, 5), np.array([3, 0, 5], dtype=np.int32)],
    ids=["list", "tensor", "tuple", "array"],
)
def test_groups_equal_separate_products(sizes):
    x, y = drawn(8, 64), drawn(3, 4, 64, seed=1)
    a, b = quantize(x, E4M3, "rceil"), quantize(y, E5M2, "floor")
    first = matmul(quantize(x[:3], E4M3, "rceil"), quantize(y[0], E5M2, "floor"))
    last = matmul(quantize(x[3:], E4M3, "rceil"), quantize(y[2], E5M2, "floor"))
    assert torch.equal(grouped_matmul(a, b, sizes), torch.cat([first, last]))


def test_groups_by_hand():
    a, two_three = constant(1, 0, rows=3), torch.tensor([[[2.0] * 32], [[3.0] * 32]])
    b = MXTensor(E4M3.encode(two_three), a.scales[:2, None], E4M3, -1, 32)
    assert grouped_matmul(a, b, [1, 2]).tolist() == [[64.0], [96.0], [96.0]]
    assert grouped_matmul(a, b, [3, 0]).tolist() == [[64.0]] * 3


def test_empty_products():
    nothing = quantize(torch.empty(0, 32), E4M3, "rceil")
    assert matmul(nothing, constant(1, 0)).shape == (0, 1)
    k_zero = quantize(torch.empty(2, 0), E4M3, "rceil")
    assert matmul(k_zero, k_zero).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert grouped_matmul(nothing, quantize(torch.empty(0, 7, 32), E4M3, "rceil"), []).shape == (0, 7)


# --- errors -----------------------------------------------------------------------------------------------------------

A = quantize(torch.ones(4, 64), E4M3, "rceil")
B3 = quantize(torch.ones(2, 3, 64), E4M3, "rceil")


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "K differs: 64 in a, 32 in b", lambda: matmul(A, constant(1, 0))),
        (ValueError, "block differs: 64 in a, 32 in b",
         lambda: matmul(quantize(torch.ones(4, 64), E4M3, "rceil", block=64), A)),
        (ValueError, "a must be blocked along K, its last axis, got axis 0",
         lambda: matmul(quantize(torch.ones(32, 64), E4M3, "rceil", axis=0), A)),
        (ValueError, "b must be blocked along K, its last axis, got axis -2",
         lambda: matmul(A, quantize(torch.ones(32, 64), E4M3, "rceil", axis=-2))),
        (ValueError, r"b must have 2 dimensions, got shape \(2, 3, 64\)", lambda: matmul(A, B3)),
        (ValueError, r"b must have 3 dimensions, got shape \(4, 64\)", lambda: grouped_matmul(A, A, [4])),
        (TypeError, "b must be an MXTensor, got Tensor", lambda: matmul(A, torch.ones(4, 64))),
        (ValueError, "a has 4 rows, sizes add up to 5", lambda: grouped_matmul(A, B3, [2, 3])),
        (ValueError, "b has 2 groups, sizes has 1", lambda: grouped_matmul(A, B3, [4])),
        (ValueError, r"row counts, got \[5, -1\]", lambda: grouped_matmul(A, B3, [5, -1])),
        (ValueError, r"row counts, got \[1.5, 2.5\]", lambda: grouped_matmul(A, B3, [1.5, 2.5])),
        (ValueError, r"row counts, got tensor\(\[1., 3.\]\)", lambda: grouped_matmul(A, B3, torch.tensor([1.0, 3.0]))),
        (ValueError, r"row counts, got \[True, 3\]", lambda: grouped_matmul(A, B3, [True, 3])),
        (ValueError, r"row counts, got tensor\(\[True, True\]\)", lambda: grouped_matmul(A, B3, A.scales[:2, 0] > 0)),
        (ValueError, "row counts, got 4", lambda: grouped_matmul(A, B3, 4)),
        (ValueError, "row counts, got None", lambda: grouped_matmul(A, B3, None)),
        (ValueError, "a is on cpu, b on meta",
         lambda: matmul(A, MXTensor(A.elements.to("meta"), A.scales.to("meta"), E4M3, -1, 32))),
    ],
)  # fmt: skip
def test_errors_name_the_value(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_the_positive_last_axis_is_the_last_axis():
    x = drawn(4, 64)
    by_position = quantize(x, E4M3, "rceil", axis=1)
    assert torch.equal(matmul(by_position, by_position), matmul(quantize(x, E4M3, "rceil"), quantize(x, E4M3, "rceil")))
