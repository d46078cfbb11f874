"""Runs a compiled kernel on torch tensors with no GPU: what a launch would do, by the emulators of this folder."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from chipmath.crosscompile import Binary, compile_triton
from chipmath.devices import device
from oracles import cdna, ptx
from oracles.memory import Memory
from torch import Tensor


def execute(binary: Binary, grid: tuple[int, ...], arguments: list[Tensor | int]) -> list[Tensor | None]:
    """Execute for every block of ``grid``, writing tensors in place; how often each byte of each was stored to.

    arguments  as a launch takes them: contiguous CPU tensors and 32-bit integers. One tensor at two places is one
    """
    memory = execute_in_memory(binary, grid, arguments)
    counts = {name: torch.from_numpy(stores) for name, stores in memory.stores.items()}
    return [counts[_name(each)] if isinstance(each, Tensor) else None for each in arguments]


def execute_in_memory(binary: Binary, grid: tuple[int, ...], arguments: list[Tensor | int]) -> Memory:
    """The same; the memory, with its counts in the order of the tensors."""
    tensors = {_name(each): each for each in arguments if isinstance(each, Tensor)}
    memory = Memory({name: tensor.view(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()})
    values = [memory.address(_name(each)) if isinstance(each, Tensor) else int(each) for each in arguments]
    values += [0] * (binary.parameters - len(values))  # scratch memory: unused here, so address 0 would be found out
    run = _run_amd if device(binary.arch).vendor == "AMD" else _run_nvidia
    run(binary, grid, values, memory)
    return memory


def _name(tensor: Tensor) -> str:
    return str(id(tensor))


def _run_nvidia(binary: Binary, grid: tuple[int, ...], values: list[int], memory: Memory) -> None:
    program = ptx.parse(binary.ptx)
    dynamic = binary.shared_bytes - program.shared_bytes
    ptx.run(program, grid, binary.threads, values, memory, shared_bytes=dynamic)


def _run_amd(binary: Binary, grid: tuple[int, ...], values: list[int], memory: Memory) -> None:
    text = f'.amdgcn_target "amdgcn-amd-amdhsa--{binary.arch}"\n{binary.isa}'  # whose first line is not the kernel's
    cdna.run(text, grid, binary.threads, values, memory, shared_bytes=binary.dynamic_shared_bytes)


class Launcher:
    """A @triton.jit kernel that compiles for a chip and executes here: ``Launcher(kernel, arch)[grid](…)``.

    stores  by parameter, how often its bytes were stored to in the last launch
    """

    def __init__(self, kernel: Any, arch: str, edit: Callable[[str], str] = str):
        """Remember what to compile, and for what; ``edit`` may change the code between the two."""
        self.kernel, self.arch, self.edit, self.stores = kernel, arch, edit, {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """What `kernel[grid]` is on a GPU."""
        return functools.partial(self._launch, grid)

    def _launch(self, grid, *arguments, num_warps: int, num_stages: int | None = None, **constexprs) -> None:
        """Specialise as Triton's launcher does: aligned pointers, integers that 16 divides, and 1, a constant."""
        names = [name for name in self.kernel.arg_names if name not in constexprs]
        given = dict(zip(names, arguments, strict=True))
        ones = {name: 1 for name, value in given.items() if isinstance(value, int) and value == 1}
        given = {name: value for name, value in given.items() if name not in ones}
        signature = {name: _kind(value, self.arch) for name, value in given.items()}
        binary = compile_triton(
            self.kernel, signature, constexprs | ones, self.arch, num_warps=num_warps, num_stages=num_stages
        )
        counts = execute(edited(binary, self.edit), grid, list(given.values()))
        self.stores = dict(zip(given, counts))


def edited(binary: Binary, edit: Callable[[str], str]) -> Binary:
    """The same kernel with other text to execute."""
    text = "ptx" if binary.ptx else "isa"
    return replace(binary, **{text: edit(getattr(binary, text))})


def mistake(pattern: str, replacement: str = "", *, count: int = 0) -> Callable[[str], str]:
    """An edit of the code that a compiler's mistake could be; NotImplementedError where there is none to make."""

    def edit(text: str) -> str:
        changed = re.sub(pattern, replacement, text, count=count)
        if changed == text:  # no AssertionError, which is what a test of a mistake may wait for
            raise NotImplementedError(f"the code has nothing to make this mistake in: {pattern}")
        return changed

    return edit


KINDS = {torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5", torch.uint8: "u8", torch.int32: "i32"}
KINDS |= {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def _kind(value: Tensor | int, arch: str) -> str:
    if isinstance(value, Tensor):  # `Memory` aligns every array, and none here has 2 GiB
        return f"*{KINDS[value.dtype]}:{'DS' if device(arch).vendor == 'AMD' else 'D'}"
    return "i32:D" if value % 16 == 0 else "i32"
