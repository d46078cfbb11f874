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

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from oracles.floats import E4M3, E4M3_CODES, E5M2, E5M2_CODES, from_bfloat16, multiply_add, nearest_code, to_bfloat16
from oracles.memory import Memory

TYPES = {
    **{f"{kind}{bits}": f"u{bits // 8}" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{"f16": "f2", "f32": "f4", "f64": "f8", "pred": "?"},
}
TYPES = {name: np.dtype(code) for name, code in TYPES.items()}
CANONICAL_NAN = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}  # of any arithmetic: "Floating Point Instructions"
# Hints to caches, orders of memory that lockstep keeps anyway, and shared::cta, which is what shared means.
NO_EFFECT = {
    "cta",
    "L1",
    "L2",
    "evict_last",
    "evict_first",
    "evict_normal",
    "no_allocate",
    "nc",
    "relaxed",
    "weak",
    "gpu",
}
POISON = 0xA5
UNITS = 3  # on which the blocks of a grid are dealt out
CLOCKS = ("%clock64", "%globaltimer")  # both count instructions that the machine has executed


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


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One line: ``@guard base.modifiers operands;``."""

    guard: str  # "", "%p1" or "!%p1"
    base: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def kinds(self) -> list[str]:
        """The types among the modifiers."""
        return [each for each in self.modifiers if each in TYPES]

    @property
    def kind(self) -> str:
        """The one type among the modifiers; NotImplementedError where there is none, or more."""
        if len(self.kinds) != 1:
            raise NotImplementedError(self.text)
        return self.kinds[0]


@dataclass(frozen=True)
class Program:
    """A kernel as it was read."""

    parameters: tuple[tuple[str, int], ...]  # name, bytes
    registers: dict[str, np.dtype]  # bits, unsigned, or bool
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    variables: dict[str, int]  # in shared memory: offset
    shared_bytes: int  # of those; an extern array begins behind them


OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


def parse(ptx: str) -> Program:
    """The one kernel of a PTX text."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.DOTALL)
    entries = re.findall(r"\.entry\s+(\w+)\s*\((.*?)\)(.*)", text, re.DOTALL)
    if len(entries) != 1:
        raise ValueError(f"one kernel wanted, found {len(entries)}")
    _, declared, rest = entries[0]
    parameters = re.findall(r"\.param\s+\.([a-z]\d+)[^,]*?(\w+)\s*(?:,|$)", declared.strip())
    body = re.sub(r"^\s*\.(loc|file|pragma)\b[^\n]*", "", rest[rest.index("{") :], flags=re.MULTILINE)
    reader = _Reader()
    reader.scope(body)
    sizes = tuple((name, TYPES[kind].itemsize) for kind, name in parameters)
    end = reader.shared_bytes
    variables = reader.variables | dict.fromkeys(re.findall(r"\.extern \.shared [^;]*?(\w+)\[\]", text), end)
    return Program(sizes, reader.registers, tuple(reader.code), reader.labels, variables, end)


class _Reader:
    """Statements to instructions, labels and registers; those of inner scopes get names of their own."""

    STATEMENT = re.compile(
        r"\s*(?:(?P<brace>[{}])|(?P<label>\$?[\w$]+):(?!:)|(?P<text>[^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)"
    )

    def __init__(self):
        """Nothing is read yet."""
        self.registers: dict[str, np.dtype] = {}
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.variables: dict[str, int] = {}
        self.shared_bytes = 0

    def scope(self, body: str) -> None:
        """Everything up to the brace that closes the first one."""
        local: list[dict[str, str]] = []  # for every open scope, what its names are called in the program
        at, scopes = 0, 0
        while found := self.STATEMENT.match(body, at):
            at = found.end()
            if found["brace"] == "{":
                local.append({})
                scopes += 1
            elif found["brace"]:
                local.pop()
                if not local:
                    return
            elif found["label"]:
                self.labels[found["label"]] = len(self.code)
            else:
                self.statement(" ".join(found["text"].split()), local, scopes)
        raise ValueError(f"not PTX: {body[at : at + 80]!r}")

    def statement(self, text: str, local: list[dict[str, str]], scopes: int) -> None:
        """A declaration or an instruction."""
        if found := re.match(r"\.reg\s*\.(\w+)\s+(.*)", text):
            dtype = TYPES[found[1]] if found[1] == "pred" else np.dtype(f"u{TYPES[found[1]].itemsize}")
            for name, many in re.findall(r"([%\w]+)(?:<(\d+)>)?", found[2]):
                for each in [f"{name}{number}" for number in range(int(many))] if many else [name]:
                    local[-1][each] = each if len(local) == 1 else f"{each}@{scopes}"
                    self.registers[local[-1][each]] = dtype
        elif found := re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", text):
            align, size = int(found[1]), int(found[3])
            self.variables[found[2]] = -(-self.shared_bytes // align) * align
            self.shared_bytes = self.variables[found[2]] + size
        elif text:
            for inner in local[1:]:
                text = re.sub(r"(?<![%$.\w])\w+\b", lambda word, own=inner: own.get(word[0], word[0]), text)
            self.code.append(_instruction(text))


def _instruction(text: str) -> Instruction:
    guard, opcode, rest = re.fullmatch(r"(?:@(!?[%\w@]+)\s+)?([a-z][\w.:]*)\s*(.*)", text).groups()
    base, *modifiers = re.split(r"\.|::", opcode)
    operands = tuple(each.strip() for each in OPERAND.findall(rest))
    return Instruction(guard or "", base, tuple(modifiers), operands, text)


# --- the machine ------------------------------------------------------------------------------------------------------


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


class Shared:
    """Shared memory of all blocks; finds bytes that nobody wrote, and races.

    Two threads race for a byte if one writes and the other reads or writes it with no barrier of the block in between.
    A byte that an asynchronous copy is on its way to belongs to nobody until the copy has been waited for, and one that
    tensor cores may still be reading must not be written.
    """

    # Who used a byte since the last barrier: a thread's number, or one of these, or SOME (SYNCED) - 2 * warp: several
    # threads of one warp, (before a barrier of that warp).
    NOBODY, SEVERAL, SOME, SYNCED = -1, -2, -3, -4

    def __init__(self, blocks: int, size: int):
        """Nothing is written yet."""
        self.size = size
        self.bytes = np.full((blocks, size), POISON, np.uint8)
        self.written = np.zeros((blocks, size), bool)
        self.in_flight = np.zeros((blocks, size), bool)
        # Stored by a thread with no fence.proxy.async since. Asynchronous copies are left out: the PTX ISA wants the
        # fence there, too, but kernels in wide use have none (those of Triton 3.6, for one).
        self.unfenced = np.zeros((blocks, size), bool)
        self.multiplied = np.zeros((blocks, size), np.int32)  # products under way that read it
        self.writer = np.full((blocks, size), self.NOBODY)
        self.reader = np.full((blocks, size), self.NOBODY)

    def barrier(self, blocks: np.ndarray) -> None:
        """Order everything before it and after it, in these blocks."""
        self.writer[blocks] = self.reader[blocks] = self.NOBODY

    def barrier_of_warps(self, machine: Machine, active: np.ndarray) -> None:
        """Order what the threads of a warp do, among themselves."""
        for users in (self.writer, self.reader):
            warp = self._warp(users)
            done = (warp >= 0) & active[32 * warp]
            users[done] = self.SYNCED - 2 * warp[done]

    def _warp(self, users: np.ndarray) -> np.ndarray:
        """The one warp that used a byte, or -1."""
        return np.where(users >= 0, users // 32, np.where(users <= self.SOME, (self.SOME - users) // 2, -1))

    def _free(self, users: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Where nobody else's use matters to these threads."""
        return (users == self.NOBODY) | (users == threads) | (users == self.SYNCED - 2 * (threads // 32))

    def places(self, machine: Machine, addresses: np.ndarray, width: int, active: np.ndarray):
        """The active threads, and the index of the bytes that each of them means."""
        threads = np.flatnonzero(active)
        at = addresses[threads]
        if ((at < 0) | (at + width > self.size) | (at % width != 0)).any():
            raise IndexError(f"shared memory has {self.size} bytes; {width} were wanted at {sorted(set(at))[:8]}")
        return threads, (machine.block[threads][:, None], at[:, None] + np.arange(width))

    def arrived(self, at) -> np.ndarray:
        """The bytes at an index, all of which must have been written."""
        if self.in_flight[at].any():
            raise ValueError("shared memory is read while a copy to it has not been waited for")
        if not self.written[at].all():
            raise ValueError("shared memory is read before anything wrote it")
        return self.bytes[at]

    def claim(self, at, threads: np.ndarray) -> None:
        """Whether these threads may write there now."""
        self._meet(self.writer, at, threads, "overwrites what another wrote")
        self._meet(self.reader, at, threads, "overwrites what another read")
        if self.in_flight[at].any():
            raise ValueError("shared memory is written while a copy to it has not been waited for")
        if self.multiplied[at].any():
            raise ValueError("shared memory is written while tensor cores may be reading it")

    def land(self, at, values: np.ndarray, threads: np.ndarray) -> None:
        """The bytes of asynchronous copies that their threads have waited for; others need a barrier, too."""
        self.bytes[at] = values
        self.in_flight[at] = False
        self.written[at] = True
        self.writer[at] = threads[:, None]

    def fence(self, machine: Machine, active: np.ndarray) -> None:
        """fence.proxy.async: tensor cores may read what these threads wrote, or any before the last barrier."""
        block = np.zeros((len(self.bytes), 1), bool)
        block[machine.block[active]] = True
        warp = self._warp(self.writer)
        own = np.where(self.writer >= 0, active[self.writer], (warp >= 0) & active[32 * warp])
        self.unfenced &= ~(own | (block & (self.writer == self.NOBODY)))

    def for_tensor_cores(self, at) -> np.ndarray:
        """The bytes at an index, which are in use from now on."""
        values = self.arrived(at)
        if self.unfenced[at].any():
            raise ValueError("tensor cores read shared memory that no fence.proxy.async has made visible to them")
        if (self.writer[at] != self.NOBODY).any():
            raise ValueError("tensor cores read shared memory that was written since the last barrier")
        np.add.at(self.multiplied, at, 1)
        return values

    def product_done(self, at) -> None:
        """A product has been waited for: but each warp waits for its own, so others may still be reading."""
        np.subtract.at(self.multiplied, at, 1)
        self.reader[at] = self.SEVERAL

    def load(self, machine: Machine, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        """``width`` bytes from each address."""
        threads, at = self.places(machine, addresses, width, active)
        values = self.arrived(at)
        self._meet(self.writer, at, threads, "reads what another wrote")
        self._note_readers(at, threads[:, None])
        out = np.zeros((machine.count, width), np.uint8)
        out[threads] = values
        return out

    def store(self, machine: Machine, addresses: np.ndarray, values: np.ndarray, active: np.ndarray) -> None:
        """Store uint8 (threads, width) of the active threads."""
        threads, at = self.places(machine, addresses, values.shape[1], active)
        self.claim(at, threads)
        self.writer[at] = threads[:, None]
        self.bytes[at] = values[threads]
        self.written[at] = self.unfenced[at] = True
        if (self.bytes[at] != values[threads]).any():  # several may write one value
            raise ValueError("two threads write different bytes to one place in shared memory, at once")

    def _note_readers(self, at, threads: np.ndarray) -> None:
        first, last = np.full(self.reader.shape, threads.max() + 1), np.full(self.reader.shape, -1)
        np.minimum.at(first, at, threads)
        np.maximum.at(last, at, threads)
        read = last >= 0
        now = self._joined(first[read], last[read])
        before = self.reader[read]
        mine = (before == self.NOBODY) | (before == self.SYNCED - 2 * self._warp(now))
        self.reader[read] = np.where(mine, now, self._joined(before, now))

    def _joined(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        warp = self._warp(one)
        several = np.where((warp >= 0) & (warp == self._warp(other)), self.SOME - 2 * warp, self.SEVERAL)
        return np.where(one == other, one, several)

    def _meet(self, users: np.ndarray, at, threads: np.ndarray, what: str) -> None:
        wrong = ~self._free(users[at], threads[:, None])
        if wrong.any():
            thread = threads[wrong.any(axis=1).argmax()]
            raise ValueError(f"thread {thread} {what} in shared memory, with no barrier between them")


# --- instructions -----------------------------------------------------------------------------------------------------

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


def simple(function: Callable, *known: str):
    """A handler for ``d, a, b, …`` of one type."""

    def handler(machine: Machine, each: Instruction, active: np.ndarray) -> None:
        if not each.kinds:
            return halves(function, machine, each, active)
        only(each, *known)
        kind = each.kind
        values = [machine.read(operand, kind) for operand in each.operands[1:]]
        return machine.write(each.operands[0], canonical(function(*values)), active)

    return handler


def halves(function: Callable, machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """The same for bf16, bf16x2, f16x2 and u16x2, computed in float64 (integers as they are) and rounded once.

    And for f32x2, computed in float32 by ``function`` itself.
    """
    name = each.modifiers[-1]
    if name not in ("bf16", "bf16x2", "f16x2", "u16x2", "f32x2") or set(each.modifiers[:-1]) - {"rn"}:
        raise NotImplementedError(each.text)
    if name == "f32x2":
        values = [machine.read(operand, "b64").view(np.float32) for operand in each.operands[1:]]
        return machine.write(each.operands[0], canonical(function(*values)).view(np.uint64), active)
    words = "b16" if name == "bf16" else "b32"
    pieces = [machine.read(operand, words).view(np.uint16) for operand in each.operands[1:]]
    if name == "u16x2":
        result = function(*pieces)
    elif name == "f16x2":
        exact = function(*(piece.view(np.float16).astype(np.float64) for piece in pieces))
        result = canonical(exact.astype(np.float16)).view(np.uint16)
    else:
        result = to_bfloat16(function(*(from_bfloat16(piece) for piece in pieces)))
    return machine.write(each.operands[0], result.view(TYPES[words]), active)


def canonical(value: np.ndarray) -> np.ndarray:
    """Arithmetic makes one NaN of any."""
    if value.dtype.kind != "f":
        return value
    nan = np.array(CANONICAL_NAN[value.itemsize], f"u{value.itemsize}").view(value.dtype)
    return np.where(np.isnan(value), nan, value)


INSTRUCTIONS |= {
    "add": simple(np.add, "rn"),
    "sub": simple(np.subtract, "rn"),
    "and": simple(np.bitwise_and),
    "or": simple(np.bitwise_or),
    "xor": simple(np.bitwise_xor),
    "not": simple(np.invert),
    "abs": simple(np.abs),
    "neg": simple(np.negative),
}


@instruction("mul", "mad")
def _multiply(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """d = a b (+ c), the latter of integers; .wide doubles the width of the product and of c."""
    if each.base == "mad" and (not each.kinds or each.kinds[0][0] == "f"):
        raise NotImplementedError(each.text)  # is fused from sm_20 on
    if not each.kinds:
        return halves(np.multiply, machine, each, active)
    mode = only(each, "lo", "hi", "wide", "rn")
    kind = each.kind
    a, b = (machine.read(operand, kind) for operand in each.operands[1:3])
    if a.dtype.kind == "f" or "lo" in mode:
        product = a * b
    else:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        product = a.astype(wide) * b.astype(wide)
        if "hi" in mode:
            product = (product >> (8 * a.itemsize)).astype(a.dtype)
    if each.base == "mad":
        product = product + machine.read(each.operands[3], f"{kind[0]}{8 * product.itemsize}")
    return machine.write(each.operands[0], canonical(product), active)


@instruction("fma")
def _fma(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    if each.modifiers in (("rn", "f32"), ("rn", "f32x2")):
        return simple(fused, "rn")(machine, each, active)
    return halves(multiply_add, machine, each, active)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32, rounded once."""
    return multiply_add(a, b, c).astype(np.float32)


@instruction("min", "max")
def _extreme(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Of two or three. A NaN loses, or wins with .NaN; -0 is less than +0."""
    if each.modifiers == ("u16x2",):
        return halves(np.maximum if each.base == "max" else np.minimum, machine, each, active)
    mode = only(each, "NaN")
    kind = each.kind
    first, *others = (machine.read(operand, kind) for operand in each.operands[1:])
    for other in others:
        less = (first < other) | ((first == other) & np.signbit(first)) if first.dtype.kind == "f" else first < other
        keep = ~less if each.base == "max" else less
        chosen = np.where(keep, first, other)
        if first.dtype.kind == "f":
            nan = np.isnan(first) | np.isnan(other)
            either = first + other if "NaN" in mode else np.where(np.isnan(first), other, first)
            chosen = np.where(nan, either, chosen)
        first = canonical(chosen)
    return machine.write(each.operands[0], first, active)


@instruction("div", "rem")
def _divide(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Towards zero; the remainder has the dividend's sign."""
    only(each)
    kind = each.kind
    if kind not in ("s32", "u32"):
        raise NotImplementedError(each.text)
    a, b = (machine.read(operand, kind).astype(np.int64) for operand in each.operands[1:])
    if (b[active] == 0).any():
        raise ZeroDivisionError(each.text)
    quotient = np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))
    result = quotient if each.base == "div" else a - quotient * b
    machine.write(each.operands[0], result.astype(TYPES[kind]), active)


@instruction("shl", "shr")
def _shift(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Amounts beyond the width are clamped to it."""
    only(each)
    kind = each.kind
    value, amount = machine.read(each.operands[1], kind), machine.read(each.operands[2], "u32")
    bits = 8 * value.itemsize
    if each.base == "shl":
        shifted = np.where(amount < bits, value << np.minimum(amount, bits - 1).astype(value.dtype), 0)
    else:
        gone = 0 if value.dtype.kind == "u" else value >> value.dtype.type(bits - 1)
        shifted = np.where(amount < bits, value >> np.minimum(amount, bits - 1).astype(value.dtype), gone)
    machine.write(each.operands[0], shifted.astype(value.dtype), active)


@instruction("bfe")
def _extract(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Bits from position b on, c of them; .s32 extends the sign. Only what lies within 32 bits."""
    only(each)
    kind = each.kind
    value = machine.read(each.operands[1], kind)
    start, length = (machine.read(operand, "u32").astype(np.int64) for operand in each.operands[2:])
    if kind not in ("u32", "s32") or (start + length > 32).any() or (length == 0).any():
        raise NotImplementedError(each.text)
    field = (value.astype(np.uint32).astype(np.int64) >> start) & ((1 << length) - 1)
    if kind == "s32":
        field = np.where(field >> (length - 1) & 1, field - (1 << length), field)
    machine.write(each.operands[0], field.astype(value.dtype), active)


@instruction("prmt")
def _permute(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Four bytes out of the eight of {b, a}; bit 3 of a selector spreads that byte's sign instead."""
    only(each)
    a, b, selector = (machine.read(operand, "b32") for operand in each.operands[1:])
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(machine.count, np.uint32)
    for byte in range(4):
        chosen = selector >> np.uint32(4 * byte)
        picked = both >> (8 * (chosen & 7)).astype(np.uint64) & np.uint64(0xFF)
        spread = np.where(picked & np.uint64(0x80), 0xFF, 0)
        out |= np.where(chosen & 8, spread, picked).astype(np.uint32) << np.uint32(8 * byte)
    machine.write(each.operands[0], out, active)


@instruction("lop3")
def _any_logic(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Every bit by the truth table in the last operand; a counts 4, b 2, c 1."""
    only(each)
    values = [machine.read(operand, "b32") for operand in each.operands[1:4]]
    table = int(each.operands[4], 0)
    out = np.zeros(machine.count, np.uint32)
    for row in range(8):
        if table >> row & 1:
            out |= np.bitwise_and.reduce([v if row >> (2 - i) & 1 else ~v for i, v in enumerate(values)])
    machine.write(each.operands[0], out, active)


@instruction("selp")
def _select(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    only(each)
    kind = each.kind
    a, b = (machine.read(operand, kind) for operand in each.operands[1:3])
    machine.write(each.operands[0], np.where(machine.predicate(each.operands[3]), a, b), active)


ORDERED = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
ORDERED |= {"ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


@instruction("setp")
def _compare(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Of floats, a plain comparison with NaN is false, and one with u (unordered) in front is true."""
    kind = each.kind
    (name,) = only(each, *ORDERED, "num", "nan", *(f"{unordered}u" for unordered in ORDERED))
    a, b = (machine.read(operand, kind) for operand in each.operands[1:])
    if a.dtype.kind == "f":
        nan = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            result = nan if name == "nan" else ~nan
        else:
            result = np.where(nan, name.endswith("u"), ORDERED[name.removesuffix("u")](a, b))
    else:
        result = ORDERED[name](a, b)
    machine.write(each.operands[0], result, active)


@instruction("mov", "cvta")
def _move(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Also packs ``{low, high}`` into a register and takes it apart; cvta changes nothing, as there is one space."""
    only(each, "to", "global", "shared")
    kind = each.kind
    target, source = each.operands
    if source.startswith("{"):
        names = parts(source)
        width = TYPES[kind].itemsize // len(names)
        values = np.stack([machine.read(name, f"b{8 * width}") for name in names], axis=-1)
        machine.write(target, np.ascontiguousarray(values).view(f"u{TYPES[kind].itemsize}")[:, 0], active)
    elif target.startswith("{"):
        names = parts(target)
        pieces = machine.read(source, kind)[:, None].view(f"u{TYPES[kind].itemsize // len(names)}")
        for name, piece in zip(names, pieces.T, strict=True):
            machine.write(name, np.ascontiguousarray(piece), active)
    else:
        machine.write(target, machine.read(source, kind), active)


def parts(braces: str) -> list[str]:
    """The registers of ``{…}``."""
    return [part.strip() for part in braces.strip("{}").split(",")]


# --- conversions


@instruction("cvt")
def _convert(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    packed = [name for name in each.modifiers if name in PACKED]
    if packed:
        return PACKED[packed[0]](machine, each, active)
    if len(each.kinds) != 2:
        raise NotImplementedError(each.text)
    target, source = each.kinds
    value = machine.read(each.operands[1], source)
    if value.dtype.kind == "f" and TYPES[target].kind != "f":
        return _truncate(machine, each, value, active)
    only(each, *(("rn",) if "f" in source + target else ()))
    if TYPES[target].kind != "f" and value.itemsize < TYPES[target].itemsize:
        value = value.astype(f"{value.dtype.kind}{TYPES[target].itemsize}")  # the source's sign decides
    return machine.write(each.operands[0], canonical(value.astype(TYPES[target])), active)


def _truncate(machine: Machine, each: Instruction, value: np.ndarray, active: np.ndarray) -> None:
    """cvt.rzi: towards zero, saturating, 0 for NaN."""
    if each.modifiers not in (("rzi", "s32", "f32"), ("rzi", "s32", "f64")):
        raise NotImplementedError(each.text)
    whole = np.clip(np.trunc(np.nan_to_num(value.astype(np.float64), nan=0.0)), -(2**31), 2**31 - 1)
    machine.write(each.operands[0], whole.astype(np.int32), active)


FP8 = {"e4m3": E4M3_CODES, "e5m2": E5M2_CODES}
FP8_NUMBERS = {"e4m3": E4M3, "e5m2": E5M2}


def _to_fp8(name: str):
    """cvt.rn.satfinite.*x2.f32 d, a, b: a in the upper byte; to nearest even, saturating (Inf too), NaN as 0x7F."""
    numbers = FP8_NUMBERS[name]

    def codes(values: np.ndarray) -> np.ndarray:
        code = np.minimum(nearest_code(numbers, np.abs(values.astype(np.float64))), numbers.size - 1)
        return np.where(np.isnan(values), 0x7F, code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint16)

    def handler(machine: Machine, each: Instruction, active: np.ndarray) -> None:
        if each.modifiers != ("rn", "satfinite", f"{name}x2", "f32"):
            raise NotImplementedError(each.text)
        upper, lower = (codes(machine.read(operand, "f32")) for operand in each.operands[1:])
        machine.write(each.operands[0], (upper << np.uint16(8)) | lower, active)

    return handler


def _from_fp8(name: str):
    """cvt.rn.f16x2.*x2 d, a: every number of either format is a float16."""

    def handler(machine: Machine, each: Instruction, active: np.ndarray) -> None:
        if each.modifiers != ("rn", "f16x2", f"{name}x2"):
            raise NotImplementedError(each.text)
        codes = machine.read(each.operands[1], "b16").view(np.uint8)
        machine.write(each.operands[0], canonical(FP8[name][codes].astype(np.float16)).view(np.uint32), active)

    return handler


def _packed(name: str):
    to, back = _to_fp8(name), _from_fp8(name)
    return lambda machine, each, active: (back if "f16x2" in each.modifiers else to)(machine, each, active)


def _to_bfloat16(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """cvt.rn.bf16.f32, cvt.bf16.f16 (rn without saying so), and cvt.rn.bf16x2.f32 d, a, b: a in the upper half."""
    if each.modifiers not in (("rn", "bf16", "f32"), ("bf16", "f16"), ("rn", "bf16", "f16"), ("rn", "bf16x2", "f32")):
        raise NotImplementedError(each.text)
    halves = [
        to_bfloat16(machine.read(operand, each.modifiers[-1]).astype(np.float64)) for operand in each.operands[1:]
    ]
    packed = np.stack(halves[::-1], axis=-1).view(f"u{2 * len(halves)}")[:, 0]
    machine.write(each.operands[0], packed, active)


PACKED = {"e4m3x2": _packed("e4m3"), "e5m2x2": _packed("e5m2"), "bf16": _to_bfloat16, "bf16x2": _to_bfloat16}


# --- memory


@instruction("ld", "st")
def _transfer(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    spaces = only(each, "global", "shared", "param", "v2", "v4", *NO_EFFECT) - NO_EFFECT
    kind = each.kind
    width, vector = TYPES[kind].itemsize, {"v2": 2, "v4": 4}.get(next(iter(spaces & {"v2", "v4"}), ""), 1)
    register, place = each.operands if each.base == "ld" else each.operands[::-1]
    names = parts(register)
    if "param" in spaces:
        value = machine.parameters[place.strip("[]")]
        return machine.write(register, np.full(machine.count, value % (1 << 8 * width), f"u{width}"), active)
    addresses = machine.address(place)
    shared = "shared" in spaces
    if each.base == "ld":
        wide = width * vector
        loaded = (
            machine.shared.load(machine, addresses, wide, active)
            if shared
            else machine.memory.load(addresses, wide, active)
        )
        for name, piece in zip(names, loaded.view(TYPES[kind]).T, strict=True):
            machine.write(name, np.ascontiguousarray(piece), active)
        return None
    values = np.stack([machine.read(name, f"b{8 * width}") for name in names], axis=-1).view(np.uint8)
    if shared:
        return machine.shared.store(machine, addresses, values, active)
    return machine.memory.store(addresses, values, active)


@instruction("atom")
def _atomic(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """One thread after another, by number; each gets what was there before it."""
    (operation,) = only(each, "global", "add", "max") - {"global"}
    kind = each.kind
    addresses, given = machine.address(each.operands[1]), machine.read(each.operands[2], kind)
    before = np.zeros_like(given)
    for thread in np.flatnonzero(active):
        alone = np.arange(machine.count) == thread
        before[thread] = machine.memory.load(addresses, given.itemsize, alone)[thread].view(given.dtype)[0]
        after = before[thread] + given[thread] if operation == "add" else max(before[thread], given[thread])
        value = np.full(machine.count, after, given.dtype)
        machine.memory.store(addresses, value[:, None].view(np.uint8), alone)
    machine.write(each.operands[0], before, active)


@instruction("shfl")
def _shuffle(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """shfl.sync.mode.b32 d[|p], a, b, c, members: "Data Movement and Conversion Instructions: shfl.sync"."""
    (mode,) = only(each, "sync", "bfly", "idx", "up", "down") - {"sync"}
    target, *predicate = each.operands[0].split("|")
    value, b, c, members = (machine.read(operand, "b32") for operand in each.operands[1:])
    step, limit, segment = (b & 31).astype(np.int64), (c & 31).astype(np.int64), (c >> 8 & 31).astype(np.int64)
    lane = machine.lane
    last, first = (lane & segment) | (limit & ~segment), lane & segment
    wanted = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": first | (step & ~segment)}[mode]
    inside = wanted >= last if mode == "up" else wanted <= last
    source = np.arange(machine.count) - lane + np.where(inside, wanted, lane)
    if not (active[source] & (members >> source.astype(np.uint32) % 32 & 1).astype(bool))[active].all():
        raise ValueError(f"a lane takes from one that does not take part: {each.text}")
    machine.write(target, value[source], active)
    for name in predicate:
        machine.write(name, inside, active)


@instruction("bar", "barrier")
def _barrier(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    if "warp" in only(each, "sync", "cta", "aligned", "warp"):
        return machine.shared.barrier_of_warps(machine, active)
    if each.operands != ("0",):
        raise NotImplementedError(each.text)
    blocks = np.unique(machine.block[active])
    waiting = np.isin(machine.block, blocks) & machine.alive & ~active
    if waiting.any():
        raise ValueError(f"thread {waiting.argmax()} is not at the barrier of its block: {each.text}")
    return machine.shared.barrier(blocks)


@instruction("membar")
def _order(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Lockstep orders memory."""
    only(each, "gl")


@instruction("nanosleep")
def _sleep(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    only(each)
    machine.clock += int(machine.read(each.operands[0], "u32")[active].max())


# --- control


@instruction("bra")
def _branch(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    only(each, "uni")
    machine.counter[active] = machine.program.labels[each.operands[0]]


@instruction("ret", "exit")
def _return(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    machine.alive &= ~active
