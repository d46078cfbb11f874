"""The tile of each kernel route: (M, N, K), warps, stages. Fixed, so that no measurement tunes anything.

Chosen from the compiler's table (experiment gemm_routes). gfx950: the largest that spills nothing, as a larger tile
reads an element less often. sm_90: of those that spill nothing in their loop, by Triton 3.6 and 3.9, the one that takes
the fewest clocks by `gemm_routes.least_clocks`. Whether a runner-up is faster takes a GPU to say: gemm_speed times it.
"""

from chipmath.devices import device

Tile = tuple[tuple[int, int, int], int, int]

TILES: dict[tuple[str, str], Tile] = {
    ("dot_scaled", "sm_90"): ((256, 128, 64), 8, 3),
    ("fp16_relative", "sm_90"): ((128, 128, 64), 4, 3),
    ("folded_128", "sm_90"): ((128, 128, 128), 8, 3),
    ("dot_scaled", "NVIDIA"): ((128, 128, 128), 8, 3),
    ("fp16_relative", "NVIDIA"): ((128, 128, 64), 8, 3),
    ("folded_128", "NVIDIA"): ((128, 64, 128), 4, 3),
    ("dot_scaled", "AMD"): ((128, 128, 128), 4, 2),
    ("fp16_relative", "AMD"): ((128, 128, 64), 4, 2),
    ("folded_128", "AMD"): ((128, 128, 128), 8, 2),
}


def tile_of(route: str, arch: str) -> Tile:
    """What `chipmath.matmul_gpu` launches for a chip: its own, or its vendor's; NVIDIA's for Triton's interpreter."""
    return TILES.get((route, arch)) or TILES[route, "NVIDIA" if arch == "cpu" else device(arch).vendor]


def constants_of(route: str, arch: str) -> dict[str, bool]:
    """The route's other constants of a chip. FOUR_BYTES pays only where registers hold A, and not B: sm_90."""
    return {"FOUR_BYTES": arch == "sm_90"} if route == "fp16_relative" else {}
