"""Other projects' quantizers and casts: the same bytes on ordinary data, and each known difference by name.

A difference is stated from both sides, so that this file turns red when a new version of the other project changes it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chipmath.formats import E2M1, E2M3, E3M2, E4M3, E5M2, INT8
from chipmath.quantize import SCALE_RULES, quantize
from chipmath.recordings import code_digest
from test_quantize import INF, NAN, drawn

pytestmark = pytest.mark.peer

ROOT = Path(__file__).resolve().parent.parent
EVERY_FLOAT32 = Path(__file__).with_name("oracles") / "every_float32.py"
TINY = 2**-149
NAMES = {
    E4M3: "float8_e4m3fn",
    E5M2: "float8_e5m2",
    E3M2: "float6_e3m2fn",
    E2M3: "float6_e2m3fn",
    E2M1: "float4_e2m1fn",
}


def constant_block(value):
    return torch.full((1, 32), value)


def ours(x, fmt, scale_rule):
    quantized = quantize(x, fmt, scale_rule)
    return quantized.scales, quantized.elements


# --- torchao 0.18 -----------------------------------------------------------------------------------------------------


def torchao(x, fmt, scale_rule):
    """Scale bytes and element codes by torchao's to_mx."""
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    from torchao.prototype.mx_formats import constants

    element = {
        E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2,
        E3M2: constants.DTYPE_FP6_E3M2, E2M3: constants.DTYPE_FP6_E2M3, E2M1: torch.float4_e2m1fn_x2,
    }[fmt]  # fmt: skip
    mode = getattr(mx_tensor.ScaleCalculationMode, scale_rule.upper())
    scales, elements = mx_tensor.to_mx(x, element, 32, mode)
    codes = elements.view(torch.uint8)
    if fmt is E2M1:  # two in a byte, the first in its low half
        codes = torch.stack([codes & 0xF, codes >> 4], -1).view(x.shape)
    return scales.view(torch.uint8), codes


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", NAMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchao_agrees_on_ordinary_data(dtype, fmt, scale_rule):
    x = drawn(256, 1024, spread=2.0).to(dtype)
    x[:, 64:96] = 0
    for got, expected in zip(ours(x, fmt, scale_rule), torchao(x, fmt, scale_rule)):
        assert torch.equal(got, expected)


# (value of a whole block, format, rules) -> our scale byte and element, torchao's
TORCHAO_DIFFERS = {
    "Inf gets an ordinary scale and is saturated; the specification leaves it open": [
        (INF, E4M3, ("floor", "ceil", "even"), (255, 0x7F), (247, 0x7E)),
        (INF, E4M3, ("rceil",), (255, 0x7F), (254, 0x7E)),
        (-INF, E5M2, ("floor", "ceil", "even"), (255, 0x7F), (240, 0xFB)),
    ],
    "scale byte 0, 2**-127, is applied as 2**-126: such a block comes back as half its value": [
        (2**-119, E4M3, ("floor", "ceil", "even"), (0, 0x78), (0, 0x70)),
        (2**-126, E4M3, ("floor", "ceil", "even"), (0, 0x40), (0, 0x38)),
        (2**-112, E5M2, ("floor", "ceil", "even"), (0, 0x78), (0, 0x74)),
    ],
    "under rceil scale byte 0 is applied as 1: such a block becomes zero": [
        (2**-119, E4M3, ("rceil",), (0, 0x78), (0, 0x00)),
        (2**-112, E5M2, ("rceil",), (0, 0x78), (0, 0x00)),
    ],
}


@pytest.mark.parametrize(
    ("reason", "value", "fmt", "scale_rule", "expected", "theirs"),
    [
        (reason, value, fmt, rule, expected, theirs)
        for reason, rows in TORCHAO_DIFFERS.items()
        for value, fmt, rules, expected, theirs in rows
        for rule in rules
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value),
)
def test_torchao_differs(reason, value, fmt, scale_rule, expected, theirs):
    for quantizer, (scale_byte, element) in ((ours, expected), (torchao, theirs)):
        scales, elements = quantizer(constant_block(value), fmt, scale_rule)
        assert (scales.tolist(), elements.tolist()) == ([[scale_byte]], [[element] * 32]), reason


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
def test_torchao_agrees_just_above_scale_byte_0_and_on_zeros(scale_rule):
    """2**-118 is where E4M3's scale byte 0 ends, for the power of two itself."""
    for value in (2**-118, 0.0, -0.0):
        for got, expected in zip(
            ours(constant_block(value), E4M3, scale_rule), torchao(constant_block(value), E4M3, scale_rule)
        ):
            assert torch.equal(got, expected)


def test_torchao_keeps_the_finite_elements_beside_a_nan():
    """Their scale is NaN as ours is, and so is every value; but under floor, ceil and even, whose scale is an integer,
    the other elements are divided by 2**128 and become zeros. rceil divides by NaN."""
    x = constant_block(1.0)
    x[0, 3] = NAN
    for scale_rule in SCALE_RULES:
        scales, elements = torchao(x, E4M3, scale_rule)
        assert scales.tolist() == [[255]]
        assert elements[0, 3] == 0x7F
        assert elements[0, 4] == (0x7F if scale_rule == "rceil" else 0x00)
        assert ours(x, E4M3, scale_rule)[1].tolist() == [[0x7F] * 32]


def test_torchao_takes_a_logarithm_for_rceil():
    """Just above 1.75 * 2**e the next scale is due, but in float32 log2(amax / 448) is still a whole number: their
    scale byte is one too small, and the largest number saturates. (How often depends on this machine's logarithm.)"""
    exponents = np.arange(-117, 127)
    amax = np.nextafter(np.ldexp(np.float32(1.75), exponents), np.float32(INF))
    x = torch.from_numpy(amax)[:, None].expand(-1, 32).contiguous()
    scales, elements = ours(x, E4M3, "rceil")
    their_scales, their_elements = torchao(x, E4M3, "rceil")
    assert (scales[:, 0].numpy() == exponents + 127 - 7).all()
    wrong = (their_scales != scales)[:, 0]
    assert wrong.float().mean() > 0.9
    assert exponents[wrong.numpy()].min() < 3 < exponents[wrong.numpy()].max()  # 14.000001 is among them
    assert (their_scales[wrong] == scales[wrong] - 1).all()
    assert (their_elements[wrong] == 0x7E).all()  # 448
    assert (elements == 0x76).all()  # 224, under twice the scale: the same number here


def test_torchao_refuses_what_we_take():
    x = drawn(64, 64)
    for other, message in ((x.half(), "float16 is not supported yet"), (x.T, "unsupported")):
        with pytest.raises(AssertionError, match=message):
            torchao(other, E4M3, "floor")
        ours(other, E4M3, "floor")


@pytest.mark.slow
def test_torchao_does_not_compile_for_a_cpu_except_rceil():
    """Why benchmarks run it eagerly: in torch 2.13 Inductor's C++ has no type for E8M0."""
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    compiled = torch.compile(mx_tensor.to_mx, fullgraph=True)
    x = drawn(64, 1024)
    scales, elements = compiled(x, torch.float8_e4m3fn, 32, mx_tensor.ScaleCalculationMode.RCEIL)
    assert torch.equal(elements.view(torch.uint8), ours(x, E4M3, "rceil")[1])
    assert torch.equal(scales.view(torch.uint8), ours(x, E4M3, "rceil")[0])
    reasons = {"FLOOR": "float8_e8m0fnu missing", "CEIL": "float8_e8m0fnu missing", "EVEN": "make_reindexer NYI"}
    for mode, reason in reasons.items():
        with pytest.raises(Exception, match=reason):
            compiled(x, torch.float8_e4m3fn, 32, getattr(mx_tensor.ScaleCalculationMode, mode))


# --- gfloat 0.5 -------------------------------------------------------------------------------------------------------


def gfloat(fmt, row):
    """Scale byte and element codes of one block by gfloat, which knows the floor rule."""
    package = pytest.importorskip("gfloat")
    from gfloat import formats

    name = {E4M3: "mxfp8_e4m3", INT8: "mxint8"}[fmt]
    info = getattr(formats, f"format_info_{name}")
    scale = package.compute_scale_amax(info.etype.emax if fmt is not INT8 else 0, row)
    return list(package.encode_block(info, scale, row / scale))


def test_gfloat_agrees_at_the_ends_of_the_scale():
    """Also where torchao does not: scale byte 0 is 2**-127."""
    for value in (0.0, -0.0, TINY, 2**-136, 2**-126, 2**-119, 2**-118, 3e38):
        scales, elements = ours(constant_block(value), E4M3, "floor")
        assert gfloat(E4M3, np.full(32, np.float32(value), np.float64)) == [*scales[0].tolist(), *elements[0].tolist()]


@pytest.mark.parametrize(
    ("reason", "value", "fmt", "expected", "theirs"),
    [
        ("Inf gets the largest scale and is saturated", INF, E4M3, (255, 0x7F), (254, 0x7E)),
        ("a NaN's code is the one with the sign set", NAN, E4M3, (255, 0x7F), (255, 0xFF)),
        ("INT8 uses 0x80, -2; sec. 5.3.4 lets it go unused", -1.9999, INT8, (127, 0x81), (127, 0x80)),
    ],
)
def test_gfloat_differs(reason, value, fmt, expected, theirs):
    scales, elements = ours(constant_block(value), fmt, "floor")
    assert (scales[0].item(), *set(elements[0].tolist())) == expected, reason
    got = gfloat(fmt, np.full(32, value))
    assert (got[0], *set(got[1:])) == theirs, reason


# --- ml_dtypes with numpy, and torch's casts --------------------------------------------------------------------------


def numpy_exponents(amax, fmt, scale_rule):
    """Scale exponents from numpy's own decomposition amax = m * 2**e, 1 <= m < 2: no bits, no logarithm."""
    m, e = np.frexp(amax)
    m, e = 2 * m, e - 1
    if scale_rule == "even":
        m = np.rint(m * 2**fmt.mantissa_bits) / 2**fmt.mantissa_bits
    step = {"floor": False, "ceil": m > 1, "rceil": m > fmt.max / 2**fmt.emax, "even": m == 2}[scale_rule]
    return np.clip(e + step - fmt.emax, -127, 127)


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", NAMES, ids=str)
def test_numpy_and_ml_dtypes_agree_on_ordinary_data(fmt, scale_rule):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = drawn(4096, 32, spread=4.0)
    scale = np.ldexp(1.0, numpy_exponents(x.abs().amax(1).double().numpy(), fmt, scale_rule))[:, None]
    clamped = np.clip(x.double().numpy() / scale, -fmt.max, fmt.max)  # beyond, ml_dtypes overflows: see below
    scales, elements = ours(x, fmt, scale_rule)
    np.testing.assert_array_equal(scales.numpy(), scale.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    np.testing.assert_array_equal(elements.numpy(), clamped.astype(getattr(ml_dtypes, NAMES[fmt])).view(np.uint8))


# torch's cast to E4M3 saturates since 2.12 (pytorch pull request 178817); before, it overflowed as ml_dtypes does.
SATURATING_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
BEYOND = {
    # value: (encode, ml_dtypes, torch); the middle between 448 and what would come next, 480, is 464
    E4M3: {
        464.0: (0x7E, 0x7E, 0x7E),
        464.1: (0x7E, 0x7F, 0x7E),
        1e30: (0x7E, 0x7F, 0x7E),
        INF: (0x7E, 0x7F, 0x7E),
        -INF: (0xFE, 0xFF, 0xFE),
        NAN: (0x7F, 0x7F, 0x7F),
    },
    # E5M2 has an infinity, which both casts use from 61440 on, the middle between 57344 and 65536
    E5M2: {
        61439.0: (0x7B, 0x7B, 0x7B),
        61440.0: (0x7B, 0x7C, 0x7C),
        1e30: (0x7B, 0x7C, 0x7C),
        -INF: (0xFB, 0xFC, 0xFC),
        NAN: (0x7F, 0x7E, 0x7F),
    },
}


@pytest.mark.parametrize(("fmt", "value"), [(fmt, value) for fmt, rows in BEYOND.items() for value in rows], ids=str)
def test_casts_beyond_the_largest_number(fmt, value):
    """OCP OFP8 v1.0 knows a saturating and an overflowing mode; MX asks for the first, which encode is."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([value], np.float32)
    encoded, by_ml_dtypes, by_torch = BEYOND[fmt][value]
    assert fmt.encode(torch.from_numpy(x)).tolist() == [encoded]
    with np.errstate(invalid="ignore"):
        assert x.astype(getattr(ml_dtypes, NAMES[fmt])).view(np.uint8).tolist() == [by_ml_dtypes]
    cast = torch.from_numpy(x).to(getattr(torch, NAMES[fmt])).view(torch.uint8)
    assert cast.tolist() == [by_torch if SATURATING_TORCH or fmt is E5M2 else by_ml_dtypes]


def test_casts_to_e8m0_disagree_on_what_is_no_power_of_two():
    """Why scales here are computed as exponents and never cast: zero is 2**-127 to torch and NaN to ml_dtypes, and
    torch drops a sign. Both round to nearest, so neither cast is a scale rule."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([0.0, -1.0, 1.5, INF, NAN, 2**-127, 2**127], np.float32)
    assert x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist() == [255, 255, 128, 255, 255, 0, 254]
    assert torch.from_numpy(x).to(torch.float8_e8m0fnu).view(torch.uint8).tolist() == [0, 127, 128, 255, 255, 0, 254]


# --- every float32 ----------------------------------------------------------------------------------------------------


def test_every_float32_has_been_compared():
    """The result of `python tests/oracles/every_float32.py`, which takes minutes, and whether it is of today's code."""
    result = json.loads(EVERY_FLOAT32.with_suffix(".json").read_text())
    rows = [dict(zip(result["columns"], row)) for row in result["rows"]]
    assert {(row["format"], row["encoder"]) for row in rows} >= {
        (fmt, encoder) for fmt in ("E4M3", "E5M2") for encoder in ("ml_dtypes", "torch", "quantize_cpu at scale 1")
    }
    for row in rows:
        assert (row["patterns"], row["nan_patterns"], row["differences"]) == (1 << 32, 2 * 0x7FFFFF, 0), row
    assert result["commit"] != "unknown"
    if result["code"] != code_digest(("formats.py", "quantize_cpu.py")):
        pytest.skip(f"{EVERY_FLOAT32.name} ran in full on {result['taken'][:10]}, and the code has changed since")


@pytest.mark.slow
def test_every_64th_float32():
    """A share of the same, on the code as it is."""
    for name in ("ml_dtypes", "numba"):
        pytest.importorskip(name)
    command = [sys.executable, EVERY_FLOAT32, "--every", "64"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"\t{(1 << 32) // 64}\t") == 8
