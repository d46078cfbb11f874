"""What K independent chains of matrix instructions take from a wave: instruction parallelism is paid in registers."""

from chipmath.crosscompile import Binary, compile_cuda, compile_hip
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.resources import RESOURCES, resources
from chipmath.recordings import PACKAGE

THREADS = 256
MOST_CHAINS = 32
SHAPES = {  # label -> chip, macros of ilp.hip; None: ilp.cu
    "mfma 16x16x128": ("gfx950", {"ROWS": 16, "SCALED": 0}),
    "mfma_scale 16x16x128": ("gfx950", {"ROWS": 16, "SCALED": 1}),
    "mfma 32x32x64": ("gfx950", {"ROWS": 32, "SCALED": 0}),
    "mfma_scale 32x32x64": ("gfx950", {"ROWS": 32, "SCALED": 1}),
    "mma.sync m16n8k16": ("sm_90", None),
}


def compile_chains(instruction: str, chains: int, **macros) -> Binary:
    """The kernel for one of SHAPES with further macros of its source."""
    arch, shape = SHAPES[instruction]
    macros = {"CHAINS": chains, "THREADS": THREADS} | macros
    if shape is None:
        return compile_cuda(PACKAGE / "ilp.cu", arch, macros)
    return compile_hip(PACKAGE / "ilp.hip", arch, shape | macros)


def compile_case(arch, instruction, chains) -> dict:
    """One row; ``arch`` follows from ``instruction``."""
    return resources(compile_chains(instruction, chains))


def _case(instruction: str, chains: int) -> dict:
    return {"arch": SHAPES[instruction][0], "instruction": instruction, "chains": chains}


EXPERIMENT = CompiledExperiment(
    name="matrix_chains",
    question="What do K independent chains of matrix instructions take from a wave, and how many waves remain?",
    sources=("experiments/matrix_chains.py", "experiments/resources.py", "ilp.hip", "ilp.cu", "mini_hip.h"),
    keys={
        "arch": "chip compiled for",
        "instruction": "E4M3 with (mfma_scale) or without scales; FP16 on NVIDIA",
        "chains": "independent chains in a wave or warp",
    },
    values=RESOURCES,
    cases=tuple(_case(instruction, chains) for instruction in SHAPES for chains in range(1, MOST_CHAINS + 1)),
    quick_cases=(_case("mfma_scale 16x16x128", 8), _case("mfma_scale 32x32x64", 8), _case("mma.sync m16n8k16", 8)),
    compile_case=compile_case,
)
