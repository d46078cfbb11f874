"""Executes PTX on the CPU, with NumPy: what a compiled kernel writes, with no GPU.

All threads of a grid run in lockstep, each with its own program counter: the threads whose counter is the lowest
execute, so that diverged ones meet again. Instructions follow the PTX ISA (docs.nvidia.com/cuda/parallel-thread-
execution, version 9); section names are given where a rule is not obvious. Whatever is not known here, an instruction
or a modifier, raises NotImplementedError with its line.

More is checked than a GPU would: a register that was never set, an address outside of every array (`memory`), shared
memory that nobody wrote, and shared memory that two threads use with no barrier between them all raise.

What this cannot show: that ptxas makes of the PTX what the PTX says, and that a chip does what its manual says.
"""

from __future__ import annotations

import numpy as np
from oracles import ptx_instructions, ptx_matrix  # noqa: F401 -- they fill the machine's table
from oracles.memory import Memory
from oracles.ptx_machine import Machine
from oracles.ptx_text import Program, parse

__all__ = ["Program", "parse", "run"]


def run(
    program: Program,
    grid: tuple[int, ...],
    threads: int,
    arguments: list[int],
    memory: Memory,
    *,
    shared_bytes: int = 0,
) -> None:
    """Execute a kernel for every block of ``grid``.

    threads       a block
    arguments     of the kernel, in order: 32-bit integers, and addresses from ``memory.address``
    shared_bytes  a block, beyond what the kernel declares: as the launch would give it
    """
    machine = Machine(program, grid, threads, arguments, memory, shared_bytes)
    with np.errstate(all="ignore"):
        machine.run()
