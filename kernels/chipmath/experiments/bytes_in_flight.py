"""Bytes a second against bytes in flight: warps on a unit times the 16-byte loads that each thread has outstanding.

Little's law: bytes in flight on a unit = bandwidth / units * latency. It counts what is *read*: a copy has as much
again on its way to memory, for which nobody waits. Shared memory alone sets the warps; the machine code is checked to
issue all loads of a thread before it uses the first (`loads_before_use`). A point that fails a check is not timed; the
recording names it, and why.
"""

import contextlib
import functools
import re

from chipmath.crosscompile import Binary, CompilerMissing, compile_cuda, compile_hip
from chipmath.devices import KIB, MIB, PRODUCTS, device
from chipmath.experiments.at_once import compile_at_once
from chipmath.experiments.copy_bandwidth import datasheet
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.loops import innermost_loop
from chipmath.experiments.timing import Candidate, Stopwatch, event_stopwatch, host_stopwatch, spread, take_turns
from chipmath.gpu import Gpu
from chipmath.occupancy import shared_ceilings
from chipmath.recordings import PACKAGE

ARCHS = ("gfx942", "gfx950", "sm_80", "sm_90", "sm_100")
KERNELS = {"read": 0, "copy": 1}
LOADS, GROUPS = (1, 2, 4, 8), (1, 2, 4, 8, 16)  # of 16 bytes a thread; per unit: warps or waves on each SIMD
QUICK_LOADS, QUICK_GROUPS = (1, 4, 8), (1, 4)
BUFFER_BYTES, QUICK_BUFFER_BYTES = 1024 * MIB, 512 * MIB  # several times any cache on record
ROUNDS, QUICK_ROUNDS = 15, 5
LATENCIES_S = (600e-9, 900e-9)  # assumed in predictions: the loaded latency of HBM on an H100 lies about here
SEED = 0
REFERENCE = "torch copy_"


def threads_of(arch: str) -> int:
    """A group has one warp or wave for each SIMD."""
    return device(arch).simds * device(arch).wave_lanes


@functools.cache  # nvcc takes a second, and occupancies share a binary
def compile_stream(arch: str, kernel: str, loads: int) -> Binary:
    """The kernel "read" or "copy" with so many loads outstanding."""
    macros = {"COPY": KERNELS[kernel], "LOADS": loads, "THREADS": threads_of(arch)}
    build = compile_hip if device(arch).vendor == "AMD" else compile_cuda
    return build(PACKAGE / "experiments/in_flight.cu", arch, macros)


def loads_before_use(binary: Binary) -> int:
    """How many 16-byte loads the loop issues before anything waits for the first."""
    body = innermost_loop(binary.isa, "LDG|global_load")
    if device(binary.arch).vendor == "AMD":
        before = re.split(r"^\ts_waitcnt [^\n]*vmcnt", body, maxsplit=1, flags=re.MULTILINE)[0]
        return len(re.findall(r"^\tglobal_load_dwordx4", before, re.MULTILINE))
    loaded: set[str] = set()
    for opcode, operands in re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;\n]*);", body):
        registers = re.findall(r"\bR\d+\b", operands)
        if not opcode.startswith("LDG.E.128"):
            if loaded & set(registers):
                break
            continue
        first = int(registers[0][1:])
        if loaded & set(registers[1:]):
            break
        loaded |= {f"R{first + i}" for i in range(4)}
    return len(loaded) // 4


def in_flight(arch: str, groups: int, loads: int) -> int:
    """Bytes of reads outstanding on a unit."""
    return groups * threads_of(arch) * loads * 16


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    import torch

    if gpu.arch not in ARCHS:
        raise ExperimentError(f"bytes_in_flight knows {', '.join(ARCHS)}, not {gpu.arch}")
    size = QUICK_BUFFER_BYTES if quick else BUFFER_BYTES
    if gpu.memory_bytes < 6 * size:
        raise ExperimentError(f"bytes_in_flight wants {6 * size // MIB} MiB, this GPU has {gpu.memory_bytes // MIB}")
    units = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    forms = (QUICK_LOADS, QUICK_GROUPS, QUICK_ROUNDS) if quick else (LOADS, GROUPS, ROUNDS)
    return _measure("cuda", gpu.arch, units, size, forms, event_stopwatch, datasheet(gpu.name, units), progress)


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same on a CPU: kernels are compiled and checked, and torch moves the bytes in their place."""
    arch = _arch_with_compiler()
    forms = ((1, 4), (1,), 3)
    return _measure("cpu", arch, 3, 3 * 64 * KIB, forms, host_stopwatch, PRODUCTS["H100 SXM"], progress)


def _arch_with_compiler() -> str:
    for arch in ("sm_90", "gfx950"):
        try:
            compile_stream(arch, "read", 1)
            return arch
        except CompilerMissing:
            continue
    raise CompilerMissing("bytes_in_flight compiles its kernels where it runs: no nvcc or NVRTC, and no clang")


def _measure(
    where: str,
    arch: str,
    units: int,
    size: int,
    forms: tuple[tuple[int, ...], tuple[int, ...], int],
    stopwatch: Stopwatch,
    product,
    progress: Progress,
) -> tuple[dict, list[Row]]:
    loads, groups, rounds = forms
    cases = [(kernel, g, n) for kernel in KERNELS for n in loads for g in groups]
    with contextlib.ExitStack() as stack:
        candidates, binaries, refused = _candidates(stack, where, arch, units, size, cases, progress)
        progress(2 * len(cases), 2 * len(cases) + 1, "timing")
        seconds = take_turns(candidates, stopwatch, rounds=rounds)
    progress(2 * len(cases) + 1, 2 * len(cases) + 1, "done")
    rows = [_row(case, binary, units, size, seconds, product) for case, binary in binaries.items()]
    method = {
        "timer": "device events" if where == "cuda" else "host clock, rehearsal",
        "rounds": rounds,
        "buffer_bytes": size,
        "input": f"random 32-bit words, seed {SEED}",
        "reference": REFERENCE,
        "shared": "dynamic, as much as lets exactly so many groups in",
        "left_out": "points whose registers or slots admit fewer groups",
        "refused": refused,
        "compiler": next(iter(binaries.values())).compiler,
    }
    return method, rows


def _row(
    case: tuple[str, int, int], binary: Binary, units: int, size: int, seconds: dict[str, list[float]], product
) -> Row:
    kernel, groups, loads = case
    moved = size * (2 if kernel == "copy" else 1)
    rate = spread([moved / s for s in seconds[str(case)]])
    ratio = spread([moved / s / (2 * size / r) for s, r in zip(seconds[str(case)], seconds[REFERENCE])])
    flight = in_flight(binary.arch, groups, loads)
    return {
        "kernel": kernel,
        "waves_per_unit": groups * device(binary.arch).simds,
        "loads": loads,
        "bytes_in_flight": flight,
        "registers": binary.registers,
        **{f"bytes_per_s_{p}": value for p, value in vars(rate).items()},
        **{f"ratio_to_reference_{p}": value for p, value in vars(ratio).items()},
        "fraction_of_datasheet": product and rate.p50 / product.hbm_bytes_per_s,
        # of what is read; where it is the same for few bytes in flight, it is the latency
        "in_flight_over_rate_s": flight * units / (rate.p50 * size / moved),
        "wrong_words": 0,
    }


def _candidates(stack, where, arch, units, size, cases, progress) -> tuple[dict[str, Candidate], dict, dict[str, str]]:
    """What is timed, every one checked on the whole buffer; the machine code of each; which are wrong, and why."""
    import torch

    generator = torch.Generator(where).manual_seed(SEED)
    source = torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, device=where, generator=generator)
    target = torch.empty_like(source)
    parity = _parity(source)
    candidates: dict[str, Candidate] = {REFERENCE: lambda i: target.copy_(source)}
    binaries: dict[tuple[str, int, int], Binary] = {}
    refused: dict[str, str] = {}

    def tell(done: int, compiling: tuple) -> None:
        progress(done, 2 * len(cases) + 1, f"compiling {compiling[1]}, {compiling[2]} loads")

    compiled = compile_at_once(compile_stream, ((arch, kernel, loads) for kernel, _, loads in cases), tell)
    for done, case in enumerate(cases):
        kernel, groups, loads = case
        point = f"{kernel}, {groups} groups a unit, {loads} loads"
        progress(len(cases) + done, 2 * len(cases) + 1, point)
        binary = compiled[arch, kernel, loads]
        threads, shared = threads_of(arch), shared_ceilings(arch).get(groups)
        if shared is None or binary.occupancy(threads, dynamic_shared_bytes=shared).groups_per_unit != groups:
            continue  # registers or slots admit fewer
        words = torch.empty(units * groups * threads, dtype=torch.int32, device=where)
        try:
            _check_loads(binary, loads)
            groups_in_all = units * groups
            run = _runner(
                stack, where, binary, threads, shared, groups_in_all, source, target, words, size // 16, kernel
            )
            _check(kernel, run, source, target, words, parity)
        except ExperimentError as error:  # this point counts for nothing, the others for as much as before
            refused[point] = str(error)
            continue
        binaries[case], candidates[str(case)] = binary, run
    if not binaries:
        reasons = "; ".join(f"{point}: {why}" for point, why in refused.items()) or f"no point fits {arch}"
        raise ExperimentError(f"bytes_in_flight has nothing to time: {reasons}")
    return candidates, binaries, refused


def _check_loads(binary: Binary, loads: int) -> None:
    found = loads_before_use(binary)
    if found != loads:
        raise ExperimentError(f"the machine code has {found} loads before the first use, not {loads}")


def _runner(stack, where, binary, threads, shared, groups, source, target, words, vectors, kernel) -> Candidate:
    if where == "cuda":
        from chipmath.experiments.launching import loaded

        enqueue = stack.enter_context(loaded(binary, threads, dynamic_shared_bytes=shared))
        return lambda i: enqueue(groups, [source, target, words, vectors, groups])
    if kernel == "copy":
        return lambda i: target.copy_(source)

    def read(i: int) -> None:
        words.zero_()
        words[0] = _parity(source)

    return read


def _check(kernel: str, run: Candidate, source, target, words, parity: int) -> None:
    """A wrong kernel has no time: the copy is compared word by word, the read by the parity of all words."""
    target.copy_(~source)  # poison: every word is wrong
    words.fill_(1)
    run(0)
    if kernel == "copy" and (wrong := int((target != source).sum())):
        raise ExperimentError(f"{wrong} of {source.numel()} words are wrong")
    if kernel == "read" and (found := _parity(words)) != parity:
        raise ExperimentError(f"the parity of all words is {found}, not {parity}")


def _parity(words) -> int:
    """Exclusive or of all words (int32 tensor), by halving."""
    import torch

    words = words.clone()
    while len(words) > 1:
        half = len(words) // 2
        odd = words[2 * half :]
        words = torch.cat([words[:half] ^ words[half : 2 * half], odd])
    return int(words[0])


def predict() -> list[Row]:
    """Little's law on data sheets, for two assumed latencies."""
    return [
        {
            "device": product.name,
            "latency_s": latency,
            "bytes_in_flight": product.hbm_bytes_per_s * latency / product.units,
            "loads_of_a_full_unit": product.hbm_bytes_per_s * latency / product.units / (max_threads * 16),
        }
        for product in PRODUCTS.values()
        for max_threads in [device(product.arch).max_waves * device(product.arch).wave_lanes]
        for latency in LATENCIES_S
    ]


EXPERIMENT = MeasuredExperiment(
    name="bytes_in_flight",
    question="How many bytes must be in flight on a unit to keep memory busy?",
    sources=(
        *("experiments/bytes_in_flight.py", "experiments/in_flight.cu", "experiments/launching.py"),
        *("experiments/timing.py", "mini_hip.h"),
        *("experiments/copy_bandwidth.py", "experiments/streams.py"),  # the data sheet's rate
        *("experiments/loops.py", "experiments/at_once.py"),
    ),
    keys={
        "kernel": "read or copy",
        "waves_per_unit": "resident on a CU or SM; set by shared memory",
        "loads": "of 16 bytes, outstanding in every thread",
    },
    values={
        "bytes_in_flight": "of reads, on a unit",
        "registers": "per thread",
        "bytes_per_s_p10": "read, and written by the copy; over the rounds",
        "bytes_per_s_p50": "median",
        "bytes_per_s_p90": "",
        "ratio_to_reference_p10": "to torch's copy in the same round, as rates",
        "ratio_to_reference_p50": "median",
        "ratio_to_reference_p90": "",
        "fraction_of_datasheet": "of the card's bandwidth in chipmath.devices",
        "in_flight_over_rate_s": "bytes in flight over bytes read a second: the latency, until memory is busy",
        "wrong_words": "0, or the kernel is not timed",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=11,
    prediction="Little's law, bandwidth times latency, with the data sheet's bandwidth and assumed latencies",
    shown={
        "device": Shown("card"),
        "latency_s": Shown("assumed latency, ns", ".0f", 1e9),
        "kernel": Shown("kernel"),
        "waves_per_unit": Shown("waves per unit"),
        "loads": Shown("loads a thread"),
        "bytes_in_flight": Shown("KiB in flight per unit", ".1f", 1 / KIB),
        "loads_of_a_full_unit": Shown("16-byte loads a thread at full occupancy", ".2f"),
        "bytes_per_s_p50": Shown("TB/s", ".2f", 1e-12),
        "ratio_to_reference_p50": Shown("of torch's copy", ".2f"),
        "in_flight_over_rate_s": Shown("in flight / rate, ns", ".0f", 1e9),
    },
)
