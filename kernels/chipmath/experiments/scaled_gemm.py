"""C = A B' for MXFP8 operands: one tile of C a program, one `tl.dot_scaled` a step of K.

a, b                (M, K) and (N, K) E4M3 codes, rows contiguous; M, N and K are multiples of the tile
a_scales, b_scales  (M, K / 32) and (N, K / 32) E8M0 bytes
c                   (M, N) float32
"""

import triton
import triton.language as tl


@triton.jit
def scaled_gemm(a, a_scales, b, b_scales, c, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    """Grid (M / TILE_M, N / TILE_N)."""
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    n = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    block = tl.arange(0, TILE_K // 32)
    a_at = a + m[:, None] * K + k[None, :]
    b_at = b + n[None, :] * K + k[:, None]
    a_scales_at = a_scales + m[:, None] * (K // 32) + block[None, :]
    b_scales_at = b_scales + n[:, None] * (K // 32) + block[None, :]
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for _ in range(0, K, TILE_K):
        left, right = tl.load(a_at), tl.load(b_at)
        total = tl.dot_scaled(left, tl.load(a_scales_at), "e4m3", right, tl.load(b_scales_at), "e4m3", total)
        a_at += TILE_K
        b_at += TILE_K
        a_scales_at += TILE_K // 32
        b_scales_at += TILE_K // 32
    tl.store(c + m[:, None] * N + n[None, :], total)
