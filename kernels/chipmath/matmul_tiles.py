"""The tile of each kernel route: (M, N, K), warps, stages. Fixed, so that no measurement tunes anything.

Chosen from the compiler's table (experiment gemm_routes), for sm_90 and gfx950: the largest tile that spills nothing,
as a larger one reads an element less often. folded_128 on NVIDIA takes half the tile instead: its sums are scaled
outside the tensor cores, which idle meanwhile unless a second group is resident, and two fit only so.
"""

TILES = {
    ("dot_scaled", "NVIDIA"): ((128, 128, 128), 8, 3),
    ("fp16_relative", "NVIDIA"): ((128, 128, 64), 8, 3),
    ("folded_128", "NVIDIA"): ((128, 64, 128), 4, 3),
    ("dot_scaled", "AMD"): ((128, 128, 128), 4, 2),
    ("fp16_relative", "AMD"): ((128, 128, 64), 4, 2),
    ("folded_128", "AMD"): ((128, 128, 128), 8, 2),
}
