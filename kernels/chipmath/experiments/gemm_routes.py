"""What one step of each MXFP8 product asks of a chip: tensor cores, issue slots, registers, shared memory.

The loops are those that `chipmath.matmul_gpu` launches. A step covers tile_k of K for one tile of C.
"""

import re
from collections import Counter

from chipmath.crosscompile import AMD_OPCODE, SASS_OPCODE, Binary, compile_triton, find_triton
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment, Row
from chipmath.experiments.mx_step import GROUPS, loop
from chipmath.experiments.resources import MATRIX_OPCODE
from chipmath.matmul_tiles import TILES

KERNEL_ROUTES = ("dot_scaled", "fp16_relative", "folded_128")
# What the tensor cores multiply, by route and chip; see chipmath.devices.matrix_rates.
OPERANDS = {"dot_scaled": "bf16", "fp16_relative": "fp16", "folded_128": "fp8"}
ARCHS = {
    "dot_scaled": ("gfx942", "gfx950", "sm_90", "sm_100"),
    "fp16_relative": ("gfx942", "gfx950", "sm_90", "sm_100"),
    "folded_128": ("gfx950", "sm_90"),
}
# What else was tried on sm_90, and why it was not taken stands in the columns: tile, warps, stages.
TRIED = {
    "dot_scaled": (((128, 64, 128), 4, 3), ((128, 128, 64), 8, 3), ((128, 128, 128), 4, 3), ((128, 256, 128), 8, 3)),
    "fp16_relative": (((128, 64, 64), 4, 3), ((128, 128, 64), 4, 3), ((128, 128, 128), 8, 2), ((128, 256, 64), 8, 3)),
    "folded_128": (((128, 128, 128), 8, 3), ((128, 128, 128), 4, 3), ((128, 256, 128), 8, 3)),
}

MULTIPLICATION = r"^(HMUL|HFMA|FMUL|FFMA|FADD|v_(pk_)?(mul|fma|fmac|add)_f)"
SHARED_BYTES_PER_CLOCK = 128  # CUDA guide: 32 banks, each of which serves 32 bits a clock
SHARED = re.compile(r"\b(LDS|STS|LDSM|STSM|LDGSTS)((?:\.\w+)*)")
WGMMA = re.compile(r"\b([HQ])GMMA\.64x(\d+)x(\d+)\S* R\d+, (gdesc)?")
PTX_MATRIX = r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*"


def compile_route(arch: str, route: str, tile: tuple[int, int, int], num_warps: int, num_stages: int) -> Binary:
    """A kernel as a launch on aligned E4M3 tensors below 2 GiB compiles it, sizes multiples of 16."""
    find_triton()  # else the kernels' own import fails, and does not say how to get it
    from chipmath import matmul_kernels

    letters = "DS" if device(arch).vendor == "AMD" else "D"
    scale = {"dot_scaled": "*u8", "fp16_relative": "*fp16", "folded_128": "*fp32"}[route]
    pointers = {"a": "*fp8e4nv", "a_scales": scale, "b": "*fp8e4nv", "b_scales": scale, "c": "*fp32", "tiles": "*i32"}
    constants = dict(zip(("TILE_M", "TILE_N", "TILE_K"), tile)) | {"EVEN_K": True}
    integers = {"tiles_m": "i32", "N": "i32:D", "K": "i32:D"}
    if route == "dot_scaled":
        constants |= {"A_FORMAT": "e4m3", "B_FORMAT": "e4m3"}
    elif route == "fp16_relative":
        pointers |= {"a_exponents": "*i32", "b_exponents": "*i32"}
    else:
        integers |= {"a_rows": "i32:D", "b_rows": "i32:D"}
    signature = {name: f"{kind}:{letters}" for name, kind in pointers.items()} | integers
    kernel = getattr(matmul_kernels, route)
    return compile_triton(kernel, signature, constants, arch, num_warps=num_warps, num_stages=num_stages)


def step(binary: Binary, tile: tuple[int, int, int], num_warps: int) -> Row:
    """What one wave issues in a step, and what a step has for it to do."""
    unit, (m, n, k) = device(binary.arch), tile
    body = loop(binary.isa)
    opcodes = Counter((AMD_OPCODE if unit.vendor == "AMD" else SASS_OPCODE).findall(body))
    matrix = {opcode: count for opcode, count in opcodes.items() if re.search(MATRIX_OPCODE, opcode)}
    elements = (m + n) * k / (num_warps * unit.wave_lanes)
    occupancy = binary.occupancy()
    return {
        "registers": binary.registers,
        "accumulators": binary.accumulators if unit.vendor == "AMD" else None,
        "spills": binary.spills,
        "shared_bytes": binary.shared_bytes,
        "groups_per_unit": occupancy.groups_per_unit,
        "matrix_opcodes": ", ".join(sorted(matrix)),
        "matrix_instructions": sum(matrix.values()),
        "conversions": sum(count for opcode, count in opcodes.items() if re.search(GROUPS["conversions"], opcode)),
        "scalar_conversions": sum(count for opcode, count in opcodes.items() if opcode.startswith("F2F.")),
        "multiplications": sum(count for opcode, count in opcodes.items() if re.search(MULTIPLICATION, opcode)),
        "instructions": opcodes.total(),
        "instructions_per_element": opcodes.total() / elements,
        # Each scheduler issues one instruction a clock at most, and the waves of a group are spread over all.
        "issue_clocks": opcodes.total() * num_warps // unit.simds,
        "shared_clocks": shared_clocks(body, num_warps) if binary.arch == "sm_90" else None,
        "ptx": next(iter(re.findall(PTX_MATRIX, binary.ptx)), None) if binary.ptx else None,
        "compiler": binary.compiler,
    }


def tensor_clocks(arch: str, operands: str, tile: tuple[int, int, int]) -> float:
    """Clocks of a unit's matrix pipes for one step, at the dense rate of ``chipmath.devices``."""
    m, n, k = tile
    return 2 * m * n * k / device(arch).matrix_rates[operands]


def shared_clocks(sass: str, num_warps: int) -> float:
    """Clocks of shared memory for a step of one group on Hopper, were no two lanes ever in each other's way.

    A warp's access takes a clock for every 128 bytes of its lanes, and one at least; cp.async writes as much. A
    warpgroup's matrix instruction reads B, and A unless it comes from registers, once for its four warps.
    """
    lanes = device("sm_90").wave_lanes
    clocks = 0.0
    for _, modifiers in SHARED.findall(sass):
        bits = max([int(each) for each in re.findall(r"\.(64|128)\b", modifiers)], default=32)
        clocks += num_warps * max(1, lanes * bits // 8 / SHARED_BYTES_PER_CLOCK)
    for kind, n, k, a_is_shared in WGMMA.findall(sass):
        rows = int(n) + (64 if a_is_shared else 0)
        clocks += num_warps / 4 * rows * int(k) * {"H": 2, "Q": 1}[kind] / SHARED_BYTES_PER_CLOCK
    return clocks


def compile_case(arch, route, tile_m, tile_n, tile_k, num_warps, num_stages) -> Row:
    """One row."""
    tile = (tile_m, tile_n, tile_k)
    return step(compile_route(arch, route, tile, num_warps, num_stages), tile, num_warps)


def _case(arch: str, route: str, tile: tuple[int, int, int], num_warps: int, num_stages: int) -> Row:
    names = ("arch", "route", "tile_m", "tile_n", "tile_k", "num_warps", "num_stages")
    return dict(zip(names, (arch, route, *tile, num_warps, num_stages)))


def chosen(arch: str, route: str) -> Row:
    """The keys of the tile that `chipmath.matmul_gpu` launches."""
    return _case(arch, route, *TILES[route, device(arch).vendor])


EXPERIMENT = CompiledExperiment(
    name="gemm_routes",
    question="What does one step of an MXFP8 product issue by each route, and what does its tile take?",
    sources=(
        *("experiments/gemm_routes.py", "experiments/mx_step.py", "experiments/mx_tiles.py"),
        *("experiments/resources.py", "experiments/scaled_gemm.py"),
        *("matmul_kernels.py", "matmul_tiles.py"),
    ),
    keys={
        "arch": "chip compiled for",
        "route": "of chipmath.matmul_gpu",
        "tile_m": "rows of C a program",
        "tile_n": "columns of C a program",
        "tile_k": "elements of K a step",
        "num_warps": "waves or warps per group",
        "num_stages": "steps in flight",
    },
    values={
        "registers": "per thread; AMD: architectural VGPRs",
        "accumulators": "AccVGPRs per thread (AMD)",
        "spills": "stores of a 32-bit register for want of registers",
        "shared_bytes": "LDS or shared memory per group, in bytes",
        "groups_per_unit": "whole groups per CU or SM, by chipmath.occupancy",
        "matrix_opcodes": "the matrix instructions of the loop",
        "matrix_instructions": "how many; on sm_100 one thread issues them for the group",
        "conversions": "instructions that convert elements",
        "scalar_conversions": "of these, F2F: one element each (NVIDIA)",
        "multiplications": "float multiplications and additions other than the matrix ones",
        "instructions": "all of the loop",
        "instructions_per_element": "instructions of a lane for each element of A and B that it could hold",
        "issue_clocks": "that the schedulers of a CU or SM need for all waves of a group",
        "shared_clocks": "that shared memory needs for all waves of a group, without bank conflicts (Hopper)",
        "ptx": "what the first matrix instruction is called in PTX (NVIDIA)",
        "compiler": "who made the code",
    },
    cases=(
        *(chosen(arch, route) for route in KERNEL_ROUTES for arch in ARCHS[route]),
        *(_case("sm_90", route, *tried) for route in KERNEL_ROUTES for tried in TRIED[route]),
    ),
    quick_cases=tuple(chosen("sm_90", route) for route in KERNEL_ROUTES),
    compile_case=compile_case,
)
