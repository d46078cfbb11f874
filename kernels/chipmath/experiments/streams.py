"""Two streams through memory, one program a block of BLOCK 32-bit words: copy them, or read them and keep their parity.

The parity (exclusive or) of all words depends on every bit and on no order. Sizes are multiples of BLOCK: no masks.
"""

import triton
import triton.language as tl


@triton.jit
def copy_stream(source, target, BLOCK: tl.constexpr):
    """target = source; grid (words / BLOCK,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def read_stream(source, parities, BLOCK: tl.constexpr):
    """parities[i] = exclusive or of all words of block i; grid (words / BLOCK,)."""
    block = tl.program_id(0)
    tl.store(parities + block, tl.xor_sum(tl.load(source + block * BLOCK + tl.arange(0, BLOCK)), 0))
