"""The timed chains: machine code of every point, what a launch must give back, and the rows made of it."""

import dataclasses
import functools
import re
from collections import Counter

import pytest
from chipmath.crosscompile import AMD_OPCODE, SASS_OPCODE, CompilerMissing, compile_triton
from chipmath.devices import DEVICES
from chipmath.experiments import EXPERIMENTS, ExperimentError, ilp_sweep
from chipmath.experiments.bytes_in_flight import innermost_loop
from chipmath.formats import E4M3
from chipmath.gpu import Gpu
from chipmath.ilp import INSTRUCTIONS, Trace, expected_fraction, operands, span_of_units, wrong_waves

torch = pytest.importorskip("torch")

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")
# What may stand in the loop beside the chains: its counter, and fences of the whole loop body.
LOOP_ONLY = re.compile(
    r"UIADD3|IADD3|ISETP|BRA|NOP|UMOV|WARPGROUP\.(ARRIVE|DEPBAR)|s_add|s_cmp|s_cbranch|s_waitcnt|s_nop|v_mov"
)


def silent(done, total, text):
    pass


@functools.cache
def compiled_or_skip(name, chains):
    try:
        return ilp_sweep.compile_chains(name, chains)
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")


@pytest.mark.parametrize(
    ("name", "chains"),
    [(name, c) for name, its in INSTRUCTIONS.items() for c in (1, 2, 4, its.most_chains)],
)
def test_every_chain_is_in_the_loop_and_nothing_else(name, chains):
    """Neither merged nor optimised away, no register spilled, an accumulator of its own for each chain."""
    binary, instruction = compiled_or_skip(name, chains), INSTRUCTIONS[name]
    assert binary.spills == 0
    assert binary.threads == instruction.threads
    body = innermost_loop(binary.isa, instruction.opcode)
    opcodes = Counter((AMD_OPCODE if binary.arch == "gfx950" else SASS_OPCODE).findall(body))
    matrix = {opcode: n for opcode, n in opcodes.items() if re.fullmatch(instruction.opcode, opcode)}
    assert len(matrix) == 1
    assert sum(matrix.values()) == chains * instruction.depth
    assert all(LOOP_ONLY.match(opcode) for opcode in opcodes if opcode not in matrix), opcodes
    assert chain_starts(body, instruction.opcode) == chains


def operations(body, opcode):
    """Target and sources of every instruction, by the first register of each operand."""
    lines = re.findall(rf"\b{opcode}\s+([^;\n]*)", body)
    return [(found[0], found[1:]) for line in lines for found in [re.findall(r"\bR\d+\b|[va]\[\d+:\d+\]", line)]]


def chain_starts(body, opcode):
    """How many instructions of the loop read no result of an earlier one: so many chains are there."""
    written, starts = set(), 0
    for target, sources in operations(body, opcode):
        starts += not written & set(sources)
        written.add(target)
    return starts


def test_merged_chains_are_noticed():
    two = "HMMA R4, R8, R2, R4 ;\nHMMA R12, R8, R2, R12 ;\nHMMA R4, R8, R2, R4 ;\nHMMA R12, R8, R2, R12 ;\n"
    assert chain_starts(two, "HMMA") == 2
    assert chain_starts(two.replace("R12", "R4"), "HMMA") == 1


@pytest.mark.parametrize("name", ["FFMA", "mma.sync m16n8k16 bf16", "mfma 16x16x128", "mfma_scale 16x16x128"])
def test_chains_take_turns(name):
    """Each of four instructions in a row belongs to another chain: no compiler has sorted them by chain."""
    opcode = INSTRUCTIONS[name].opcode
    found = operations(innermost_loop(compiled_or_skip(name, 4).isa, opcode), opcode)
    for i in range(0, len(found), 4):
        written = set()
        for target, sources in found[i : i + 4]:
            assert not written & set(sources)
            written.add(target)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_clock_is_read_before_and_after_the_loop(name):
    isa = compiled_or_skip(name, 2).isa
    clock = (
        r"s_memtime|s_getreg_b32 s\d+, hwreg\(HW_REG_SHADER_CYCLES"
        if name.startswith("mfma")
        else r"CS2R\S* R\d+, SR_CLOCKLO"
    )
    reads = [found.start() for found in re.finditer(clock, isa)]
    inside = [found.start() for found in re.finditer(INSTRUCTIONS[name].opcode, isa)]
    assert len(reads) == 2
    assert reads[0] < inside[0]
    assert inside[-1] < reads[1]


def test_shapes_and_rates():
    """2 * products over the clocks of a pipe is the data sheet's rate: T of each instruction, by hand."""
    clocks = {
        "FFMA": 1,  # 32 lanes of a sub-partition
        "mma.sync m16n8k16 bf16": 4,
        "wgmma m64n64k32 e4m3": 32,  # all four sub-partitions together
        "mfma 16x16x128": 32,
        "mfma_scale 16x16x128": 32,
    }
    for name, instruction in INSTRUCTIONS.items():
        pipes = DEVICES[instruction.arch].simds // instruction.waves
        assert 2 * instruction.products * pipes / clocks[name] == instruction.flop_per_clock_at_most


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_operands_hold_the_sum_that_is_expected(name):
    words, total = operands(name, 2)
    assert words.dtype == torch.int32
    encoding, decode = INSTRUCTIONS[name].encoding, {"float32": torch.float32, "bfloat16": torch.bfloat16}
    values = E4M3.decode(words.view(torch.uint8)) if encoding == "e4m3" else words.view(decode[encoding]).float()
    count = INSTRUCTIONS[name].a_elements * (1 if name.startswith("wgmma") else 2)
    a, b = values[:count], values[count:]
    assert set(a.tolist()) == {-1.0, 0.0, 1.0, 2.0} | ({-2.0} if name.startswith("wgmma") else set())
    assert set(b.tolist()) == {1.0}
    assert int(a.sum()) * (2 if name.startswith("wgmma") else 1) == total
    assert total != 0


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_accumulators_stay_whole_numbers_that_float32_holds(name):
    """|c| <= iterations * K * 2, K elements of A in a row."""
    k = {"FFMA": 1, "mma.sync m16n8k16 bf16": 16, "wgmma m64n64k32 e4m3": 32}.get(name, 128)
    assert INSTRUCTIONS[name].iterations * k * 2 <= 2**24
    assert INSTRUCTIONS[name].iterations % INSTRUCTIONS[name].depth == 0


def test_hoppers_fp8_accumulators_stay_exact():
    """They keep 13 bits behind the leading one: a larger whole number would lose its unit, and every sum be wrong.

    Rows are read where ilp_timed.cu's descriptor says: 8 rows of 16 bytes, the two halves of K 128 bytes apart, row
    blocks 256.
    """
    name = "wgmma m64n64k32 e4m3"
    tile = E4M3.decode(operands(name, 1)[0].view(torch.uint8))[: 64 * 32]
    for row in range(64):
        places = [row // 8 * 256 + k // 16 * 128 + row % 8 * 16 + k % 16 for k in range(32)]
        assert float(tile[places].sum()) == 1
    assert INSTRUCTIONS[name].iterations <= 2**13
    assert len(set(tile.view(-1, 16).sum(1).tolist())) > 1, "no half of a row is like the other"


def test_a_lost_chain_is_noticed():
    name, iterations = "mma.sync m16n8k16 bf16", 100
    a_sum = operands(name, 2)[1]
    right = [0] * 31 + [iterations * 8 * a_sum]
    assert wrong_waves(Trace(right * 3, [], [], []), name, a_sum, iterations) == 0
    lost = [0] * 31 + [iterations * 8 * operands(name, 1)[1]]
    assert wrong_waves(Trace(right + lost + right, [], [], []), name, a_sum, iterations) == 1


def test_spans_run_from_first_start_to_last_stop():
    trace = Trace([], [5, 100, 9, 101], [50, 160, 60, 150], [0, 7, 0, 7])
    assert span_of_units(trace, 2) == [55, 60]


@pytest.mark.parametrize(
    ("trace", "told"),
    [
        (Trace([], [0, 0, 0], [9, 9, 9], [1, 1, 2]), "unit 2 held 1 groups, not 2"),
        (Trace([], [0, 30], [25, 60], [4, 4]), "on unit 4 a group left 5 clocks before another came"),
    ],
)
def test_groups_that_were_not_there_together_are_refused(trace, told):
    with pytest.raises(ValueError, match=told):
        span_of_units(trace, 2)


def test_little_knows_only_the_product():
    assert [expected_fraction(x, 32, 48) for x in (1, 1.5, 2, 9)] == [pytest.approx(2 / 3), 1, 1, 1]


@pytest.mark.parametrize(("name", "chains"), [("FFMA", 0), ("wgmma m64n64k32 e4m3", 7)])
def test_too_many_or_no_chains_are_refused(name, chains):
    with pytest.raises(ValueError, match=rf"{re.escape(name)} has 1 to \d chains, got {chains}"):
        ilp_sweep.compile_chains(name, chains)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_gluon_twin_has_the_scaled_instruction_and_as_many_chains(count):
    pytest.importorskip("triton")
    from chipmath.ilp_gluon import chains

    signature = {name: f"{kind}:DS" for name, kind in {"a": "*fp8e4nv", "b": "*fp8e4nv", "scales": "*u8"}.items()}
    signature |= {"c": "*fp32:DS", "steps": "i32"}
    binary = compile_triton(chains, signature, {"CHAINS": count}, "gfx950", num_warps=1)
    opcode = INSTRUCTIONS["mfma_scale 16x16x128"].opcode
    body = innermost_loop(binary.isa, opcode)
    opcodes = Counter(AMD_OPCODE.findall(body))
    assert opcodes["v_mfma_scale_f32_16x16x128_f8f6f4"] == chain_starts(body, opcode) == count
    assert all(LOOP_ONLY.match(found) or re.fullmatch(opcode, found) for found in opcodes), opcodes
    assert binary.spills == 0


# Rows


def device_of(clocks, units=2):
    """A device on which every launch takes so many clocks and adds up."""

    def run(binary, name, chains, groups, dynamic_shared_bytes):
        instruction = INSTRUCTIONS[name]
        size = DEVICES[instruction.arch].wave_lanes * instruction.waves
        total = instruction.iterations * instruction.columns * operands(name, chains)[1]
        sums = [total if t % size == 0 else 0 for t in range(groups * instruction.threads)]
        return Trace(sums, [0] * groups, [clocks] * groups, [g % units for g in range(groups)])

    return run


def test_rates_are_flop_over_the_units_own_clocks():
    compiled_or_skip("mma.sync m16n8k16 bf16", 2)
    cases = [("mma.sync m16n8k16 bf16", 2, 1), ("mma.sync m16n8k16 bf16", 2, 4)]
    method, rows = ilp_sweep._measure("sm_90", 2, cases, device_of(1 << 20), True, silent)
    one, four = rows
    # Four warps a block, two chains, 32768 iterations of 2 * 16 * 8 * 16 FLOP in 2**20 clocks
    assert one["flop_per_clock_p50"] == 4 * 2 * 32768 * 4096 / 2**20
    assert four["flop_per_clock_p50"] == 4 * one["flop_per_clock_p50"]
    assert (one["chains_per_simd"], four["chains_per_simd"]) == (2, 8)
    assert (one["fraction_of_best"], four["fraction_of_best"]) == (0.25, 1)
    assert four["fraction_of_datasheet"] == 4096 / 4096
    assert set(one) == set(EXPERIMENTS["ilp_sweep"].columns)
    assert method["compiler"].startswith(("nvcc", "NVRTC"))


def test_a_point_that_registers_do_not_admit_is_left_out():
    """Six chains of wgmma take more than 128 registers: four warpgroups never fit."""
    compiled_or_skip("wgmma m64n64k32 e4m3", 6)
    cases = [("wgmma m64n64k32 e4m3", 6, groups) for groups in (1, 2, 4)]
    _, rows = ilp_sweep._measure("sm_90", 2, cases, device_of(1 << 20), True, silent)
    assert [row["waves_per_simd"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: dataclasses.replace(t, sums=[t.sums[0] + 1, *t.sums[1:]]), "1 waves add up to another number"),
        (lambda t: dataclasses.replace(t, units=[0] * len(t.units)), "unit 0 held 2 groups, not 1"),
    ],
)
def test_what_does_not_add_up_is_not_timed(change, told):
    compiled_or_skip("FFMA", 1)
    good = device_of(1 << 20)
    with pytest.raises(ExperimentError, match=told):
        ilp_sweep._measure("sm_90", 2, [("FFMA", 1, 1)], lambda *a: change(good(*a)), True, silent)


def test_other_chips_are_refused():
    with pytest.raises(ExperimentError, match="ilp_sweep has instructions for gfx950, sm_90, not for gfx942"):
        ilp_sweep.measure(dataclasses.replace(CARD, arch="gfx942"), True, silent)


def test_predictions_are_littles_law_where_both_clocks_are_known():
    rows = ilp_sweep.predict()
    mfma = {row["chains"]: row for row in rows if row["instruction"] == "mfma 16x16x128"}
    assert mfma[1]["fraction_at_least"] == pytest.approx(32 / 48)
    assert mfma[2]["fraction_at_least"] == 1
    assert mfma[8]["flop_per_clock_at_most"] == 8192
    assert {row["fraction_at_least"] for row in rows if row["arch"] == "sm_90"} == {None}
