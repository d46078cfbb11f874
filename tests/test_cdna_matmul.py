"""The compiled products of AMD's chips, executed: what the matrix instructions are fed, and what becomes of it.

The elements are small integers and the scales few powers of two, so that every sum is exact in whichever order it is
added up: C must be the reference's, bit for bit. What is left to trust is that a chip does what AMD's ISA says.
"""

import json

import numpy as np
import pytest
import torch
from chipmath import ilp, matmul_gpu
from chipmath.crosscompile import CompilerMissing
from chipmath.experiments import ilp_sweep, mx_lanes
from chipmath.experiments.ilp_sweep import Point
from chipmath.formats import E4M3, E5M2
from chipmath.matmul import grouped_matmul, matmul
from chipmath.quantize import MXTensor
from oracles import cdna, cdna_matrix
from oracles.execute import execute, mistake
from test_matmul_gpu import assert_same_fold, every_fold, whole_numbers
from test_ptx_matmul import codes_alone


def operand(*shape, fmt=E4M3, seed=0):
    """Integers up to 8, scales from 1/4 to 4."""
    return whole_numbers(*shape, exponents=(-2, 3), seed=seed, fmt=fmt)


ROUTES = [("gfx950", "dot_scaled"), ("gfx950", "fp16_relative"), ("gfx950", "folded_128")]
ROUTES += [("gfx942", "dot_scaled"), ("gfx942", "fp16_relative")]


@pytest.mark.parametrize(("arch", "route"), ROUTES)
def test_machine_code_multiplies_as_the_reference(compiled, arch, route):
    """Two tiles of columns, three steps of K, and edges in both directions."""
    kernel = compiled(arch)[route]
    a, b = operand(100, 384, seed=1), operand(176, 384, seed=2)
    assert torch.equal(matmul_gpu.matmul(a, b, route), matmul(a, b))
    assert (kernel.stores.pop("c") == 1).all()
    assert not any(count.any() for count in kernel.stores.values() if count is not None)


LONG = [pytest.param(*case, marks=pytest.mark.slow if case[0] == "gfx942" else []) for case in ROUTES]


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize(("arch", "route"), LONG)
def test_every_code_comes_through(compiled, arch, route, fmt):
    compiled(arch)
    a, b = codes_alone(fmt)
    assert torch.equal(matmul_gpu.matmul(a, b, route), matmul(a, b))


def test_every_scale_byte_is_what_e8m0_says(compiled):
    """gfx950's matrix instructions take all 256, NaN and the subnormal 2**-127 too."""
    compiled("gfx950")
    alone = torch.zeros(256, 128, dtype=torch.uint8)
    alone[torch.arange(256), torch.arange(256) % 128] = E4M3.encode(torch.tensor(1.0))
    a = MXTensor(alone, torch.arange(256).byte()[:, None].expand(256, 4).contiguous(), E4M3, -1, 32)
    b = MXTensor(E4M3.encode(torch.ones(5, 128)), torch.full((5, 4), 127).byte(), E4M3, -1, 32)
    got, expected = matmul_gpu.matmul(a, b, "dot_scaled"), matmul(a, b)
    assert torch.equal(got[:255], expected[:255])
    assert got[255].isnan().all()


def test_formats_that_differ_and_a_k_that_no_step_divides(compiled):
    compiled("gfx950")
    a, b = operand(32, 160, fmt=E5M2, seed=3), operand(64, 160, seed=4)
    assert torch.equal(matmul_gpu.matmul(a, b, "dot_scaled"), matmul(a, b))


def test_groups_of_rows(compiled):
    compiled("gfx950")
    a, b, sizes = operand(170, 128, seed=5), operand(3, 96, 128, seed=6), [40, 0, 130]
    assert torch.equal(matmul_gpu.grouped_matmul(a, b, sizes, "dot_scaled"), grouped_matmul(a, b, sizes))


def test_nan_reaches_its_row_or_column_and_no_other(compiled):
    compiled("gfx950")
    a, b = operand(40, 256, seed=7), operand(33, 256, seed=8)
    a.scales[5, 3], b.elements[7, 200] = 0xFF, 0x7F
    got, expected = matmul_gpu.matmul(a, b, "dot_scaled"), matmul(a, b)
    assert expected.isnan().sum() == 40 + 33 - 1
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_machine_code_decodes_every_code(compiled, arch, fmt):
    """`matmul_gpu.dequantize`, whose last program is only partly filled."""
    compiled(arch)
    codes = torch.arange(256, dtype=torch.uint8).repeat(33).view(33, 256)
    mx = MXTensor(codes, torch.arange(60, 60 + 33 * 4, dtype=torch.uint8)[: 33 * 8].repeat(2).view(33, 8), fmt, -1, 32)
    got, expected = matmul_gpu.dequantize(mx), mx.dequantize(torch.bfloat16)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
def test_machine_code_folds_every_code_by_every_distance(compiled, fmt):
    mx = every_fold(fmt)
    # What FP16_OVFL makes of an Inf times a number is not modelled, and is overwritten.
    mx.elements[fmt.decode(mx.elements).isinf()] = fmt.nan_code
    expected = matmul_gpu.fold(mx)
    compiled("gfx950")
    assert_same_fold(matmul_gpu.fold(mx), expected)


ON_AMD = [(name, source) for name, each in ilp.INSTRUCTIONS.items() if each.arch == "gfx950" for source in each.sources]


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize(("name", "source"), ON_AMD)
def test_chains_that_are_timed_add_up_what_their_check_expects(name, source, chains):
    """Two groups, three steps; a scale of 2 in A and in B makes it four times."""
    try:
        binary = ilp_sweep.compile_chains(name, chains, source)
    except CompilerMissing as error:
        pytest.skip(str(error))
    instruction, steps, groups = ilp.INSTRUCTIONS[name], 3, 2
    total, count = ilp.operands(name, chains, ilp_sweep.SEED)[1], steps * instruction.depth(chains)
    for scales, factor in ((0x7F7F7F7F, 1), (0x80808080, 4 if "scale" in name else 1)):
        arguments = ilp_sweep.launch_arguments(Point(name, source, chains, 1), groups, 0, "cpu")
        stored = execute(binary, (groups,), [*arguments[:5], steps, scales])
        assert all((counts == 1).all() for counts in stored[:4])
        trace = ilp_sweep.trace_of(arguments, groups * instruction.threads)
        assert ilp.wrong_waves(trace, name, factor * total, count) == 0
        assert ilp.wrong_waves(trace, name, factor * total, count + 1) > 0
        assert all(start < stop for start, stop in zip(trace.starts, trace.stops))


MISTAKES = {  # and what comes of it
    "operands swapped": (mistake(r"(v_mfma_scale\S+ \S+,) (v\S+), (v\S+),", r"\1 \3, \2,"), AssertionError),
    "scales swapped": (mistake(r"(v_mfma_scale.*\],) (v\d+), (v\d+) ", r"\1 \3, \2 "), AssertionError),
    "another byte of a scale": (mistake(r"op_sel_hi:\[1,0,0\]", "op_sel_hi:[0,0,0]"), AssertionError),
    "another place in LDS": (mistake(r"(ds_read_b128 .*) offset:64", r"\1 offset:128"), AssertionError),
    "loads that no wait covers": (
        mistake(r"s_waitcnt vmcnt\(0\) lgkmcnt\(0\)", "s_waitcnt lgkmcnt(0)"),
        cdna.HazardError,
    ),
    "no barrier": (mistake(r"s_barrier", "s_nop 0"), cdna.HazardError),
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_wrong_code_would_be_seen(compiled, wrong):
    edit, error = MISTAKES[wrong]
    compiled("gfx950", edit)
    a, b = operand(128, 256, seed=9), operand(128, 256, seed=10)
    with pytest.raises(error):
        assert torch.equal(matmul_gpu.matmul(a, b, "dot_scaled"), matmul(a, b))


# --- lanes ------------------------------------------------------------------------------------------------------------
# CDNA4 ISA, sections 7.1.3 to 7.1.5 and 7.2.1, read off the tables: (lane, register, byte) -> (row, place in K).
PLACES = {
    (32, 64, 1): {
        (17, 4, 0): (17, 32),
        (40, 0, 3): (8, 19),
        (63, 7, 3): (31, 63),
        (32, 3, 3): (0, 31),
        (5, 4, 1): (5, 33),
    },
    (16, 128, 1): {(20, 0, 0): (4, 16), (16, 4, 0): (0, 80), (63, 7, 3): (15, 127), (32, 2, 1): (0, 41)},
    (32, 16, 2): {(32, 0, 0): (0, 8), (16, 3, 2): (16, 7), (63, 3, 2): (31, 15)},
    (16, 32, 2): {(16, 0, 0): (0, 8), (63, 3, 2): (15, 31), (40, 1, 0): (8, 18)},
    (32, 8, 2): {(32, 0, 0): (0, 4), (31, 1, 2): (31, 3)},  # CDNA3
}


@pytest.mark.parametrize("instruction", PLACES, ids=str)
def test_a_lanes_bytes_are_those_of_the_isas_tables(instruction):
    rows, k, size = instruction
    words = np.zeros((rows * k * size // 256, 1, 64), np.uint32)
    for (lane, register, byte), (row, place) in PLACES[instruction].items():
        words[register, 0, lane] = 0xAB << 8 * byte
        matrix = cdna_matrix.rows_of(words, rows, 2 if size == 1 else 1)
        assert matrix.shape == (1, rows, k * size)
        assert np.argwhere(matrix[0]).tolist() == [[row, place * size]]
        words[:] = 0


@pytest.mark.parametrize(
    ("rows", "row", "column", "register", "lane"),
    [
        (32, 27, 31, 15, 31),
        (32, 4, 0, 0, 32),
        (32, 8, 1, 4, 1),
        (32, 31, 31, 15, 63),
        (16, 5, 3, 1, 19),
        (16, 15, 0, 3, 48),
    ],
)
def test_a_results_place_is_that_of_the_isas_tables(rows, row, column, register, lane):
    matrix = np.zeros((1, rows, rows), np.float32)
    matrix[0, row, column] = 1
    registers = cdna_matrix.registers_of(matrix)
    assert np.argwhere(registers).tolist() == [[register, 0, lane]]
    assert (cdna_matrix.matrix_of(registers, rows) == matrix).all()


@pytest.mark.parametrize(
    ("rows", "lane", "row", "block"), [(32, 33, 1, 1), (32, 16, 16, 0), (16, 16, 0, 1), (16, 63, 15, 3)]
)
def test_a_scales_lane_is_that_of_the_isas_tables(rows, lane, row, block):
    words = np.zeros((1, 1, 64), np.uint32)
    words[0, 0, lane] = 129 << 16
    assert np.argwhere(cdna_matrix.scales_of(words, rows, 2) == 4.0).tolist() == [[0, row, block]]


@pytest.mark.parametrize("instruction", mx_lanes.INSTRUCTIONS)
def test_triton_has_the_same_lanes(instruction):
    pytest.importorskip("triton")
    case = mx_lanes.compile_case("gfx950", instruction)
    rows = case["rows"]
    words = np.zeros((8, 1, 64), np.uint32)
    words[:4, 0, 0] = 0xFFFFFFFF
    assert cdna_matrix.rows_of(words, rows, 2)[0, 0].nonzero()[0].tolist() == list(range(case["elements_in_a_run"]))
    for bit, (row, block) in enumerate(json.loads(case["scale_of_lane_bits"])):
        words[:] = 0
        words[0, 0, 1 << bit] = 128
        assert np.argwhere(cdna_matrix.scales_of(words[:1], rows, 0) == 2.0).tolist() == [[0, row, block]]
