"""What the launches take whose resident groups `chipmath.experiments.residency` counts on a GPU.

They are chosen so that each limiter binds somewhere, and where a wrong rule would show: groups that are no multiple of
four waves, and one byte more of shared memory than lets so many groups in.
"""

from chipmath.crosscompile import Binary, compile_cuda, compile_hip
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment, Row
from chipmath.experiments.resources import RESOURCES, resources
from chipmath.occupancy import shared_ceilings
from chipmath.recordings import PACKAGE

RECORDED_ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100")
# threads, values kept in registers; 160, 320 and 672 threads are no multiple of four warps or waves
REGISTER_LAUNCHES = (
    *((64, 4), (256, 4), (256, 56), (256, 100), (256, 150), (256, 230)),
    *((160, 4), (320, 4), (672, 24), (1024, 24)),
)
SHARED_LAUNCH_GROUPS = (2, 5)  # as much shared memory as lets so many groups in, and one byte more
SOURCES = (
    *("experiments/residency_launches.py", "experiments/resources.py"),
    *("experiments/residency.cu", "experiments/residency.hip", "mini_hip.h"),
)

KEYS = {"threads": "per group", "live": "values kept in registers", "dynamic_shared_bytes": "asked for at launch"}


def launches(arch: str) -> list[dict[str, int]]:
    """The keys of every launch on a chip."""
    ceilings = shared_ceilings(arch)
    shared = [(128, 4, ceilings[groups] + more) for groups in SHARED_LAUNCH_GROUPS for more in (0, 1)]
    return [dict(zip(KEYS, launch)) for launch in [(*launch, 0) for launch in REGISTER_LAUNCHES] + shared]


def compile_launch(arch: str, threads: int, live: int) -> Binary:
    """The kernel for groups of exactly ``threads``."""
    amd = device(arch).vendor == "AMD"
    source = PACKAGE / f"experiments/residency.{'hip' if amd else 'cu'}"
    return (compile_hip if amd else compile_cuda)(source, arch, {"THREADS": threads, "LIVE": live})


def compile_case(arch, threads, live, dynamic_shared_bytes) -> Row:
    """One row of what the kernel takes."""
    row = resources(compile_launch(arch, threads, live), dynamic_shared_bytes=dynamic_shared_bytes, threads=threads)
    return {name: row[name] for name in COMPILED_VALUES}


COMPILED_VALUES = {
    name: meaning
    for name, meaning in RESOURCES.items()
    if name not in ("threads", "matrix_opcodes", "matrix_instructions")
}
CASES = tuple({"arch": arch, **launch} for arch in RECORDED_ARCHS for launch in launches(arch))

EXPERIMENT = CompiledExperiment(
    name="residency_launches",
    question="What do the launches take whose resident groups the experiment residency counts?",
    sources=SOURCES,
    keys={"arch": "chip compiled for", **KEYS},
    values=COMPILED_VALUES,
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["live"] == 100),
    compile_case=compile_case,
)
