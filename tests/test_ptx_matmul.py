"""The compiled products, executed: PTX of `chipmath.matmul_gpu`'s kernels on the CPU, equal to the reference.

The emulator's checks come with it: copies that are awaited, fences before tensor cores read, no race, no wild address.
Sums are exact here in any order. What is taken on trust is what tensor cores do with sums that are not.
"""

import numpy as np
import pytest
import torch
from chipmath import matmul as reference
from chipmath import matmul_gpu
from chipmath.formats import E4M3, E5M2, E8M0
from chipmath.matmul_gpu import ROUTE_ARCHS, bf16_scales, fp16_span
from chipmath.quantize import MXTensor
from oracles.execute import mistake
from oracles.memory import AccessError
from oracles.ptx_shared import Shared
from test_matmul_gpu import NAN, assert_same_fold, every_fold, seeded, whole_numbers

KERNELS = ("dot_scaled", "fp16_relative", "folded_128")
# sm_90 multiplies by wgmma, sm_89 and sm_120 by mma.sync, sm_120 with block scales in the instruction.
CASES = [
    pytest.param(arch, route, marks=[] if arch == "sm_90" else pytest.mark.slow)
    for arch in ("sm_90", "sm_89", "sm_120")
    for route in (*KERNELS, "dequantize_cublas")
    if arch in ROUTE_ARCHS[route]
]
ON_H100 = [(arch, route) for arch, route in (case.values for case in CASES) if arch == "sm_90"]


def assert_equal(a, b, route):
    assert torch.equal(matmul_gpu.matmul(a, b, route), reference.matmul(a, b))


@pytest.mark.parametrize(("arch", "route"), CASES)
@pytest.mark.parametrize(("m", "n", "k"), [(130, 140, 128), (128, 128, 640)], ids=str)
def test_compiled_products_equal_the_reference(compiled, arch, route, m, n, k):
    """Edges of M and N; and more steps of K than are in flight at once."""
    compiled(arch)
    assert_equal(whole_numbers(m, k, exponents=(-3, 4)), whole_numbers(n, k, exponents=(-3, 4), seed=3), route)


@pytest.mark.parametrize("route", ["dot_scaled", "fp16_relative"])
@pytest.mark.parametrize("k", [32, 160])
def test_k_that_fills_no_tile(compiled, route, k):
    compiled("sm_90")
    assert_equal(whole_numbers(5, k, exponents=(-3, 4)), whole_numbers(6, k, exponents=(-3, 4), seed=3), route)


@pytest.mark.parametrize(("arch", "route"), ON_H100)
def test_compiled_groups_equal_the_reference(compiled, arch, route):
    compiled(arch)
    a, b = whole_numbers(133, 128, exponents=(-2, 3)), whole_numbers(3, 20, 128, exponents=(-2, 3), seed=7)
    got = matmul_gpu.grouped_matmul(a, b, [3, 0, 130], route)
    assert torch.equal(got, reference.grouped_matmul(a, b, [3, 0, 130]))


def codes_alone(fmt):
    """A: every finite code alone in its row, at a place of its own. B: rows of 1, -1 and 2."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[fmt.decode(codes).isfinite()]
    elements, number = torch.zeros(len(codes), 128, dtype=torch.uint8), torch.arange(len(codes))
    elements[number, number % 128] = codes
    a = MXTensor(elements, torch.full((len(codes), 4), 127, dtype=torch.uint8), fmt, -1, 32)
    ones = torch.ones(128)
    b = MXTensor(E4M3.encode(torch.stack([ones, -ones, 2 * ones])), torch.full((3, 4), 127).byte(), E4M3, -1, 32)
    return a, b


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize(("arch", "route"), CASES)
def test_every_code_comes_through(compiled, arch, route, fmt):
    """Subnormal ones too, which Triton's interpreter gets wrong for E5M2."""
    compiled(arch)
    assert_equal(*codes_alone(fmt), route)


@pytest.mark.parametrize(("arch", "route"), ON_H100)
def test_scales_at_the_ends_of_what_a_route_takes(compiled, arch, route):
    compiled(arch)
    low, high = (-100, 100) if route == "folded_128" else bf16_scales(E4M3)
    for exponent in (low, high):
        elements = E4M3.encode(torch.randint(-8, 9, (16, 128), generator=seeded(2)).float())
        a = MXTensor(elements, E8M0.encode(torch.full((16, 4), exponent)), E4M3, -1, 32)
        assert_equal(a, whole_numbers(9, 128, exponents=(-exponent // 2, 1 - exponent // 2)), route)
    if route == "fp16_relative":
        scales = torch.tensor([0, -fp16_span(E4M3), 0, -3]).expand(16, 4)
        alone = torch.zeros(16, 128)
        alone[:8, :32], alone[8:, 32:64] = 3.0, E4M3.emin - 1.0  # large elements low, and low ones alone
        a = MXTensor(E4M3.encode(alone), E8M0.encode(scales), E4M3, -1, 32)
        assert_equal(a, whole_numbers(9, 128), route)


@pytest.mark.parametrize(("arch", "route"), CASES)
def test_nan_takes_its_row_only(compiled, arch, route):
    """A NaN scale, and a NaN code, which the interpreter reads as 480."""
    compiled(arch)
    a, b = whole_numbers(4, 128), whole_numbers(5, 128, seed=3)
    clean = reference.matmul(a, b)
    a.scales[1, 2], a.elements[3, 100], b.scales[4, 3] = NAN, E4M3.nan_code, NAN
    nan = torch.zeros(4, 5, dtype=torch.bool)
    nan[1, :] = nan[3, :] = nan[:, 4] = True
    got = matmul_gpu.matmul(a, b, route)
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan], clean[~nan])


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_one_pass_dequantizes_every_code_at_both_ends(compiled, fmt):
    compiled("sm_90")
    low, high = bf16_scales(fmt)
    numbers = torch.arange(256, dtype=torch.uint8)
    numbers = numbers[fmt.decode(numbers).isfinite()][-224:].repeat(65, 1)
    scales = torch.tensor([low, high, 0, -3, high, low, 5]).repeat(65, 1)
    mx = MXTensor(numbers, E8M0.encode(scales), fmt, -1, 32)
    mx.scales[0, 3] = NAN
    out, expected = matmul_gpu.dequantize(mx), mx.dequantize(torch.bfloat16)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num().view(torch.int16), expected.nan_to_num().view(torch.int16))


@pytest.mark.parametrize(("arch", "block"), [("sm_90", 128), ("sm_90", 64), ("sm_89", 128), ("sm_120", 128)])
@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_one_pass_folds_every_code_by_every_distance(compiled, fmt, arch, block):
    mx = every_fold(fmt)
    expected = matmul_gpu.fold(mx, block)
    launchers = compiled(arch)
    assert_same_fold(matmul_gpu.fold(mx, block), expected)
    assert all((launchers["fold"].stores[name] == 1).all() for name in ("folded", "folded_scales"))
    compiled(arch, mistake(r"max\.s32", "min.s32"), ["fold"])
    with pytest.raises(AssertionError):
        assert_same_fold(matmul_gpu.fold(mx, block), expected)


# --- code that is wrong on purpose ------------------------------------------------------------------------------------


FENCE_OF_ONE = """{ .reg .pred only; .reg .b32 who;
mov.u32 who, %tid.x; setp.eq.b32 only, who, 0; @only fence.proxy.async.shared::cta; }"""


@pytest.mark.parametrize(
    ("route", "edit", "message"),
    [
        ("fp16_relative", mistake(r"fence\.proxy\.async\.shared::cta;"), "no fence.proxy.async has made visible"),
        ("fp16_relative", mistake(r"fence\.proxy\.async\.shared::cta;", FENCE_OF_ONE), "no fence.proxy.async has made"),
        ("fp16_relative", mistake(r"(fence\S+;\s+)bar\.sync\s+0;", r"\1"), "was written since the last barrier"),
        ("folded_128", mistake(r"(cp\.async\.wait_group\s+\d+;\s+)bar\.sync\s+0;", r"\1"), "since the last barrier"),
        ("folded_128", mistake(r"cp\.async\.wait_group\s+\d+;"), "a copy to it has not been waited for"),
        ("folded_128", mistake(r"wgmma\.wait_group\.sync\.aligned 0;"), "before its product has been waited for"),
    ],
)
def test_code_that_does_not_wait_is_refused(compiled, route, edit, message):
    compiled("sm_90", edit)
    a, b = whole_numbers(128, 640), whole_numbers(64, 640, seed=3)
    with pytest.raises(ValueError, match=message):
        matmul_gpu.matmul(a, b, route)


def test_what_tensor_cores_have_read_is_free_after_a_barrier():
    """A warp waits for its own part of a product, so another may still be reading."""
    shared, at = Shared(1, 16), (np.zeros((1, 16), int), np.arange(16)[None])
    shared.written[:] = True
    shared.for_tensor_cores(at)
    with pytest.raises(ValueError, match="written while tensor cores may be reading it"):
        shared.claim(at, np.array([0]))
    shared.product_done(at)
    with pytest.raises(ValueError, match="thread 0 overwrites what another read"):
        shared.claim(at, np.array([0]))
    shared.barrier(np.array([0]))
    shared.claim(at, np.array([0]))


def test_a_wrong_address_is_seen(compiled):
    """A step of K too short reads elements twice, and one too long leaves the array."""
    a, b = whole_numbers(128, 640), whole_numbers(64, 640, seed=3)
    advance = r"(add\.s64\s+%rd\d+, %rd\d+, )128;"
    compiled("sm_90", mistake(advance, r"\g<1>64;", count=1))
    assert not torch.equal(matmul_gpu.matmul(a, b, "folded_128"), reference.matmul(a, b))
    compiled("sm_90", mistake(advance, r"\g<1>98304;", count=1))
    with pytest.raises(AccessError, match="16 bytes at offset"):
        matmul_gpu.matmul(a, b, "folded_128")
