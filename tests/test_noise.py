"""Expected noise: against a closed form, against samples, and against the formats' own limits."""

from math import log10, sqrt

import pytest
import torch
from chipmath.formats import E2M1, E2M3, E4M3, E5M2, INT8
from chipmath.matmul import matmul
from chipmath.noise import (
    expected_noise,
    expected_product_db,
    expected_sqnr_db,
    expected_sqnr_given_maxima_db,
    noise_and_gain,
)
from chipmath.quantize import quantize, sqnr_db


def uniform(t):
    return t.clamp(max=1.0)


def gaussian(t):
    return torch.erf(t / sqrt(2))


def test_uniform_values_under_rceil_have_a_closed_form():
    # The spacing in [2**-j, 2**(1-j)) is 2**-(j+3), its noise spacing**2 / 12, its probability 2**-j, for j = 1, 2, ...
    # so the noise is sum(8**-j) / 768 = 1 / 5376, and the signal 1/3. Subnormal numbers of E4M3 add less than 1e-9.
    assert expected_sqnr_db(uniform, E4M3, "rceil", 32) == pytest.approx(10 * log10(5376 / 3), abs=0.01)


def test_clipping_of_uniform_values_under_floor_has_a_closed_form():
    # With 4096 values amax is in [1/2, 1) and the scale 2**-9: all above 448/512 = 7/8 clip. (x - 7/8)**2 over the last
    # eighth is (1/8)**3 / 3; it replaces the rounding noise 2**-8 / 12 * 1/8 there.
    clipped, rounded = 8.0**-3 / 3, 2.0**-8 / 12 / 8
    assert expected_sqnr_db(uniform, E4M3, "floor", 4096) == pytest.approx(
        -10 * log10(3 * (1 / 5376 + clipped - rounded)), abs=0.01
    )


@pytest.mark.parametrize(
    ("fmt", "rule", "block"),
    [
        (E4M3, "floor", 4),
        (E4M3, "even", 32),
        (E4M3, "rceil", 1),
        (E5M2, "floor", 32),
        (E2M3, "ceil", 32),
        (E2M1, "rceil", 32),
        (E2M1, "even", 8),
        (INT8, "rceil", 32),
    ],
)
def test_a_sample_agrees(fmt, rule, block):
    # 2**20 values: the noise of a sample scatters by about 1 / sqrt(2**20 / kurtosis), well below 1 percent (0.04 dB)
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    sampled = sqnr_db(x, quantize(x, fmt, rule, block=block).dequantize())
    assert expected_sqnr_db(gaussian, fmt, rule, block) == pytest.approx(sampled, abs=0.06)


def test_a_power_of_two_changes_nothing():
    expected = expected_sqnr_db(gaussian, INT8, "floor", 32)
    assert expected_sqnr_db(lambda t: gaussian(t * 16), INT8, "floor", 32) == pytest.approx(expected, abs=1e-3)


def test_one_fraction_bit_is_a_factor_of_four():
    # where neither clips nor flushes
    difference = expected_sqnr_db(gaussian, E4M3, "rceil", 32) - expected_sqnr_db(gaussian, E5M2, "rceil", 32)
    assert difference == pytest.approx(20 * log10(2), abs=0.1)


@pytest.mark.parametrize("rule", ["floor", "rceil"])
def test_a_product_agrees(rule):
    # sigma 0.8 is where floor clips most: leaving the correlation of value and error out would miss by 0.05 dB
    a, b = (0.8 * torch.randn(512, 4096, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    exact, y = a.double() @ b.double().T, matmul(quantize(a, E4M3, rule), quantize(b, E4M3, rule)).double()
    expected = expected_product_db(lambda t: gaussian(t / 0.8), E4M3, rule, 32)
    assert expected == pytest.approx(sqnr_db(exact, y), abs=0.03)
    gain = noise_and_gain(lambda t: gaussian(t / 0.8), E4M3, rule, 32)[1]
    assert gain**2 == pytest.approx(float((exact * y).sum() / exact.square().sum()), abs=2e-4)


def student_t2(t):
    return t / (t.square() + 2).sqrt()


@pytest.mark.parametrize("fmt", [E4M3, E5M2, E2M3, E2M1, INT8])
@pytest.mark.parametrize("rule", ["floor", "rceil"])
def test_heavy_tails_agree_once_the_maxima_are_known(fmt, rule):
    """Samples of this law, whose variance is infinite, differ by decibels; the expectation moves with them.

    In INT8 the noise of one sample may be that of its largest block, 31 errors at random: so the mean is compared too.
    """
    values, errors = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 2**15, generator=generator) / torch.empty(1, 2**15).exponential_(generator=generator).sqrt()
        values.append(sqnr_db(x, quantize(x, fmt, rule).dequantize()))
        errors.append(values[-1] - expected_sqnr_given_maxima_db(x, student_t2, fmt, rule, 32))
    assert max(values) - min(values) > 1
    assert abs(sum(errors) / 8) < 0.2
    assert max(map(abs, errors)) < (0.3 if fmt in (E4M3, E5M2) else 0.8)


def test_gaussian_maxima_change_nothing():
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    given = expected_sqnr_given_maxima_db(x, gaussian, E4M3, "floor", 32)
    assert given == pytest.approx(expected_sqnr_db(gaussian, E4M3, "floor", 32), abs=0.03)


def test_noise_below_a_maximum_has_a_closed_form():
    # INT8 with the scale 1/2 has the step 2**-7: uniform values, cut off anywhere, have the noise step**2 / 12.
    scales = torch.tensor([126, 126, 127], dtype=torch.uint8)
    noise = expected_noise(uniform, INT8, scales, torch.tensor([0.3, 0.7, 1.0], dtype=torch.float64))
    assert noise.tolist() == pytest.approx([2.0**-14 / 12] * 2 + [2.0**-12 / 12], rel=0.02)
    assert float(expected_noise(uniform, INT8, scales[2:])) == pytest.approx(2.0**-12 / 12, rel=0.02)


def test_maxima_beyond_the_grid_are_maxima_like_others():
    # Uniform values up to 1: below 2**14 or below 2**20, it is the same draw.
    scales, largest = torch.tensor([127, 127], dtype=torch.uint8), torch.tensor([2.0**13, 2.0**20]).double()
    near, far = expected_noise(uniform, INT8, scales, largest).tolist()
    assert near == far == pytest.approx(2.0**-12 / 12, rel=0.02)
    # Nothing lies below zero, nor below what the grid's first edge leaves out.
    assert expected_noise(uniform, INT8, scales, torch.tensor([0.0, 2.0**-40]).double()).tolist() == [0.0, 0.0]


def test_a_maximum_between_two_edges_of_the_grid_is_interpolated():
    # With the scale 2**8 INT8 has the step 4: what lies below 1 flushes, and of uniform values up to t the mean square
    # is t**2 / 3. Halfway into an interval of h = 2**-9 the nearest edge would be off by 3 / 2 * h / t, 0.4 percent; a
    # straight line is off by 3 / 4 * (h / t)**2, a thousandth of that.
    largest = torch.tensor([0.5 + (2 * n + 1) * 2.0**-10 for n in (0, 100, 255)], dtype=torch.float64)
    noise = expected_noise(uniform, INT8, torch.full((3,), 127 + 8, dtype=torch.uint8), largest)
    assert noise.tolist() == pytest.approx((largest.square() / 3).tolist(), rel=1.2e-5)


def test_a_block_of_zeros_adds_no_noise():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    with_zeros = torch.cat([x, torch.zeros(64, 64)])
    given = expected_sqnr_given_maxima_db(with_zeros, gaussian, E4M3, "floor", 32)
    assert given == pytest.approx(expected_sqnr_given_maxima_db(x, gaussian, E4M3, "floor", 32), abs=1e-9)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**10])
def test_a_law_that_fits_the_grid_is_not_refused(scale):
    expected = expected_sqnr_db(gaussian, E4M3, "floor", 32)
    assert expected_sqnr_db(lambda t: gaussian(t / scale), E4M3, "floor", 32) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("function", [expected_sqnr_db, expected_product_db, noise_and_gain])
@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "positive integer, got 0", {"block": 0}),
        (ValueError, "positive integer, got -3", {"block": -3}),
        (ValueError, "positive integer, got 2.5", {"block": 2.5}),
        (ValueError, "positive integer, got True", {"block": True}),
        (TypeError, "got 'E4M3'", {"fmt": "E4M3"}),
        (ValueError, "got 'up'", {"scale_rule": "up"}),
        (ValueError, "float64 .* got torch.float32", {"cdf": lambda t: gaussian(t).float()}),
        (ValueError, r"float64 .* got torch.float64, \(1,\)", {"cdf": lambda t: gaussian(t[:1])}),
        (ValueError, r"1 of the values lie below 2\*\*-30", {"cdf": lambda t: gaussian(t * 2.0**40)}),
        (ValueError, r"0.987 of the values lie above 2\*\*14", {"cdf": lambda t: gaussian(t / 1e6)}),
    ],
)
def test_what_gives_no_answer_is_refused(function, error, message, change):
    with pytest.raises(error, match=message):
        function(**{"cdf": gaussian, "fmt": E4M3, "scale_rule": "floor", "block": 32} | change)


@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (ValueError, "axis -1 has size 48", torch.ones(64, 48)),  # 96 blocks, but across rows
        (ValueError, r"of shape \(2, 32\), holds nothing but zeros", torch.zeros(2, 32)),
        (TypeError, "got torch.float64", torch.ones(2, 32).double()),
    ],
)
def test_a_sample_that_gives_no_answer_is_refused(error, message, x):
    with pytest.raises(error, match=message):
        expected_sqnr_given_maxima_db(x, gaussian, E4M3, "floor", 32)
