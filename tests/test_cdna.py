"""The compiled quantizers of AMD's chips, executed: gfx950's and gfx942's machine code on the CPU, byte for byte.

What `test_ptx` does for NVIDIA's chips, here down to the instructions themselves. One thing is taken on trust: that a
chip does what AMD's ISA documents say. The second half holds the emulator to those documents.
"""

import itertools
import re

import numpy as np
import pytest
import torch
from chipmath import crosscompile, quantize_gpu
from chipmath.experiments.quantizer_code import compile_quantizer
from chipmath.formats import E4M3, E5M2
from chipmath.gluon_on_cpu import E4M3FNUZ, E5M2FNUZ
from chipmath.quantize import SCALE_RULES
from oracles import cdna
from oracles.cdna_arithmetic import NAN_CODE
from oracles.execute import mistake
from oracles.memory import AccessError, Memory
from test_ptx import EVEN, MASKED, assert_bytes
from test_quantize_gpu import DIRECTIONS, DTYPES, FORMATS, mixed, pairwise_cases

CHIPS = ("gfx950", "gfx942")
INF, NAN = float("inf"), float("nan")


# --- the quantizers ---------------------------------------------------------------------------------------------------


def graded(dtype, shape):
    """Tiles of 32 x 32 of every size that the dtype knows, and in the first ones zeros, Inf, NaN of both signs."""
    draw = torch.Generator().manual_seed(7)
    least, most = (-16, 14) if dtype == torch.float16 else (-140, 125)
    tiles = torch.randint(least, most, (-(-shape[0] // 32), -(-shape[1] // 32)), generator=draw)
    sizes = torch.exp2(tiles.double()).repeat_interleave(32, 0).repeat_interleave(32, 1)[: shape[0], : shape[1]]
    x = (torch.randn(shape, generator=draw).double() * sizes).clamp(-3e38, 3e38).to(dtype)
    x[:32, :32] = 0
    x[40, 3], x[41, 40], x[3, 100] = torch.inf, -torch.inf, torch.nan
    x[50, 150] = mixed(dtype)[5, 100]  # a negative NaN
    return x


def expected_nan(arch, fmt):
    """What becomes of NaN. The CDNA4 ISA has three codes for BF8's and does not say which a conversion writes."""
    return NAN_CODE[arch, "bf8"] if (arch, fmt) == ("gfx950", E5M2) else 0x7F


def check(direction, arch, dtype, fmt, rule, scale_layout, even, inputs=mixed, **options):
    pytest.importorskip("triton")
    x = inputs(dtype, EVEN if even else MASKED)
    assert_bytes(direction, x, fmt, rule, arch, scale_layout, nan_code=expected_nan(arch, fmt), **options)


TORCH = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
CASES = [
    (direction, arch, TORCH[options["dtype"]], *(options[name] for name in ("fmt", "rule", "scale_layout", "even")))
    for direction, arch, options in pairwise_cases()
    if arch in CHIPS
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_machine_code_writes_the_references_bytes(case):
    check(*case, inputs=graded)


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_machine_code_for_any_bits_at_the_edges(direction, arch):
    check(direction, arch, torch.bfloat16, E4M3, "floor", "128x4", False)


@pytest.mark.slow
@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_machine_code_for_every_direction_format_and_dtype(direction, dtype, fmt, arch):
    """Rules take turns: they differ in a constant, and in whether they clip. So do shapes and scale
    layouts: a direction meets all four pairs of them.
    """
    turn = DIRECTIONS.index(direction) + DTYPES.index(dtype) + FORMATS.index(fmt)
    every = list(zip(itertools.product((True, False), quantize_gpu.LAYOUTS), SCALE_RULES))
    (even, layout), rule = every[(turn + 2 * CHIPS.index(arch)) % 4]
    check(direction, arch, dtype, fmt, rule, layout, even, graded)
    check(direction, arch, dtype, fmt, rule, layout, even, mixed)


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("shape", [(64, 77), (32, 1), (96, 2080)], ids=str)
def test_columns_of_any_width(shape, arch):
    pytest.importorskip("triton")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert_bytes("columns", x, E4M3, "floor", arch)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_firmware_that_preloads_no_arguments_enters_elsewhere(direction):
    """A kernel begins with code that loads its arguments, which newer firmware has done and jumps over."""

    def old(text):
        assert re.search(r"preload_length [1-9]", text)
        return re.sub(r"preload_length \d+", "preload_length 0", text)

    check(direction, "gfx942", torch.float32, E4M3, "ceil", "plain", False, edit=old)


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_arguments_lie_where_the_code_objects_say(direction, arch):
    pytest.importorskip("triton")
    binary = compile_quantizer(quantize_gpu.configuration(direction, "bfloat16", E4M3, "floor", arch), arch)
    (entry,) = crosscompile._metadata(binary.code)["amdhsa.kernels"]
    given, hidden = entry[".args"][: binary.parameters], entry[".args"][binary.parameters :]
    sizes = [1 << 32 if each[".size"] == 8 else 0 for each in given]
    assert cdna.kernarg_offsets(sizes) == [each[".offset"] for each in given]
    offsets = {each[".value_kind"]: each[".offset"] for each in hidden}
    if direction == "rows":  # which does not ask for the size of its grid
        assert not offsets
    else:
        start = entry[".kernarg_segment_size"] - 256
        assert (offsets["hidden_block_count_x"], offsets["hidden_group_size_x"]) == (start, start + 12)


CONVERTER = r"(v_cvt_(?:scalef32_)?pk_fp8_f32 v\d+,) (v\d+), (v\d+)"
MISTAKES = {  # and what comes of it
    "operands of a converter swapped": (mistake(CONVERTER, r"\1 \3, \2", count=1), AssertionError),
    "the other half of a register": (mistake(r"(v_cvt_.*) op_sel:\S+", r"\1", count=1), AssertionError),
    "another lane": (mistake(r"quad_perm:\[1,0,3,2\]", "quad_perm:[0,1,2,3]", count=1), AssertionError),
    "an address one further": (mistake(r"(buffer_store_byte .* offen)", r"\1 offset:1", count=1), AssertionError),
    "a store too few": (mistake(r"(?s)(.*)buffer_store_dwordx\d [^\n]*", r"\1s_nop 0", count=1), AssertionError),
    "a range that holds everything": (mistake(r"0x7ffffffe", "0xffffffff"), AccessError),
    "a wait too few": (mistake(r"s_waitcnt vmcnt.*", "s_nop 0", count=1), cdna.HazardError),
}


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("wrong", MISTAKES)
def test_wrong_code_would_be_seen(wrong, arch):
    edit, error = MISTAKES[wrong]
    with pytest.raises(error):
        check("both", arch, torch.bfloat16, E4M3, "floor", "plain", False, graded, edit=edit)


# --- the emulator itself ----------------------------------------------------------------------------------------------

KERNEL = """
kernel:
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	v_lshlrev_b32_e32 v2, 2, v0
	s_waitcnt lgkmcnt(0)
	global_load_dword v1, v2, s[2:3]
	s_waitcnt vmcnt(0)
BODY
	global_store_dword v2, v3, s[2:3]
	s_endpgm
	.amdhsa_kernel kernel
		.amdhsa_group_segment_fixed_size 0
		.amdhsa_private_segment_fixed_size 0
		.amdhsa_kernarg_size 8
		.amdhsa_user_sgpr_count 2
		.amdhsa_user_sgpr_dispatch_ptr 0
		.amdhsa_user_sgpr_queue_ptr 0
		.amdhsa_user_sgpr_kernarg_segment_ptr 1
		.amdhsa_user_sgpr_dispatch_id 0
		.amdhsa_user_sgpr_private_segment_size 0
		.amdhsa_enable_private_segment 0
		.amdhsa_system_sgpr_workgroup_id_x 0
		.amdhsa_system_sgpr_workgroup_id_y 0
		.amdhsa_system_sgpr_workgroup_id_z 0
		.amdhsa_system_sgpr_workgroup_info 0
		.amdhsa_system_vgpr_workitem_id 0
		.amdhsa_next_free_vgpr 16
		.amdhsa_float_round_mode_32 0
		.amdhsa_float_round_mode_16_64 0
		.amdhsa_float_denorm_mode_32 3
		.amdhsa_float_denorm_mode_16_64 3
		.amdhsa_dx10_clamp 1
		.amdhsa_ieee_mode 1
		.amdhsa_fp16_overflow 0
		.amdhsa_tg_split 0
	.end_amdhsa_kernel
"""


def results(body, words, chip="gfx950", *, threads=64, shared_bytes=0):
    """What the first lanes leave in v3, having their word in v1 and their number in v0; s[2:3] points to the words."""
    array = np.zeros(max(threads, len(words)), np.uint32)
    array[: len(words)] = words
    memory = Memory({"words": array})
    text = f'.amdgcn_target "amdgcn-amd-amdhsa--{chip}"\n' + KERNEL.replace("BODY", body.replace("; ", "\n"))
    cdna.run(text, (1,), threads, [memory.address("words")], memory, shared_bytes=shared_bytes)
    return array[: len(words)].tolist()


def floats(*values):
    return np.array(values, np.float32).view(np.uint32).tolist()


ONES = 0xFFFFFFFF
# CDNA4 ISA, chapter 12; worked by hand.
ARITHMETIC = [
    ("v_lshlrev_b32_e32 v3, 33, v1", [1, 0x80000001], [2, 2]),  # five bits of the count
    ("v_ashrrev_i32_e32 v3, 4, v1", [0x80000000, 0x7FFFFFFF], [0xF8000000, 0x07FFFFFF]),
    ("v_lshlrev_b16_e32 v3, 17, v1", [0xFFFFC001], [0x8002]),  # four bits, and nothing in the upper half
    ("v_sub_u16_e32 v3, -2, v1", [0xFFFF0003], [0xFFFB]),
    ("v_bfe_u32 v3, v1, 4, 8", [0xABCDEF12], [0xF1]),
    ("v_bfe_i32 v3, v1, 4, 8", [0xABCDEF12, 0x7712], [0xFFFFFFF1, 0x71]),
    ("v_bfi_b32 v3, v1, v1, -1", [0x0F], [ONES]),
    ("v_bfrev_b32_e32 v3, v1", [1, 0x80000002], [0x80000000, 0x40000001]),
    ("s_mov_b32 s4, 0x0c0d0405; v_perm_b32 v3, v1, 0, s4", [0x44332211], [0x00FF1122]),  # 4 to 7: the first source
    (
        "s_mov_b32 s4, 0x55667788; s_mov_b32 s5, 0x03020100; v_mov_b32_e32 v4, s5; v_perm_b32 v3, v1, s4, v4",
        [0x44332211],
        [0x55667788],
    ),
    ("v_xad_u32 v3, v1, 32, 5", [0x21], [6]),
    ("v_add_lshl_u32 v3, v1, 1, 4", [0x0FFFFFFF], [0]),
    ("v_lshl_or_b32 v3, v1, 4, 3", [5], [0x53]),
    ("v_and_or_b32 v3, v1, 12, 3", [0xFF], [15]),
    ("v_mov_b32_e32 v4, 12; v_mov_b32_e32 v5, 10; v_bitop3_b32 v3, v1, v4, v5 bitop3:0xc8", [9], [12 & (9 | 10)]),
    ("v_mul_lo_u32 v3, v1, v1", [0x10001], [0x20001]),
    ("v_mad_u64_u32 v[4:5], s[4:5], v1, v1, v[0:1]; v_mov_b32_e32 v3, v5", [0x80000000], [0xC0000000]),
    ("v_mad_i64_i32 v[4:5], s[4:5], v1, 3, 5; v_mov_b32_e32 v3, v5", [ONES - 4, 7], [ONES, 0]),  # -15 + 5 < 0
    ("v_mov_b32_e32 v4, 1; v_mov_b32_e32 v5, 0; v_lshl_add_u64 v[4:5], v[4:5], 4, -1; v_mov_b32_e32 v3, v4", [0], [15]),
    ("v_add_co_u32_e32 v4, vcc, 1, v1; v_addc_co_u32_e32 v3, vcc, 0, v1, vcc", [ONES, 5], [0, 5]),
    ("v_sub_co_u32_e32 v4, vcc, 1, v1; v_subb_co_u32_e32 v3, vcc, 0, v1, vcc", [2, 1], [ONES - 2, ONES]),
    ("v_max3_u32 v3, v1, 7, 3", [5, ONES], [7, ONES]),
    ("v_min_u32_e32 v3, 7, v1", [ONES, 3], [7, 3]),
    ("v_max_i32_e32 v3, -3, v1", [ONES, 0x80000000], [ONES, ONES - 2]),
    ("v_cmp_gt_i32_e32 vcc, 0, v1; v_cndmask_b32_e64 v3, 1, 2, vcc", [ONES, 0, 5], [2, 1, 1]),
    ("v_cmp_gt_u32_e64 s[4:5], 9, v1; v_cndmask_b32_e64 v3, 1, 2, s[4:5]", [ONES, 0, 9], [1, 2, 1]),
    (
        "v_and_b32_sdwa v3, v1, v1 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:BYTE_1",
        [0x0F00FC00],
        [0x0C],
    ),
    (
        "v_mov_b32_e32 v3, -1; v_or_b32_sdwa v3, v1, v1 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:BYTE_0 "
        "src1_sel:WORD_1",
        [0x11220033],
        [0x11330000],
    ),
    (
        "v_mov_b32_e32 v3, -1; v_sub_u16_sdwa v3, v1, v1 dst_sel:BYTE_1 dst_unused:UNUSED_PRESERVE src0_sel:WORD_1 "
        "src1_sel:WORD_0",
        [0x00050003],
        [0xFFFF02FF],
    ),
    (
        "v_mov_b32_e32 v4, 1; v_lshlrev_b32_sdwa v3, v4, sext(v1) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:DWORD "
        "src1_sel:WORD_0",
        [0x7FFF8001],
        [0xFFFF0002],
    ),
    # scalars: carries, overflow and the flag
    ("s_mov_b32 s4, -1; s_add_u32 s5, s4, 1; s_addc_u32 s6, s4, 3; v_mov_b32_e32 v3, s6", [0], [3]),
    ("s_sub_u32 s5, 1, 2; s_subb_u32 s6, 1, 1; v_mov_b32_e32 v3, s6", [0], [ONES]),
    ("s_mov_b32 s4, 0x80000000; s_lshl1_add_u32 s5, s4, 1; s_cselect_b32 s6, s5, 9; v_mov_b32_e32 v3, s6", [0], [1]),
    ("s_mov_b32 s4, 0x7fffffff; s_add_i32 s5, s4, 1; s_cselect_b64 s[4:5], -1, 0; v_mov_b32_e32 v3, s5", [0], [ONES]),
    ("s_mov_b32 s4, 0x80000000; s_mul_hi_i32 s5, s4, 6; v_mov_b32_e32 v3, s5", [0], [ONES - 2]),
    ("s_bitcmp0_b32 4, 2; s_cselect_b32 s4, 1, 2; v_mov_b32_e32 v3, s4", [0], [2]),
    ("s_bitcmp1_b32 4, 34; s_cselect_b32 s4, 1, 2; v_mov_b32_e32 v3, s4", [0], [1]),  # 34 counts as 2
    ("s_max_i32 s4, 5, 5; s_cselect_b32 s4, 1, 2; v_mov_b32_e32 v3, s4", [0], [1]),  # equal counts for the maximum
    ("s_min_i32 s4, 5, 5; s_cselect_b32 s4, 1, 2; v_mov_b32_e32 v3, s4", [0], [2]),
    ("s_movk_i32 s4, 0x8000; v_mov_b32_e32 v3, s4", [0], [0xFFFF8000]),
    ("s_mov_b64 s[4:5], 0x7fffffff; v_mov_b32_e32 v3, s5", [0], [0]),
    ("s_ashr_i32 s4, -8, 1; v_mov_b32_e32 v3, s4", [0], [ONES - 3]),
    ("s_lshl_b64 s[4:5], -1, 40; v_mov_b32_e32 v3, s5", [0], [0xFFFFFF00]),
    ("v_readfirstlane_b32 s4, v1; v_mov_b32_e32 v3, s4", [5, 6], [5, 5]),
    (
        "v_mov_b32_e32 v3, v1; v_writelane_b32 v3, s0, 1; v_readlane_b32 s4, v3, 1; v_writelane_b32 v3, s4, 0",
        [5, 6, 7],
        [1 << 20, 1 << 20, 7],
    ),
    (
        "v_mov_b32_e32 v4, 4; v_mov_b32_e32 v5, 5; v_pk_mov_b32 v[6:7], v[4:5], v[4:5] op_sel:[1,0]; "
        "v_lshl_or_b32 v3, v7, 8, v6",
        [0],
        [0x405],
    ),
    ("s_mov_b64 exec, 2; v_readfirstlane_b32 s4, v1; s_mov_b64 exec, -1; v_mov_b32_e32 v3, s4", [5, 6], [6, 6]),
]
FLOATING = [
    ("v_mul_f32_e32 v3, 0.5, v1", [1, 3, *floats(-0.0)], [0, 2, 0x80000000]),  # subnormal numbers; ties to even
    ("v_mul_f32_e32 v3, 3, v1", floats(1.0), [3]),  # an integer constant is bits
    ("v_mul_f32_e64 v3, -|v1|, v1", floats(-3.0), floats(9.0)),
    ("v_mul_f32_e64 v3, |v1|, -v1", floats(-3.0), floats(9.0)),
    ("v_mul_f32_e32 v3, 0, v1", [*floats(INF), 0xFF800001, 0x7FC12345], [0x7FC00000, 0xFFC00001, 0x7FC12345]),
    ("v_mov_b32_e32 v4, 0x7fc00000; v_mul_f32_e32 v3, v4, v1", [0xFFC00007], [0xFFC00007]),  # a negative NaN stays
    ("v_max_f32_e32 v3, 1.0, v1", floats(NAN, 2.0, -INF), floats(1.0, 2.0, 1.0)),
    ("v_max_f32_e32 v3, 1.0, v1", [0x7F800001], [0x7FC00001]),  # a signalling NaN, in IEEE mode
    ("v_max_f32_e32 v3, 0, v1", floats(-0.0), [0]),
    ("v_min_f32_e32 v3, 0, v1", floats(-0.0), [0x80000000]),
    ("v_med3_f32 v3, v1, -2.0, 4.0", floats(-INF, 3.0, INF, -3.0), floats(-2.0, 3.0, 4.0, -2.0)),
    ("v_med3_f32 v3, v1, -2.0, 4.0", floats(NAN), floats(-2.0)),  # the least number
    ("v_maximum3_f32 v3, |v1|, 1.0, 2.0", floats(-3.0, 0.5), floats(3.0, 2.0)),
    ("v_maximum3_f32 v3, 1.0, v1, 2.0", [*floats(INF), 0xFFC00000], [*floats(INF), 0xFFC00000]),
    ("v_cmp_o_f32_e32 vcc, v1, v1; v_cndmask_b32_e64 v3, 1, 2, vcc", floats(NAN, INF), [1, 2]),
    ("v_cmp_u_f32_e32 vcc, v1, v1; v_cndmask_b32_e64 v3, 1, 2, vcc", floats(NAN, INF), [2, 1]),
    # 1 + 2**-11 is a tie, down to even; 65520 rounds beyond the largest; 2**-24 is the least; 2**-25 is a tie, to 0
    ("v_cvt_f16_f32_e32 v3, v1", [0x3F801000, 0x477FF000, 0x33800000, 0x33000000], [0x3C00, 0x7C00, 1, 0]),
    ("v_cvt_pk_f16_f32 v3, v1, 1.0", [0x3F803000, 0xC2C80000], [0x3C003C02, 0x3C00D640]),
    ("v_cvt_pk_bf16_f32 v3, v1, 1.0", [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF800001],
     [0x3F803F80, 0x3F803F82, 0x3F807F80, 0x3F80FFC0]),
    ("v_mov_b32_e32 v4, 1.0; v_fmac_f32_e32 v4, v1, v1; v_sub_f32_e32 v3, v4, v1", floats(2.0), floats(3.0)),
    # (1 + 2**-12)**2 - (1 + 2**-11) is 2**-24, which a rounded product would have lost
    ("s_mov_b32 s4, 0x3f801000; v_fma_f32 v3, v1, v1, -s4", floats(1 + 2**-12), floats(2**-24)),
    # 1 + 2**-23 + 2**-24 - 2**-70: below the tie, which float64 would round to
    ("s_mov_b32 s4, 0x397ffffe; v_mov_b32_e32 v4, s4; s_mov_b32 s5, 0x3f800001; v_fma_f32 v3, v1, v4, s5",
     [0x39800001], [0x3F800001]),
    ("v_mov_b32_e32 v4, 2.0; v_fma_mix_f32 v3, v1, v4, neg(0) op_sel_hi:[1,0,0]", [0x40003C00, 0x80000000],
     floats(2.0, 0.0)),
    ("v_mov_b32_e32 v4, 2.0; v_fma_mix_f32 v3, -v1, v4, v4 op_sel:[1,0,0] op_sel_hi:[1,0,0]", [0x40003C00],
     floats(-2.0)),
    ("v_cvt_u32_f32_e32 v3, v1", floats(2.9, -1.0, 5e9, NAN), [2, 0, ONES, 0]),
    ("v_cvt_i32_f32_e32 v3, v1", floats(-2.9, 5e9, -5e9), [ONES - 1, 0x7FFFFFFF, 0x80000000]),
    ("v_cvt_f32_u32_e32 v3, v1", [ONES, 0x01000001], floats(2.0**32, 2.0**24)),
    ("v_cvt_f32_f16_e32 v3, v1", [0x7BFF, 0x0001, 0xFC00], floats(65504, 2**-24, -INF)),
    ("v_mov_b32_e32 v4, v1; v_mov_b32_e32 v5, 2.0; v_pk_mul_f32 v[6:7], v[4:5], v[4:5] op_sel:[0,1] op_sel_hi:[1,0]; "
     "v_mov_b32_e32 v3, v6", floats(3.0), floats(6.0)),
    ("v_mov_b32_e32 v4, v1; v_mov_b32_e32 v5, 2.0; v_pk_mul_f32 v[6:7], v[4:5], v[4:5]; v_mov_b32_e32 v3, v7",
     floats(3.0), floats(4.0)),
    ("v_mov_b32_e32 v4, v1; v_mov_b32_e32 v5, 2.0; v_pk_mul_f32 v[6:7], v[4:5], 0.5 op_sel_hi:[0,0]; "
     "v_mov_b32_e32 v3, v7", floats(3.0), floats(1.5)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words", "expected"), ARITHMETIC + FLOATING, ids=lambda v: v[-60:] if isinstance(v, str) else ""
)
def test_instructions_do_what_the_isa_says(body, words, expected):
    assert results(body, words) == expected


LANE = list(range(64))
ACROSS = [
    ("v_mov_b32_dpp v3, v1 quad_perm:[2,3,0,1] DPP", lambda lane: lane ^ 2),
    ("v_mov_b32_dpp v3, v1 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf", lambda lane: lane ^ 1),
    ("v_mov_b32_dpp v3, v1 row_half_mirror DPP", lambda lane: lane ^ 7),
    ("v_mov_b32_dpp v3, v1 row_mirror DPP", lambda lane: lane ^ 15),
    ("v_mov_b32_dpp v3, v1 row_ror:4 DPP", lambda lane: lane // 16 * 16 + (lane - 4) % 16),
    ("v_mov_b32_dpp v3, v1 row_shr:1 DPP", lambda lane: lane - 1 if lane % 16 else 0),
    ("v_mov_b32_dpp v3, v1 row_shl:1 DPP", lambda lane: lane + 1 if lane % 16 != 15 else 0),
    ("v_mov_b32_e32 v3, v1; v_add_u32_e32 v4, 64, v1; v_permlane32_swap_b32_e32 v3, v4",
     lambda lane: lane if lane < 32 else lane - 32 + 64),
    ("v_mov_b32_e32 v4, v1; v_add_u32_e32 v3, 64, v1; v_permlane32_swap_b32_e32 v4, v3",
     lambda lane: lane + 32 if lane < 32 else lane + 64),
    ("v_mov_b32_e32 v3, v1; v_add_u32_e32 v4, 64, v1; v_permlane16_swap_b32_e32 v3, v4",
     lambda lane: lane - 16 + 64 if lane & 16 else lane),
    ("v_mov_b32_e32 v4, v1; v_add_u32_e32 v3, 64, v1; v_permlane16_swap_b32_e32 v4, v3",
     lambda lane: lane + 64 if lane & 16 else lane + 16),
    ("v_sub_u32_e32 v4, 63, v0; v_lshlrev_b32_e32 v4, 2, v4; ds_bpermute_b32 v3, v4, v1; s_waitcnt lgkmcnt(0)",
     lambda lane: 63 - lane),
    ("v_lshlrev_b32_e32 v4, 2, v0; ds_bpermute_b32 v3, v4, v1 offset:8; s_waitcnt lgkmcnt(0)",
     lambda lane: (lane + 2) % 64),
    ("ds_swizzle_b32 v3, v1 offset:swizzle(SWAP,16); s_waitcnt lgkmcnt(0)", lambda lane: lane ^ 16),
]  # fmt: skip


@pytest.mark.parametrize(("body", "source"), ACROSS, ids=lambda v: v[:70] if isinstance(v, str) else "")
def test_lanes_that_read_others(body, source):
    got = results(body.replace("DPP", "row_mask:0xf bank_mask:0xf bound_ctrl:1"), LANE)
    assert got == [source(lane) for lane in LANE]


@pytest.mark.parametrize(
    "body",
    [
        "v_mov_b32_dpp v3, v1 quad_perm:[1,1,3,3] row_mask:0xf bank_mask:0xf bound_ctrl:1",
        "v_or_b32_e32 v4, 1, v0; v_lshlrev_b32_e32 v4, 2, v4; ds_bpermute_b32 v3, v4, v1; s_waitcnt lgkmcnt(0)",
        "ds_swizzle_b32 v3, v1 offset:swizzle(SWAP,1); s_waitcnt lgkmcnt(0)",
    ],
)
def test_lanes_that_are_not_active_are_neither_read_nor_written(body):
    even = "s_mov_b32 exec_lo, 0x55555555; s_mov_b32 exec_hi, 0x55555555"
    got = results(f"v_mov_b32_e32 v3, 7; {even}; {body}; s_mov_b64 exec, -1", [each + 100 for each in LANE])
    assert got == [0, 7] * 32


# --- 8-bit converters

SETREG = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1"
CONVERTERS = {
    ("gfx950", "fp8"): (E4M3, "v_cvt_scalef32_pk_fp8_f32 v3, v1, v4, 1.0"),
    ("gfx950", "bf8"): (E5M2, "v_cvt_scalef32_pk_bf8_f32 v3, v1, v4, 1.0"),
    ("gfx942", "fp8"): (E4M3FNUZ, "v_cvt_pk_fp8_f32 v3, v1, v4"),
    ("gfx942", "bf8"): (E5M2FNUZ, "v_cvt_pk_bf8_f32 v3, v1, v4"),
}


@pytest.mark.parametrize("chip_and_kind", CONVERTERS, ids=" ".join)
def test_converters_against_another_rounding(chip_and_kind):
    """Numbers of the format, ties between them, and their neighbours: `chipmath.formats`."""
    fmt, instruction = CONVERTERS[chip_and_kind]
    codes = fmt.decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8))
    ties = (codes[:-1] + codes[1:]) / 2
    y = torch.cat([codes, ties, *(torch.nextafter(ties, torch.tensor(to)) for to in (INF, 0.0)), torch.tensor([1e-30])])
    y = torch.cat([y, -y])
    expected = fmt.encode(y)
    if chip_and_kind[0] == "gfx942":
        expected = torch.where(expected == 0x80, 0, expected)  # these formats have no -0
    for start in range(0, len(y), 64):
        words = y[start : start + 64].numpy().view(np.uint32)
        got = torch.tensor(results(f"v_mov_b32_e32 v4, 1.0; {instruction}", words, chip_and_kind[0]))
        assert torch.equal(got & 0xFF, expected[start : start + 64].long()), "the first source is the low byte"
        assert (got >> 8 & 0xFF == int(fmt.encode(torch.tensor(1.0)))).all()


HUGE = floats(INF, -INF, 1e6, -1e6)


@pytest.mark.parametrize(
    ("chip_and_kind", "overflowing", "saturating"),
    [
        (("gfx950", "fp8"), [0x7F, 0xFF] * 2, [0x7E, 0xFE] * 2),  # section 7.3, FP16_OVFL rule
        (("gfx950", "bf8"), [0x7C, 0xFC] * 2, [0x7B, 0xFB] * 2),
        (("gfx942", "fp8"), [0x80] * 4, [0x7F, 0xFF] * 2),
        (("gfx942", "bf8"), [0x80] * 4, [0x7F, 0xFF] * 2),
    ],
)
def test_what_is_too_large_for_a_converter_depends_on_a_mode(chip_and_kind, overflowing, saturating):
    chip, (_, instruction) = chip_and_kind[0], CONVERTERS[chip_and_kind]
    body = f"v_mov_b32_e32 v4, 0; v_mov_b32_e32 v3, 0; {instruction}"
    assert results(body, HUGE, chip) == overflowing
    assert results(f"{SETREG}; {body}", HUGE, chip) == saturating
    nan = results(f"{SETREG}; {body}", [0x7FC00000], chip)
    assert nan == {"gfx950 fp8": [0x7F], "gfx950 bf8": [0x7E]}.get(" ".join(chip_and_kind), [0x80])


@pytest.mark.parametrize(("chip", "bits"), [("gfx950", "0,0,0,1"), ("gfx942", "0,0,1")])
def test_a_converter_keeps_the_half_that_it_does_not_write(chip, bits):
    instruction = CONVERTERS[chip, "fp8"][1]
    start = "v_mov_b32_e32 v4, 0; v_mov_b32_e32 v3, -1"
    code = 0x38 if chip == "gfx950" else 0x40  # 1.0, whose bias is 7 or 8
    assert results(f"{start}; {instruction}", floats(1.0), chip) == [0xFFFF0000 | code]
    assert results(f"{start}; {instruction} op_sel:[{bits}]", floats(1.0), chip) == [code << 16 | 0xFFFF]


def test_a_converters_scale_divides():
    body = "v_mov_b32_e32 v4, 0; v_mov_b32_e32 v3, 0; v_cvt_scalef32_pk_fp8_f32 v3, v1, v4, 4.0"
    assert results(body, floats(4.0, 8.0)) == [0x38, 0x40]


# --- memory

# A descriptor of a raw buffer: address of the words, 16 bytes, flags as Triton sets them.
RAW = "s_mov_b32 s4, s2; s_mov_b32 s5, s3; s_mov_b32 s6, 16; s_mov_b32 s7, 0x27000; v_lshlrev_b32_e32 v5, 2, v0"


def test_buffers_drop_what_is_out_of_range():
    load = f"{RAW}; v_mov_b32_e32 v3, 9; buffer_load_dword v3, v5, s[4:7], 0 offen; s_waitcnt vmcnt(0)"
    assert results(load, [1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 0, 0]
    assert results(load.replace("offen", "offen offset:4"), [1, 2, 3, 4, 5]) == [2, 3, 4, 0, 0]
    # SOFFSET is no part of the check
    assert results(load.replace("0 offen", "s6 offen"), [1, 2, 3, 4, 5, 6, 7]) == [5, 6, 7, 0, 0, 0, 0]
    store = f"{RAW}; v_mov_b32_e32 v4, 8; buffer_store_dword v4, v5, s[4:7], 0 offen; s_waitcnt vmcnt(0)"
    store += "; global_load_dword v3, v2, s[2:3]; s_waitcnt vmcnt(0)"
    assert results(store, [1, 2, 3, 4, 5, 6]) == [8, 8, 8, 8, 5, 6]
    far = load.replace("v_lshlrev_b32_e32 v5, 2, v0", "v_mov_b32_e32 v5, 0x80000000")
    assert results(far, [1, 2]) == [0, 0]


def test_loads_into_lds():
    """From M0 on, 4 bytes a lane; what is out of range is zero, and nothing is there before the wait."""
    load = f"{RAW}; s_or_b32 s5, s5, 0x00040000; s_movk_i32 m0, 0x40; buffer_load_dword v5, s[4:7], 0 offen lds; "
    read = "s_waitcnt {}; ds_read_b32 v3, v2 offset:60; s_waitcnt lgkmcnt(0)"
    body = f"v_mov_b32_e32 v6, 9; ds_write_b32 v2, v6 offset:60; {load}{read.format('vmcnt(0)')}"
    got = results(body, [1, 2, 3, 4, 5, 6], shared_bytes=512)
    assert got == [9, 1, 2, 3, 4, 0]
    with pytest.raises(cdna.HazardError, match="this part of LDS is still being loaded"):
        results(load + read.format("lgkmcnt(0)"), [1], shared_bytes=512)
    with pytest.raises(cdna.HazardError, match="another wave used this since the last barrier"):
        results(load + read.format("vmcnt(0)"), [1], shared_bytes=512, threads=128)


def test_loads_and_stores_of_other_widths():
    load = f"{RAW}; buffer_load_ubyte v3, v0, s[4:7], 0 offen; s_waitcnt vmcnt(0)"
    assert results(load, [0x44332211, 0x99])[:2] == [0x11, 0x22]
    store = f"{RAW}; v_lshlrev_b32_e32 v6, 1, v0; buffer_store_short v1, v6, s[4:7], 0 offen; s_waitcnt vmcnt(0)"
    store += "; global_load_dword v3, v2, s[2:3]; s_waitcnt vmcnt(0)"
    assert results(store, [0xAAAA0001, 0xBBBB0002])[:2] == [0x00020001, 0]
    wide = f"{RAW}; v_lshlrev_b32_e32 v6, 3, v0; buffer_load_dwordx2 v[8:9], v6, s[4:7], 0 offen; s_waitcnt vmcnt(0)"
    assert results(f"{wide}; v_mov_b32_e32 v3, v9", [1, 2, 3, 4, 5]) == [2, 4, 0, 0, 0]


def test_a_register_is_not_ready_before_its_wait():
    two = "global_load_dword v4, v2, s[2:3]; global_load_dword v5, v2, s[2:3]; "
    two += "{}; v_mov_b32_e32 v3, v{}; s_waitcnt vmcnt(0)"
    assert results(two.format("s_waitcnt vmcnt(1)", 4), [7]) == [7]
    for wait, register in (("s_nop 0", 4), ("s_waitcnt vmcnt(1)", 5), ("s_waitcnt lgkmcnt(0)", 4)):
        with pytest.raises(cdna.HazardError, match=f"v{register} is still being loaded"):
            results(two.format(wait, register), [7])
    with pytest.raises(cdna.HazardError, match="v3 is still being loaded"):  # nor may it be overwritten
        results("global_load_dword v3, v2, s[2:3]; v_mov_b32_e32 v3, 1", [7])
    with pytest.raises(cdna.HazardError, match="s4 is still being loaded"):  # scalar loads finish in any order
        results(
            "s_load_dword s4, s[0:1], 0x0; s_load_dword s5, s[0:1], 0x0; s_waitcnt lgkmcnt(1); v_mov_b32_e32 v3, s4",
            [7],
        )


EXCHANGE = "ds_write_b32 v2, v1; {}; {}; v_xor_b32_e32 v5, 0x100, v2; ds_read_b32 v3, v5; s_waitcnt lgkmcnt(0)"


def test_lds_wants_a_barrier_and_a_wait():
    """Two waves exchange words."""
    words = list(range(128))
    done = EXCHANGE.format("s_waitcnt lgkmcnt(0)", "s_barrier")
    assert results(done, words, threads=128, shared_bytes=512) == [each ^ 64 for each in words]
    with pytest.raises(cdna.HazardError, match="another wave wrote here since the last barrier"):
        results(EXCHANGE.format("s_waitcnt lgkmcnt(0)", "s_nop 0"), words, threads=128, shared_bytes=512)
    with pytest.raises(cdna.HazardError, match="LDS is still being stored to"):
        results(EXCHANGE.format("s_nop 0", "s_barrier"), words, threads=128, shared_bytes=512)
    with pytest.raises(cdna.HazardError, match="another wave used this since the last barrier"):
        results(f"{done}; ds_write_b32 v2, v1", words, threads=128, shared_bytes=512)
    with pytest.raises(AccessError, match="address 512 of 512 bytes"):
        results("ds_read_b32 v3, v2 offset:512; s_waitcnt lgkmcnt(0)", words, threads=128, shared_bytes=512)
    apart = "v_readfirstlane_b32 s4, v0; s_cmp_eq_u32 s4, 0; s_cbranch_scc1 .L; s_barrier\n.L:\n s_barrier; s_barrier"
    with pytest.raises(NotImplementedError, match="wait at different barriers"):
        results(apart, words, threads=128)


def test_lds_of_two_addresses():
    body = "ds_write2_b32 v2, v1, v0 offset1:64; s_waitcnt lgkmcnt(0); v_lshlrev_b32_e32 v5, 2, v0; "
    body += "ds_read2_b32 v[4:5], v5 offset1:64; s_waitcnt lgkmcnt(0); v_lshl_or_b32 v3, v5, 8, v4"
    assert results(body, [5, 6], shared_bytes=512) == [0x005, 0x106]


def test_waves_take_their_own_ways_and_meet():
    """The first wave goes round twice, the second three times."""
    body = "v_readfirstlane_b32 s4, v1; v_mov_b32_e32 v3, 0; \n.L:\n v_add_u32_e32 v3, 10, v3; s_sub_i32 s4, s4, 1; "
    body += "s_cmp_lg_u32 s4, 0; s_cbranch_scc1 .L; v_add_u32_e32 v3, 1, v3"
    words = [2] * 64 + [3] * 64
    assert results(body, words, threads=128) == [21] * 64 + [31] * 64


def test_a_branch_over_lanes_that_are_not_active():
    body = "v_mov_b32_e32 v3, 5; v_cmp_gt_u32_e32 vcc, 2, v1; s_and_saveexec_b64 s[4:5], vcc; s_cbranch_execz .L; "
    body += "v_mov_b32_e32 v3, v1\n.L:\n s_or_b64 exec, exec, s[4:5]"
    assert results(body, [0, 1, 2, 3]) == [0, 1, 5, 5]
    assert results(body, [7] * 64) == [5] * 64
    others = "v_mov_b32_e32 v3, 5; s_mov_b64 s[6:7], 6; s_mov_b64 exec, 3; s_andn2_saveexec_b64 s[4:5], s[6:7]; "
    others += "v_mov_b32_e32 v3, v1; s_mov_b64 exec, -1; v_writelane_b32 v3, s4, 3"
    assert results(others, [10, 11, 12, 13, 14]) == [5, 5, 12, 3, 5]


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (
            "global_load_dword v3, v2, s[2:3] offset:4; s_waitcnt vmcnt(0)",
            AccessError,
            "thread 63: 4 bytes at offset 256",
        ),
        ("global_load_dword v3, v0, s[2:3]; s_waitcnt vmcnt(0)", AccessError, "is not a multiple of 4"),
        ("v_sqrt_f32_e32 v3, v1", NotImplementedError, "v_sqrt_f32_e32 v3, v1: unknown opcode"),
        ("v_mul_f32_e64 v3, v1, v1 clamp", NotImplementedError, "v1 clamp: modifier"),
        ("v_mul_f32_e64 v3, v1, v1 mul:2", NotImplementedError, "v1 mul:2: modifier"),
        ("v_add_u32_e64 v3, -v1, v1", NotImplementedError, "a float modifier on an integer"),
        ("s_bfe_u32 s4, s0, 0x200000", NotImplementedError, "a bit field of 32 bits"),
        ("v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[0:7], v[0:7], 0 abid:1", NotImplementedError, "abid:1: modifier"),
        ("s_mov_b64 s[4:5], 0x80000000", NotImplementedError, "a literal of 64 bits"),
        ("v_mov_b32_dpp v3, v1 quad_perm:[1,0,3,2] row_mask:0x5 bank_mask:0xf", NotImplementedError, ": DPP"),
        ("v_mov_b32_dpp v3, v1 row_shr:1 row_mask:0xf bank_mask:0xf", NotImplementedError, "leaves a lane as it was"),
        ("ds_swizzle_b32 v3, v1 offset:swizzle(REVERSE,4)", NotImplementedError, ": swizzle"),
        ("buffer_load_dword v3, v2, s[4:7], 0 idxen", NotImplementedError, "idxen: modifier"),
        ("buffer_load_dword v3, off, s[4:7], 0 lds", NotImplementedError, "to LDS"),
        (
            f"{RAW}; s_or_b32 s5, s5, 0x80000000; buffer_load_dword v3, v5, s[4:7], 0 offen",
            NotImplementedError,
            "not raw",
        ),
        (f"{RAW}; buffer_load_dwordx4 v[4:7], v5, s[4:7], 0 offen", NotImplementedError, "partly out of range"),
        ("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 0", NotImplementedError, "only FP16_OVFL"),
        ("s_waitcnt expcnt(0)", NotImplementedError, "expcnt(0)"),
        ("v_mov_b32_e32 v3, ttmp4", NotImplementedError, "operand ttmp4"),
        ("v_mov_b32_e32 v3, v1, v1", NotImplementedError, "too many operands"),
        ("v_add_u32_e32 v3, v1", NotImplementedError, "too few operands"),
    ],
)
def test_what_is_wrong_or_unknown_is_said(body, error, message):
    with pytest.raises(error, match=re.escape(message)):
        results(body, LANE)


def test_modes_and_launches_that_are_not_modelled_are_refused(monkeypatch):
    for old, new in (
        ("denorm_mode_32 3", "denorm_mode_32 0"),
        ("denorm_mode_16_64 3", "denorm_mode_16_64 0"),
        ("ieee_mode 1", "ieee_mode 0"),
        ("group_info 0", "group_info 1"),
    ):
        monkeypatch.setitem(globals(), "KERNEL", KERNEL.replace(old, new))
        with pytest.raises(NotImplementedError, match=re.escape(new)):
            results("v_mov_b32_e32 v3, v1", [1])
        monkeypatch.undo()
    with pytest.raises(NotImplementedError, match="96 threads are no whole number of waves"):
        results("v_mov_b32_e32 v3, v1", [1], threads=96)
