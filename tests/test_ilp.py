"""The timed chains: machine code of every point, what a launch must give back, and the rows made of it."""

import dataclasses
import functools
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from chipmath.crosscompile import AMD_OPCODE, SASS_OPCODE, CompileError, CompilerMissing
from chipmath.devices import DEVICES
from chipmath.experiments import EXPERIMENTS, ExperimentError, ilp_sweep
from chipmath.experiments.ilp_sweep import Point, compile_chains
from chipmath.experiments.loops import innermost_loop
from chipmath.formats import E4M3
from chipmath.gpu import Gpu
from chipmath.ilp import INSTRUCTIONS, Trace, expected_fraction, operands, span_of_units, wrong_waves
from chipmath.occupancy import shared_ceilings

torch = pytest.importorskip("torch")

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")
KERNELS = [(name, source) for name, instruction in INSTRUCTIONS.items() for source in instruction.sources]
TIMED = [(*kernel, chains) for kernel in KERNELS for chains in sorted({1, 4, INSTRUCTIONS[kernel[0]].most_chains})]
# What may stand in the loop beside the chains: its counter, and fences of the whole loop body.
LOOP_ONLY = re.compile(
    r"U?I?ADD3|VIADD|U?ISETP|BRA|NOP|UMOV|WARPGROUP\.(ARRIVE|DEPBAR)|s_add|s_cmp|s_cbranch|s_waitcnt|s_nop|v_mov"
)
# And between the clocks outside the loop: registers that are set, addresses, a branch, the barrier. No memory, no sum.
AROUND_THE_LOOP = re.compile(
    r"U?LDCU?|S2U?R|CS2R|U?MOV|IMAD\.(MOV|SHL)|HFMA2\.MMA|U?ISETP|U?PLOP3|BRA|NOP|VIADD|U?IADD3|ULEA|U?LOP3|U?SHF|SGXT|BAR\.SYNC"
    r"|s_(cbranch|barrier|waitcnt|nop|bfe|lshl|lshr|ashr|mov|add|cmp)|v_mov|v_accvgpr_(read|write)"
)
CLOCK = {"NVIDIA": r"^.*CS2R\S* R\d+, SR_CLOCKLO.*$", "AMD": r"^.*(s_memtime|HW_REG_SHADER_CYCLES).*$"}
LOAD, STORE = re.compile(r"LDG|LDS|(global|buffer|flat)_load|ds_read"), re.compile(r"STG|(global|buffer|flat)_store")


def silent(done, total, text):
    pass


@functools.cache
def compiled_or_skip(name, source, chains, arch=None):
    try:
        if arch is None:
            return compile_chains(name, chains, source)
        return ilp_sweep.compile_gluon(INSTRUCTIONS[name], chains, arch)
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")


def opcodes_of(binary, text):
    return Counter((AMD_OPCODE if DEVICES[binary.arch].vendor == "AMD" else SASS_OPCODE).findall(text))


def check_the_loop(binary, name, chains):
    """Neither merged nor optimised away, no register spilled, an accumulator of its own for each chain."""
    instruction = INSTRUCTIONS[name]
    assert binary.spills == 0
    assert binary.threads == instruction.threads
    body = innermost_loop(binary.isa, instruction.opcode)
    opcodes = opcodes_of(binary, body)
    matrix = {opcode: n for opcode, n in opcodes.items() if re.fullmatch(instruction.opcode, opcode)}
    assert len(matrix) == 1
    assert sum(matrix.values()) == chains * instruction.depth(chains)
    assert all(LOOP_ONLY.match(opcode) for opcode in opcodes if opcode not in matrix), opcodes
    assert chain_starts(body, instruction.opcode) == chains
    if name.startswith("wgmma"):
        check_what_is_waited_for(body, chains, instruction.depth(chains))


def check_what_is_waited_for(body, chains, depth):
    """After each product until the oldest of all chains has ended, at the end of a step for all: the pipe stays full.

    ptxas waits for every product instead where it runs out of registers, and says so only in a warning.
    """
    waits = Counter(int(left, 16) for left in re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\w+)", body))
    assert waits == Counter({chains - 1: chains * depth}) + Counter({0: 1})


def check_the_clocks(binary, name):
    """Operands are loaded before the first, sums formed and stored after the second; all chains are in between."""
    matrix, loop = re.compile(INSTRUCTIONS[name].opcode), innermost_loop(binary.isa, INSTRUCTIONS[name].opcode)
    first, second = re.finditer(CLOCK[DEVICES[binary.arch].vendor], binary.isa, re.MULTILINE)
    between = binary.isa[first.end() : second.start()]
    assert between.count(loop) == 1
    before, head, body, tail, after = (
        opcodes_of(binary, text)
        for text in (binary.isa[: first.start()], *between.partition(loop), binary.isa[second.end() :])
    )
    barriers = {"BAR.SYNC.DEFER_BLOCKING", "s_barrier"}
    assert barriers & set(before), "all waves begin together"
    assert barriers & set(tail), "the last wave is waited for"
    assert all(AROUND_THE_LOOP.match(opcode) for opcode in head + tail), head + tail
    has = {
        kind: [any(pattern.match(opcode) for opcode in part) for part in (before, body, after)]
        for kind, pattern in {"load": LOAD, "store": STORE, "matrix": matrix}.items()
    }
    assert has["load"] == [True, False, False]
    assert has["store"] == [False, False, True]
    assert has["matrix"][1:] == [True, False]


@pytest.mark.parametrize(("name", "source", "chains"), TIMED)
def test_every_chain_is_in_the_loop_and_nothing_else(name, source, chains):
    check_the_loop(compiled_or_skip(name, source, chains), name, chains)


@pytest.mark.parametrize(("name", "source", "chains"), TIMED)
def test_between_the_clocks_is_the_loop_alone(name, source, chains):
    check_the_clocks(compiled_or_skip(name, source, chains), name)


@pytest.mark.parametrize("chains", [1, 4, 8])
def test_the_gluon_kernel_of_mma_sync_is_the_same_on_blackwell(chains):
    name = "mma.sync m16n8k16 bf16"
    binary = compiled_or_skip(name, "Gluon", chains, "sm_100")
    check_the_loop(binary, name, chains)
    check_the_clocks(binary, name)


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


@pytest.mark.parametrize(("name", "source"), KERNELS)
def test_chains_take_turns(name, source):
    """Each of four instructions in a row belongs to another chain: no compiler has sorted them by chain."""
    opcode = INSTRUCTIONS[name].opcode
    found = operations(innermost_loop(compiled_or_skip(name, source, 4).isa, opcode), opcode)
    for i in range(0, len(found), 4):
        written = set()
        for target, sources in found[i : i + 4]:
            assert not written & set(sources)
            written.add(target)


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
    for chains in range(1, INSTRUCTIONS[name].most_chains + 1):
        assert INSTRUCTIONS[name].iterations % INSTRUCTIONS[name].depth(chains) == 0


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_steps_are_about_as_long_for_every_number_of_chains(name):
    """Or a loop's own instructions would bend the curve that all points are to lie on."""
    lengths = [c * INSTRUCTIONS[name].depth(c) for c in ilp_sweep.CHAINS if c <= INSTRUCTIONS[name].most_chains]
    assert max(lengths) == INSTRUCTIONS[name].step
    assert min(lengths) * 4 >= 3 * INSTRUCTIONS[name].step


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


@pytest.mark.parametrize(("name", "chains"), [("FFMA", 0), ("wgmma m64n64k32 e4m3", 5)])
def test_too_many_or_no_chains_are_refused(name, chains):
    with pytest.raises(ValueError, match=rf"{re.escape(name)} has 1 to \d chains, got {chains}"):
        ilp_sweep.compile_chains(name, chains, "CUDA")


def test_a_language_that_an_instruction_is_not_written_in_is_refused():
    with pytest.raises(ValueError, match="mfma 16x16x128 is written in HIP, not in 'Gluon'"):
        ilp_sweep.compile_chains("mfma 16x16x128", 1, "Gluon")


# Launches


@pytest.mark.parametrize(("name", "source"), KERNELS)
@pytest.mark.parametrize("groups", ilp_sweep.GROUPS)
def test_a_launch_takes_the_shared_memory_that_admits_so_many_groups(name, source, groups):
    """All of it is taken: no group more fits beside them, though registers would admit it."""
    binary, case = compiled_or_skip(name, source, 1), Point(name, source, 1, groups)
    more = ilp_sweep._shared_bytes(binary, case, binary.arch)
    assert binary.shared_bytes + more == shared_ceilings(binary.arch)[groups]
    admitted = binary.occupancy(dynamic_shared_bytes=more)
    assert admitted.groups_per_unit == groups
    assert "shared" in admitted.limiters


def test_triton_leaves_the_tiles_of_wgmma_to_the_launch():
    """Two tiles of 64 x 32 bytes, in the object file of C++ and asked for by Triton."""
    name = "wgmma m64n64k32 e4m3"
    gluon, cuda = compiled_or_skip(name, "Gluon", 1), compiled_or_skip(name, "CUDA", 1)
    assert gluon.shared_bytes == gluon.dynamic_shared_bytes == cuda.shared_bytes == 2 * 64 * 32
    assert cuda.dynamic_shared_bytes == 0


@pytest.mark.parametrize(("name", "source"), KERNELS)
def test_a_launch_gives_every_parameter(name, source):
    binary, groups = compiled_or_skip(name, source, 4), 3
    arguments = ilp_sweep.launch_arguments(Point(name, source, 4, 1), groups, binary.parameters, "cpu")
    ours = 7 if name.startswith("mfma") else 6
    assert len(arguments) == binary.parameters
    assert binary.parameters == ours + (2 if source == "Gluon" else 0)
    assert [argument.data_ptr() for argument in arguments[ours:]] == [0] * (binary.parameters - ours)
    accumulators = {"FFMA": 32, "mma.sync m16n8k16 bf16": 16 * 8, "wgmma m64n64k32 e4m3": 64 * 64}.get(name, 16 * 16)
    issuers = groups * INSTRUCTIONS[name].threads // (lanes_of(name))
    numbers = issuers * (accumulators if source == "Gluon" else lanes_of(name))
    assert arguments[0].numel() == numbers


def lanes_of(name):
    return DEVICES[INSTRUCTIONS[name].arch].wave_lanes * INSTRUCTIONS[name].waves


# Rows


def device_of(clocks, units=2):
    """A device on which every launch takes so many clocks and adds up."""

    def run(binary, point, groups, dynamic_shared_bytes):
        instruction = INSTRUCTIONS[point.instruction]
        size = lanes_of(point.instruction)
        total = instruction.iterations * instruction.columns * operands(point.instruction, point.chains)[1]
        sums = [total if t % size == 0 else 0 for t in range(groups * instruction.threads)]
        return Trace(sums, [0] * groups, [clocks] * groups, [g % units for g in range(groups)])

    return run


@pytest.mark.parametrize("source", ["CUDA", "Gluon"])
def test_rates_are_flop_over_the_units_own_clocks(source):
    compiled_or_skip("mma.sync m16n8k16 bf16", source, 2)
    cases = [Point("mma.sync m16n8k16 bf16", source, 2, groups) for groups in (1, 4)]
    method, rows = ilp_sweep._measure("sm_90", 2, cases, device_of(1 << 20), True, silent)
    one, four = rows
    # Four warps a block, two chains, 32768 iterations of 2 * 16 * 8 * 16 FLOP in 2**20 clocks
    assert one["flop_per_clock_p50"] == 4 * 2 * 32768 * 4096 / 2**20
    assert four["flop_per_clock_p50"] == 4 * one["flop_per_clock_p50"]
    assert (one["chains_per_simd"], four["chains_per_simd"]) == (2, 8)
    assert (one["fraction_of_best"], four["fraction_of_best"]) == (0.25, 1)
    assert four["fraction_of_datasheet"] == 4096 / 4096
    assert set(one) == set(EXPERIMENTS["ilp_sweep"].columns)
    assert one["source"] == source
    assert method["compilers"][source].startswith({"CUDA": ("nvcc", "NVRTC"), "Gluon": "Triton"}[source])
    assert method["compilers_missing"] == {}


def test_the_best_of_an_instruction_is_that_of_either_language():
    for source in ("CUDA", "Gluon"):
        compiled_or_skip("FFMA", source, 1)
    slow, fast = device_of(1 << 22), device_of(1 << 20)
    cases = [Point("FFMA", source, 1, 1) for source in ("CUDA", "Gluon")]
    _, rows = ilp_sweep._measure(
        "sm_90", 2, cases, lambda b, point, *a: (fast if point.source == "Gluon" else slow)(b, point, *a), True, silent
    )
    assert {row["source"]: row["fraction_of_best"] for row in rows} == {"CUDA": 0.25, "Gluon": 1}


def test_the_best_is_of_the_same_instruction_and_the_rate_that_of_the_median_unit():
    """On five units whose groups take 1, 2, 4, 8 and 16 times as long; mma.sync is 8 times as fast as FFMA."""
    names = {"FFMA": 1 << 23, "mma.sync m16n8k16 bf16": 1 << 20}
    for name in names:
        compiled_or_skip(name, "CUDA", 1)

    def run(binary, point, groups, shared):
        trace = device_of(names[point.instruction], 5)(binary, point, groups, shared)
        slow = dict(zip((0, 1, 2, 3, 4), (4, 16, 1, 8, 2)))
        return dataclasses.replace(trace, stops=[stop * slow[unit] for stop, unit in zip(trace.stops, trace.units)])

    cases = [Point(name, "CUDA", 1, 1) for name in names]
    _, rows = ilp_sweep._measure("sm_90", 5, cases, run, True, silent)
    assert [row["fraction_of_best"] for row in rows] == [1, 1]
    mma = {row["instruction"]: row for row in rows}["mma.sync m16n8k16 bf16"]
    assert mma["flop_per_clock_p50"] == 4 * 32768 * 4096 / (4 << 20)


def test_every_point_is_timed_in_both_languages():
    for arch, quick in (("sm_90", False), ("sm_90", True), ("gfx950", False)):
        cases = ilp_sweep.points(arch, quick)
        for name in {case.instruction for case in cases}:
            each = [
                [(c.chains, c.groups) for c in cases if (c.instruction, c.source) == (name, source)]
                for source in INSTRUCTIONS[name].sources
            ]
            assert all(these == each[0] for these in each)
    assert {case.source for case in ilp_sweep.points("gfx950", True)} == {"HIP", "Gluon"}


def test_a_rehearsal_has_both_languages(monkeypatch):
    compiled_or_skip("FFMA", "CUDA", 1)
    monkeypatch.setattr(ilp_sweep, "compile_chains", lambda name, count, source: compiled_or_skip(name, source, count))
    _, rows = ilp_sweep.rehearse(silent)
    assert {row["source"] for row in rows} == {"CUDA", "Gluon"}
    assert {row["instruction"] for row in rows if row["source"] == "Gluon"} == {
        name for name, instruction in INSTRUCTIONS.items() if instruction.arch == "sm_90"
    }


def test_a_language_without_a_compiler_is_left_out_and_told(monkeypatch):
    compiled_or_skip("FFMA", "CUDA", 1)
    monkeypatch.setattr(ilp_sweep, "find_triton", lambda: SimpleNamespace(__version__="3.5.1+rocm7.1"))
    cases = [Point("FFMA", source, 1, 1) for source in ("CUDA", "Gluon")]
    method, rows = ilp_sweep._measure("sm_90", 2, cases, device_of(1 << 20), True, silent)
    assert [row["source"] for row in rows] == ["CUDA"]
    told = "no Gluon for ilp_gluon.py: it needs Triton 3.6 or later, this is 3.5.1+rocm7.1"
    assert method["compilers_missing"] == {"Gluon": told}
    with pytest.raises(CompilerMissing, match=re.escape(told)):
        ilp_sweep._measure("sm_90", 2, cases[1:], device_of(1 << 20), True, silent)


def test_a_language_whose_compiler_refuses_the_source_does_not_cost_the_other(monkeypatch):
    compiled_or_skip("FFMA", "CUDA", 1)

    def refuses(instruction, chains, arch):
        raise CompileError("ilp_gluon.py for sm_90: no such layout")

    monkeypatch.setattr(ilp_sweep, "compile_gluon", refuses)
    cases = [Point("FFMA", source, 1, 1) for source in ("CUDA", "Gluon")]
    method, rows = ilp_sweep._measure("sm_90", 2, cases, device_of(1 << 20), True, silent)
    assert [row["source"] for row in rows] == ["CUDA"]
    assert method["compilers_missing"] == {"Gluon": "ilp_gluon.py for sm_90: no such layout"}


def test_a_point_that_registers_do_not_admit_is_left_out():
    """Four chains of wgmma take more than 128 registers: four warpgroups never fit."""
    compiled_or_skip("wgmma m64n64k32 e4m3", "CUDA", 4)
    cases = [Point("wgmma m64n64k32 e4m3", "CUDA", 4, groups) for groups in (1, 2, 4)]
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
    compiled_or_skip("FFMA", "CUDA", 1)
    good = device_of(1 << 20)
    with pytest.raises(ExperimentError, match=rf"FFMA in CUDA, 1 chains, 1 groups a unit: {told}"):
        ilp_sweep._measure("sm_90", 2, [Point("FFMA", "CUDA", 1, 1)], lambda *a: change(good(*a)), True, silent)


def test_a_point_that_does_not_add_up_is_named_and_the_others_count():
    compiled_or_skip("FFMA", "CUDA", 1)
    compiled_or_skip("FFMA", "CUDA", 2)
    good, launched = device_of(1 << 20), []

    def run(binary, point, *a):
        launched.append(point.chains)
        trace = good(binary, point, *a)
        return dataclasses.replace(trace, units=[0] * len(trace.units)) if point.chains == 2 else trace

    cases = [Point("FFMA", "CUDA", chains, 1) for chains in (2, 1)]
    method, rows = ilp_sweep._measure("sm_90", 2, cases, run, True, silent)
    assert [row["chains"] for row in rows] == [1]
    assert rows[0]["fraction_of_best"] == 1
    (told,) = method["refused"].items()
    assert told == ("FFMA in CUDA, 2 chains, 1 groups a unit", f"{cases[0]}: unit 0 held 2 groups, not 1")
    assert launched.count(2) == 1


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
