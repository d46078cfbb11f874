"""What it costs to ask a compiler for more occupancy than a kernel has by nature: registers that spill."""

from chipmath.crosscompile import Binary
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.matrix_chains import compile_chains
from chipmath.experiments.mx_tiles import compile_tile
from chipmath.experiments.resources import RESOURCES, resources

CHAINS, TILE_950, TILE_90 = "16 chains of mfma 32x32x64", "MXFP8 tile 128x128x128", "MXFP8 tile 64x64x128"
# kernel -> chip, what is asked for, the values asked
REQUESTS = {
    CHAINS: ("gfx950", "waves_per_simd", range(1, 9)),
    TILE_950: ("gfx950", "waves_per_simd", range(1, 9)),
    TILE_90: ("sm_90", "registers_at_most", (255, 224, 192, 168, 144, 128, 112, 96, 80, 64)),
}


def compile_request(kernel: str, asked: int) -> Binary:
    """One of the kernels, compiled under one request."""
    if kernel == CHAINS:
        return compile_chains("mfma 32x32x64", 16, WAVES_PER_SIMD=asked)
    if kernel == TILE_950:
        return compile_tile("gfx950", (128, 128, 128), 4, 2, waves_per_eu=asked)
    return compile_tile("sm_90", (64, 64, 128), 4, 3, maxnreg=asked)


def compile_case(arch, kernel, request, asked) -> dict:
    """One row; ``arch`` and ``request`` follow from ``kernel``."""
    return resources(compile_request(kernel, asked))


def _case(kernel: str, asked: int) -> dict:
    arch, request, _ = REQUESTS[kernel]
    return {"arch": arch, "kernel": kernel, "request": request, "asked": asked}


EXPERIMENT = CompiledExperiment(
    name="occupancy_price",
    question="What does a kernel pay in spilled registers for occupancy that was asked for?",
    sources=(
        *("experiments/occupancy_price.py", "experiments/matrix_chains.py", "experiments/mx_tiles.py"),
        *("experiments/scaled_gemm.py", "experiments/resources.py", "ilp.hip", "mini_hip.h"),
    ),
    keys={
        "arch": "chip compiled for",
        "kernel": "what is compiled: 4 waves or warps a group",
        "request": "waves_per_simd (amdgpu_waves_per_eu, Triton's waves_per_eu) or registers_at_most (maxnreg)",
        "asked": "how many",
    },
    values=RESOURCES,
    cases=tuple(_case(kernel, asked) for kernel in REQUESTS for asked in REQUESTS[kernel][2]),
    quick_cases=(_case(CHAINS, 2), _case(TILE_950, 3), _case(TILE_90, 128)),
    compile_case=compile_case,
)
