"""The compiled quantizers, executed: PTX of NVIDIA's chips on the CPU, byte for byte what the reference says.

`test_quantize_gpu` runs the kernels' source with layouts dropped. Here runs what the compiler made of it, with its
layouts, shuffles, masks, packing and addresses. Only two things of NVIDIA's are taken on trust: that ptxas makes of PTX
what it says, and that a chip does what the PTX ISA says.
"""

import itertools
import re

import numpy as np
import pytest
import torch
from chipmath import quantize_gpu
from chipmath.experiments.quantizer_code import compile_quantizer
from chipmath.formats import E4M3, E5M2
from chipmath.quantize import SCALE_RULES, quantize, to_blocked
from oracles import ptx
from oracles.execute import edited, execute, execute_in_memory, mistake
from oracles.memory import AccessError, Memory
from test_quantize_gpu import DIRECTIONS, DTYPES, FORMATS, mixed

EVEN, MASKED = (256, 256), (96, 160)  # every tile divides the first and none the second
UNTOUCHED = 0xAA


def buffers(shape, layout, axis):
    """Codes and scales to be written, poisoned; padding of the tensor cores' order zeroed, as a launch does."""
    rows, blocked = shape if axis else shape[::-1]
    elements = torch.full((rows, blocked), UNTOUCHED, dtype=torch.uint8)
    scales = quantize_gpu._scales(elements, (rows, blocked // 32), layout)
    return [elements, scales.fill_(UNTOUCHED) if layout == "plain" else scales]


def run_quantizer(direction, x, fmt, rule, arch, layout="plain", *, edit=lambda text: text):
    """Codes and scales of both directions (None where not asked for), and how often each of their bytes was stored."""
    unused = [torch.empty(0, dtype=torch.uint8)] * 2
    sides = [buffers(x.shape, layout, axis) if wanted else unused
             for axis, wanted in ((1, direction != "columns"), (0, direction != "rows"))]  # fmt: skip
    given = sides[0] if direction == "rows" else sides[0] + sides[1]
    made = quantize_gpu.prepare(direction, x, given, fmt, rule, arch, scale_layout=layout)
    binary = compile_quantizer(made.configuration, arch, aligned=not any(size % 16 for size in x.shape))
    counts = execute(edited(binary, edit), made.grid, made.arguments)
    found = {id(each): count for each, count in zip(made.arguments, counts)}
    return [(*side, *(found[id(each)] for each in side)) if side is not unused else None for side in sides]


def assert_bytes(direction, x, fmt, rule, arch, layout="plain", *, nan_code=0x7F, **options):
    """Every byte that the reference has, stored once; nothing else stored. ``nan_code``: what NaN becomes."""
    for axis, result in zip((1, 0), run_quantizer(direction, x, fmt, rule, arch, layout, **options)):
        if result is None:
            continue
        elements, scales, element_stores, scale_stores = result
        expected = quantize(x, fmt, rule, axis=axis)
        codes, bytes_ = (expected.elements, expected.scales) if axis else (expected.elements.T, expected.scales.T)
        assert torch.equal(elements, torch.where(codes == 0x7F, nan_code, codes)), f"codes along axis {axis}"
        wanted, ones = bytes_.contiguous(), torch.ones_like(bytes_)
        if layout == "128x4":
            wanted, ones = to_blocked(wanted), to_blocked(ones.contiguous())
        assert torch.equal(scales.view(-1), wanted.view(-1)), f"scales along axis {axis}"
        assert (element_stores == 1).all()
        assert torch.equal(scale_stores, ones.reshape(-1))


# --- the quantizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
@pytest.mark.parametrize("layout", quantize_gpu.LAYOUTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", [EVEN, MASKED], ids=["even", "masked"])
def test_compiled_quantizers_write_the_references_bytes(direction, layout, shape, arch):
    pytest.importorskip("triton")
    assert_bytes(direction, mixed(torch.bfloat16, shape), E4M3, "rceil", arch, layout)


@pytest.mark.slow
@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiled_quantizers_for_every_rule_format_and_dtype(direction, dtype, fmt, rule):
    """Shapes and scale layouts take turns, as every compilation costs."""
    pytest.importorskip("triton")
    turn = SCALE_RULES.index(rule) + FORMATS.index(fmt) * 2 + DTYPES.index(dtype)
    shape, layout = list(itertools.product((EVEN, MASKED), quantize_gpu.LAYOUTS))[turn % 4]
    assert_bytes(direction, mixed(dtype, shape), fmt, rule, "sm_90", layout)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_120"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiled_quantizers_of_other_chips(direction, arch):
    """sm_80 and sm_89 encode by integers."""
    pytest.importorskip("triton")
    assert_bytes(direction, mixed(torch.float16, MASKED), E5M2, "even", arch)


def test_stores_ask_for_few_sectors():
    """Codes fill every 32-byte sector that a warp asks for; a column's scales are asked for once in 128 rows.

    There are 1024 rows, so that the 32 scales of a column are a sector of their own.
    """
    pytest.importorskip("triton")
    x = torch.ones(1024, 64).bfloat16()
    sides = [buffers(x.shape, "plain", axis) for axis in (1, 0)]
    made = quantize_gpu.prepare("both", x, sides[0] + sides[1], E4M3, "rceil", "sm_90")
    memory = execute_in_memory(compile_quantizer(made.configuration, "sm_90"), made.grid, made.arguments)
    source, row_codes, _, column_codes, column_scales = memory.sectors.values()
    assert (source, row_codes, column_codes) == (0, x.numel() // 32, x.numel() // 32)
    assert column_scales == x.numel() // 128


@pytest.mark.parametrize("shape", [(64, 77), (32, 1), (96, 2080)], ids=str)
def test_columns_of_any_width(shape):
    pytest.importorskip("triton")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert_bytes("columns", x, E4M3, "floor", "sm_90")


@pytest.mark.slow
def test_many_tiles_in_every_direction():
    """More groups, tiles along K and row blocks than one of each."""
    pytest.importorskip("triton")
    x = (torch.randn(2048, 1056, generator=torch.Generator().manual_seed(5)) * 50).bfloat16()
    for direction, layout in itertools.product(DIRECTIONS, quantize_gpu.LAYOUTS):
        assert_bytes(direction, x, E4M3, "ceil", "sm_90", layout)


MISTAKES = {  # the two numbers of a conversion in the wrong order; an exchange of maxima with the wrong lane
    "swapped": mistake(r"(cvt\.rn\.satfinite\.e4m3x2\.f32\s+\S+), (\S+), (\S+);", r"\1, \3, \2;", count=1),
    "another lane": mistake(r"(shfl\.sync\.bfly\.b32\s+[^,]+, [^,]+), \d+,", r"\1, 16,", count=1),
}


@pytest.mark.parametrize("edit", MISTAKES.values(), ids=MISTAKES)
def test_wrong_code_would_be_seen(edit):
    pytest.importorskip("triton")
    x = torch.randn(EVEN, generator=torch.Generator().manual_seed(6)).bfloat16()
    with pytest.raises(AssertionError, match=r"codes along axis|scales along axis"):
        assert_bytes("both", x, E4M3, "rceil", "sm_90", edit=edit)


# --- the emulator itself ----------------------------------------------------------------------------------------------

KERNEL = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [kernel_param_0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	ld.global.b32 	%r2, [%rd3];
BODY
	st.global.b32 	[%rd3], %r3;
	ret;
}
"""


def results(body, words, shared_bytes=0):
    """What a thread for each word leaves in %r3, having its word in %r2 and its number in %r1."""
    array = np.array(words, np.uint32)
    memory = Memory({"words": array})
    program = ptx.parse(KERNEL.replace("BODY", body))
    ptx.run(program, (1,), array.size, [memory.address("words")], memory, shared_bytes=shared_bytes)
    return array.tolist()


def floats(*values):
    return np.array(values, np.float32).view(np.uint32)


INF, NAN = float("inf"), float("nan")
ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("body", "words", "expected"),
    [
        ("shl.b32 %r3, %r2, 33;", [1, ONES], [0, 0]),  # amounts are clamped, not taken modulo 32
        ("shr.s32 %r3, %r2, 40;", [0x80000000, 5], [ONES, 0]),
        ("shr.u32 %r3, %r2, 31;", [0x80000000, 5], [1, 0]),
        ("bfe.u32 %r3, %r2, 4, 8;", [0xABCDEF12], [0xF1]),
        ("bfe.s32 %r3, %r2, 4, 8;", [0xABCDEF12], [0xFFFFFFF1]),
        ("prmt.b32 %r3, %r2, 0x88776655, 0x7610;", [0x44332211], [0x88772211]),
        ("prmt.b32 %r3, %r2, 0, 0x888B;", [0x80330011], [0x000000FF]),  # bit 3 spreads a byte's sign
        ("lop3.b32 %r3, %r2, 0x0F0F0F0F, 0x00FF00FF, 0xE2;", [0x33333333], [0x03F303F3]),  # (a and b) or (c and not b)
        ("mul.lo.s32 %r3, %r2, -3;", [7], [2**32 - 21]),
        ("mul.hi.u32 %r3, %r2, 0x80000000;", [6], [3]),
        ("mad.lo.s32 %r3, %r2, %r2, %r1;", [3, 65536], [9, 1]),
        ("setp.lt.s32 %p1, %r2, 0;\n selp.b32 %r3, 1, 2, %p1;", [ONES, 1], [1, 2]),
        ("setp.lt.u32 %p1, %r2, 5;\n selp.b32 %r3, 1, 2, !%p1;", [ONES, 1], [1, 2]),
        ("mov.b32 {%rs1, %rs2}, %r2;\n mov.b32 %r3, {%rs2, %rs1};", [0x11112222], [0x22221111]),
        ("mov.b32 {%rs1, %rs2}, %r2;\n cvt.s32.s16 %r3, %rs1;", [0x11118222], [0xFFFF8222]),
        ("max.f32 %r3, %r2, 0f3F800000;", floats(2, NAN, -1), floats(2, 1, 1)),  # NaN loses
        ("cvt.rzi.s32.f32 %r3, %r2;", floats(-2.9, 2.9, NAN, 1e20), [2**32 - 2, 2, 0, 2**31 - 1]),
        ("abs.f32 %r3, %r2;", floats(-2, -0.0), floats(2, 0)),
        ("mul.f32 %r3, %r2, 0f3F000000;", [1, 3, 0x7F800001], [0, 2, 0x7FFFFFFF]),  # subnormal ties; one NaN
        # 1 + 2**-23 squared plus 2**-60: the last addend decides which side of the tie it is on
        ("mov.b32 %r4, 0f3F800001;\n fma.rn.f32 %r3, %r2, %r4, 0f21800000;", [0x3F800001], [0x3F800002]),
        ("mov.b32 %r4, 0fBF800000;\n fma.rn.f32 %r3, %r2, %r2, %r4;", [0x3F800801], [0x3A001401]),
        # (1 + 2**-4) squared is a tie of bfloat16; so far below that float64 loses it, 2**-100 decides
        ("mov.b32 %r4, 0x0D808D80;\n fma.rn.bf16x2 %r3, %r2, %r2, %r4;", [0x3F883F88], [0x3F913F90]),
    ],
    ids=lambda v: v.split(";")[0] if isinstance(v, str) else "",
)
def test_instructions_do_what_the_manual_says(body, words, expected):
    assert results(body, words) == list(expected)


def test_the_largest_keeps_a_nan_when_told_so():
    nan, sign = results("max.NaN.f32 %r3, %r2, 0fBF800000;", floats(NAN, -3.0))
    assert nan == 0x7FFFFFFF
    assert sign == floats(-1.0)[0]
    assert results("max.f32 %r3, %r2, 0f80000000;", [0]) == [0]  # +0 is the larger zero
    assert results("min.f32 %r3, %r2, 0f80000000;", [0]) == [0x80000000]


@pytest.mark.parametrize(("fmt", "name"), [(E4M3, "e4m3x2"), (E5M2, "e5m2x2")], ids=str)
def test_converters_against_another_rounding(fmt, name):
    """Every number of the format, ties between them and their neighbours, and what saturates: chipmath.formats."""
    codes = fmt.decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8))
    ties = (codes[:-1] + codes[1:]) / 2
    y = torch.cat([codes, ties, *(torch.nextafter(ties, torch.tensor(to)) for to in (INF, 0.0))])
    y = torch.cat([y, -y, torch.tensor([INF, -INF, 1e30, 1e-30, 500.0, 6e4])])
    body = f"cvt.rn.satfinite.{name}.f32 %rs1, %r2, 0f3F800000;\n cvt.u32.u16 %r3, %rs1;"
    got = torch.tensor(results(body, y.numpy().view(np.uint32)))
    assert torch.equal(got >> 8, fmt.encode(y).long()), "the first operand is the upper byte"
    assert (got & 0xFF == int(fmt.encode(torch.tensor(1.0)))).all()
    assert results(body, [0x7FC00000, 0xFFFFFFFF]) == [0x7F00 | int(got[0] & 0xFF)] * 2


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("bfly.b32 %r3, %r2, 1, 0x1F, -1", [1, 0, 3, 2]),
        ("up.b32 %r3, %r2, 1, 0, -1", [0, 0, 1, 2]),
        ("down.b32 %r3, %r2, 2, 0x1F, -1", [2, 3, 4, 5]),
        ("idx.b32 %r3, %r2, 3, 0x1F, -1", [3, 3, 3, 3]),
        ("bfly.b32 %r3, %r2, 3, 0x1C1F, -1", [3, 2, 1, 0]),  # segments of four lanes
        ("up.b32 %r3, %r2, 1, 0x1C00, -1", [0, 0, 1, 2]),
    ],
)
def test_shuffles(mode, expected):
    got = results(f"shfl.sync.{mode};", range(64))
    assert got[:4] == expected
    assert got[32:36] == [each + 32 for each in expected]


@pytest.mark.parametrize("transposed", ["store", "load", "both", "neither"])
def test_a_matrix_of_eight_rows_stored_and_loaded(transposed):
    """A lane has elements 2 lane and 2 lane + 1 in the order of rows; one .trans turns the matrix, and two do not."""
    store, load = (".trans" if transposed in (which, "both") else "" for which in ("store", "load"))
    body = f"""
	shl.b32 %r4, %r1, 4;
	stmatrix.sync.aligned.m8n8.x1{store}.shared.b16 [%r4], {{%r2}};
	bar.sync 0;
	ldmatrix.sync.aligned.m8n8.x1{load}.shared.b16 {{%r3}}, [%r4];"""
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)
    expected = matrix.T if transposed in ("store", "load") else matrix
    got = np.array(results(body, matrix.reshape(-1).view(np.uint32), shared_bytes=512), np.uint32)
    assert got.view(np.uint16).reshape(8, 8).tolist() == expected.tolist()


def test_diverged_threads_take_their_own_ways_and_meet():
    body = """
	setp.lt.u32 %p1, %r1, 2;
	mov.b32 %r3, 0;
	@%p1 bra $L_small;
	bra.uni $L_end;
$L_small:
$L_again:
	add.s32 %r3, %r3, 10;
	setp.lt.u32 %p2, %r3, %r2;
	@%p2 bra $L_again;
$L_end:
	add.s32 %r3, %r3, 1;
"""
    assert results(body, [5, 35, 99, 99]) == [11, 41, 1, 1]


SHARED = "shl.b32 %r4, %r1, 2;\n st.shared.b32 [%r4], %r2;\n {}\n xor.b32 %r5, %r4, 4;\n ld.shared.b32 %r3, [%r5];"


def test_shared_memory_wants_a_barrier():
    assert results(SHARED.format("bar.sync 0;"), [7, 8], shared_bytes=8) == [8, 7]
    with pytest.raises(ValueError, match="thread 0 reads what another wrote in shared memory, with no barrier"):
        results(SHARED.format(""), [7, 8], shared_bytes=8)
    with pytest.raises(ValueError, match="overwrites what another read"):
        results(SHARED.format("bar.sync 0;") + "\n st.shared.b32 [%r4], %r2;", [7, 8], shared_bytes=8)
    with pytest.raises(IndexError, match="shared memory has 4 bytes"):
        results(SHARED.format("bar.sync 0;"), [7, 8], shared_bytes=4)
    with pytest.raises(ValueError, match="read before anything wrote it"):
        results("mov.b32 %r4, 4;\n ld.shared.b32 %r3, [%r4];", [7], shared_bytes=8)
    with pytest.raises(ValueError, match="thread 1 is not at the barrier"):
        results("setp.eq.b32 %p1, %r1, 0;\n @%p1 bar.sync 0;\n mov.b32 %r3, 1;", [7, 8])


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("mov.b32 %r3, %r7;", ValueError, "register %r7 is read before anything wrote it"),
        ("ld.global.b32 %r3, [%rd3+4];", AccessError, "thread 1: 4 bytes at offset 8 of words"),
        ("ld.global.b32 %r3, [%rd1+2];", AccessError, "is not a multiple of 4"),
        ("cvt.u32.u64 %r4, %rd3;\n ld.global.b32 %r3, [%r4];", AccessError, "of no array"),
        ("sqrt.approx.f32 %r3, %r2;", NotImplementedError, "sqrt.approx.f32 %r3, %r2"),
        ("mul.ftz.f32 %r3, %r2, %r2;", NotImplementedError, "mul.ftz.f32"),
        ("setp.lt.bf16 %p1, %r2, %r2;", NotImplementedError, "setp.lt.bf16"),
        ("cvt.rna.tf32.f32 %r3, %r2;", NotImplementedError, "cvt.rna.tf32.f32"),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r4}, {%r2}, {%r2}, {%r2};",
            NotImplementedError,
            "f32.tf32.tf32.f32",
        ),
        ("mad.rn.f32 %r3, %r2, %r2, %r2;", NotImplementedError, "mad.rn.f32"),
        ("ld.volatile.global.b32 %r3, [%rd3];", NotImplementedError, "volatile"),
        ("cvt.rni.s32.f32 %r3, %r2;", NotImplementedError, "cvt.rni"),
    ],
)
def test_what_is_wrong_or_unknown_is_said(body, error, message):
    with pytest.raises(error, match=re.escape(message)):
        results(body, [7, 8])
