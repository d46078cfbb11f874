"""One step of the loop of an MXFP8 matrix product, by Triton: the instructions that each chip needs for the same sums.

A step covers tile_k elements of K for one tile of C. Chips with block-scaled matrix instructions load and multiply;
the others convert every element to bfloat16 and multiply it by its scale first.
"""

import re
from collections import Counter

from chipmath.crosscompile import AMD_OPCODE, SASS_OPCODE, Binary
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.loops import innermost_loop
from chipmath.experiments.mx_tiles import compile_tile
from chipmath.experiments.resources import MATRIX_OPCODE

ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100", "sm_120")
TILE, NUM_WARPS = (128, 128, 128), 8  # no chip spills a register
HOPPER_TILES = ((64, 64, 128), (256, 128, 128), (256, 256, 128))  # larger ones convert an element for more products

GROUPS = {
    "conversions": r"^(F2F|v_cvt_)",
    "multiplications": r"^(HMUL|HFMA|FMUL|v_(pk_)?mul_f)",
    "bit_operations": r"^(LOP3|PRMT|SHF|SEL|v_(and|or|xor|lsh|perm|cndmask|bfe|bfi))",
}
PTX_MATRIX = re.compile(r"^\s*(?:@%p\d+ )?((?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)\S*)", re.MULTILINE)


def step(binary: Binary) -> dict:
    """What a wave or warp issues in one step."""
    amd = device(binary.arch).vendor == "AMD"
    body = innermost_loop(binary.isa, MATRIX_OPCODE)
    opcodes = Counter((AMD_OPCODE if amd else SASS_OPCODE).findall(body))
    matrix = sorted(opcode for opcode in opcodes if re.search(MATRIX_OPCODE, opcode))
    counts = {name: [opcode for opcode in opcodes if re.search(pattern, opcode)] for name, pattern in GROUPS.items()}
    line = next(line for line in body.splitlines() if re.search(MATRIX_OPCODE, line))
    return {
        "matrix_opcodes": ", ".join(matrix),
        "matrix_instructions": sum(opcodes[opcode] for opcode in matrix),
        **{name: sum(opcodes[opcode] for opcode in found) for name, found in counts.items()},
        "instructions": opcodes.total(),
        "conversion_opcodes": ", ".join(sorted(counts["conversions"])),
        "first_matrix_instruction": re.sub(r"^/\*\w+\*/\s*|\s*;.*$", "", line.strip()),
        "ptx": PTX_MATRIX.search(binary.ptx)[1] if binary.ptx else None,
        "spills": binary.spills,
        "compiler": binary.compiler,
    }


def compile_case(arch, tile_m, tile_n, tile_k) -> dict:
    """One row."""
    stages = 2 if device(arch).vendor == "AMD" else 3  # Triton's defaults
    return step(compile_tile(arch, (tile_m, tile_n, tile_k), NUM_WARPS, stages))


def _case(arch: str, tile: tuple[int, int, int]) -> dict:
    return dict(zip(("arch", "tile_m", "tile_n", "tile_k"), (arch, *tile)))


CASES = (*(_case(arch, TILE) for arch in ARCHS), *(_case("sm_90", tile) for tile in HOPPER_TILES))

EXPERIMENT = CompiledExperiment(
    name="mx_step",
    question="Which instructions does one wave of eight issue for one step of an MXFP8 product?",
    sources=(
        *("experiments/mx_step.py", "experiments/loops.py", "experiments/mx_tiles.py"),
        *("experiments/scaled_gemm.py", "experiments/resources.py"),
    ),
    keys={
        "arch": "chip compiled for",
        "tile_m": "rows of C a program",
        "tile_n": "columns of C a program",
        "tile_k": "elements of K a step",
    },
    values={
        "matrix_opcodes": "the matrix instructions of the loop",
        "matrix_instructions": "how many; on sm_100 one thread issues them for the whole group",
        "conversions": "instructions that convert elements",
        "multiplications": "floating-point multiplications other than the matrix ones",
        "bit_operations": "logical instructions, shifts, byte permutations and selections",
        "instructions": "all of the loop",
        "conversion_opcodes": "which convert",
        "first_matrix_instruction": "with its operands, as the disassembly has it",
        "ptx": "what the first is called in PTX (NVIDIA)",
        "spills": "stores of a 32-bit register for want of registers, in the whole kernel",
        "compiler": "who made the code",
    },
    cases=CASES,
    quick_cases=tuple(_case(arch, TILE) for arch in ("gfx950", "sm_90", "sm_100")),
    compile_case=compile_case,
)
