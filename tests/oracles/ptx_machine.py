"""The machine that executes PTX: threads with their registers, and a table of instructions that other files fill.

Each handler takes the machine, the instruction and the threads that are active. Whatever is not known, an instruction
or a modifier, raises NotImplementedError with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from oracles.memory import Memory
from oracles.ptx_shared import POISON, Shared
from oracles.ptx_text import TYPES, Instruction, Program

UNITS = 3  # on which the blocks of a grid are dealt out
CLOCKS = ("%clock64", "%globaltimer")  # both count instructions that the machine has executed


class Machine:
    """Threads, their registers, and shared memory."""

    def __init__(self, program: Program, grid, threads: int, arguments: list[int], memory: Memory, shared_bytes: int):
        """Set up all blocks of the grid."""
        if len(arguments) != len(program.parameters):
            raise ValueError(f"{len(program.parameters)} arguments wanted, got {len(arguments)}")
        self.program, self.memory, self.threads = program, memory, threads
        sizes = (*grid, 1, 1)[:3]
        blocks = int(np.prod(sizes))
        self.count = blocks * threads
        thread = np.arange(self.count)
        self.block, self.lane = thread // threads, thread % threads % 32
        block = self.block
        self.special = {"%tid.x": thread % threads, "%tid.y": 0, "%tid.z": 0, "%laneid": self.lane}
        self.special |= {"%ntid.x": threads, "%ntid.y": 1, "%ntid.z": 1}
        for axis, size in zip("xyz", sizes):
            self.special |= {f"%ctaid.{axis}": block % size, f"%nctaid.{axis}": size}
            block = block // size
        self.parameters = dict(zip([name for name, _ in program.parameters], arguments))
        self.registers: dict[str, np.ndarray] = {}
        self.under_way: set[str] = set()  # registers that a product will write, or still reads
        self.special["%smid"] = self.block % UNITS
        self.clock = 0
        self.shared = Shared(blocks, program.shared_bytes + shared_bytes)
        self.copies, self.copy_groups = [], []  # asynchronous: not yet in a group, and groups not yet waited for
        self.products, self.product_groups = [], []
        self.counter = np.zeros(self.count, np.int64)
        self.alive = np.ones(self.count, bool)

    def run(self) -> None:
        """Execute until every thread has returned."""
        while self.alive.any():
            at = int(self.counter[self.alive].min())
            here = self.alive & (self.counter == at)
            if at == len(self.program.code):
                raise ValueError("a thread ran past the end of the kernel")
            instruction = self.program.code[at]
            active = here & self.predicate(instruction.guard) if instruction.guard else here
            self.counter[here] += 1
            if active.any():
                self.execute(instruction, active)

    def execute(self, instruction: Instruction, active: np.ndarray) -> None:
        """One instruction for the active threads."""
        self.clock += 1
        handler = INSTRUCTIONS.get(instruction.base)
        if handler is None:
            raise NotImplementedError(instruction.text)
        handler(self, instruction, active)

    def predicate(self, name: str) -> np.ndarray:
        """A predicate register or its opposite, or a constant."""
        if re.fullmatch(r"-?\d+", name):
            return np.full(self.count, int(name) != 0)
        value = self.raw(name.lstrip("!"))
        return ~value if name.startswith("!") else value

    def raw(self, name: str) -> np.ndarray:
        """A register's bits."""
        if name not in self.registers:
            raise ValueError(f"register {name} is read before anything wrote it")
        if name in self.under_way:
            raise ValueError(f"register {name} is read before its product has been waited for")
        return self.registers[name]

    def read(self, operand: str, kind: str) -> np.ndarray:
        """An operand as a type: the low bits of a register, a special register, a constant or a symbol's address."""
        dtype = TYPES[kind]
        if dtype.kind == "b":
            return self.predicate(operand)
        if operand in CLOCKS:
            return np.full(self.count, self.clock, np.int64).astype(dtype)
        if operand in self.special:
            return np.broadcast_to(np.asarray(self.special[operand]), self.count).astype(dtype)
        if operand.startswith("%") or operand in self.registers:
            bits = self.raw(operand)
            return bits.astype(f"u{min(dtype.itemsize, bits.itemsize)}").view(_signed_alike(dtype, bits.itemsize))
        if operand in self.program.variables:
            return np.full(self.count, self.program.variables[operand], dtype)
        return np.full(self.count, _constant(operand, dtype))

    def write(self, name: str, value: np.ndarray, active: np.ndarray) -> None:
        """Set a register of the active threads; a narrower value is extended by its own sign or by zeros."""
        if name == "_":
            return
        if name in self.under_way:
            raise ValueError(f"register {name} is written before its product has been waited for")
        dtype = self.program.registers[name]
        if dtype.kind == "b":
            bits = value.astype(bool)
        else:
            bits = value.view(f"u{value.itemsize}") if value.dtype.kind == "f" else value
            bits = bits.astype(f"{'i' if bits.dtype.kind == 'i' else 'u'}{dtype.itemsize}").view(dtype)
        if not active.all():
            poison = np.full(self.count, POISON, np.uint8).astype(dtype)
            bits = np.where(active, bits, self.registers.get(name, poison))
        self.registers[name] = bits

    def address(self, operand: str) -> np.ndarray:
        """Of ``[register + offset]`` or ``[symbol + offset]``, as int64."""
        base, sign, offset = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", operand).groups()
        kind = "u64" if base.startswith("%") and self.raw(base).itemsize == 8 else "u32"
        moved = int(offset or "0", 0) * (-1 if sign == "-" else 1)
        return self.read(base, kind).astype(np.int64) + moved


def _signed_alike(dtype: np.dtype, bytes_in_register: int) -> np.dtype:
    """The dtype, or its kind at the register's width where that is narrower (a 32-bit operand of a 64-bit shift)."""
    return np.dtype(f"{dtype.kind}{min(dtype.itemsize, bytes_in_register)}")


def _constant(text: str, dtype: np.dtype):
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        value = np.array(int(found[1] or found[2], 16), np.uint32 if found[1] else np.uint64)
        return value.view(dtype) if dtype.kind == "f" else value.astype(dtype)
    if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        raise NotImplementedError(f"operand {text}")
    value = int(text.rstrip("U"), 0)
    return np.array(value % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)


# --- the table of instructions ----------------------------------------------------------------------------------------

INSTRUCTIONS: dict[str, Callable[[Machine, Instruction, np.ndarray], None]] = {}


def instruction(*names: str):
    """Register a handler."""

    def register(handler):
        INSTRUCTIONS.update(dict.fromkeys(names, handler))
        return handler

    return register


def only(instruction: Instruction, *known: str) -> set[str]:
    """The modifiers that are no types; any other than ``known`` is refused."""
    found = {each for each in instruction.modifiers if each not in TYPES}
    if found - set(known):
        raise NotImplementedError(instruction.text)
    return found


def parts(braces: str) -> list[str]:
    """The registers of ``{…}``."""
    return [part.strip() for part in braces.strip("{}").split(",")]
