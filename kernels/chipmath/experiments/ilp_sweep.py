"""Chains per wave against waves per SIMD, in the unit's own clocks: does one curve hold all points?

Every point launches exactly as many groups as the device holds at once. It counts only if each unit had its share of
them at the same time, and if every wave's accumulators add up to the one right whole number.
"""

from collections.abc import Callable

from chipmath.crosscompile import Binary, CompilerMissing, compile_cuda, compile_hip
from chipmath.devices import DEVICES, device
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.timing import spread
from chipmath.gpu import Gpu
from chipmath.ilp import INSTRUCTIONS, Trace, expected_fraction, operands, span_of_units, wrong_waves
from chipmath.occupancy import shared_ceilings
from chipmath.recordings import PACKAGE

CHAINS = (1, 2, 3, 4, 6, 8)
GROUPS = (1, 2, 4, 8)  # per unit: waves per SIMD, as a group has one wave for each SIMD
QUICK_CHAINS, QUICK_GROUPS = (1, 2, 4, 8), (1, 4)
ROUNDS, QUICK_ROUNDS = 9, 3
SEED = 0

Run = Callable[[Binary, str, int, int, int], Trace]  # binary, instruction, chains, groups, dynamic shared bytes


def compile_chains(name: str, chains: int) -> Binary:
    """The timed kernel of one instruction."""
    instruction = INSTRUCTIONS[name]
    if not 1 <= chains <= instruction.most_chains:
        raise ValueError(f"{name} has 1 to {instruction.most_chains} chains, got {chains}")
    macros = {**instruction.macros, "CHAINS": chains, "DEPTH": instruction.depth, "THREADS": instruction.threads}
    if instruction.arch.startswith("sm_"):
        return compile_cuda(PACKAGE / "ilp_timed.cu", instruction.arch, macros)
    return compile_hip(PACKAGE / "ilp_timed.hip", instruction.arch, macros)


def points(arch: str, quick: bool) -> list[tuple[str, int, int]]:
    """Instruction, chains and groups per unit of every point on a chip."""
    chains, groups = (QUICK_CHAINS, QUICK_GROUPS) if quick else (CHAINS, GROUPS)
    names = [name for name, instruction in INSTRUCTIONS.items() if instruction.arch == arch]
    return [(n, c, g) for n in names for c in chains if c <= INSTRUCTIONS[n].most_chains for g in groups]


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    import torch

    if gpu.arch not in {instruction.arch for instruction in INSTRUCTIONS.values()}:
        known = ", ".join(sorted({instruction.arch for instruction in INSTRUCTIONS.values()}))
        raise ExperimentError(f"ilp_sweep has instructions for {known}, not for {gpu.arch}")
    units = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return _measure(gpu.arch, units, points(gpu.arch, quick), run_on_device, quick, progress)


def run_on_device(binary: Binary, name: str, chains: int, groups: int, dynamic_shared_bytes: int) -> Trace:
    """One launch."""
    import torch

    from chipmath.experiments.launching import launch

    instruction = INSTRUCTIONS[name]
    words, _ = operands(name, chains, SEED)
    sums = torch.full((groups * instruction.threads,), -1, dtype=torch.int64, device="cuda")
    starts, stops = (torch.zeros(groups, dtype=torch.int64, device="cuda") for _ in range(2))
    where = torch.full((groups,), -1, dtype=torch.int32, device="cuda")
    arguments = [sums, starts, stops, where, words.cuda(), instruction.iterations // instruction.depth]
    if instruction.arch.startswith("gfx"):
        arguments.append(0x7F7F7F7F)  # four scale bytes that are one
    launch(binary, groups, instruction.threads, arguments, dynamic_shared_bytes=dynamic_shared_bytes)
    return Trace(sums.tolist(), starts.tolist(), stops.tolist(), where.tolist())


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same with a stand-in for the device, which answers as Little's law does with a made-up latency."""

    def run(binary: Binary, name: str, chains: int, groups: int, dynamic_shared_bytes: int) -> Trace:
        instruction, units = INSTRUCTIONS[name], 3
        waves = groups // units * (instruction.threads // device(instruction.arch).wave_lanes)
        clocks = instruction.iterations * max(chains * waves // instruction.waves, 33)
        threads = groups * instruction.threads
        size = device(instruction.arch).wave_lanes * instruction.waves
        total = instruction.iterations * instruction.columns * operands(name, chains, SEED)[1]
        sums = [total if thread % size == 0 else 0 for thread in range(threads)]
        return Trace(sums, [7] * groups, [7 + clocks] * groups, [group % units for group in range(groups)])

    arch = _arch_with_compiler()
    return _measure(arch, 3, points(arch, True)[::3], run, True, progress)


def _arch_with_compiler() -> str:
    for name in ("FFMA", "mfma 16x16x128"):
        try:
            compile_chains(name, 1)
            return INSTRUCTIONS[name].arch
        except CompilerMissing:
            continue
    raise CompilerMissing("ilp_sweep compiles its kernels where it runs: no nvcc or NVRTC, and no clang for gfx950")


def _measure(
    arch: str, units: int, cases: list[tuple[str, int, int]], run: Run, quick: bool, progress: Progress
) -> tuple[dict, list[Row]]:
    binaries: dict[tuple[str, int], Binary] = {}
    for done, (name, chains, _) in enumerate(cases):
        progress(done, 2 * len(cases), f"compiling {chains} chains of {name}")
        if (name, chains) not in binaries:
            binaries[name, chains] = compile_chains(name, chains)
    launches = {case: _shared_bytes(binaries[case[:2]], case, arch) for case in cases}
    launches = {case: shared for case, shared in launches.items() if shared is not None}
    if not launches:
        raise ExperimentError(f"no point of the sweep fits {arch}")
    rounds, rates = QUICK_ROUNDS if quick else ROUNDS, {case: [] for case in launches}
    for turn in range(rounds):
        for done, (case, shared) in enumerate(launches.items()):
            progress(len(cases) + done * len(cases) // len(launches), 2 * len(cases), f"round {turn}: {case}")
            rates[case].append(_rate(case, units, binaries[case[:2]], shared, run))
    progress(2 * len(cases), 2 * len(cases), "done")
    best = {name: max(spread(r).p50 for case, r in rates.items() if case[0] == name) for name, _, _ in launches}
    rows = [_row(case, binaries[case[:2]], values, best[case[0]]) for case, values in rates.items()]
    method = {
        "timer": "the unit's own clock, first start to last stop of its groups; median of units, then of rounds",
        "rounds": rounds,
        "iterations": {name: INSTRUCTIONS[name].iterations for name, _, _ in launches},
        "input": f"A: whole numbers from -2 to 2, seed {SEED}; B: ones",
        "shared": "dynamic, as much as lets exactly so many groups in",
        "left_out": "points whose registers admit fewer groups",
        "compiler": next(iter(binaries.values())).compiler,
    }
    return method, rows


def _shared_bytes(binary: Binary, case: tuple[str, int, int], arch: str) -> int | None:
    """Dynamic shared memory that admits exactly so many groups; None where registers admit fewer."""
    name, _, groups = case
    shared = shared_ceilings(arch)[groups] - binary.shared_bytes
    threads = INSTRUCTIONS[name].threads
    return shared if binary.occupancy(threads, dynamic_shared_bytes=shared).groups_per_unit == groups else None


def _rate(case: tuple[str, int, int], units: int, binary: Binary, shared: int, run: Run) -> float:
    """FLOP per clock of a unit, the median one."""
    name, chains, groups_per_unit = case
    instruction = INSTRUCTIONS[name]
    trace = run(binary, name, chains, units * groups_per_unit, shared)
    wrong = wrong_waves(trace, name, operands(name, chains, SEED)[1], instruction.iterations)
    if wrong:
        raise ExperimentError(f"{name}, {chains} chains: {wrong} waves add up to another number: not timed")
    try:
        spans = span_of_units(trace, groups_per_unit)
    except ValueError as error:
        raise ExperimentError(f"{name}, {chains} chains, {groups_per_unit} groups a unit: {error}") from None
    if len(spans) != units:
        raise ExperimentError(f"{name}: groups on {len(spans)} of {units} units")
    waves = groups_per_unit * instruction.threads // device(instruction.arch).wave_lanes
    instructions = waves // instruction.waves * chains * instruction.iterations
    return 2 * instruction.products * instructions / sorted(spans)[len(spans) // 2]


def _row(case: tuple[str, int, int], binary: Binary, rates: list[float], best: float) -> Row:
    name, chains, groups = case
    instruction, rate = INSTRUCTIONS[name], spread(rates)
    waves = groups * instruction.threads // device(instruction.arch).wave_lanes
    per_simd = waves // DEVICES[instruction.arch].simds
    return {
        "instruction": name,
        "chains": chains,
        "waves_per_simd": per_simd,
        "chains_per_simd": chains * per_simd,
        "registers": binary.registers,
        **{f"flop_per_clock_{p}": value for p, value in vars(rate).items()},
        "fraction_of_best": rate.p50 / best,
        "fraction_of_datasheet": rate.p50 / instruction.flop_per_clock_at_most,
        "spills": binary.spills,
        "wrong_waves": 0,
    }


def predict() -> list[Row]:
    """Little's law with LLVM's T and L for CDNA4's matrix instructions; NVIDIA states neither: only the most."""
    cdna4 = next(i for i in DEVICES["gfx950"].matrix_instructions if i.k == 128 and "fp8" in i.formats)
    rows = []
    for name, instruction in INSTRUCTIONS.items():
        known = instruction.arch == "gfx950"
        for chains in QUICK_CHAINS if known else (1,):
            law = expected_fraction(chains, cdna4.issue_clocks, cdna4.result_clocks) if known else None
            rows.append(
                {"arch": instruction.arch, "instruction": name, "chains": chains, "waves_per_simd": 1}
                | {"chains_per_simd": chains, "flop_per_clock_at_most": instruction.flop_per_clock_at_most}
                | {"fraction_at_least": law}
            )
    return rows


EXPERIMENT = MeasuredExperiment(
    name="ilp_sweep",
    question="Do more chains in a wave and more waves on a SIMD fill the pipe alike?",
    sources=(
        *("experiments/ilp_sweep.py", "experiments/launching.py", "experiments/timing.py"),
        *("ilp.py", "ilp_timed.cu", "ilp_timed.hip", "mini_hip.h"),
    ),
    keys={
        "instruction": "what every chain repeats",
        "chains": "independent chains in a wave or warp",
        "waves_per_simd": "waves per SIMD, warps per sub-partition; set by shared memory",
    },
    values={
        "chains_per_simd": "chains times waves per SIMD",
        "registers": "per thread",
        "flop_per_clock_p10": "of a CU or SM, in its own clocks; over the rounds",
        "flop_per_clock_p50": "median",
        "flop_per_clock_p90": "",
        "fraction_of_best": "of the largest median for this instruction in the same run",
        "fraction_of_datasheet": "of the dense rate in chipmath.devices",
        "spills": "stores of a 32-bit register for want of registers",
        "wrong_waves": "waves with another sum than the right one: 0, or the point is not timed",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    prediction="Little's law with LLVM's clocks for gfx950; for sm_90, whose latencies we do not know, only the rate",
    shown={
        "arch": Shown("chip"),
        "instruction": Shown("instruction"),
        "chains": Shown("chains per wave"),
        "waves_per_simd": Shown("waves per SIMD"),
        "chains_per_simd": Shown("chains per SIMD"),
        "flop_per_clock_at_most": Shown("FLOP per clock and unit, at most", ",.0f"),
        "fraction_at_least": Shown("of that, at least", ".0%"),
        "flop_per_clock_p50": Shown("FLOP per clock and unit", ",.0f"),
        "fraction_of_best": Shown("of its best", ".1%"),
        "fraction_of_datasheet": Shown("of the data sheet", ".1%"),
    },
)
