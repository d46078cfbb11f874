"""Chains per wave against waves per SIMD, in the unit's own clocks: does one curve hold all points?

Every point launches exactly as many groups as the device holds at once. It counts only if each unit had its share of
them at the same time, and if every wave's accumulators add up to the one right whole number; the recording names a
point that does not count, and why. Each instruction is timed
in two languages, C++ and Gluon: the same chains by another compiler.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chipmath.crosscompile import (
    Binary,
    CompileError,
    CompilerMissing,
    compile_cuda,
    compile_hip,
    compile_triton,
    find_triton,
)
from chipmath.devices import DEVICES, device
from chipmath.experiments.at_once import compile_at_once
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.timing import spread
from chipmath.gpu import Gpu
from chipmath.ilp import INSTRUCTIONS, Instruction, Trace, expected_fraction, operands, span_of_units, wrong_waves
from chipmath.occupancy import shared_ceilings
from chipmath.recordings import PACKAGE

CHAINS = (1, 2, 3, 4, 6, 8)
GROUPS = (1, 2, 4, 8)  # per unit: waves per SIMD, as a group has one wave for each SIMD
QUICK_CHAINS, QUICK_GROUPS = (1, 2, 8), (1, 4)  # two kernels of each: their compilers take most of the time
ROUNDS, QUICK_ROUNDS = 9, 3
SEED = 0

OLDEST_TRITON = (3, 6)  # whose Gluon has all that ilp_gluon.py asks for


@dataclass(frozen=True)
class Point:
    """A point of the sweep; ``groups`` are those of a unit."""

    instruction: str
    source: str  # language of the kernel
    chains: int
    groups: int

    def __str__(self) -> str:
        """In words, for progress and errors."""
        return f"{self.instruction} in {self.source}, {self.chains} chains, {self.groups} groups a unit"


Run = Callable[[Binary, Point, int, int], Trace]  # binary, point, groups, dynamic shared bytes


def compile_chains(name: str, chains: int, source: str) -> Binary:
    """The timed kernel of one instruction, in the language ``source``."""
    instruction = INSTRUCTIONS[name]
    if not 1 <= chains <= instruction.most_chains:
        raise ValueError(f"{name} has 1 to {instruction.most_chains} chains, got {chains}")
    if source not in instruction.sources:
        raise ValueError(f"{name} is written in {', '.join(instruction.sources)}, not in {source!r}")
    if source == "Gluon":
        return compile_gluon(instruction, chains, instruction.arch)
    macros = {
        **instruction.macros,
        "CHAINS": chains,
        "DEPTH": instruction.depth(chains),
        "THREADS": instruction.threads,
    }
    if source == "CUDA":
        return compile_cuda(PACKAGE / "ilp_timed.cu", instruction.arch, macros)
    return compile_hip(PACKAGE / "ilp_timed.hip", instruction.arch, macros)


def compile_gluon(instruction: Instruction, chains: int, arch: str) -> Binary:
    """The Gluon kernel of an instruction; CompilerMissing where there is no Triton, or one that is too old."""
    version = find_triton().__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise CompilerMissing(f"no Gluon for ilp_gluon.py: it needs Triton {oldest} or later, this is {version}")
    from chipmath import ilp_gluon

    amd = device(arch).vendor == "AMD"
    words = {"float32": "*fp32", "bfloat16": "*bf16", "e4m3": "*fp8e4nv"}[instruction.encoding]
    pointers = {"sums": "*i64", "starts": "*i64", "stops": "*i64", "units": "*i32", "words": words}
    signature = {name: f"{kind}:{'DS' if amd else 'D'}" for name, kind in pointers.items()} | {"steps": "i32"}
    if amd:
        signature["scales"] = "i32"
    return compile_triton(
        getattr(ilp_gluon, instruction.gluon),
        signature,
        {"CHAINS": chains, "DEPTH": instruction.depth(chains)},
        arch,
        num_warps=instruction.threads // device(arch).wave_lanes,
    )


def points(arch: str, quick: bool) -> list[Point]:
    """Every point on a chip."""
    chains, groups = (QUICK_CHAINS, QUICK_GROUPS) if quick else (CHAINS, GROUPS)
    names = [name for name, instruction in INSTRUCTIONS.items() if instruction.arch == arch]
    return [
        Point(name, source, c, g)
        for name in names
        for source in INSTRUCTIONS[name].sources
        for c in chains
        if c <= INSTRUCTIONS[name].most_chains
        for g in groups
    ]


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    import torch

    if gpu.arch not in {instruction.arch for instruction in INSTRUCTIONS.values()}:
        known = ", ".join(sorted({instruction.arch for instruction in INSTRUCTIONS.values()}))
        raise ExperimentError(f"ilp_sweep has instructions for {known}, not for {gpu.arch}")
    units = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return _measure(gpu.arch, units, points(gpu.arch, quick), run_on_device, quick, progress)


def run_on_device(binary: Binary, point: Point, groups: int, dynamic_shared_bytes: int) -> Trace:
    """The second of two launches of so many groups in all; the first brings code and operands into the caches."""
    import torch

    from chipmath.experiments.launching import loaded

    threads = INSTRUCTIONS[point.instruction].threads
    first, second = (launch_arguments(point, groups, binary.parameters, "cuda") for _ in range(2))
    torch.cuda.synchronize()  # they are ready, whichever stream made them
    with loaded(binary, threads, dynamic_shared_bytes=dynamic_shared_bytes) as enqueue:
        enqueue(groups, first)
        enqueue(groups, second)
    return trace_of(second, groups * threads)


def launch_arguments(point: Point, groups: int, parameters: int, where: str) -> list:
    """What the kernel is given: four tensors to fill, in the order of `Trace`, the operands, and numbers.

    parameters  how many there are; what is beyond ours is scratch memory that Triton could ask for, and here does not
    where       torch's name of the device
    """
    import torch

    instruction = INSTRUCTIONS[point.instruction]
    words, _ = operands(point.instruction, point.chains, SEED)
    each = instruction.accumulators if point.source == "Gluon" else 1
    sums = torch.full((groups * instruction.threads * each,), -1, dtype=torch.int64, device=where)
    starts, stops = (torch.zeros(groups, dtype=torch.int64, device=where) for _ in range(2))
    units = torch.full((groups,), -1, dtype=torch.int32, device=where)
    steps = instruction.iterations // instruction.depth(point.chains)
    arguments = [sums, starts, stops, units, words.to(where), steps]
    if instruction.arch.startswith("gfx"):
        arguments.append(0x7F7F7F7F)  # four scale bytes that are one
    return arguments + [torch.empty(0, device=where)] * (parameters - len(arguments))  # null pointers


def trace_of(arguments: list, threads: int) -> Trace:
    """What a launch of so many threads in all left behind in its arguments."""
    sums, starts, stops, units = arguments[:4]
    by_thread = sums.view(threads, -1).sum(1)  # Gluon leaves a thread's accumulators to be added up
    return Trace(by_thread.tolist(), starts.tolist(), stops.tolist(), units.tolist())


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same with a stand-in for the device, which answers as Little's law does with a made-up latency."""

    def run(binary: Binary, point: Point, groups: int, dynamic_shared_bytes: int) -> Trace:
        instruction, units = INSTRUCTIONS[point.instruction], 3
        waves = groups // units * (instruction.threads // device(instruction.arch).wave_lanes)
        clocks = instruction.iterations * max(point.chains * waves // instruction.waves, 33)
        threads = groups * instruction.threads
        size = device(instruction.arch).wave_lanes * instruction.waves
        a_sum = operands(point.instruction, point.chains, SEED)[1]
        total = instruction.iterations * instruction.columns * a_sum
        sums = [total if thread % size == 0 else 0 for thread in range(threads)]
        return Trace(sums, [7] * groups, [7 + clocks] * groups, [group % units for group in range(groups)])

    arch = _arch_with_compiler()
    return _measure(arch, 3, points(arch, True)[::3], run, True, progress)


def _arch_with_compiler() -> str:
    missing = []
    for name in ("mma.sync m16n8k16 bf16", "mfma_scale 16x16x128"):
        for source in INSTRUCTIONS[name].sources:
            try:
                compile_chains(name, 1, source)
                return INSTRUCTIONS[name].arch
            except CompilerMissing as error:
                missing.append(str(error))
    raise CompilerMissing("; ".join(dict.fromkeys(missing)))


def _measure(
    arch: str, units: int, cases: list[Point], run: Run, quick: bool, progress: Progress
) -> tuple[dict, list[Row]]:
    binaries, missing = _compile(cases, progress)
    launches = {case: _shared_bytes(binaries[_kernel(case)], case, arch) for case in cases if _kernel(case) in binaries}
    launches = {case: shared for case, shared in launches.items() if shared is not None}
    if not launches:
        raise ExperimentError(f"no point of the sweep fits {arch}")
    rounds, rates, refused = QUICK_ROUNDS if quick else ROUNDS, {case: [] for case in launches}, {}
    for turn in range(rounds):
        for done, (case, shared) in enumerate(launches.items()):
            progress(len(cases) + done * len(cases) // len(launches), 2 * len(cases), f"round {turn}: {case}")
            if case not in rates:
                continue
            try:
                rates[case].append(_rate(case, units, binaries[_kernel(case)], shared, run))
            except ExperimentError as error:  # this point counts for nothing in any round
                refused[str(case)] = str(error)
                del rates[case]
    if not rates:
        raise ExperimentError(f"no point of the sweep adds up: {next(iter(refused.values()))}")
    progress(2 * len(cases), 2 * len(cases), "done")
    names = dict.fromkeys(case.instruction for case in rates)
    best = {name: max(spread(r).p50 for case, r in rates.items() if case.instruction == name) for name in names}
    rows = [_row(case, binaries[_kernel(case)], values, best[case.instruction]) for case, values in rates.items()]
    method = {
        "timer": "the unit's own clock, first start to last stop of its groups; median of units, then of rounds",
        "warm": "each is the second of two launches in a row",
        "rounds": rounds,
        "iterations": {name: INSTRUCTIONS[name].iterations for name in names},
        "input": f"A: whole numbers from -2 to 2, seed {SEED}; B: ones",
        "shared": "dynamic, as much as lets exactly so many groups in",
        "left_out": "points whose registers admit fewer groups",
        "refused": refused,
        "compilers_missing": missing,
        "compilers": {case.source: binaries[_kernel(case)].compiler for case in launches},
    }
    return method, rows


def _kernel(case: Point) -> tuple[str, int, str]:
    """Arguments of `compile_chains`; all numbers of groups share one kernel."""
    return case.instruction, case.chains, case.source


def _compile(cases: list[Point], progress: Progress) -> tuple[dict[tuple[str, int, str], Binary], dict[str, str]]:
    """Every kernel by its arguments of `compile_chains`; the languages that have no compiler here, and why."""
    binaries: dict[tuple[str, int, str], Binary] = {}
    missing: dict[str, str] = {}

    def tell(done: int, kernel: tuple) -> None:
        name, chains, source = kernel
        progress(len(binaries) + done, 2 * len(cases), f"compiling {chains} chains of {name} in {source}")

    for source in dict.fromkeys(case.source for case in cases):
        kernels = (_kernel(case) for case in cases if case.source == source)
        try:
            binaries |= compile_at_once(compile_chains, kernels, tell, at_a_time=1 if source == "Gluon" else None)
        except (CompilerMissing, CompileError) as error:  # one that refuses the source is as good as none
            missing[source] = str(error)
    if missing and not binaries:
        raise CompilerMissing("; ".join(missing.values()))
    return binaries, missing


def _shared_bytes(binary: Binary, case: Point, arch: str) -> int | None:
    """Dynamic shared memory that admits exactly so many groups; None where registers admit fewer."""
    shared = shared_ceilings(arch)[case.groups] - binary.shared_bytes
    threads = INSTRUCTIONS[case.instruction].threads
    return shared if binary.occupancy(threads, dynamic_shared_bytes=shared).groups_per_unit == case.groups else None


def _rate(case: Point, units: int, binary: Binary, shared: int, run: Run) -> float:
    """FLOP per clock of a unit, the median one."""
    name, instruction = case.instruction, INSTRUCTIONS[case.instruction]
    trace = run(binary, case, units * case.groups, shared)
    wrong = wrong_waves(trace, name, operands(name, case.chains, SEED)[1], instruction.iterations)
    if wrong:
        raise ExperimentError(f"{case}: {wrong} waves add up to another number: not timed")
    try:
        spans = span_of_units(trace, case.groups)
    except ValueError as error:
        raise ExperimentError(f"{case}: {error}") from None
    if len(spans) != units:
        raise ExperimentError(f"{case}: groups on {len(spans)} of {units} units")
    waves = case.groups * instruction.threads // device(instruction.arch).wave_lanes
    instructions = waves // instruction.waves * case.chains * instruction.iterations
    return 2 * instruction.products * instructions / sorted(spans)[len(spans) // 2]


def _row(case: Point, binary: Binary, rates: list[float], best: float) -> Row:
    instruction, rate = INSTRUCTIONS[case.instruction], spread(rates)
    waves = case.groups * instruction.threads // device(instruction.arch).wave_lanes
    per_simd = waves // DEVICES[instruction.arch].simds
    return {
        "instruction": case.instruction,
        "source": case.source,
        "chains": case.chains,
        "waves_per_simd": per_simd,
        "chains_per_simd": case.chains * per_simd,
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
        *("experiments/ilp_sweep.py", "experiments/launching.py", "experiments/timing.py", "experiments/at_once.py"),
        *("ilp.py", "ilp_timed.cu", "ilp_timed.hip", "ilp_gluon.py", "mini_hip.h"),
    ),
    keys={
        "instruction": "what every chain repeats",
        "source": "language of the kernel: CUDA or HIP, or Gluon",
        "chains": "independent chains in a wave or warp",
        "waves_per_simd": "waves per SIMD, warps per sub-partition; set by shared memory",
    },
    values={
        "chains_per_simd": "chains times waves per SIMD",
        "registers": "per thread",
        "flop_per_clock_p10": "of a CU or SM, in its own clocks; over the rounds",
        "flop_per_clock_p50": "median",
        "flop_per_clock_p90": "",
        "fraction_of_best": "of the largest median for this instruction in the same run, in either language",
        "fraction_of_datasheet": "of the dense rate in chipmath.devices",
        "spills": "stores of a 32-bit register for want of registers",
        "wrong_waves": "waves with another sum than the right one: 0, or the point is not timed",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=18,  # most of it for two compilers
    prediction="Little's law with LLVM's clocks for gfx950; for sm_90, whose latencies we do not know, only the rate",
    shown={
        "arch": Shown("chip"),
        "instruction": Shown("instruction"),
        "source": Shown("source"),
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
