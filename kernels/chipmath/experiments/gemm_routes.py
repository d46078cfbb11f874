"""What one step of each MXFP8 product asks of a chip: tensor cores, issue slots, registers, shared memory.

The loops are those that `chipmath.matmul_gpu` launches. A step covers tile_k of K for one tile of C.
"""

import re
from collections import Counter

from chipmath.crosscompile import AMD_OPCODE, SASS_OPCODE, Binary, compile_triton, find_triton
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment, Row
from chipmath.experiments.loops import innermost_loop
from chipmath.experiments.mx_step import GROUPS
from chipmath.experiments.resources import MATRIX_OPCODE
from chipmath.matmul_tiles import Tile, constants_of, tile_of

KERNEL_ROUTES = ("dot_scaled", "fp16_relative", "folded_128")
# What the tensor cores multiply, by route and chip; see chipmath.devices.matrix_rates.
OPERANDS = {"dot_scaled": "bf16", "fp16_relative": "fp16", "folded_128": "fp8"}
ARCHS = {
    "dot_scaled": ("gfx942", "gfx950", "sm_90", "sm_100"),
    "fp16_relative": ("gfx942", "gfx950", "sm_90", "sm_100"),
    "folded_128": ("gfx950", "sm_90"),
}
# What else there is on sm_90: tile, warps, stages. These come close, by the columns, and gemm_speed times them.
RUNNERS_UP: dict[str, tuple[Tile, ...]] = {
    "dot_scaled": (((128, 128, 128), 8, 3), ((128, 128, 64), 8, 3)),
    "fp16_relative": (((256, 128, 128), 8, 3), ((256, 128, 64), 8, 3), ((128, 256, 64), 8, 3)),
    "folded_128": (((128, 64, 128), 4, 3), ((64, 128, 128), 4, 3)),
}
# These do not, and the columns say why.
ALSO_RAN: dict[str, tuple[Tile, ...]] = {
    "dot_scaled": (((256, 128, 128), 8, 3), ((128, 64, 128), 4, 3)),
    "fp16_relative": (((256, 256, 64), 8, 3), ((128, 128, 64), 8, 3), ((128, 64, 64), 4, 3)),
    "folded_128": (((256, 128, 128), 8, 3), ((128, 128, 128), 4, 3)),
}

MULTIPLICATION = r"^(HMUL|HFMA|FMUL|FFMA|FADD|v_(pk_)?(mul|fma|fmac|add)_f)"
SHARED_BYTES_PER_CLOCK = 128  # CUDA guide: 32 banks, each of which serves 32 bits a clock
SHARED = re.compile(r"\b(LDS|STS|LDSM|STSM|LDGSTS)\b((?:\.\w+)*)")
NEVER = re.compile(r"^.*@!PT .*$", re.MULTILINE)  # never executed: ptxas writes such loads before a fence
PRODUCT_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\w+)")
WGMMA = re.compile(r"\b([HQ])GMMA\.64x(\d+)x(\d+)\S* R\d+, (gdesc)?")
PTX_MATRIX = r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*"


OVERLAP = {
    "alone_issue_clocks": "of issue_clocks, those while none of the group's products is under way (Hopper)",
    "alone_shared_clocks": "of shared_clocks, those then, without asynchronous copies (Hopper)",
    "products_ahead": "products under way at the wait for one (Hopper)",
    "steps_ahead": "steps whose copies to shared memory are under way when a step has waited for its own (Hopper)",
    "awaited_loads": "loads from memory to registers of a warp, whose latency a step waits for (Hopper)",
    "barriers": "of the group in a step (Hopper)",
}


def compile_route(arch: str, route: str, tile: tuple[int, int, int], num_warps: int, num_stages: int) -> Binary:
    """A kernel as a launch on aligned E4M3 tensors below 2 GiB compiles it, sizes multiples of 16."""
    find_triton()  # else the kernels' own import fails, and does not say how to get it
    from chipmath import matmul_kernels

    letters = "DS" if device(arch).vendor == "AMD" else "D"
    scale = "*u8" if route == "dot_scaled" else "*fp32"
    pointers = {"a": "*fp8e4nv", "a_scales": scale, "b": "*fp8e4nv", "b_scales": scale, "c": "*fp32", "tiles": "*i32"}
    constants = dict(zip(("TILE_M", "TILE_N", "TILE_K"), tile)) | {"EVEN_K": True} | constants_of(route, arch)
    integers = {"tiles_m": "i32", "N": "i32:D", "K": "i32:D"}
    if route == "dot_scaled":
        constants |= {"A_FORMAT": "e4m3", "B_FORMAT": "e4m3"}
    else:
        integers |= {"a_width": "i32:D", "b_width": "i32:D"}
    if route == "fp16_relative":
        pointers |= {"a_exponents": "*i32", "b_exponents": "*i32"}
    signature = {name: f"{kind}:{letters}" for name, kind in pointers.items()} | integers
    kernel = getattr(matmul_kernels, route)
    return compile_triton(kernel, signature, constants, arch, num_warps=num_warps, num_stages=num_stages)


def step(binary: Binary, tile: tuple[int, int, int], num_warps: int) -> Row:
    """What one wave issues in a step, and what a step has for it to do."""
    unit, (m, n, k) = device(binary.arch), tile
    body = innermost_loop(binary.isa, MATRIX_OPCODE)
    opcodes = Counter((AMD_OPCODE if unit.vendor == "AMD" else SASS_OPCODE).findall(body))
    matrix = {opcode: count for opcode, count in opcodes.items() if re.search(MATRIX_OPCODE, opcode)}
    elements = (m + n) * k / (num_warps * unit.wave_lanes)
    occupancy, hopper = binary.occupancy(), binary.arch == "sm_90"
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
        "shared_clocks": shared_clocks(body, num_warps) if hopper else None,
        **(overlap(body, num_warps) if hopper else dict.fromkeys(OVERLAP)),
        "loop_spills": len(re.findall(r"\b(?:STL|LDL)\b|\bscratch_", body)),
        "ptx": next(iter(re.findall(PTX_MATRIX, binary.ptx)), None) if binary.ptx else None,
        "compiler": binary.compiler,
    }


def overlap(sass: str, num_warps: int) -> Row:
    """What of a step on Hopper can hide behind what, for one group.

    A product is under way from its first instruction to the wait for it. Copies to shared memory are under way until
    they are waited for, in groups; a step that waits for all of them has none ahead.
    """
    lines = sass.splitlines()
    first = next(at for at, line in enumerate(lines) if WGMMA.search(line))
    wait = next(at for at, line in enumerate(lines) if at > first and PRODUCT_WAIT.search(line))
    alone = "\n".join(lines[:first] + lines[wait:])
    copies = len(re.findall(r"\bLDGDEPBAR\b", sass))
    return {
        "alone_issue_clocks": len(SASS_OPCODE.findall(alone)) * num_warps // device("sm_90").simds,
        "alone_shared_clocks": shared_clocks(re.sub(r"\bLDGSTS.*", "", alone), num_warps),
        "products_ahead": int(PRODUCT_WAIT.search(sass)[1], 16),
        "steps_ahead": int(re.search(r"DEPBAR\.LE SB0, (0x\w+)", sass)[1], 16) / copies,
        "awaited_loads": len(re.findall(r"\bLDG\.", sass)),
        "barriers": len(re.findall(r"\bBAR\.SYNC", sass)),
    }


def tensor_clocks(arch: str, operands: str, tile: tuple[int, int, int]) -> float:
    """Clocks of a unit's matrix pipes for one step, at the dense rate of ``chipmath.devices``."""
    m, n, k = tile
    return 2 * m * n * k / device(arch).matrix_rates[operands]


def least_clocks(row: Row) -> dict[str, float]:
    """Clocks of an SM that a step on Hopper takes at least, for each reason: a row of the recording.

    Besides what each of three units is needed for: while a group's product is under way, it does little else, so its
    step takes the product and the rest one after the other; its neighbours on the SM fill the gaps.
    """
    tensor = tensor_clocks(row["arch"], OPERANDS[row["route"]], (row["tile_m"], row["tile_n"], row["tile_k"]))
    in_turn = tensor + max(row["alone_issue_clocks"], row["alone_shared_clocks"])
    return {
        "tensor cores": tensor,
        "issue slots": row["issue_clocks"],
        "shared memory": row["shared_clocks"],
        "groups": in_turn / row["groups_per_unit"],
    }


def shared_clocks(sass: str, num_warps: int) -> float:
    """Clocks of shared memory for a step of one group on Hopper, were no two lanes ever in each other's way.

    A warp's access takes a clock for every 128 bytes of its lanes, and one at least; cp.async writes as much. Matrices
    of ldmatrix and stmatrix have 128 bytes each. A warpgroup's matrix instruction reads B, and A unless it comes from
    registers, once for its four warps.
    """
    lanes = device("sm_90").wave_lanes
    sass, clocks = NEVER.sub("", sass), 0.0
    for opcode, modifiers in SHARED.findall(sass):
        if opcode in ("LDSM", "STSM"):
            clocks += num_warps * int(modifiers[-1])
            continue
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


def case_of(arch: str, route: str, tile: tuple[int, int, int], num_warps: int, num_stages: int) -> Row:
    """The keys of a row."""
    names = ("arch", "route", "tile_m", "tile_n", "tile_k", "num_warps", "num_stages")
    return dict(zip(names, (arch, route, *tile, num_warps, num_stages)))


def chosen(arch: str, route: str) -> Row:
    """The keys of the tile that `chipmath.matmul_gpu` launches."""
    return case_of(arch, route, *tile_of(route, arch))


EXPERIMENT = CompiledExperiment(
    name="gemm_routes",
    question="What does one step of an MXFP8 product issue by each route, and what does its tile take?",
    sources=(
        *("experiments/gemm_routes.py", "experiments/mx_step.py", "experiments/mx_tiles.py"),
        *("experiments/loops.py", "experiments/resources.py", "experiments/scaled_gemm.py"),
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
        **OVERLAP,
        "loop_spills": "loads and stores of spilled registers in the loop",
        "ptx": "what the first matrix instruction is called in PTX (NVIDIA)",
        "compiler": "who made the code",
    },
    cases=(
        *(chosen(arch, route) for route in KERNEL_ROUTES for arch in ARCHS[route]),
        *(case_of("sm_90", route, *its) for route in KERNEL_ROUTES for its in RUNNERS_UP[route] + ALSO_RAN[route]),
    ),
    quick_cases=tuple(chosen("sm_90", route) for route in KERNEL_ROUTES),
    compile_case=compile_case,
)
