"""Which instruction an FP8 mma.sync becomes: on some chips its operands are unpacked and multiplied as FP16."""

from chipmath.crosscompile import compile_cuda
from chipmath.experiments.experiment import CompiledExperiment, Row
from chipmath.experiments.resources import MATRIX_OPCODE
from chipmath.recordings import PACKAGE

ARCHS = ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
OPERANDS = {"e4m3": 1, "f16": 0}


def compile_case(arch, operands) -> Row:
    """One row."""
    binary = compile_cuda(PACKAGE / "experiments/fp8_mma.cu", arch, {"FP8": OPERANDS[operands]})
    opcodes = binary.instructions(MATRIX_OPCODE)
    return {
        "matrix_opcodes": ", ".join(sorted(opcodes)),
        "matrix_instructions": opcodes.total(),
        "unpack_instructions": binary.instructions(r"^F2FP.*UNPACK").total(),
        "compiler": binary.compiler,
    }


CASES = tuple({"arch": arch, "operands": operands} for arch in ARCHS for operands in OPERANDS)

EXPERIMENT = CompiledExperiment(
    name="fp8_mma",
    question="Which instruction does an FP8 mma.sync become on each chip?",
    sources=("experiments/fp8_mma.py", "experiments/fp8_mma.cu", "experiments/resources.py"),
    keys={"arch": "chip compiled for", "operands": "e4m3: m16n8k32; f16: m16n8k16"},
    values={
        "matrix_opcodes": "the matrix instructions in the code",
        "matrix_instructions": "how many of them",
        "unpack_instructions": "F2FP instructions that unpack FP8",
        "compiler": "who made the code",
    },
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["operands"] == "e4m3" and case["arch"] in ("sm_89", "sm_90")),
    compile_case=compile_case,
)
