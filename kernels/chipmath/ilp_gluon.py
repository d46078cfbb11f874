"""The chains of ilp_timed.hip in Gluon: CHAINS independent chains of scaled matrix instructions in every wave, gfx950.

Here the scales are tensors, so the compiler has to emit v_mfma_scale_f32_16x16x128_f8f6f4; A and B come from memory, so
that no two chains share their operands. One program is one wave, and its tile one instruction: 16 x 16 x 128.

a       (CHAINS, 16, 128) E4M3 codes, viewed as FP8
b       (128, 16) of them, K first
scales  (16, 4) E8M0 bytes, for A and B
c       (programs, CHAINS, 16, 16) float32
"""

# ruff: noqa: RUF005  Gluon compiles no unpacking in a tuple
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.amd import cdna4


@gluon.constexpr_function
def _instruction():
    return gl.amd.AMDMFMALayout(version=4, instr_shape=[16, 16, 128], transposed=True, warps_per_cta=[1, 1])


@gluon.jit
def chains(a, b, scales, c, steps, CHAINS: gl.constexpr):
    """Grid (programs,), one warp each. Every step adds A B to each chain's accumulator."""
    layout: gl.constexpr = _instruction()
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 16)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 16)
    left_scales: gl.constexpr = cdna4.get_mfma_scale_layout(left, [16, 4])
    right_scales: gl.constexpr = cdna4.get_mfma_scale_layout(right, [16, 4])
    m, k = gl.arange(0, 16, gl.SliceLayout(1, left)), gl.arange(0, 128, gl.SliceLayout(0, left))
    bk, n = gl.arange(0, 128, gl.SliceLayout(1, right)), gl.arange(0, 16, gl.SliceLayout(0, right))
    y = gl.load(b + bk[:, None] * 16 + n[None, :])
    row, block = gl.arange(0, 16, gl.SliceLayout(1, left_scales)), gl.arange(0, 4, gl.SliceLayout(0, left_scales))
    x_scale = gl.load(scales + row[:, None] * 4 + block[None, :])
    row, block = gl.arange(0, 16, gl.SliceLayout(1, right_scales)), gl.arange(0, 4, gl.SliceLayout(0, right_scales))
    y_scale = gl.load(scales + row[:, None] * 4 + block[None, :])
    x, sums = (), ()
    for i in gl.static_range(CHAINS):
        x = x + (gl.load(a + i * 16 * 128 + m[:, None] * 128 + k[None, :]),)
        sums = sums + (gl.zeros((16, 16), gl.float32, layout),)
    for _ in range(steps):
        added = ()
        for i in gl.static_range(CHAINS):
            added = added + (cdna4.mfma_scaled(x[i], x_scale, "e4m3", y, y_scale, "e4m3", sums[i]),)
        sums = added
    cm, cn = gl.arange(0, 16, gl.SliceLayout(1, layout)), gl.arange(0, 16, gl.SliceLayout(0, layout))
    target = c + gl.program_id(0) * CHAINS * 256 + cm[:, None] * 16 + cn[None, :]
    for i in gl.static_range(CHAINS):
        gl.store(target + i * 256, sums[i])
