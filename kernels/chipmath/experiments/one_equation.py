"""Waves per SIMD against registers a thread, by programs of both vendors and for every count that a thread can have.

AMD     LLVM's own "; Occupancy:" line, for kernels that take exactly so many VGPRs and, beyond 256, AccVGPRs
NVIDIA  cuda_occupancy.h of the CUDA toolkit, in a host program that the toolkit's nvcc compiles
"""

import functools
import re
import tempfile
from pathlib import Path

from chipmath.crosscompile import CompilerMissing, compile_hip, find_cuda_tool, run_compiler
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment, ExperimentError, Row
from chipmath.recordings import PACKAGE


def compile_case(arch, registers) -> Row:
    """One row."""
    unit = device(arch)
    if unit.vendor == "NVIDIA":
        compiler, blocks = _header_blocks(arch)
        return {"waves_per_simd": blocks[registers - 1], "compiler": compiler}
    last = {"VGPR": min(registers, unit.max_vgprs) - 1}
    if registers > unit.max_vgprs:
        last["ACCVGPR"] = registers - unit.max_vgprs - 1
    binary = compile_hip(PACKAGE / "experiments/one_equation.hip", arch, last)
    if binary.registers + binary.accumulators != registers:
        raise ExperimentError(f"{registers} registers asked for, {binary.registers} + {binary.accumulators} taken")
    return {"waves_per_simd": binary.compiler_waves_per_simd, "compiler": binary.compiler}


@functools.cache
def _header_blocks(arch: str) -> tuple[str, list[int]]:
    """Who compiled the header, and its blocks of four warps per SM for 1, 2, … registers."""
    nvcc = find_cuda_tool("nvcc")
    if nvcc is None:
        raise CompilerMissing("no nvcc: looked in PATH, CUDA_HOME and /usr/local/cuda for it and its cuda_occupancy.h")
    version = re.search(r"V(\d+\.\d+\.\d+)", run_compiler([nvcc, "--version"], "nvcc --version"))[1]
    sm = device(arch)
    capability = divmod(int(arch[3:]), 10)
    facts = (
        sm.max_waves * sm.wave_lanes,
        sm.registers,
        sm.shared_bytes,
        sm.shared_optin_bytes,
        sm.shared_reserved_bytes,
    )
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "one_equation"
        run_compiler([nvcc, "-o", program, PACKAGE / "experiments/one_equation.cpp"], "one_equation.cpp")
        answers = run_compiler([program, *map(str, (*capability, *facts))], "cuda_occupancy.h")
    return f"nvcc {version}, cuda_occupancy.h of its toolkit", [int(line) for line in answers.split()]


CASES = tuple(
    {"arch": arch, "registers": registers}
    for arch, most in (("gfx950", 512), ("sm_90", 255))
    for registers in range(1, most + 1)
)

EXPERIMENT = CompiledExperiment(
    name="one_equation",
    question="How many waves does a SIMD or SM sub-partition hold, by both vendors' own programs?",
    sources=(
        "experiments/one_equation.py",
        "experiments/one_equation.hip",
        "experiments/one_equation.cpp",
        "mini_hip.h",
    ),
    keys={"arch": "chip asked about", "registers": "per thread; gfx950: VGPRs, beyond 256 the rest AccVGPRs"},
    values={
        "waves_per_simd": "gfx950: LLVM's \"; Occupancy:\"; sm_90: the header's blocks of four warps per SM",
        "compiler": "who answered",
    },
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["registers"] == 96),
    compile_case=compile_case,
)
