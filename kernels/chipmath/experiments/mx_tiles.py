"""What a tile of an MXFP8 matrix product takes from each chip, by Triton."""

from chipmath.crosscompile import Binary, compile_triton, find_triton
from chipmath.devices import DEVICES, device
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.resources import RESOURCES, resources

ARCHS = ("gfx942", "gfx950", "sm_90", "sm_100")
COLUMNS = DEVICES["sm_100"].tensor_memory_columns
TILES = ((64, 64, 128), (128, 64, 128), (128, 128, 128), (256, 128, 128), (128, 128, 256), (256, 256, 128))


def compile_tile(arch: str, tile: tuple[int, int, int], num_warps: int, num_stages: int, **options) -> Binary:
    """The kernel as a launch on aligned tensors below 2 GiB would compile it."""
    find_triton()  # else the kernel's own import fails, and does not say how to get it
    from chipmath.experiments.scaled_gemm import scaled_gemm

    letters = "DS" if device(arch).vendor == "AMD" else "D"
    pointers = {"a": "*fp8e4nv", "a_scales": "*u8", "b": "*fp8e4nv", "b_scales": "*u8", "c": "*fp32"}
    signature = {name: f"{kind}:{letters}" for name, kind in pointers.items()} | {"N": "i32:D", "K": "i32:D"}
    sizes = dict(zip(("TILE_M", "TILE_N", "TILE_K"), tile))
    return compile_triton(scaled_gemm, signature, sizes, arch, num_warps=num_warps, num_stages=num_stages, **options)


def compile_case(arch, tile_m, tile_n, tile_k, num_warps, num_stages) -> dict:
    """One row."""
    binary = compile_tile(arch, (tile_m, tile_n, tile_k), num_warps, num_stages)
    row = resources(binary) | {"tensor_memory_columns": None, "note": None}
    if device(arch).vendor == "NVIDIA":
        row["tensor_memory_columns"] = binary.tensor_memory_columns
    if not row["matrix_instructions"]:
        # Where a tile wants more tensor memory than there is, Triton makes a kernel that only traps.
        row |= dict.fromkeys(row.keys() - {"compiler", "threads", "shared_bytes"})
        row["note"] = "Triton emits a trap instead of a kernel: not enough tensor memory"
    return row


def _case(arch: str, tile: tuple[int, int, int], num_warps: int) -> dict:
    stages = 2 if device(arch).vendor == "AMD" else 3  # Triton's defaults
    names = ("arch", "tile_m", "tile_n", "tile_k", "num_warps", "num_stages")
    return dict(zip(names, (arch, *tile, num_warps, stages)))


EXPERIMENT = CompiledExperiment(
    name="mx_tiles",
    question="What does a tile of an MXFP8 matrix product take from each chip, and how many fit a unit?",
    sources=("experiments/mx_tiles.py", "experiments/scaled_gemm.py", "experiments/resources.py"),
    keys={
        "arch": "chip compiled for",
        "tile_m": "rows of C a program",
        "tile_n": "columns of C a program",
        "tile_k": "elements of K a step",
        "num_warps": "waves or warps per group",
        "num_stages": "steps in flight: Triton's default for the vendor",
    },
    values=RESOURCES
    | {"tensor_memory_columns": f"allocated by a block, of {COLUMNS} (Blackwell)", "note": "why there is no kernel"},
    cases=tuple(_case(arch, tile, warps) for arch in ARCHS for tile in TILES for warps in (4, 8)),
    quick_cases=(
        _case("gfx950", (64, 64, 128), 8),
        _case("gfx950", (128, 128, 128), 8),
        _case("sm_90", (64, 64, 128), 8),
    ),
    compile_case=compile_case,
)
