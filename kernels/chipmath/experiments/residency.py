"""Workgroups that one CU or SM holds at once: counted on the device, promised by its driver, predicted by the model.

Every group adds itself to a counter of its unit, stays until all that fit have arrived, and leaves (residency.cu,
residency.hip). The count is trusted only if it adds up: every group was seen once, on as many different units as the
device has, and every thread still had its registers' values.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chipmath.crosscompile import Binary, CompilerMissing
from chipmath.devices import DEVICES, device
from chipmath.experiments import residency_launches
from chipmath.experiments.at_once import compile_at_once
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.residency_launches import KEYS, RECORDED_ARCHS, compile_launch, launches
from chipmath.experiments.resources import resources
from chipmath.gpu import Gpu, driver_occupancy
from chipmath.occupancy import LIMITER_WORDS
from chipmath.recordings import newest

ARCHS = tuple(arch for arch in DEVICES if arch != "gfx90a")  # which has no XCC_ID; see residency.hip
PREDICTED_STEP = 4  # of four chips every fourth launch is shown where none is measured, and rehearsed
UNITS_AT_MOST = 4096  # how far the kernels number their units
STAY = {"NVIDIA": 2_000_000, "AMD": 200_000}  # 2 ms, in the ticks of each kernel's clock


@dataclass(frozen=True)
class Counts:
    """What a launch left behind: of each unit the most groups at once and all that came; threads with wrong sums."""

    most: list[int]
    visits: list[int]
    wrong_sums: int


def predict() -> list[Row]:
    """The model's count for some of the launches, from the recorded resources of their kernel."""
    names = ("arch", *KEYS, "registers", "groups_per_unit")
    recording = newest(residency_launches.EXPERIMENT.name)
    cases = [{"arch": arch, **launch} for arch in RECORDED_ARCHS for launch in launches(arch)[::PREDICTED_STEP]]
    rows = [recording.find(**case) for case in cases]
    return [{name: row[name] for name in names} | {"limiters": _in_words(row)} for row in rows]


def _in_words(row: Row) -> str:
    """The recorded limiters, which are keys of `Occupancy.limits`, as the chip's vendor calls them."""
    words = LIMITER_WORDS[device(row["arch"]).vendor]
    return ", ".join(words[name] for name in row["limiters"].split(", "))


Promise = Callable[[Binary, int, int], int]  # binary, threads, dynamic shared bytes -> groups per unit
Count = Callable[[Binary, int, int, int, int], Counts]  # binary, threads, dynamic shared bytes, groups, live


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU; the quick form is the full one, which takes seconds."""
    import torch

    if gpu.arch not in ARCHS:
        raise ExperimentError(f"residency knows {', '.join(ARCHS)}, not {gpu.arch}")
    index = torch.cuda.current_device()

    def promise(binary: Binary, threads: int, dynamic_shared_bytes: int) -> int:
        return driver_occupancy(binary, threads, dynamic_shared_bytes=dynamic_shared_bytes, index=index)

    units = torch.cuda.get_device_properties(index).multi_processor_count
    return _measure(gpu.arch, units, launches(gpu.arch), promise, count_on_device, progress)


def count_on_device(binary: Binary, threads: int, dynamic_shared_bytes: int, groups: int, live: int) -> Counts:
    """Launch ``groups`` groups and read the counters."""
    import torch

    from chipmath.experiments.launching import launch

    present, most, visits = torch.zeros(3, UNITS_AT_MOST, dtype=torch.int32, device="cuda").unbind()
    seeds = torch.arange(1, live + 1, dtype=torch.int32, device="cuda")
    sums = torch.full((groups * threads,), -1, dtype=torch.int32, device="cuda")
    arguments = [present, most, visits, seeds, sums, STAY[device(binary.arch).vendor]]
    launch(binary, groups, threads, arguments, dynamic_shared_bytes=dynamic_shared_bytes)
    return Counts(most.tolist(), visits.tolist(), int((sums != live * (live + 1) // 2).sum()))


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same with stand-ins for driver and device: both answer as the model does."""

    def promise(binary: Binary, threads: int, dynamic_shared_bytes: int) -> int:
        return binary.occupancy(threads, dynamic_shared_bytes=dynamic_shared_bytes).groups_per_unit

    def count(binary: Binary, threads: int, dynamic_shared_bytes: int, groups: int, live: int) -> Counts:
        unused = [0] * (UNITS_AT_MOST - 3)
        fit = promise(binary, threads, dynamic_shared_bytes)
        return Counts([fit] * 3 + unused, [groups // 3, groups // 3, groups - 2 * (groups // 3), *unused], 0)

    arch = _arch_with_compiler()
    return _measure(arch, 3, launches(arch)[::PREDICTED_STEP], promise, count, progress)


def _arch_with_compiler() -> str:
    for arch in ("sm_90", "gfx950"):
        try:
            compile_launch(arch, 64, 4)
            return arch
        except CompilerMissing:
            continue
    raise CompilerMissing("residency compiles its kernels where it runs: no nvcc or NVRTC, and no clang for gfx950")


def _measure(
    arch: str, units: int, cases: list[dict[str, int]], promise: Promise, count: Count, progress: Progress
) -> tuple[dict, list[Row]]:
    def tell(done: int, kernel: tuple) -> None:
        progress(done, 2 * len(cases), f"compiling {kernel[1]} threads, {kernel[2]} values")

    binaries = compile_at_once(compile_launch, ((arch, case["threads"], case["live"]) for case in cases), tell)
    rows = []
    for done, case in enumerate(cases):
        threads, live, shared = case.values()
        progress(len(cases) + done, 2 * len(cases), f"{threads} threads, {live} values, {shared} bytes")
        binary = binaries[arch, threads, live]
        model = binary.occupancy(threads, dynamic_shared_bytes=shared)
        promised = promise(binary, threads, shared)
        # Twice as many groups as anybody expects, so that a unit which could hold one more does.
        groups = 2 * units * (max(model.groups_per_unit, promised) + 1)
        counts = count(binary, threads, shared, groups, live)
        used = _trusted(counts, units, groups, case)
        taken = resources(binary, threads=threads)
        rows.append(
            case
            | {name: taken[name] for name in ("registers", "accumulators", "scalars")}
            | {"model_groups": model.groups_per_unit, "limiters": ", ".join(model.limiter_words)}
            | {"driver_groups": promised, "counted_groups_least": min(used), "counted_groups_most": max(used)}
        )
    progress(2 * len(cases), 2 * len(cases), "done")
    method = {
        "counted": "atomic counters, one a unit; every group stays 2 ms",
        "groups": "twice as many as model and driver say, and one more, for every unit",
        "shared": "largest carve-out (NVIDIA)",
        "compiler": binary.compiler,
    }
    return method, rows


def _trusted(counts: Counts, units: int, groups: int, case: dict) -> list[int]:
    """The most groups at once on each unit that was used, if the counters add up."""
    used = [most for most, visits in zip(counts.most, counts.visits) if visits]
    if sum(counts.visits) != groups or len(used) != units or counts.wrong_sums:
        raise ExperimentError(
            f"residency does not add up at {case}: {sum(counts.visits)} of {groups} groups seen on {len(used)} of "
            f"{units} units, {counts.wrong_sums} threads with other values than they were given"
        )
    return used


EXPERIMENT = MeasuredExperiment(
    name="residency",
    question="How many groups does a unit hold at once: counted, promised by the driver, and by our model?",
    sources=(
        *("experiments/residency.py", "experiments/launching.py", "experiments/at_once.py"),
        *residency_launches.SOURCES,
    ),
    keys=KEYS,
    values={
        "registers": "per thread",
        "accumulators": "AccVGPRs per thread (AMD)",
        "scalars": "SGPRs per wave (AMD)",
        "model_groups": "per unit, by chipmath.occupancy",
        "limiters": "what admits no further group, by chipmath.occupancy",
        "driver_groups": "per unit, by the driver",
        "counted_groups_least": "the most at once on the unit that held fewest",
        "counted_groups_most": "the most at once on any unit",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=9,
    prediction="groups per unit that the model admits, from the compiled kernel's resources",
    predicted_from=(residency_launches.EXPERIMENT.name,),
    shown={
        "arch": Shown("chip"),
        "threads": Shown("threads"),
        "dynamic_shared_bytes": Shown("shared bytes", ","),
        "registers": Shown("registers"),
        "limiters": Shown("limited by"),
        "groups_per_unit": Shown("groups per unit, predicted"),
        "model_groups": Shown("model"),
        "driver_groups": Shown("driver"),
        "counted_groups_least": Shown("counted, least"),
        "counted_groups_most": Shown("counted, most"),
    },
)
