"""The chains of ilp_timed.cu and ilp_timed.hip in Gluon: the same arguments, and the same clock around them.

ffma, mma, wgmma  sm_90; what KIND means to ilp_timed.cu
mfma_scale        gfx950; SCALED=1 of ilp_timed.hip. Triton has no unscaled f8f6f4 instruction to ask for

CHAINS  1, 2, …
DEPTH   instructions of each chain in a step

words   A of every chain, then B, row by row; wgmma: the two tiles, as ilp_timed.cu orders them
sums    (programs, accumulators of all four waves): every accumulator, added up over the chains; whole numbers
starts, stops, units: as there, one a program

Launch (programs,) with four warps, and as many programs as fit at once; dynamic shared memory throttles occupancy.

What a compiler may not do, C++ says with asm volatile or a pragma. Here it is said so:
- no step is unrolled, in `_timed`: by a pragma that ptxas knows, and by a counter that LLVM cannot see through;
- operands are loaded before the clock is read, because a first product needs them; times zero it starts the chains;
- nothing is done with the sums before the clock is read again, because `_pinned` has them until then.
"""

# ruff: noqa: RUF005  Gluon compiles no unpacking in a tuple
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.amd import cdna4
from triton.experimental.gluon.language.nvidia import ampere, hopper
from triton.language import debug_barrier  # gl.barrier was gl.thread_barrier up to Triton 3.6

WAVES = gl.constexpr(4)


@gluon.jit
def _now(AMD: gl.constexpr):
    """The unit's own clock, in cycles."""
    if AMD:
        return gl.inline_asm_elementwise(
            "s_memtime $0\ns_waitcnt lgkmcnt(0)", "=s", [], dtype=gl.int64, is_pure=False, pack=1
        )
    else:
        return gl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=gl.int64, is_pure=False, pack=1)


@gluon.jit
def _unit(AMD: gl.constexpr):
    """Which SM; which CU of which XCD, see residency.hip."""
    if AMD:
        xcd = gl.inline_asm_elementwise(
            "s_getreg_b32 $0, hwreg(20, 0, 4)", "=s", [], dtype=gl.int32, is_pure=False, pack=1
        )
        cu = gl.inline_asm_elementwise(
            "s_getreg_b32 $0, hwreg(4, 8, 8)", "=s", [], dtype=gl.int32, is_pure=False, pack=1
        )
        return xcd << 8 | cu
    else:
        return gl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _pinned(x, AMD: gl.constexpr):
    """The float32 tensor itself, from here on: inline assembly keeps its place among other inline assembly."""
    return gl.inline_asm_elementwise("", "=v,0" if AMD else "=f,0", [x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _timed(x, zeros, steps, step: gl.constexpr, DEPTH: gl.constexpr, AMD: gl.constexpr):
    """First clock, last clock and the accumulators after so many steps from zero."""
    c = ()
    for i in gl.static_range(len(zeros)):
        c = c + (_pinned(zeros[i], AMD),)  # or chains that share both operands would share their first product
    first = step(x, c, 1)
    c = ()
    for i in gl.static_range(len(first)):
        c = c + (_pinned(first[i] * 0, AMD),)
    debug_barrier()
    start = _now(AMD)
    left = steps
    while left > 0:
        if not AMD:  # where ptxas looks for it: before anything else in the loop
            gl.inline_asm_elementwise('.pragma "nounroll";', "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        c = step(x, c, DEPTH)
        left -= 1
        if AMD:
            left = gl.inline_asm_elementwise("", "=s,0", [left], dtype=gl.int32, is_pure=False, pack=1)
    debug_barrier()
    stop = _now(AMD)
    sums = _pinned(c[0], AMD).to(gl.int32).to(gl.int64)
    for i in gl.static_range(1, len(c)):
        sums += _pinned(c[i], AMD).to(gl.int32).to(gl.int64)
    return start, stop, sums


@gluon.jit
def _report(starts, stops, units, start, stop, AMD: gl.constexpr):
    program = gl.program_id(0)
    gl.store(starts + program, start)
    gl.store(stops + program, stop)
    gl.store(units + program, _unit(AMD))


@gluon.jit
def _places(ROWS: gl.constexpr, COLUMNS: gl.constexpr, PERIOD: gl.constexpr, layout: gl.constexpr):
    """Where the elements of a matrix lie that is stored row by row; its rows repeat every PERIOD."""
    row, column = gl.arange(0, ROWS, gl.SliceLayout(1, layout)), gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    return (row % PERIOD)[:, None] * COLUMNS + column[None, :]


# ------------------------------------------------------------------------------------------------------------- FFMA


@gluon.jit
def _step_ffma(x, c, DEPTH: gl.constexpr):
    for _ in gl.static_range(DEPTH):
        added = ()
        for i in gl.static_range(len(c)):
            added = added + (gl.fma(c[i], x[1], x[0][i]),)
        c = added
    return c


@gluon.jit
def ffma(sums, starts, stops, units, words, steps, CHAINS: gl.constexpr, DEPTH: gl.constexpr):
    """One fused multiply-add a thread."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WAVES], [0])
    thread = gl.arange(0, 32 * WAVES, layout)
    a, c = (), ()
    for i in gl.static_range(CHAINS):
        a = a + (gl.load(words + i * 32 + thread % 32),)
        c = c + (gl.zeros((32 * WAVES,), gl.float32, layout),)
    one = gl.load(words + CHAINS * 32 + thread % 32)
    start, stop, total = _timed((a, one), c, steps, _step_ffma, DEPTH, False)
    gl.store(sums + gl.program_id(0) * 32 * WAVES + thread, total)
    _report(starts, stops, units, start, stop, False)


# --------------------------------------------------------------------------------------------------------- mma.sync


@gluon.constexpr_function
def _mma_layout():
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[WAVES.value, 1], instr_shape=[16, 8])


@gluon.jit
def _step_mma(x, c, DEPTH: gl.constexpr):
    for _ in gl.static_range(DEPTH):
        added = ()
        for i in gl.static_range(len(c)):
            added = added + (ampere.mma_v2(x[0][i], x[1], c[i]),)
        c = added
    return c


@gluon.jit
def mma(sums, starts, stops, units, words, steps, CHAINS: gl.constexpr, DEPTH: gl.constexpr):
    """mma.sync m16n8k16 of every warp, BF16 operands: a tile of 64 x 8, in which all warps have the same A."""
    layout: gl.constexpr = _mma_layout()
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    a, c = (), ()
    for i in gl.static_range(CHAINS):
        a = a + (gl.load(words + i * 256 + _places(16 * WAVES, 16, 16, left)),)
        c = c + (gl.zeros((16 * WAVES, 8), gl.float32, layout),)
    b = gl.load(words + CHAINS * 256 + _places(16, 8, 16, right))
    start, stop, total = _timed((a, b), c, steps, _step_mma, DEPTH, False)
    gl.store(sums + gl.program_id(0) * 128 * WAVES + _places(16 * WAVES, 8, 16 * WAVES, layout), total)
    _report(starts, stops, units, start, stop, False)


# ------------------------------------------------------------------------------------------------------------ wgmma


@gluon.constexpr_function
def _wgmma_layout():
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WAVES.value, 1], instr_shape=[16, 64, 32])


@gluon.jit
def _step_wgmma(x, c, DEPTH: gl.constexpr):
    """Before a chain goes on, its own last product has ended: as many are under way as there are chains."""
    for _ in gl.static_range(DEPTH):
        for i in gl.static_range(len(c)):
            issued = hopper.warpgroup_mma(x[0], x[1], c[i], is_async=True)
            c = _waited(_replaced(c, i, issued), len(c) - 1)
    return _waited(c, 0)


@gluon.jit
def _waited(c, UNDER_WAY: gl.constexpr):
    """The chains, of which at most so many products are under way."""
    done = hopper.warpgroup_mma_wait(UNDER_WAY, c)
    if len(c) == 1:  # then it is no tuple
        return (done,)
    else:
        return done


@gluon.jit
def _replaced(c, i: gl.constexpr, new):
    """The tuple with another element i."""
    chains = ()
    for j in gl.static_range(len(c)):
        if j == i:  # noqa: SIM108  Gluon compiles no choice between tensors in an expression
            chains = chains + (new,)
        else:
            chains = chains + (c[j],)
    return chains


@gluon.jit
def wgmma(sums, starts, stops, units, words, steps, CHAINS: gl.constexpr, DEPTH: gl.constexpr):
    """wgmma m64n64k32 of the warpgroup, both E4M3 operands in shared memory: all chains read the same two tiles."""
    layout: gl.constexpr = _wgmma_layout()
    loading: gl.constexpr = gl.BlockedLayout([1, 16], [16, 2], [WAVES, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=32, element_bitwidth=8, rank=2)
    row, k = gl.arange(0, 64, gl.SliceLayout(1, loading)), gl.arange(0, 32, gl.SliceLayout(0, loading))
    place = (row // 8 * 256 + row % 8 * 16)[:, None] + (k // 16 * 128 + k % 16)[None, :]
    a = gl.allocate_shared_memory(gl.float8e4nv, [64, 32], shared, gl.load(words + place))
    b = gl.allocate_shared_memory(gl.float8e4nv, [64, 32], shared, gl.load(words + 64 * 32 + place))
    hopper.fence_async_shared()  # the tensor cores read what threads wrote
    c = ()
    for _ in gl.static_range(CHAINS):
        c = c + (gl.zeros((64, 64), gl.float32, layout),)
    start, stop, total = _timed((a, b.permute((1, 0))), c, steps, _step_wgmma, DEPTH, False)
    gl.store(sums + gl.program_id(0) * 64 * 64 + _places(64, 64, 64, layout), total)
    _report(starts, stops, units, start, stop, False)


# ------------------------------------------------------------------------------------------------------- mfma_scale


@gluon.constexpr_function
def _mfma_layout():
    return gl.amd.AMDMFMALayout(version=4, instr_shape=[16, 16, 128], transposed=False, warps_per_cta=[WAVES.value, 1])


@gluon.jit
def _step_mfma_scale(x, c, DEPTH: gl.constexpr):
    for _ in gl.static_range(DEPTH):
        added = ()
        for i in gl.static_range(len(c)):
            added = added + (cdna4.mfma_scaled(x[0][i], x[2], "e4m3", x[1], x[3], "e4m3", c[i]),)
        c = added
    return c


@gluon.jit
def mfma_scale(sums, starts, stops, units, words, steps, scales, CHAINS: gl.constexpr, DEPTH: gl.constexpr):
    """v_mfma_scale_f32_16x16x128_f8f6f4 of every wave, E4M3: a tile of 64 x 16, in which all waves have the same A.

    scales  its lowest byte is the E8M0 scale of all blocks: 127 is one
    """
    layout: gl.constexpr = _mfma_layout()
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 16)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 16)
    a_scales = gl.full((16 * WAVES, 4), scales, gl.uint8, cdna4.get_mfma_scale_layout(left, [16 * WAVES, 4]))
    b_scales = gl.full((16, 4), scales, gl.uint8, cdna4.get_mfma_scale_layout(right, [16, 4]))
    a, c = (), ()
    for i in gl.static_range(CHAINS):
        a = a + (gl.load(words + i * 2048 + _places(16 * WAVES, 128, 16, left)),)
        c = c + (gl.zeros((16 * WAVES, 16), gl.float32, layout),)
    b = gl.load(words + CHAINS * 2048 + _places(128, 16, 128, right))
    start, stop, total = _timed((a, b, a_scales, b_scales), c, steps, _step_mfma_scale, DEPTH, True)
    gl.store(sums + gl.program_id(0) * 256 * WAVES + _places(16 * WAVES, 16, 16 * WAVES, layout), total)
    _report(starts, stops, units, start, stop, True)
