"""Runs a compiled kernel on torch tensors with no GPU: what a launch would do, by the emulators of this folder."""

from __future__ import annotations

import torch
from chipmath.crosscompile import Binary
from oracles import ptx
from oracles.memory import Memory
from torch import Tensor


def execute(binary: Binary, grid: tuple[int, ...], arguments: list[Tensor | int]) -> list[Tensor | None]:
    """Execute for every block of ``grid``, writing tensors in place; how often each byte of each was stored to.

    arguments  as a launch takes them: contiguous CPU tensors and 32-bit integers. One tensor at two places is one
    """
    tensors = {id(each): each for each in arguments if isinstance(each, Tensor)}
    memory = Memory({str(key): tensor.view(-1).view(torch.uint8).numpy() for key, tensor in tensors.items()})
    values = [memory.address(str(id(each))) if isinstance(each, Tensor) else int(each) for each in arguments]
    scratch = [0, 0]  # of Triton's launcher, global and for profiling: unused here, so address 0 would be found out
    ptx.run(binary.ptx, grid, binary.threads, values + scratch, memory, shared_bytes=binary.shared_bytes)
    counts = {key: torch.from_numpy(memory.stores[str(key)]) for key in tensors}
    return [counts[id(each)] if isinstance(each, Tensor) else None for each in arguments]
