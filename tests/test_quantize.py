"""The block quantizer: hand-worked bytes, the definition of every scale rule, and quantizers of other projects."""

import math

import numpy as np
import pytest
import torch
from chipmath.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FORMATS, INT8
from chipmath.quantize import SCALE_RULES, MXTensor, clipped, flushed, quantize, scale_constant, sqnr_db, to_blocked

ALL = list(FORMATS.values())
FLT_MAX = (2 - 2**-23) * 2.0**127
NAN = float("nan")
INF = float("inf")

# Every block of 32 equal values -> (scale byte, element byte), worked by hand from OCP MX v1.0 sec. 6.3. In E4M3 the
# largest number is 448 = 1.75 * 2**8; the scale 2**k has byte 127 + k.
GOLDEN = {
    # 448 fits exactly; beyond it floor and even keep the scale and clip, rceil takes the next power of two.
    (E4M3, "floor", 448.0): (127, 0x7E),
    (E4M3, "ceil", 448.0): (128, 0x76),  # 448 / 2 = 224
    (E4M3, "rceil", 448.0): (127, 0x7E),
    (E4M3, "even", 448.0): (127, 0x7E),
    (E4M3, "floor", 480.0): (127, 0x7E),  # clipped
    (E4M3, "rceil", 480.0): (128, 0x77),  # 240
    (E4M3, "even", 480.0): (127, 0x7E),  # 1.875 * 2**8 has 3 fraction bits: stays, clipped
    (E4M3, "even", 496.0): (128, 0x78),  # 1.9375 is the middle of 1.875 and 2 and rounds up: 248 -> 256
    (E4M3, "even", 495.0): (127, 0x7E),
    (E4M3, "rceil", 448.00003): (128, 0x76),
    (E4M3, "rceil", 447.99997): (127, 0x7E),
    # Powers of two, the number just below one, and the first edition's examples.
    (E4M3, "floor", 1.0): (119, 0x78),  # 2**-8 * 256
    (E4M3, "ceil", 1.0): (119, 0x78),
    (E4M3, "rceil", 1.0): (119, 0x78),
    (E4M3, "floor", 1 - 2**-24): (118, 0x7E),  # 511.99997 / 2**9 clips to 448
    (E4M3, "ceil", 1 - 2**-24): (119, 0x78),
    (E4M3, "floor", 150.0): (126, 0x79),  # 300 -> 288 (304 would be the middle of 288 and 320)
    (E4M3, "rceil", 150.0): (126, 0x79),
    (E4M3, "floor", 3600.0): (130, 0x7E),  # 450 -> 448
    (E4M3, "rceil", 3600.0): (131, 0x76),  # 225 -> 224
    (E4M3, "rceil", 5000.0): (131, 0x7A),  # 312.5 -> 320
    (E4M3, "floor", -480.0): (127, 0xFE),
    (E4M3, "rceil", -480.0): (128, 0xF7),
    # Zero blocks keep their sign; scale byte 0 is 2**-127.
    (E4M3, "floor", 0.0): (0, 0x00),
    (E4M3, "ceil", -0.0): (0, 0x80),
    # The ends of float32. 2**-149 / 2**-127 = 2**-22 rounds to zero; 2**-136 is the smallest element times scale.
    (E4M3, "floor", 2**-149): (0, 0x00),
    (E4M3, "rceil", -(2**-149)): (0, 0x80),
    (E4M3, "floor", 2**-136): (0, 0x01),
    (E4M3, "floor", 2**-126): (0, 0x40),  # 2
    (E4M3, "rceil", 1.75 * 2**-119): (0, 0x7E),
    (E4M3, "rceil", 1.875 * 2**-119): (1, 0x77),
    (E4M3, "floor", FLT_MAX): (246, 0x7E),
    (E4M3, "rceil", FLT_MAX): (247, 0x78),
    (E4M3, "even", FLT_MAX): (247, 0x78),
    # NaN and Inf make the block NaN: the scale says so, and the elements where they can.
    (E4M3, "rceil", NAN): (255, 0x7F),
    (E4M3, "floor", -INF): (255, 0x7F),
    (E5M2, "even", INF): (255, 0x7F),
    (E2M1, "ceil", NAN): (255, 0x00),
    (INT8, "rceil", INF): (255, 0x00),
    # The other formats: emax 15, 4, 2, 2, 0 and significands 1.75, 1.75, 1.875, 1.5, 1.984375 of the largest number.
    (E5M2, "floor", 57344.0): (127, 0x7B),
    (E5M2, "rceil", 57345.0): (128, 0x77),  # 28672.5 -> 28672
    (E5M2, "even", 61440.0): (128, 0x78),  # 1.875 is the middle for 2 fraction bits: 30720 -> 32768
    (E3M2, "floor", 30.0): (127, 0x1F),  # clipped to 28
    (E3M2, "rceil", 30.0): (128, 0x1C),  # the middle of 14 and 16: 16 is even
    (E2M3, "rceil", 7.5): (127, 0x1F),
    (E2M3, "ceil", 7.5): (128, 0x17),  # 3.75
    (E2M1, "floor", 7.0): (127, 0x07),  # clipped to 6
    (E2M1, "rceil", 7.0): (128, 0x06),  # 3.5, the middle of 3 and 4: 4 is even
    (E2M1, "even", 7.0): (128, 0x06),  # 1.75 is the middle for 1 fraction bit
    (E2M1, "even", 6.9): (127, 0x07),
    (INT8, "floor", 1.0): (127, 0x40),
    (INT8, "rceil", 1.99): (128, 0x40),  # 0.995 * 64 = 63.7
    (INT8, "floor", -1.99): (127, 0x81),  # clipped to -127
    (INT8, "floor", 0.0): (0, 0x00),
    (INT8, "ceil", -0.0): (0, 0x00),
    # INT8's scale is amax's own power of two, so the scale range ends inside float32: 2**-127 is reached by a subnormal
    # amax (1.9921875 * 2**-127 is beyond 127/64 * 2**-127), and 2**128 is not reached by FLT_MAX.
    (INT8, "floor", 1.9921875 * 2**-127): (0, 0x7F),
    (INT8, "rceil", 1.9921875 * 2**-127): (1, 0x40),
    (INT8, "rceil", 1.984375 * 2**-127): (0, 0x7F),
    (INT8, "ceil", 2**-127): (0, 0x40),
    (INT8, "ceil", 2**-128): (0, 0x20),
    (INT8, "rceil", FLT_MAX): (254, 0x7F),
}


def drawn(*shape, seed=0, spread=0.0):
    """Normal numbers, each times exp(spread * another)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return x * torch.exp(spread * torch.randn(*shape, generator=generator))


def every_float32_pattern(count, seed=0):
    """Finite numbers with uniform bits: every binade alike, both signs, subnormal ones too."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] ^= 0x40000000
    return torch.from_numpy(bits.view(np.float32))


def same(a, b):
    return torch.equal(a.scales, b.scales) and torch.equal(a.elements, b.elements)


@pytest.mark.parametrize(("fmt", "scale_rule", "value"), GOLDEN, ids=str)
def test_constant_blocks(fmt, scale_rule, value):
    got = quantize(torch.full((1, 32), value), fmt, scale_rule)
    scale_byte, element_byte = GOLDEN[fmt, scale_rule, value]
    assert (got.scales.tolist(), got.elements.tolist()) == ([[scale_byte]], [[element_byte] * 32])


def test_a_block_by_hand():
    """amax 150: scale 2**-1, so every value is doubled and rounded to E4M3; one NaN takes its block, not the next."""
    x = torch.tensor([[150.0, 1.2, -0.1, 0.001, 0.0, -0.0, NAN, 1.0]])
    got = quantize(x, E4M3, "rceil", block=2)
    # 300 -> 288, 2.4 -> 2.5; then amax 0.1 = 1.6 * 2**-4: scale 2**-12, -409.6 -> -416, 4.096 -> 4
    assert got.scales.tolist() == [[126, 115, 0, 255]]
    assert got.elements.tolist() == [[0x79, 0x42, 0xFD, 0x48, 0x00, 0x80, 0x7F, 0x7F]]
    restored = got.dequantize()
    assert restored[0, :4].tolist() == [144.0, 1.25, -416 / 4096, 4 / 4096]
    assert math.copysign(1, restored[0, 5]) == -1
    assert restored[0, 6:].isnan().all()


# --- scale rules against their definitions ----------------------------------------------------------------------------


def bracket(fmt, scale_rule):
    """(low, high, low included): the unclamped scale s of a rule is the power of two with low * s .. high * s around
    amax. Straight from the rules' definitions; the even rule doubles from the middle of 2 - 2**-M and 2 on."""
    top = 2.0**fmt.emax
    middle = (2 - 2.0 ** -(fmt.mantissa_bits + 1)) * top
    return {
        "floor": (top, 2 * top, True),
        "ceil": (top / 2, top, False),
        "rceil": (fmt.max / 2, fmt.max, False),
        "even": (middle / 2, middle, True),
    }[scale_rule]


def assert_scales_follow_the_definition(amax, fmt, scale_rule):
    """``amax``: one positive float32, bfloat16 or float16 a block. Everything in float64, where it is exact."""
    got = quantize(amax[:, None], fmt, scale_rule, block=1).scales[:, 0].numpy().astype(np.int64)
    a, scale = amax.double().numpy(), np.ldexp(1.0, got - 127)
    low, high, low_included = bracket(fmt, scale_rule)
    above = a >= low * scale if low_included else a > low * scale
    below = a < high * scale if low_included else a <= high * scale
    assert (above | (got == 0)).all()  # clamped: the scale may be larger than the rule asks for ...
    assert (below | (got == 254)).all()  # ... or smaller


def boundaries():
    """Both sides of every step of every rule, and of every significand with 8 bits, in every binade of float32."""
    significands = [1 + i / 128 for i in range(128)] + [2 - 2.0**-i for i in range(2, 9)]
    steps = np.array([math.ldexp(m, e) for e in range(-149, 128) for m in significands])
    steps = steps[(steps <= FLT_MAX) & (steps == steps.astype(np.float32))].astype(np.float32)
    near = np.concatenate([steps, np.nextafter(steps, np.float32(0)), np.nextafter(steps, np.float32(np.inf))])
    near = np.concatenate([near, [np.float32(FLT_MAX)]]).astype(np.float32)
    return torch.from_numpy(near[(near > 0) & (near < np.inf)])


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_scales_on_both_sides_of_every_step(fmt, scale_rule):
    assert_scales_follow_the_definition(boundaries(), fmt, scale_rule)


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scales_of_every_16_bit_number(dtype, fmt, scale_rule):
    every = torch.arange(1, 1 << 15, dtype=torch.int16).view(dtype)
    assert_scales_follow_the_definition(every[every.isfinite()], fmt, scale_rule)


@pytest.mark.slow
def test_rceil_of_positive_float32():
    """Every subnormal number, every one of a normal binade near the clamps and elsewhere, every 251st of all others."""
    for exponent in (0, 1, 7, 8, 9, 127, 253, 254):
        every = torch.arange(max(exponent << 23, 1), (exponent + 1) << 23, dtype=torch.int32)
        assert_scales_follow_the_definition(every.view(torch.float32), E4M3, "rceil")
    for start in range(1, 0x7F800000, 1 << 28):
        some = torch.arange(start, min(start + (1 << 28), 0x7F800000), 251, dtype=torch.int32)
        assert_scales_follow_the_definition(some.view(torch.float32), E4M3, "rceil")


def test_constants_of_e4m3():
    """The constants of E4M3 that the book prints, and the one of "even" for FP4."""
    assert [scale_constant(E4M3, rule) for rule in SCALE_RULES] == [0, 0x7FFFFF, 0x1FFFFF, 0x080000]
    assert scale_constant(E2M1, "even") == 0x200000


def test_amax_is_the_largest_magnitude_wherever_it_stands():
    x = drawn(32, 32) * 0.01
    x[torch.arange(32), torch.arange(32)] = torch.tensor([448.0, -448.0] * 16)
    assert quantize(x, E4M3, "rceil").scales.flatten().tolist() == [127] * 32


# --- elements ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", ALL, ids=str)
@pytest.mark.parametrize("x", [every_float32_pattern(1 << 16), drawn(1 << 17, spread=2.0)], ids=["bits", "lognormal"])
def test_elements_are_the_nearest_numbers(x, fmt, scale_rule):
    """Distances to every number of the format in float64, in which x, scale and numbers are exact."""
    got = quantize(x, fmt, scale_rule)
    scaled = np.ldexp(x.double().numpy(), 127 - got.scales.int().numpy().repeat(32))
    numbers = fmt.decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8)).double().numpy()
    middles = (numbers[:-1] + numbers[1:]) / 2
    magnitude = np.abs(scaled)
    lower, upper = np.searchsorted(middles, magnitude, "left"), np.searchsorted(middles, magnitude, "right")
    expected = np.where(lower % 2 == 0, lower, upper)  # they differ on a middle only, where one is even
    negative = (-expected) % 256 if fmt is INT8 else expected | fmt.sign_code
    np.testing.assert_array_equal(got.elements.numpy(), np.where(np.signbit(scaled), negative, expected))


def test_flushing_subnormals_changes_no_byte():
    """Blocks whose numbers, scale or scaled numbers are subnormal floats."""
    ramp = torch.arange(1, 33) * 2.0**-131  # amax just below 2**-126: scale byte 1 in INT8
    x = torch.cat([every_float32_pattern(32 * 64), ramp - 2.0**-149, ramp.flip(0) - 2.0**-149])
    x = torch.cat([x, torch.full((32,), 1.5 * 2.0**127)])  # INT8: scale byte 254, whose reciprocal is subnormal
    before = [quantize(x, fmt, "rceil") for fmt in ALL]
    restored = [mx.dequantize() for mx in before]
    counts = [clipped(x, before[-1]), flushed(x, before[0])]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        after = [quantize(x, fmt, "rceil") for fmt in ALL]
        restored_again = [mx.dequantize() for mx in before]
        counts_again = [clipped(x, before[-1]), flushed(x, before[0])]
    finally:
        torch.set_flush_denormal(False)
    assert all(same(one, other) for one, other in zip(before, after))
    for one, other in zip(restored + counts, restored_again + counts_again):
        np.testing.assert_array_equal(one.view(torch.uint8).numpy(), other.view(torch.uint8).numpy())


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_a_power_of_two_moves_only_the_scale(fmt):
    x = drawn(64, 128, spread=2.0)
    one, other = quantize(x, fmt, "rceil"), quantize(x * 2.0**-40, fmt, "rceil")
    assert torch.equal(one.elements, other.elements)
    assert torch.equal(one.scales, other.scales + 40)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_quantized_values_are_fixed_points_of_rceil(fmt):
    restored = quantize(drawn(64, 128, spread=2.0), fmt, "rceil").dequantize()
    assert torch.equal(quantize(restored, fmt, "rceil").dequantize(), restored)


def test_16_bit_input_equals_its_float32():
    for dtype in (torch.bfloat16, torch.float16):
        x = drawn(64, 128, spread=2.0).to(dtype)
        assert same(quantize(x, E4M3, "floor"), quantize(x.float(), E4M3, "floor"))


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis_equals_the_last_of_a_transposed_copy(axis):
    x = drawn(32, 64, 96, spread=2.0)
    got = quantize(x, E4M3, "even", axis=axis)
    last = quantize(x.movedim(axis, -1).contiguous(), E4M3, "even")
    assert torch.equal(got.elements.movedim(axis, -1), last.elements)
    assert torch.equal(got.scales.movedim(axis, -1), last.scales)
    assert torch.equal(got.dequantize().movedim(axis, -1), last.dequantize())
    assert got.elements.shape == x.shape
    assert (got.axis, got.block, got.fmt) == (axis, 32, E4M3)


@pytest.mark.parametrize(
    "view",
    [lambda x: x.T, lambda x: x[::3, 32:], lambda x: x[:, ::2], lambda x: x[5], lambda x: x[:1].expand(7, 128)],
    ids=["transposed", "rows", "columns", "vector", "expanded"],
)
def test_strided_equals_contiguous(view):
    x = view(drawn(64, 128, spread=2.0))
    assert same(quantize(x, E4M3, "rceil"), quantize(x.contiguous(), E4M3, "rceil"))


@pytest.mark.parametrize("shape", [(0, 32), (4, 0), (2, 0, 64), (0,)])
def test_empty_tensors_keep_their_shape(shape):
    got = quantize(torch.empty(shape), E4M3, "rceil")
    assert got.elements.shape == got.dequantize().shape == shape
    assert got.scales.shape == (*shape[:-1], shape[-1] // 32)


def test_other_block_sizes():
    x = drawn(4, 96)
    assert quantize(x, E4M3, "rceil", block=96).scales.shape == (4, 1)
    one = quantize(x, E4M3, "rceil", block=1)
    assert torch.equal(one.scales, quantize(x.reshape(-1, 1), E4M3, "rceil", block=1).scales.view(4, 96))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_a_gpu_gives_the_same_bytes(fmt, scale_rule):
    x = every_float32_pattern(1 << 18)
    here, there = quantize(x, fmt, scale_rule), quantize(x.cuda(), fmt, scale_rule)
    assert torch.equal(here.elements, there.elements.cpu())
    assert torch.equal(here.scales, there.scales.cpu())
    assert torch.equal(here.dequantize().view(torch.int32), there.dequantize().cpu().view(torch.int32))


def test_gradients_do_not_matter():
    x = drawn(2, 32)
    assert same(quantize(x.clone().requires_grad_(), E4M3, "rceil"), quantize(x, E4M3, "rceil"))


# --- back again -------------------------------------------------------------------------------------------------------


def every_pair(fmt):
    """Every scale byte with every code, one block a scale."""
    codes = torch.arange(1 << fmt.bits, dtype=torch.uint8).expand(256, -1)
    return MXTensor(codes, torch.arange(256, dtype=torch.uint8)[:, None], fmt, -1, 1 << fmt.bits)


def exact_products(mx):
    values = mx.fmt.decode(mx.elements).double().numpy() * np.ldexp(1.0, np.arange(256) - 127)[:, None]
    values[255] = NAN
    return values


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_dequantize_every_scale_and_code(fmt):
    """float64 holds every product; float32 all but those beyond its range, which numpy turns into Inf as well."""
    mx = every_pair(fmt)
    exact = exact_products(mx)
    np.testing.assert_array_equal(mx.dequantize(torch.float64).numpy(), exact)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    restored = mx.dequantize().numpy()
    np.testing.assert_array_equal(restored, rounded)
    number = ~np.isnan(rounded)
    np.testing.assert_array_equal(np.signbit(restored)[number], np.signbit(rounded)[number])  # of zeros
    inside = np.abs(exact) <= FLT_MAX
    np.testing.assert_array_equal(restored[inside], exact[inside])  # nothing was rounded
    assert (restored[0, 1 : fmt.max_code] > 0).all()  # scale byte 0 is 2**-127, not zero


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dequantize_to_16_bits_rounds_once(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float16
    with np.errstate(over="ignore"):
        expected = exact_products(every_pair(E4M3)).astype(theirs).astype(np.float32)
    got = every_pair(E4M3).dequantize(dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.float().numpy(), expected)


# --- counting and measuring -------------------------------------------------------------------------------------------


def test_clipped_and_flushed_by_hand():
    x = torch.tensor([480.0, 448.0, -449.0, 2**-10, 2**-9, -0.0, 1e-3, NAN] + [0.0] * 8)
    floor = quantize(x, E4M3, "floor", block=4)  # scale 1, then 2**-18, then a zero block
    assert floor.scales.tolist() == [127, 255, 0, 0]
    assert clipped(x, floor).tolist() == [True, False, True] + [False] * 13
    assert flushed(x, floor).tolist() == [False, False, False, True] + [False] * 12
    rceil = quantize(x, E4M3, "rceil", block=4)
    assert not clipped(x, rceil).any()
    tiny = torch.tensor([[2**-149, 0.0], [-1.0, -1e-5]])
    assert flushed(tiny, quantize(tiny, INT8, "rceil", block=2)).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_clipped_and_flushed_in_every_binade(fmt, scale_rule):
    x = every_float32_pattern(1 << 16, seed=1).view(256, 256)
    mx = quantize(x, fmt, scale_rule, axis=0, block=2)
    scales = np.ldexp(1.0, mx.scales.int().numpy().repeat(2, axis=0) - 127)
    exact, restored = x.double().numpy(), mx.dequantize(torch.float64).numpy()
    np.testing.assert_array_equal(clipped(x, mx).numpy(), np.abs(exact) > fmt.max * scales)
    np.testing.assert_array_equal(flushed(x, mx).numpy(), (exact != 0) & (restored == 0))


def test_only_floor_and_even_clip():
    """Gaussian blocks of 32: 0.86 % of the elements under floor, none under ceil and rceil."""
    x = drawn(1024, 1024)
    share = {rule: clipped(x, quantize(x, E4M3, rule)).double().mean().item() for rule in SCALE_RULES}
    assert share["floor"] == pytest.approx(0.0086, abs=2e-4)
    assert 0 < share["even"] < share["floor"]
    assert share["ceil"] == share["rceil"] == 0


def test_sqnr_by_hand():
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(10 * math.log10(25))
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == INF
    assert sqnr_db(torch.zeros(2), torch.ones(2)) == -INF
    assert sqnr_db(torch.ones(2), torch.tensor([1.0, INF])) == -INF
    assert math.isnan(sqnr_db(torch.ones(2), torch.tensor([1.0, NAN])))
    assert math.isnan(sqnr_db(torch.tensor([1.0, INF]), torch.ones(2)))
    near = torch.tensor([1.0 + 2**-40], dtype=torch.float64)  # the noise would be lost in float32
    assert sqnr_db(near, torch.ones(1)) == pytest.approx(800 * math.log10(2), rel=1e-6)
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\) and \(2, 1\)"):
        sqnr_db(torch.ones(2), torch.ones(2, 1))


def test_sqnr_of_gaussian_blocks():
    """Known from an independent implementation: 31.53 dB under rceil for any block size, 30.65 dB under floor at 32.

    One million draws settle 31.53 to about 0.02 dB, as the noise power is a mean of a million bounded terms.
    """
    x = drawn(1024, 1024)
    for block in (4, 32, 1024):
        assert sqnr_db(x, quantize(x, E4M3, "rceil", block=block).dequantize()) == pytest.approx(31.53, abs=0.03)
    assert sqnr_db(x, quantize(x, E4M3, "floor").dequantize()) == pytest.approx(30.65, abs=0.05)
    assert sqnr_db(x, quantize(x, E4M3, "floor", block=4).dequantize()) == pytest.approx(28.73, abs=0.05)


# --- the tensor cores' scale layout -----------------------------------------------------------------------------------


def test_blocked_layout_by_hand():
    scales = torch.zeros(128, 4, dtype=torch.uint8)
    scales[0, 1], scales[1, 0], scales[32, 0], scales[127, 3] = 1, 2, 3, 4
    got = to_blocked(scales)
    assert {offset: int(got[offset]) for offset in got.nonzero()[:, 0].tolist()} == {1: 1, 16: 2, 4: 3, 511: 4}


@pytest.mark.parametrize("shape", [(100, 3), (128, 4), (300, 9), (1, 1), (256, 5)])
def test_blocked_layout_of_every_byte(shape):
    rows, columns = shape
    scales = torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))
    tiles_across = math.ceil(columns / 4)
    expected = [0] * (512 * math.ceil(rows / 128) * tiles_across)
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * tiles_across + c // 4
            expected[512 * tile + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] = int(scales[r, c])
    assert to_blocked(scales).tolist() == expected
    assert to_blocked(scales.T.contiguous().T).tolist() == expected


def test_blocked_layout_rejects_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"scales must be \(rows, K blocks\), got shape \(4,\)"):
        to_blocked(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"scales must be torch.uint8, got torch.float32"):
        to_blocked(torch.zeros(4, 4))


# --- errors -----------------------------------------------------------------------------------------------------------

X = torch.ones(2, 64)
CODES, SCALES = torch.zeros(2, 64, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "got torch.float64", lambda: quantize(X.double(), E4M3, "floor")),
        (TypeError, "got torch.int32", lambda: quantize(X.int(), E4M3, "floor")),
        (TypeError, r"x must be a tensor, got a list: \[1.0\]$", lambda: quantize([1.0], E4M3, "floor")),
        (TypeError, "got 'E9M9'", lambda: quantize(X, "E9M9", "floor")),
        (ValueError, "floor, ceil, rceil, even, got 'nearest'", lambda: quantize(X, E4M3, "nearest")),
        (TypeError, "scale_rule", lambda: quantize(X, E4M3)),
        (ValueError, "axis -1 has size 64, .* the block, 48", lambda: quantize(X, E4M3, "floor", block=48)),
        (ValueError, "axis 0 has size 2, .* the block, 32", lambda: quantize(X, E4M3, "floor", axis=0)),
        (ValueError, "positive integer, got 0", lambda: quantize(X, E4M3, "floor", block=0)),
        (ValueError, "positive integer, got True", lambda: quantize(X, E4M3, "floor", block=True)),
        (TypeError, "axis must be an integer, got 1.0", lambda: quantize(X, E4M3, "floor", axis=1.0)),
        (TypeError, "axis must be an integer, got True", lambda: quantize(X, E4M3, "floor", axis=True)),
        (TypeError, "axis must be an integer, got 'K'", lambda: quantize(X, E4M3, "floor", axis="K")),
        (ValueError, "axis 2 is out of range .* 2 dimensions", lambda: quantize(X, E4M3, "floor", axis=2)),
        (ValueError, "axis -3 is out of range .* 2 dimensions", lambda: quantize(X, E4M3, "floor", axis=-3)),
        (ValueError, "axis -1 is out of range .* 0 dimensions", lambda: quantize(torch.ones(()), E4M3, "floor")),
        (TypeError, "got torch.int8", lambda: quantize(X, E4M3, "floor").dequantize(torch.int8)),
        (ValueError, r"x has shape \(2, 32\), the quantized tensor \(2, 64\)",
         lambda: clipped(X[:, :32], quantize(X, E4M3, "floor"))),
        (TypeError, "got torch.float64", lambda: flushed(X.double(), quantize(X, E4M3, "floor"))),
        (TypeError, "x must be a tensor, got a list", lambda: clipped([1.0], quantize(X, E4M3, "floor"))),
        (TypeError, "quantized must be an MXTensor, got a Tensor", lambda: flushed(X, X)),
        (TypeError, "approximation must be a tensor, got a float: 1.0", lambda: sqnr_db(X, 1.0)),
        (TypeError, "reference must be real, got torch.complex64", lambda: sqnr_db(X + 1j, X)),
        (TypeError, "scales must be a tensor, got a list", lambda: to_blocked([[1]])),
        (TypeError, "scales must be torch.uint8, got torch.int8",
         lambda: MXTensor(CODES, SCALES.view(torch.int8), E4M3, -1, 32)),
        (TypeError, "elements must be a tensor, got a NoneType", lambda: MXTensor(None, SCALES, E4M3, -1, 32)),
        (TypeError, "got 'E4M3'", lambda: MXTensor(CODES, SCALES, "E4M3", -1, 32)),
        (ValueError, "axis 0 has size 2", lambda: MXTensor(CODES, SCALES, E4M3, 0, 32)),
        (ValueError, r"scales must have shape \(2, 2\) .* \(2, 64\) in blocks of 32 along axis -1, got \(4, 1\)",
         lambda: MXTensor(CODES, SCALES.view(4, 1), E4M3, -1, 32)),
        (ValueError, "elements are on cpu, scales on meta", lambda: MXTensor(CODES, SCALES.to("meta"), E4M3, -1, 32)),
    ],
)  # fmt: skip
def test_errors_name_the_value(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantize([1.0] * 4096, E4M3, "floor"),
        lambda: quantize(X, [1.0] * 4096, "floor"),
        lambda: quantize(X, E4M3, ["floor"] * 4096),
        lambda: quantize(X, E4M3, "floor", axis=[0] * 4096),
        lambda: E4M3.encode([1.0] * 4096),
    ],
)
def test_errors_do_not_print_a_whole_input(call):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert len(str(caught.value)) < 150


# --- against other projects -------------------------------------------------------------------------------------------

GFLOAT = {E4M3: "mxfp8_e4m3", E5M2: "mxfp8_e5m2", E3M2: "mxfp6_e3m2", E2M3: "mxfp6_e2m3", E2M1: "mxfp4_e2m1"}


@pytest.mark.peer
@pytest.mark.parametrize("fmt", GFLOAT, ids=str)
def test_floor_bytes_agree_with_gfloat(fmt):
    """gfloat works one block at a time, in float64, and follows sec. 6.3. (Its INT8 does use 0x80.)"""
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    info = getattr(formats, f"format_info_{GFLOAT[fmt]}")
    x = drawn(32, 32, spread=2.0)
    got = quantize(x, fmt, "floor")
    for row, scale_byte, elements in zip(x.double().numpy(), got.scales, got.elements):
        scale = gfloat.compute_scale_amax(info.etype.emax, row)
        assert [*scale_byte.tolist(), *elements.tolist()] == list(gfloat.encode_block(info, scale, row / scale))


@pytest.mark.peer
def test_blocked_layout_agrees_with_torchao():
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = torch.randint(0, 256, (300, 9), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.equal(to_blocked(scales), utils.to_blocked(scales).flatten())
