"""Where CDNA4's block-scaled matrix instructions want their operands: lanes of elements, lanes of scale bytes.

Triton states both in its own notation, in the TTGIR of a compiled product. The layout of scales is a linear map: lane
number in binary, one (row, block) for each bit, added up. That of elements is a number, kWidth: a lane holds runs of so
many elements of K, the lanes of a row taking turns.
"""

import json
import re
from pathlib import Path

from chipmath.crosscompile import CompileError, find_triton
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.mx_tiles import compile_tile

INSTRUCTIONS = {"16x16x128": 16, "32x32x64": 32}  # name -> rows of A
TILE, NUM_WARPS, NUM_STAGES = (128, 128, 128), 4, 2


def compile_case(arch, instruction) -> dict:
    """One row."""
    rows = INSTRUCTIONS[instruction]
    binary, ttgir = _compile_with_ttgir(arch, rows)
    (opcode,) = binary.instructions("mfma")
    product = re.search(
        r"tt\.dot_scaled .*\{opIdx = 0, parent = #mma, kWidth = (\d+)\}>>, tensor<\d+x\d+xi8, (#\w+)>", ttgir
    )
    if product is None:
        raise CompileError("Triton writes its scaled product in another way than this experiment reads")
    lanes = re.search(rf"^{product[2]} = #ttg\.linear<.*lane = (\[\[.*?\]\])", ttgir, re.MULTILINE)
    return {
        "opcode": opcode,
        "rows": rows,
        "elements_in_a_run": int(product[1]),
        "scale_of_lane_bits": json.dumps(json.loads(lanes[1])),
        "compiler": binary.compiler,
    }


def _compile_with_ttgir(arch: str, rows: int):
    """The kernel for this instruction, and Triton's intermediate code of it, from the cache that it goes to anyway."""
    triton = find_triton()
    files: dict[str, str] = {}

    def listen(*, metadata_group, **others):
        files.update(metadata_group)

    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = listen
        binary = compile_tile(arch, TILE, NUM_WARPS, NUM_STAGES, matrix_instr_nonkdim=rows)
    return binary, Path(files[f"{binary.kernel}.ttgir"]).read_text(encoding="utf-8")


CASES = tuple({"arch": "gfx950", "instruction": name} for name in INSTRUCTIONS)

EXPERIMENT = CompiledExperiment(
    name="mx_lanes",
    question="Which lane of a wave holds which elements and which scale byte of a block-scaled product?",
    sources=(
        *("experiments/mx_lanes.py", "experiments/mx_tiles.py"),
        *("experiments/scaled_gemm.py", "experiments/resources.py"),
    ),
    keys={"arch": "chip compiled for", "instruction": "shape of the matrix instruction, M x N x K"},
    values={
        "opcode": "what the compiler emitted",
        "rows": "of A that the instruction takes, and columns of B",
        "elements_in_a_run": "consecutive elements of K in a lane",
        "scale_of_lane_bits": "(row, block) of the scale byte, one for each bit of the lane number; they add up",
        "compiler": "who made the code",
    },
    cases=CASES,
    quick_cases=CASES,
    compile_case=compile_case,
)
