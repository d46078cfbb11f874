"""Products by route: what enters the tensor cores, exactly; the kernels, interpreted; their machine code, compiled.

Triton decides when it is imported whether kernels are interpreted, so one test runs this file again in a process where
they are. The interpreter is trusted for control flow and float32 sums of exact data, and not for FP8 specials or the
subnormal numbers of E5M2 in float16, which it gets wrong (Triton 3.6 to 3.9): those never reach it here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chipmath import matmul as reference
from chipmath import matmul_gpu
from chipmath.bench import PINNED
from chipmath.crosscompile import compile_triton, find_triton
from chipmath.experiments import ExperimentError, gemm_routes, gemm_speed
from chipmath.experiments.loops import innermost_loop
from chipmath.experiments.resources import MATRIX_OPCODE
from chipmath.formats import E2M1, E4M3, E5M2, E8M0, INT8
from chipmath.matmul_gpu import ROUTE_ARCHS, bf16_scales, fold, fp16_span, relative_scales, tile_table
from chipmath.matmul_tiles import TILES, constants_of, tile_of
from chipmath.quantize import MXTensor, quantize
from chipmath.recordings import newest

pytest.importorskip("triton")
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in the interpreter: test_kernels_under_the_interpreter")
KERNEL_ROUTES = ("dot_scaled", "fp16_relative", "folded_128")
ROUTE_CASES = (*KERNEL_ROUTES, "dequantize_cublas")
EIGHT_BITS = [E4M3, E5M2]
NAN = E8M0.nan_code


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def whole_numbers(*shape, exponents=(0, 1), seed=0, fmt=E4M3):
    """Elements -8 … 8 that are whole, with scale exponents from a range: sums of few bits, exact in any order."""
    values = torch.randint(-8, 9, shape, generator=seeded(seed)).float()
    scales = torch.randint(*exponents, (*shape[:-1], shape[-1] // 32), generator=seeded(seed + 1))
    return MXTensor(fmt.encode(values), E8M0.encode(scales), fmt, -1, 32)


def with_exponents(*exponents, fmt=E4M3):
    """One row; block i holds all finite codes in turn (again and again) and has the i-th scale."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[fmt.decode(codes).isfinite()]
    k = 32 * len(exponents)
    every = torch.stack([codes.roll(-32 * i)[:32] for i in range(8)])
    return [
        MXTensor(part.repeat(len(exponents))[None, :k], E8M0.encode(torch.tensor([exponents])), fmt, -1, 32)
        for part in every
    ]


def exact_in_half(mx):
    """Whether relative scale times element is the same in float16 as in float64, and with its exponent the value."""
    relative, exponent = relative_scales(mx)
    wide = relative.repeat_interleave(32, -1)
    halves = wide * mx.fmt.decode(mx.elements).half()
    assert halves.dtype == torch.float16
    doubles = wide.double() * mx.fmt.decode(mx.elements).double()
    assert torch.equal(doubles * torch.exp2(exponent.double())[:, None], mx.dequantize(torch.float64))
    return torch.equal(halves.double(), doubles)


# Float16 with relative scales


@pytest.mark.parametrize(("fmt", "span"), [(E4M3, 22), (E5M2, 8)])
def test_the_span_is_sharp(fmt, span, monkeypatch):
    """Every code of the format is a float16 in all blocks at this span, and one binade more loses one."""
    assert fp16_span(fmt) == span
    for base in (-100, 0, 100):
        assert all(exact_in_half(mx) for mx in with_exponents(base, base - span, base - span // 2, fmt=fmt))
    monkeypatch.setattr(matmul_gpu, "fp16_span", lambda fmt: 99)
    assert not all(exact_in_half(mx) for mx in with_exponents(0, -span - 1, fmt=fmt))


@pytest.mark.parametrize(("fmt", "span"), [(E4M3, 22), (E5M2, 8)])
def test_a_wider_row_is_refused_by_name(fmt, span):
    good, bad = with_exponents(0, -span, fmt=fmt)[0], with_exponents(5, 5 - span - 1, fmt=fmt)[0]
    both = MXTensor(torch.cat([good.elements, bad.elements]), torch.cat([good.scales, bad.scales]), fmt, -1, 32)
    with pytest.raises(ValueError, match=rf"row 1 span {span + 1} binades; route fp16_relative is exact up to {span}"):
        relative_scales(both)


def test_zero_blocks_have_no_say_and_nan_blocks_stay_nan():
    x = torch.randn(3, 96, generator=seeded(0))
    x[0, :32] = 0.0  # scale byte 0
    x[1, 40] = torch.inf
    mx = quantize(x, E4M3, "rceil")
    relative, exponent = relative_scales(mx)
    assert relative[0, 0] == 0
    assert relative.isnan().tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert exponent.tolist() == [int(row[row != NAN].max()) - 127 - 7 for row in mx.scales]


# Folding


def pretend(monkeypatch, arch):
    """CPU tensors pass for a chip's; what folds is the chain of torch operations."""
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: arch)
    monkeypatch.setattr(matmul_gpu, "_has_fold_kernel", lambda mx, parts: False)


def lowest_set_bits(values):
    """Exponent of the lowest set bit of float32 numbers; zeros count as 0."""
    numerators = (values.double() * 2.0**30).long()
    return torch.where(values == 0, 0, (numerators & -numerators).double().log2().long() - 30)


@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("down", [0, 1, 2, 3, 7, 15, 40])
def test_folding_is_lossless_where_no_bit_falls_off_and_within_half_a_step_elsewhere(fmt, down):
    for mx in with_exponents(3, 3 - down, 3, 3, fmt=fmt):
        wide = fold(mx)
        assert (wide.block, wide.scales.tolist()) == (128, [[3 + 127]])
        before, after = mx.dequantize(torch.float64), wide.dequantize(torch.float64)
        kept = lowest_set_bits(fmt.decode(mx.elements)) - torch.tensor([0, down, 0, 0]).repeat_interleave(32)
        lossless = (kept >= fmt.emin - fmt.mantissa_bits) | (before == 0)
        assert torch.equal(after[lossless], before[lossless])
        assert (after[~lossless] != before[~lossless]).all()
        assert ((after - before).abs() <= fmt.min_subnormal / 2 * 2.0**3).all()
        assert torch.equal(after.signbit(), before.signbit())


def test_folding_leaves_zero_and_nan_blocks_out():
    x = torch.randn(2, 256, generator=seeded(1))
    x[0, 32:64] = 0.0
    x[1, 0:128] = 0.0
    x[1, 130] = torch.nan
    mx = quantize(x, E4M3, "floor")
    wide = fold(mx)
    assert wide.scales[0, 0] == mx.scales[0, [0, 2, 3]].max()
    assert wide.scales[1].tolist() == [127, int(mx.scales[1, 5:].max())]
    assert torch.equal(wide.dequantize().isnan(), mx.dequantize().isnan())
    assert (wide.dequantize()[1, :128] == 0).all()


def every_fold(fmt):
    """Every code by every distance from the largest scale, each beside blocks of ones that have it.

    Scales of blocks of zeros, and NaN, have no say; the last rows hold nothing else.
    """
    codes = torch.arange(256, dtype=torch.uint8).view(8, 32)
    ones = fmt.encode(torch.ones(32))
    zeros = torch.tensor([0, fmt.sign_code], dtype=torch.uint8).repeat(16)
    row = torch.stack([ones, *codes[:3], ones, *codes[3:6], ones, *codes[6:], zeros])
    lower = torch.tensor([0, 1, 1, 1] * 3) * torch.arange(40)[:, None]
    scales = (130 - lower).to(torch.uint8)
    scales[:, -1] = 254
    scales[1::2, 6] = NAN
    scales[-1] = torch.tensor([254, 0, 1, 2] * 3)
    elements = row.flatten().repeat(43, 1)
    elements[40:] = zeros.repeat(12)
    none = torch.tensor([[0] * 12, [NAN] * 12, [0, NAN, 254] * 4], dtype=torch.uint8)
    return MXTensor(elements, torch.cat([scales, none]), fmt, -1, 32)


def assert_same_fold(got, expected):
    assert (got.fmt, got.block) == (expected.fmt, expected.block)
    assert torch.equal(got.scales, expected.scales)
    nan = expected.fmt.decode(expected.elements).isnan()
    assert torch.equal(got.fmt.decode(got.elements).isnan(), nan)
    assert torch.equal(got.elements[~nan], expected.elements[~nan])


@pytest.mark.parametrize("block", [64, 96, 128])
def test_folds_into_other_blocks_keep_the_values(block):
    """128 codes of one exponent: each fold says the same number."""
    mx = whole_numbers(3, 384)
    assert torch.equal(fold(mx, block).dequantize(), mx.dequantize())


@pytest.mark.parametrize(("rule", "bound"), [("rceil", 1e-6), ("floor", 1e-6)])
def test_folding_gaussian_data_adds_little(rule, bound):
    """Half a smallest step is 2**-10 of a scale whose block holds numbers up to 2**8; few elements lose even that."""
    x = torch.randn(256, 1024, generator=seeded(2))
    mx = quantize(x, E4M3, rule)
    added = fold(mx).dequantize() - mx.dequantize()
    assert 0 < float(added.norm() / x.norm()) <= bound


@pytest.mark.parametrize("k", [32, 96, 160])
def test_what_does_not_fold_is_refused(k):
    with pytest.raises(ValueError, match=f"K = {k} in blocks of 32 does not fold into blocks of 128"):
        fold(quantize(torch.ones(2, k), E4M3, "rceil"))


# Bfloat16


@pytest.mark.parametrize("fmt", [E4M3, E5M2, E2M1, INT8], ids=str)
def test_every_element_is_a_normal_bfloat16_within_these_scales_and_not_beyond(fmt):
    low, high = bf16_scales(fmt)
    codes = torch.arange(1 << fmt.bits, dtype=torch.uint8)
    values = fmt.decode(codes).double()
    values = values[values.isfinite() & (values != 0)]
    if not fmt.exponent_bits:
        values = values[values != -2]  # the code that INT8 never emits

    def all_normal(exponent):
        scaled = values * 2.0**exponent
        tiny, largest = torch.finfo(torch.bfloat16).smallest_normal, torch.finfo(torch.bfloat16).max
        return bool(((scaled.bfloat16().double() == scaled) & (scaled.abs() >= tiny) & (scaled.abs() <= largest)).all())

    assert all_normal(low)
    assert all_normal(high)
    assert not all_normal(low - 1)
    assert not all_normal(high + 1)


@pytest.mark.parametrize("exponent", [-118, 120])
def test_scales_beyond_bfloat16_are_refused(exponent):
    a = whole_numbers(3, 64)
    b = whole_numbers(3, 64, exponents=(exponent, exponent + 1))
    with pytest.raises(ValueError, match=rf"b: scale exponent {exponent} of row 0, block 0; .* with -117 to 119"):
        matmul_gpu.matmul(a, b, "dequantize_cublas")


@pytest.mark.parametrize("fmt", [E4M3, E5M2, E2M1, INT8], ids=str)
def test_dequantized_operands_are_the_values(fmt):
    a, b = whole_numbers(5, 96, exponents=(-3, 4), fmt=E4M3), quantize(torch.eye(64), fmt, "rceil")
    a64 = MXTensor(a.elements[:, :64], a.scales[:, :2], E4M3, -1, 32)
    assert torch.equal(matmul_gpu.matmul(a64, b, "dequantize_cublas"), a64.dequantize())


# Routes


def test_no_default_route():
    a = whole_numbers(2, 32)
    with pytest.raises(TypeError, match="route"):
        matmul_gpu.matmul(a, a)


A, B3 = whole_numbers(4, 128), whole_numbers(2, 3, 128)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "route must be one of dot_scaled, .*, got 'fast'", lambda: matmul_gpu.matmul(A, A, "fast")),
        (ValueError, "route folded_cublas does not run on a CPU .*; it does on sm_90",
         lambda: matmul_gpu.matmul(A, A, "folded_cublas")),
        (ValueError, "b holds E2M1; route fp16_relative takes E4M3 and E5M2",
         lambda: matmul_gpu.matmul(A, quantize(torch.ones(4, 128), E2M1, "rceil"), "fp16_relative")),
        (ValueError, "a holds E5M2; route folded_cublas takes E4M3",
         lambda: matmul_gpu.matmul(whole_numbers(4, 128, fmt=E5M2), A, "folded_cublas")),
        (ValueError, "a has blocks of 64",
         lambda: matmul_gpu.matmul(*[quantize(torch.ones(4, 128), E4M3, "rceil", block=64)] * 2, "dequantize_cublas")),
        (ValueError, "K differs: 128 in a, 32 in b",
         lambda: matmul_gpu.matmul(A, whole_numbers(4, 32), "dequantize_cublas")),
        (ValueError, "a has 4 rows, sizes add up to 5",
         lambda: matmul_gpu.grouped_matmul(A, B3, [2, 3], "dequantize_cublas")),
    ],
)  # fmt: skip
def test_errors_name_the_value(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("route", KERNEL_ROUTES)
def test_kernels_need_a_gpu_or_the_interpreter(route, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"route {route} does not run on a CPU without TRITON_INTERPRET=1"):
        matmul_gpu.matmul(A, A, route)


@pytest.mark.parametrize(
    ("route", "arch"),
    [("folded_128", "gfx942"), ("folded_cublas", "sm_100"), ("fp16_relative", "gfx90a"), ("dot_scaled", "sm_80")],
)
def test_chips_without_a_route_are_refused_by_name(route, arch, monkeypatch):
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: arch)
    with pytest.raises(ValueError, match=f"route {route} does not run on {arch}; it does on"):
        matmul_gpu.matmul(A, A, route)


@pytest.mark.parametrize(("route", "arch"), matmul_gpu.NEED_TRITON)
def test_old_triton_has_no_kernel_for_some_chips(route, arch, monkeypatch):
    major, minor = matmul_gpu.NEED_TRITON[route, arch]
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: arch)
    monkeypatch.setattr(matmul_gpu, "_interpreting", lambda: True)
    monkeypatch.setitem(matmul_gpu._PLANS, route, lambda *a: lambda: "ran")
    monkeypatch.setattr(matmul_gpu, "_triton_release", lambda: (major, minor - 1))
    told = rf"{route} needs Triton {major}\.{minor} or later on {arch}, this is {major}\.{minor - 1}"
    with pytest.raises(ValueError, match=told):
        matmul_gpu.matmul(A, A, route)
    monkeypatch.setattr(matmul_gpu, "_triton_release", lambda: (major, minor))
    assert matmul_gpu.matmul(A, A, route) == "ran"


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_dot_scaled_checks_its_scales_where_the_chip_has_none(arch, monkeypatch):
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: arch)
    monkeypatch.setattr(matmul_gpu, "_triton_release", lambda: (3, 9))
    monkeypatch.setattr(matmul_gpu._Launch, "__call__", lambda *a: lambda: "ran")
    far = whole_numbers(4, 128, exponents=(-127, -126))
    with pytest.raises(ValueError, match="b: scale exponent -127 of row 0"):
        matmul_gpu.matmul(A, far, "dot_scaled")
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: "sm_100")
    assert matmul_gpu.matmul(A, far, "dot_scaled") == "ran"


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [(-127, 0, "-127 to -127 in a"), (-70, -70, "-70 to -70 in b"), (100, 100, "100 to 100 in a and 100 to 100 in b")],
)
def test_folded_scales_whose_products_leave_float32_are_refused(a, b, told, monkeypatch):
    pretend(monkeypatch, "sm_90")
    a, b = (whole_numbers(4, 128, exponents=(e, e + 1)) for e in (a, b))
    with pytest.raises(ValueError, match=f"{told}.* between -126 and 127"):
        matmul_gpu.matmul(a, b, "folded_128")


def test_cublas_gets_folded_codes_and_scales_as_torch_wants_them(monkeypatch):
    """In place of `scaled_mm`, its definition; strides as ATen's CUDA source checks them for BlockWise1x128."""
    functional = torch.nn.functional
    if not hasattr(functional, "scaled_mm"):
        pytest.skip("torch without scaled_mm (before 2.10)")
    recipe = functional.ScalingType.BlockWise1x128

    def defined(left, right, left_scales, left_recipe, right_scales, right_recipe, *, output_dtype):
        assert left_recipe == right_recipe == recipe
        assert left.dtype == right.dtype == torch.float8_e4m3fn
        assert (left.stride(1), right.stride(0)) == (1, 1)
        for scales, rows in ((left_scales, len(left)), (right_scales, right.shape[1])):
            assert scales.dtype == torch.float32
            assert scales.shape == (rows, left.shape[1] // 128)
            assert scales.stride() == (1, rows)
        wide = left.float() * left_scales.repeat_interleave(128, 1)
        return (wide @ (right.T.float() * right_scales.repeat_interleave(128, 1)).T).to(output_dtype)

    monkeypatch.setattr(functional, "scaled_mm", defined)
    pretend(monkeypatch, "sm_90")
    a, b = whole_numbers(7, 256, exponents=(-2, 1)), whole_numbers(3, 16, 256, exponents=(-1, 2), seed=5)
    out = matmul_gpu.grouped_matmul(a, b, [3, 0, 4], "folded_cublas")
    assert torch.equal(out, reference.grouped_matmul(a, b, [3, 0, 4]))
    with pytest.raises(ValueError, match="b has 3 rows a group; route folded_cublas needs a multiple of 16"):
        matmul_gpu.grouped_matmul(whole_numbers(2, 128), B3, [1, 1], "folded_cublas")


def test_tile_tables_cover_every_row_once():
    table = tile_table([130, 0, 1, 128], 128)
    assert table.tolist() == [[0, 0, 130], [0, 128, 130], [2, 130, 131], [3, 131, 259]]
    assert tile_table([], 128).shape == (0, 3)


# Kernels, compiled


FP8_NAMES = {E4M3: "fp8e4nv", E5M2: "fp8e5"}


@pytest.mark.skipif(INTERPRETING, reason="interpreted kernels have no code")
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("arch", ROUTE_ARCHS["folded_128"])
def test_folding_takes_few_instructions_and_wide_accesses(arch, fmt):
    """Two bytes move for each code: on an H100, memory lets 20 instructions pass meanwhile."""
    from chipmath import matmul_kernels

    amd = arch.startswith("gfx")
    letters, lanes = ("DS", 64) if amd else ("D", 32)
    kinds = {"codes": FP8_NAMES[fmt], "words": "i32", "scales": "u8", "folded": FP8_NAMES[fmt], "folded_scales": "u8"}
    signature = {name: f"*{kind}:{letters}" for name, kind in kinds.items()} | {"blocks": "i32:D"}
    # as `fold` launches it: 16 codes a lane
    constants = {"PARTS": 4, "BLOCKS": lanes // 2}
    binary = compile_triton(matmul_kernels.fold, signature, constants, arch, num_warps=4)
    assert binary.spills == 0
    if find_triton().__version__ != PINNED["Triton"]:
        pytest.skip("the bounds on instructions are of the pinned compilers")
    every = binary.instructions() - binary.instructions(r"^NOP$|^s_code_end$")
    assert every.total() / 16 <= (9 if fmt == E4M3 else 17)
    wide = binary.instructions(r"^LDG.*\.128|_load_dwordx4|^STG.*\.128|_store_dwordx4") - binary.instructions("^s_")
    assert wide.total() == 3, "codes twice, as FP8 and as words, and what they become"


def recorded_rows():
    rows = newest("gemm_routes").select()
    taken = [row for row in rows if {key: row[key] for key in gemm_routes.EXPERIMENT.keys} in launched()]
    assert len(taken) == len(launched())
    return rows, taken


def launched():
    return [gemm_routes.chosen(arch, route) for route in KERNEL_ROUTES for arch in gemm_routes.ARCHS[route]]


def test_no_launched_tile_spills_in_its_loop_and_matrix_instructions_are_the_chips_best():
    _, taken = recorded_rows()
    assert {row["loop_spills"] for row in taken} == {0}
    assert max(row["spills"] for row in taken) <= 1  # a word, once a tile, is nothing
    opcodes = {(row["arch"], row["route"]): f"{row['matrix_opcodes']} {row['ptx']}" for row in taken}
    for key, pattern in {
        ("gfx950", "dot_scaled"): "v_mfma_scale_f32_32x32x64_f8f6f4",
        ("sm_100", "dot_scaled"): r"UTCQMMA tcgen05\.mma.*mxf8f6f4\.block_scale",
        ("sm_90", "dot_scaled"): r"HGMMA.*BF16 wgmma.*bf16",
        ("sm_90", "fp16_relative"): r"HGMMA.*F32 wgmma.*f16\.f16",
        ("sm_90", "folded_128"): r"QGMMA.*E4M3 wgmma.*e4m3",
        ("gfx942", "dot_scaled"): "v_mfma_f32_32x32x8_bf16",
        ("gfx950", "folded_128"): "v_mfma_f32_32x32x64_f8f6f4",
    }.items():
        assert re.match(pattern, opcodes[key]), (key, opcodes[key])


def test_a_step_multiplies_the_whole_tile_once():
    """A warpgroup's instruction is m64; the columns and K are in its name."""
    _, taken = recorded_rows()
    for row in taken:
        if row["arch"] == "sm_90":
            m, n, k = map(int, re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", row["matrix_opcodes"]).groups())
            done = row["matrix_instructions"] * m * n * k * row["num_warps"] // 4
            assert done == row["tile_m"] * row["tile_n"] * row["tile_k"]


def test_relative_scales_take_the_scalar_conversions_out_of_hoppers_loop():
    _, taken = recorded_rows()
    hopper = {row["route"]: row for row in taken if row["arch"] == "sm_90"}
    assert hopper["dot_scaled"]["scalar_conversions"] > 0
    assert hopper["fp16_relative"]["scalar_conversions"] == hopper["folded_128"]["conversions"] == 0
    per_element = {route: row["instructions_per_element"] for route, row in hopper.items()}
    assert per_element["fp16_relative"] <= 3
    assert per_element["dot_scaled"] >= 2 * per_element["fp16_relative"]
    assert per_element["folded_128"] <= 3


def clocks(row):
    """Of an SM for as many products as a cube of 128 has, at least."""
    share = 128**3 / (row["tile_m"] * row["tile_n"] * row["tile_k"])
    return share * max(gemm_routes.least_clocks(row).values())


@pytest.mark.parametrize("route", KERNEL_ROUTES)
def test_no_tile_that_was_tried_and_spills_nothing_in_its_loop_takes_fewer_clocks(route):
    """What justifies the tiles of sm_90; larger ones were among those tried."""
    rows, taken = recorded_rows()
    (mine,) = (row for row in taken if (row["arch"], row["route"]) == ("sm_90", route))
    others = [row for row in rows if (row["arch"], row["route"]) == ("sm_90", route) and row != mine]
    assert len(others) == len(gemm_routes.RUNNERS_UP[route] + gemm_routes.ALSO_RAN[route])
    assert all(row["loop_spills"] or clocks(row) > clocks(mine) for row in others)
    assert any(
        row["tile_m"] * row["tile_n"] * row["tile_k"] > mine["tile_m"] * mine["tile_n"] * mine["tile_k"]
        for row in others
    )


def test_what_is_loaded_in_time_and_what_is_not():
    """Scales by tile are copied with the codes, a step ahead; dot_scaled's are awaited in each step."""
    _, taken = recorded_rows()
    hopper = {row["route"]: row for row in taken if row["arch"] == "sm_90"}
    assert {row["steps_ahead"] for row in hopper.values()} == {1}
    assert {row["products_ahead"] for row in hopper.values()} == {0}
    assert hopper["fp16_relative"]["awaited_loads"] == 0
    assert hopper["dot_scaled"]["awaited_loads"] > 0
    # folded_128 needs its scales after the product, behind which their loads are
    assert hopper["folded_128"]["awaited_loads"] > 0
    assert hopper["folded_128"]["alone_shared_clocks"] == 0


@pytest.mark.skipif(INTERPRETING, reason="compiles")
def test_in_another_order_of_k_registers_get_a_by_ldmatrix(monkeypatch):
    tile = tile_of("fp16_relative", "sm_90")
    loops = {}
    for chosen in (False, True):
        monkeypatch.setattr(gemm_routes, "constants_of", lambda route, arch, chosen=chosen: {"FOUR_BYTES": chosen})
        loops[chosen] = innermost_loop(gemm_routes.compile_route("sm_90", "fp16_relative", *tile).isa, MATRIX_OPCODE)
    counts = {
        chosen: [len(re.findall(rf"\b{op}\b", body)) for op in ("LDS.U16", "LDSM")] for chosen, body in loops.items()
    }
    assert counts == {False: [32, 0], True: [0, 4]}
    assert gemm_routes.shared_clocks(loops[True], 4) < 0.95 * gemm_routes.shared_clocks(loops[False], 4)


def test_a_tile_of_ones_own(monkeypatch):
    pretend(monkeypatch, "sm_90")
    monkeypatch.setattr(matmul_gpu._Launch, "__call__", lambda self, *a: lambda: (self.tile_m, self.num_warps))
    for route in KERNEL_ROUTES:
        (m, _, _), warps, _ = tile_of(route, "sm_90")
        assert matmul_gpu.plan(A, A, route)() == (m, warps)
        assert matmul_gpu.plan(A, A, route, tile=((64, 32, 128), 2, 3))() == (64, 2)
    with pytest.raises(ValueError, match=r"tile = \(\(64, .*: route dequantize_cublas has no kernel of ours"):
        matmul_gpu.plan(A, A, "dequantize_cublas", tile=((64, 32, 128), 2, 3))


def test_chips_have_tiles_of_their_own_or_their_vendors():
    assert tile_of("dot_scaled", "sm_90") == TILES["dot_scaled", "sm_90"] != TILES["dot_scaled", "NVIDIA"]
    assert tile_of("dot_scaled", "sm_100") == tile_of("dot_scaled", "cpu") == TILES["dot_scaled", "NVIDIA"]
    assert tile_of("dot_scaled", "gfx942") == TILES["dot_scaled", "AMD"]
    assert constants_of("fp16_relative", "sm_90") == {"FOUR_BYTES": True}
    assert constants_of("fp16_relative", "sm_89") == {"FOUR_BYTES": False}
    assert constants_of("dot_scaled", "sm_90") == {}


def test_scales_by_tile_are_in_the_order_of_programs():
    """Groups of 3, 0 and 2 rows in tiles of 2: what exceeds a group is never used, nor read from beyond the end."""
    scales = torch.arange(10.0).view(5, 2)
    assert matmul_gpu._by_tile(scales, tile_table([3, 0, 2], 2)[:, 1], 2).tolist() == [
        [0, 2, 4, 6, 6, 8],
        [1, 3, 5, 7, 7, 9],
    ]
    assert matmul_gpu._by_tile(scales, torch.tensor([4]), 4).tolist() == [[8.0] * 4, [9.0] * 4]
    assert matmul_gpu._by_tile(scales[:0], tile_table([], 2)[:, 1], 2).shape == (2, 0)


def test_offsets_in_a_tile_are_32_bits(monkeypatch):
    monkeypatch.setattr(matmul_gpu, "INT32_MAX", 128 * 128)
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: "gfx950")
    monkeypatch.setattr(matmul_gpu._Launch, "__call__", lambda *a: lambda: "ran")
    assert matmul_gpu.matmul(A, A, "dot_scaled") == "ran"
    wide = whole_numbers(4, 160)
    with pytest.raises(ValueError, match="N = 4, K = 160: route dot_scaled takes 128 at most"):
        matmul_gpu.matmul(wide, wide, "dot_scaled")


def test_clocks_of_shared_memory_by_hand():
    lines = (
        ("LDS.U8 R1, [R2]", 1),  # a warp, 32 bytes: a clock all the same
        ("LDS R1, [R2]", 1),
        ("@P0 STS.64 [R2], R4", 2),
        ("LDS.128 R4, [R2]", 4),
        ("LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64]", 4),
        ("LDG.E.128 R4, desc[UR4][R4.64]", 0),
        ("LDSM.16.M88.4 R4, [R2]", 4),  # four matrices of 128 bytes
        ("STSM.16.MT88.2 [R2], R4", 2),
        ("@!PT LDS RZ, [RZ]", 0),  # never executed
    )
    sass = "".join(f"        /*{16 * at:04x}*/                   {line} ;\n" for at, (line, _) in enumerate(lines))
    assert gemm_routes.shared_clocks(sass, 8) == 8 * sum(clocks for _, clocks in lines)
    # FP16, 64 x 128 x 16, two warpgroups: B is 4 KiB, A another 2. FP8, 64 x 64 x 32: A and B are 64 x 32 bytes each.
    half = "HGMMA.64x128x16.F32 R24, R92, gdesc[UR12], R24 ;"
    assert gemm_routes.shared_clocks(half, 8) == 2 * 4096 / 128
    assert gemm_routes.shared_clocks(half.replace("R92, ", ""), 8) == 2 * (4096 + 2048) / 128
    fp8 = "QGMMA.64x64x32.F32.E4M3.E4M3 R56, gdesc[UR20], RZ, !UPT ;"
    assert gemm_routes.shared_clocks(fp8, 4) == 2 * 64 * 32 / 128


def test_what_hides_behind_a_product_by_hand():
    """Eight warps, two clocks of issue for each instruction: four are alone, one of them an access to shared memory."""
    lines = (
        "DEPBAR.LE SB0, 0x2",
        "LDS.128 R4, [R2]",
        "HGMMA.64x128x16.F32 R24, R92, gdesc[UR12], R24, gsb0",
        "FMUL R1, R2, R3",
        "LDS R5, [R2]",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        "LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64]",
        "LDGDEPBAR",
        "LDGDEPBAR",
        "LDG.E R4, desc[UR4][R4.64]",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
    )
    sass = "".join(f"        /*{16 * at:04x}*/                   {line} ;\n" for at, line in enumerate(lines))
    assert gemm_routes.overlap(sass, 8) == {
        "alone_issue_clocks": 2 * 8,
        "alone_shared_clocks": 8 * 4,
        "products_ahead": 0,
        "steps_ahead": 1,
        "awaited_loads": 1,
        "barriers": 1,
    }


def test_a_lone_group_takes_product_and_rest_in_turn():
    row = {"arch": "sm_90", "route": "fp16_relative", "tile_m": 128, "tile_n": 128, "tile_k": 64, "issue_clocks": 300}
    row |= {"shared_clocks": 700, "alone_issue_clocks": 200, "alone_shared_clocks": 250, "groups_per_unit": 1}
    assert gemm_routes.least_clocks(row)["groups"] == 512 + 250
    assert max(gemm_routes.least_clocks(row).values()) == 512 + 250
    two = gemm_routes.least_clocks(row | {"groups_per_unit": 2})
    assert (two["groups"], max(two.values())) == ((512 + 250) / 2, 700)


def test_the_prediction_is_the_busiest_unit_or_a_group_alone():
    rows = {row["route"]: row for row in gemm_speed.predict()}
    assert len(rows) == len(KERNEL_ROUTES) + sum(map(len, gemm_routes.RUNNERS_UP.values()))
    for route in KERNEL_ROUTES:
        row, (m, n, k) = rows[route], tile_of(route, "sm_90")[0]
        rate = 8192 if route == "folded_128" else 4096
        assert row["tensor_clocks"] == 2 * m * n * k / rate
        units = [row[f"{unit}_clocks"] for unit in ("tensor", "issue", "shared")]
        flop = 2 * m * n * k * 132 * 1.83e9
        assert row["flop_per_s_at_most"] * max(*units, row["group_clocks"]) == pytest.approx(flop)
        assert row["flop_per_s_without_overlap"] * sum(units) == pytest.approx(flop)
        assert row["shared_clocks"] > row["tensor_clocks"]
    assert rows["fp16_relative"]["flop_per_s_at_most"] > 1.3 * rows["dot_scaled"]["flop_per_s_at_most"]
    assert rows["fp16_relative, 256 x 128 x 64, 8 warps"]["tensor_clocks"] == 1024


def test_a_wrong_product_is_never_timed(monkeypatch):
    exact = torch.ones(2, 2, dtype=torch.float64)
    rows = torch.arange(2)
    assert gemm_speed._checked("fp16_relative", lambda i: exact.float(), rows, exact, 4096) == 0
    for wrong in (exact.float() + 1e-4, exact.float() * torch.nan):
        with pytest.raises(
            ExperimentError, match=r"fp16_relative: relative error .*, allowed 3.05e-05: it is not timed"
        ):
            gemm_speed._checked("fp16_relative", lambda i, wrong=wrong: wrong, rows, exact, 4096)


def test_the_tolerance_admits_truncation_and_no_lost_block():
    """Sums of 16 products truncated to float32, as tensor cores do, against one block in K / 32 left out."""
    k = 8192
    products = torch.randn(64, k, generator=seeded(5), dtype=torch.float64) * 2.0**-7
    exact, total = products.sum(1), torch.zeros(64)
    for step in products.view(64, -1, 16).sum(2).unbind(1):
        wide = total.double() + step
        rounded = wide.float()
        total = torch.where(rounded.double().abs() > wide.abs(), torch.nextafter(rounded, torch.zeros(64)), rounded)
    truncated = float((total.double() - exact).norm() / exact.norm())
    assert 1e-5 < truncated < gemm_speed.tolerance("fp16_relative", k)
    lost = float(products[:, :32].sum(1).norm() / exact.norm())
    assert lost > 100 * gemm_speed.tolerance("fp16_relative", k)
    assert lost > 10 * gemm_speed.tolerance("folded_128", k)


def test_a_wrong_route_is_named_and_the_others_go_on(monkeypatch):
    true = matmul_gpu.plan

    def plan(a, b, route):
        multiply = true(a, b, "dequantize_cublas")
        return (lambda: multiply() * torch.nan) if route == "folded_cublas" else multiply

    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["folded_cublas", "dequantize_cublas"])
    monkeypatch.setattr(matmul_gpu, "plan", plan)
    method, rows = gemm_speed.rehearse(lambda *a: None)
    (why,) = method["left_out"].values()
    assert why == "folded_cublas: relative error nan, allowed 0.002: it is not timed"
    assert [row["route"] for row in rows] == [gemm_speed.REFERENCE, "dequantize_cublas"]


def test_speeds_are_products_over_time(monkeypatch):
    """A clock that gives each candidate its time: what takes half of the reference's has twice its speed."""
    seconds = {gemm_speed.REFERENCE: [1.0] * 3, "dequantize_cublas": [0.5] * 3}
    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["dequantize_cublas"])
    monkeypatch.setattr(gemm_speed, "take_turns", lambda candidates, stopwatch, rounds: seconds)
    _, rows = gemm_speed.rehearse(lambda *a: None)
    row = {row["route"]: row for row in rows}["dequantize_cublas"]
    assert [row[f"s_{p}"] for p in ("p10", "p50", "p90")] == [0.5] * 3
    assert row["flop_per_s_p50"] == 2 * (64 * 48 * 128) / 0.5
    assert row["speed_of_reference_p50"] == 2


def test_a_wrong_reference_ends_the_experiment(monkeypatch):
    true = matmul_gpu.bfloat16_product
    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["dequantize_cublas"])
    monkeypatch.setattr(matmul_gpu, "bfloat16_product", lambda a, b: true(a, b) + 1)
    with pytest.raises(ExperimentError, match="bfloat16 product: relative error"):
        gemm_speed.rehearse(lambda *a: None)


def test_what_a_library_refuses_is_told_and_not_timed(monkeypatch):
    """cublasLt before 12.9: the other candidates go on, and the recording says which one is missing and why."""

    def too_old():
        raise NotImplementedError("scaling requires cublasLt >= 12.9\nC++ frames")

    true = matmul_gpu.plan
    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["folded_cublas", "dequantize_cublas"])
    monkeypatch.setattr(
        matmul_gpu, "plan", lambda a, b, route: too_old if route == "folded_cublas" else true(a, b, route)
    )
    method, rows = gemm_speed.rehearse(lambda *a: None)
    assert method["left_out"] == {"folded_cublas, 64 x 48 x 128": "scaling requires cublasLt >= 12.9"}
    assert [row["route"] for row in rows] == [gemm_speed.REFERENCE, "dequantize_cublas"]


def test_a_tile_that_does_not_run_costs_only_itself(monkeypatch):
    """As a launch fails that wants more shared memory than there is; a wrong product is not timed either."""
    true, wrong, fat = matmul_gpu.plan, ((64, 32, 128), 2, 3), ((512, 512, 128), 8, 3)

    def refuse():
        raise pytest.importorskip("triton").runtime.errors.OutOfResources(999, 232448, "shared memory")

    def plan(a, b, route, tile=None):
        multiply = true(a, b, "dequantize_cublas")
        return {None: multiply, fat: refuse, wrong: lambda: multiply() * 2}[tile]

    monkeypatch.setattr(gemm_speed, "routes_of", lambda arch: ["fp16_relative", "dequantize_cublas"])
    monkeypatch.setattr(gemm_speed, "RUNNERS_UP", {"fp16_relative": (fat, wrong, None)})
    monkeypatch.setattr(gemm_speed, "tile_name", lambda route, tile: f"{route}, {tile}")
    monkeypatch.setattr(matmul_gpu, "plan", plan)
    method, rows = gemm_speed.rehearse(lambda *a: None)
    assert [row["route"] for row in rows] == [
        gemm_speed.REFERENCE,
        "fp16_relative",
        "dequantize_cublas",
        "fp16_relative, None",
    ]
    first, second = method["left_out"].items()
    assert first[0] == f"fp16_relative, {fat}, 64 x 48 x 128"
    assert "shared memory" in first[1]
    assert "it is not timed" in second[1]


def test_runners_up_take_part_at_one_shape_of_the_full_form(monkeypatch):
    asked = {}

    def measure(where, arch, shapes, tiled, stopwatch, rounds, progress):
        asked[arch, len(shapes)] = tiled
        return {}, []

    monkeypatch.setattr(gemm_speed, "_measure", measure)
    for arch in ("sm_90", "gfx950"):
        gpu = type("Gpu", (), {"arch": arch, "memory_bytes": 2**40})
        for quick in (False, True):
            gemm_speed.measure(gpu, quick, None)
    assert asked == {("sm_90", 3): (gemm_speed.TILES_SHAPE,), ("sm_90", 1): (), ("gfx950", 3): (), ("gfx950", 1): ()}
    assert gemm_speed.TILES_SHAPE in gemm_speed.SHAPES


def test_a_tiles_tolerance_is_its_routes():
    for route in KERNEL_ROUTES:
        for tile in gemm_routes.RUNNERS_UP[route]:
            assert gemm_speed.tolerance(gemm_speed.tile_name(route, tile), 8192) == gemm_speed.tolerance(route, 8192)
    assert gemm_speed.tolerance(gemm_speed.FP8_REFERENCE, 8192) == gemm_speed.FP8_TOLERANCE


def test_torch_without_scaled_mm_is_told(monkeypatch):
    monkeypatch.setattr(matmul_gpu, "_arch", lambda where: "sm_90")
    monkeypatch.delattr(torch.nn.functional, "scaled_mm", raising=False)
    with pytest.raises(
        ValueError, match=f"needs a torch with torch.nn.functional.scaled_mm, this is {torch.__version__[:4]}"
    ):
        matmul_gpu.matmul(A, A, "folded_cublas")


def test_every_route_of_a_chip_is_timed():
    assert gemm_speed.routes_of("sm_90") == list(ROUTE_ARCHS)
    assert gemm_speed.routes_of("gfx942") == ["dot_scaled", "fp16_relative", "dequantize_cublas"]
    assert set(gemm_speed.IN_FP8) < set(ROUTE_ARCHS)


# Kernels, interpreted


SHAPES = [(130, 140, 128), (1, 1, 128), (128, 128, 384)]


@interpreted
@pytest.mark.parametrize("route", ROUTE_CASES)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product_equals_the_reference(route, m, n, k):
    a, b = whole_numbers(m, k, exponents=(-3, 4)), whole_numbers(n, k, exponents=(-3, 4), seed=3)
    assert torch.equal(matmul_gpu.matmul(a, b, route), reference.matmul(a, b))


@interpreted
@pytest.mark.parametrize("route", ["dot_scaled", "fp16_relative"])
@pytest.mark.parametrize("k", [32, 96, 160])
def test_k_need_not_fill_a_tile(route, k):
    a, b = whole_numbers(5, k, exponents=(-3, 4)), whole_numbers(6, k, exponents=(-3, 4), seed=3)
    assert torch.equal(matmul_gpu.matmul(a, b, route), reference.matmul(a, b))


@interpreted
@pytest.mark.parametrize("route", ROUTE_CASES)
def test_formats_may_differ(route):
    a = whole_numbers(9, 128, exponents=(-1, 2))
    b = MXTensor(
        E5M2.encode(2.0 ** torch.randint(-2, 6, (8, 128), generator=seeded(9)).float()),
        A.scales[:1].repeat(8, 1),
        E5M2,
        -1,
        32,
    )
    assert torch.equal(matmul_gpu.matmul(a, b, route), reference.matmul(a, b))


@interpreted
@pytest.mark.parametrize("route", ROUTE_CASES)
@pytest.mark.parametrize("sizes", [[3, 0, 130], [0, 0, 133], torch.tensor([133, 0, 0])], ids=str)
def test_groups_equal_the_reference(route, sizes):
    a, b = whole_numbers(133, 128, exponents=(-2, 3)), whole_numbers(3, 20, 128, exponents=(-2, 3), seed=7)
    assert torch.equal(matmul_gpu.grouped_matmul(a, b, sizes, route), reference.grouped_matmul(a, b, sizes))


@interpreted
@pytest.mark.parametrize("route", ROUTE_CASES)
def test_more_tiles_than_a_band(route):
    """Ten tiles of rows, two of columns: every program finds its own."""
    a, b = whole_numbers(9 * 128 + 5, 128), whole_numbers(130, 128, seed=3)
    assert torch.equal(matmul_gpu.matmul(a, b, route), reference.matmul(a, b))


@interpreted
@pytest.mark.parametrize("route", ["dot_scaled", "fp16_relative", "dequantize_cublas"])
def test_empty_products(route):
    nothing, some = whole_numbers(0, 128), whole_numbers(3, 128)
    assert matmul_gpu.matmul(nothing, some, route).shape == (0, 3)
    assert matmul_gpu.matmul(some, nothing, route).shape == (3, 0)
    assert matmul_gpu.grouped_matmul(nothing, whole_numbers(0, 7, 128), [], route).shape == (0, 7)


@interpreted
@pytest.mark.parametrize("route", ROUTE_CASES)
def test_a_nan_scale_takes_its_row_only(route):
    a, b = whole_numbers(4, 128), whole_numbers(5, 128, seed=3)
    clean = reference.matmul(a, b)
    a.scales[1, 2] = b.scales[4, 3] = NAN
    out = matmul_gpu.matmul(a, b, route)
    nan = torch.zeros(4, 5, dtype=torch.bool)
    nan[1, :] = nan[:, 4] = True
    if route == "folded_128":  # the interpreter decodes NaN codes as 480; what it was given is tested above
        assert torch.equal(out[~nan], clean[~nan])
    else:
        assert torch.equal(out.isnan(), nan)
        assert torch.equal(out[~nan], clean[~nan])


@interpreted
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 65])
def test_one_pass_dequantizes_every_number(fmt, rows):
    """At both ends of the allowed scales, zero blocks and NaN blocks among them."""
    low, high = bf16_scales(fmt)
    numbers = torch.arange(fmt.max_code + 1, dtype=torch.uint8)
    numbers = torch.cat([numbers, numbers + fmt.sign_code])[-224:].repeat(rows, 1)
    scales = torch.tensor([low, high, 0, -3, high, low, 5]).repeat(rows, 1)
    mx = MXTensor(numbers, E8M0.encode(scales), fmt, -1, 32)
    mx.elements[0, 64:96], mx.scales[0, 2], mx.scales[0, 3] = 0, 0, NAN
    out = matmul_gpu.dequantize(mx)
    assert out.dtype == torch.bfloat16
    assert torch.equal(
        out.view(torch.int16)[~out.isnan()], mx.dequantize(torch.bfloat16).view(torch.int16)[~out.isnan()]
    )
    assert torch.equal(out.isnan(), mx.dequantize().isnan())


@interpreted
def test_rows_far_apart_meet_at_the_end():
    """The product of the rows' exponents is within float32 where each alone, and each half, is near its limits."""
    for exponent in ((120, -120), (-127, 127), (60, 60), (-60, -60), (-127, -127)):
        a, b = (whole_numbers(3, 64, exponents=(e, e + 1), seed=s) for s, e in enumerate(exponent))
        out, expected = matmul_gpu.matmul(a, b, "fp16_relative"), reference.matmul(a, b)
        assert torch.equal(out, expected), exponent


@interpreted
def test_random_data_agree_within_float32_sums():
    """K products, each exact: float32 sums differ by at most K * 2**-24 of the sum of magnitudes."""
    x, y = torch.randn(33, 256, generator=seeded(0)), torch.randn(40, 256, generator=seeded(1))
    a, b = quantize(x, E4M3, "rceil"), quantize(y, E4M3, "floor")
    size = a.dequantize().abs() @ b.dequantize().abs().T
    for route in ROUTE_CASES:
        ours = (fold(a), fold(b)) if route == "folded_128" else (a, b)
        error = (
            matmul_gpu.matmul(a, b, route).double()
            - ours[0].dequantize(torch.float64) @ ours[1].dequantize(torch.float64).T
        ).abs()
        assert bool((error <= 256 * 2.0**-24 * size).all()), route


@pytest.mark.skipif(INTERPRETING, reason="already there")
def test_kernels_under_the_interpreter():
    if matmul_gpu._triton_release() < (3, 8):
        pytest.skip("Triton before 3.8 interprets no dot_scaled, and 3.6 nothing beside NumPy 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-m", "not slow"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > 40, done.stdout[-2000:]
