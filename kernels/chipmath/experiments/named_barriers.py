"""How many named barriers a block books that uses one: ptxas counts from 0 to the highest number in sight."""

from chipmath.crosscompile import compile_cuda
from chipmath.experiments.experiment import CompiledExperiment, Row
from chipmath.recordings import PACKAGE

ARCHS = ("sm_90", "sm_100", "sm_120")
NUMBERS = ("0", "1", "3", "7", "15")
RUN_TIME = "known at run time"


def compile_case(arch, number) -> Row:
    """One row."""
    macros = {} if number == RUN_TIME else {"BARRIER": number}
    binary = compile_cuda(PACKAGE / "experiments/named_barriers.cu", arch, macros)
    return {
        "barriers": binary.barriers,
        "threads": binary.threads,
        "groups_per_unit": binary.occupancy().groups_per_unit,
        "compiler": binary.compiler,
    }


CASES = tuple({"arch": arch, "number": number} for arch in ARCHS for number in (*NUMBERS, RUN_TIME))

EXPERIMENT = CompiledExperiment(
    name="named_barriers",
    question="How many named barriers does a block book that uses one of them?",
    sources=("experiments/named_barriers.py", "experiments/named_barriers.cu"),
    keys={"arch": "chip compiled for", "number": "of the one barrier that the kernel uses"},
    values={
        "barriers": "booked, as the cubin states them",
        "threads": "per block",
        "groups_per_unit": "blocks per SM, by chipmath.occupancy",
        "compiler": "who made the code",
    },
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["arch"] == "sm_90" and case["number"] in ("7", RUN_TIME)),
    compile_case=compile_case,
)
