"""PTX of one thread at a time: arithmetic, logic, conversions, memory, shuffles, barriers, control.

Importing this adds them to the table of `ptx_machine`. Section names of the PTX ISA are given where a rule is not
obvious.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from oracles.floats import E4M3, E4M3_CODES, E5M2, E5M2_CODES, from_bfloat16, multiply_add, nearest_code, to_bfloat16
from oracles.ptx_machine import INSTRUCTIONS, Machine, instruction, only, parts
from oracles.ptx_text import TYPES, Instruction

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


# --- arithmetic and logic ---------------------------------------------------------------------------------------------


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
    """cvt.rn.satfinite.*x2.f32 d, a, b: a in the upper byte; to nearest even, saturating (Inf too), NaN as 0x7F.

    cvt.rn.satfinite.*x2.f16x2 d, a: the same of a's halves, the upper one in the upper byte.
    """
    numbers = FP8_NUMBERS[name]

    def codes(values: np.ndarray) -> np.ndarray:
        code = np.minimum(nearest_code(numbers, np.abs(values.astype(np.float64))), numbers.size - 1)
        return np.where(np.isnan(values), 0x7F, code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint16)

    def handler(machine: Machine, each: Instruction, active: np.ndarray) -> None:
        if each.modifiers == ("rn", "satfinite", f"{name}x2", "f32"):
            upper, lower = (codes(machine.read(operand, "f32")) for operand in each.operands[1:])
        elif each.modifiers == ("rn", "satfinite", f"{name}x2", "f16x2"):
            halves = machine.read(each.operands[1], "b32").view(np.float16).reshape(-1, 2)
            upper, lower = codes(halves[:, 1]), codes(halves[:, 0])
        else:
            raise NotImplementedError(each.text)
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
    return lambda machine, each, active: (to if "satfinite" in each.modifiers else back)(machine, each, active)


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
