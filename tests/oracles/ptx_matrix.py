"""The PTX of matrix products: asynchronous copies, ldmatrix, mma.sync of a warp, wgmma of four.

Importing this adds them to the table of `ptx_machine`. Operand layouts are those of the PTX ISA: "Warp Level Matrix
Multiply-Accumulate Instructions" (fragments of m16n8k16 and m16n8k32) and "Asynchronous Warpgroup Level Matrix Multiply
-Accumulate Instructions" (register fragments, matrix descriptors, swizzling modes). Sums are float64, rounded once to
float32: what tensor cores keep of a sum is not documented, so callers compare only sums that are exact in any order.
"""

from __future__ import annotations

import re

import numpy as np
from oracles.floats import from_bfloat16
from oracles.ptx_instructions import FP8
from oracles.ptx_machine import Machine, instruction, only, parts
from oracles.ptx_text import Instruction

DECODE = {
    "f16": lambda data: data.view(np.float16).astype(np.float64),
    "bf16": lambda data: from_bfloat16(data.view(np.uint16)),
    "e4m3": lambda data: FP8["e4m3"][data],
    "e5m2": lambda data: FP8["e5m2"][data],
}
BYTES = {"f16": 2, "bf16": 2, "e4m3": 1, "e5m2": 1}
SWIZZLE_WIDTH = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row that lie together, by bits 62-63 of a descriptor


# --- asynchronous copies ----------------------------------------------------------------------------------------------


@instruction("cp")
def _copy(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """cp.async: 4, 8 or 16 bytes to shared memory, of which only as many as the last operand says are read.

    The bytes are there once their group has been waited for, not before.
    """
    mode = only(each, "async", "ca", "cg", "shared", "cta", "global", "commit_group", "wait_group") - {"cta"}
    if "commit_group" in mode or "wait_group" in mode:
        if (active != machine.alive).any():
            raise NotImplementedError(f"threads that are not together at {each.text}")
        if "commit_group" in mode:
            machine.copy_groups.append(machine.copies)
            machine.copies = []
        else:
            left = int(each.operands[0])
            while len(machine.copy_groups) > left:
                for copy in machine.copy_groups.pop(0):
                    machine.shared.land(*copy)
        return
    if mode != {"async", "shared", "global"} | mode & {"ca", "cg"}:
        raise NotImplementedError(each.text)
    width = int(each.operands[2], 0)
    threads, at = machine.shared.places(machine, machine.address(each.operands[0]), width, active)
    size = machine.read(each.operands[3], "u32") if len(each.operands) == 4 else np.full(machine.count, width)
    if not np.isin(size[threads], (0, width)).all():
        raise NotImplementedError(f"a copy of some of its bytes: {each.text}")
    values = machine.memory.load(machine.address(each.operands[1]), width, active & (size > 0))
    machine.shared.claim(at, threads)
    machine.shared.in_flight[at] = True
    machine.copies.append((at, values[threads], threads))


@instruction("fence")
def _fence(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """fence.proxy.async, the only one."""
    if only(each, "proxy", "async", "shared", "cta") != {"proxy", "async", "shared", "cta"}:
        raise NotImplementedError(each.text)
    machine.shared.fence(machine, active)


# --- mma.sync ---------------------------------------------------------------------------------------------------------


@instruction("ldmatrix", "stmatrix")
def _matrices(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """Lane 8 i + r has the address of row r of matrix i, and holds two elements of row lane / 4 of every matrix.

    With .trans, of column lane / 4.
    """
    transposed = "trans" in only(each, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "cta")
    _whole(machine, each, active, 32)
    loads = each.base == "ldmatrix"
    names, place = each.operands if loads else each.operands[::-1]
    addresses, warp = machine.address(place), np.arange(machine.count) - machine.lane
    along, across = machine.lane // 4, machine.lane % 4 * 2
    for index, name in enumerate(parts(names)):
        rows = warp + 8 * index
        if transposed:
            places = [addresses[rows + across + item] + along * 2 for item in (0, 1)]
        else:
            places = [addresses[rows + along] + across * 2]
        size = 4 // len(places)
        if loads:
            items = [machine.shared.load(machine, at, size, active) for at in places]
            machine.write(name, np.ascontiguousarray(np.hstack(items)).view(np.uint32)[:, 0], active)
        else:
            data = machine.read(name, "b32")[:, None].view(np.uint8)
            for item, at in enumerate(places):
                machine.shared.store(machine, at, data[:, item * size : (item + 1) * size], active)


@instruction("mma")
def _warp_product(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """mma.sync m16n8k16 and m16n8k32, row times column, float32 sums; with .block_scale, E8M0 scales of 32 along K."""
    found = re.search(
        r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.(kind::mxf8f6f4\.block_scale\.scale_vec::1X\.)?"
        r"f32\.(\w+)\.(\w+)\.f32(\.ue8m0)?\s",
        each.text,
    )
    if found is None or not {found[3], found[4]} <= set(BYTES):
        raise NotImplementedError(each.text)
    k, a_format, b_format = int(found[1]), found[3], found[4]
    _whole(machine, each, active, 32)
    per = 4 // BYTES[a_format]
    lane = machine.lane.reshape(-1, 32)[:, :, None]
    warps = np.arange(len(lane))[:, None, None]
    a_names, b_names, c_names = (parts(operand) for operand in each.operands[1:4])
    if k != 8 * per or len(a_names) != 4:
        raise NotImplementedError(each.text)
    item = np.arange(per)
    a, b, c = np.empty((len(lane), 16, k)), np.empty((len(lane), 8, k)), np.empty((len(lane), 16, 8))
    for index, name in enumerate(a_names):
        column = lane % 4 * per + item + index // 2 * 4 * per
        a[warps, lane // 4 + 8 * (index % 2), column] = _items(machine, name, a_format)
    for index, name in enumerate(b_names):
        b[warps, lane // 4, lane % 4 * per + item + index * 4 * per] = _items(machine, name, b_format)
    row, column = lane[:, :, 0] // 4, lane[:, :, 0] % 4 * 2
    places = [(warps[:, :, 0], row + 8 * (index // 2), column + index % 2) for index in range(4)]
    for place, name in zip(places, c_names, strict=True):
        c[place] = machine.read(name, "f32").reshape(-1, 32)
    if found[2]:
        a *= _block_scales(machine, each.operands[4:6], rows=16)[:, :, None]
        b *= _block_scales(machine, each.operands[6:8], rows=8)[:, :, None]
    total = (c + a @ b.transpose(0, 2, 1)).astype(np.float32)
    for place, name in zip(places, parts(each.operands[0]), strict=True):
        machine.write(name, total[place].reshape(-1), active)


def _items(machine: Machine, name: str, form: str) -> np.ndarray:
    """The numbers packed into a register: (warps, 32, as many as fit)."""
    words = machine.read(name, "b32")
    return DECODE[form](words[:, None].view(np.uint8)).reshape(len(words) // 32, 32, -1)


def _block_scales(machine: Machine, operands, rows: int) -> np.ndarray:
    """(warps, rows) scales; {byte, thread} choose where in a quad they are: "Scaling for mma instruction"."""
    word, (byte, thread) = machine.read(parts(operands[0])[0], "b32").reshape(-1, 32), parts(operands[1])
    byte, thread = (machine.read(name, "u16").reshape(-1, 32)[:, 0] for name in (byte, thread))
    row = np.arange(rows)
    lanes = row % 8 * 4 + (thread[:, None] * 2 + row // 8 if rows == 16 else thread[:, None])
    codes = np.take_along_axis(word, lanes, axis=1) >> (8 * byte[:, None]) & 0xFF
    return np.where(codes == 255, np.nan, 2.0 ** (codes.astype(np.float64) - 127))


# --- wgmma ------------------------------------------------------------------------------------------------------------


@instruction("wgmma")
def _warpgroup(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    what = each.modifiers[0]
    _whole(machine, each, active, 128)
    if what == "mma_async":
        _warpgroup_product(machine, each, active)
    elif what == "commit_group":
        machine.product_groups.append(machine.products)
        machine.products = []
    elif what == "wait_group":
        while len(machine.product_groups) > int(each.operands[0]):
            for names, reads in machine.product_groups.pop(0):
                machine.under_way -= set(names)
                for at in reads:
                    machine.shared.product_done(at)
    elif what != "fence":
        raise NotImplementedError(each.text)


def _warpgroup_product(machine: Machine, each: Instruction, active: np.ndarray) -> None:
    """D = A B' (+ D): A from registers or shared memory, B from shared memory.

    The sum is formed at once, but nobody may look at D, nor write where A and B are, before the group is waited for.
    """
    found = re.search(r"mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)\s", each.text)
    if found is None or not {found[3], found[4]} <= set(BYTES):
        raise NotImplementedError(each.text)
    n, k, a_format, b_format = int(found[1]), int(found[2]), found[3], found[4]
    d_names, a_operand, b_operand, keep, *signs = (*each.operands,)
    if k * BYTES[a_format] != 32 or signs[:2] != ["1", "1"]:
        raise NotImplementedError(each.text)
    transposed = [int(sign) for sign in signs[2:]]
    groups = np.flatnonzero(active[::128])
    reads: list = []
    if a_operand.startswith("{"):
        a_names = parts(a_operand)
        a = _fragment(machine, a_names, a_format, k)[groups]
    else:
        a_names = []
        a = _matrix(machine, a_operand, 64, k, a_format, transposed[:1] == [1], groups, reads)
    b = _matrix(machine, b_operand, n, k, b_format, transposed[-1:] == [1], groups, reads)
    names = parts(d_names)
    thread = np.arange(128)
    places = [(np.arange(len(groups))[:, None], (thread // 32 * 16 + thread % 32 // 4 + 8 * (index // 2 % 2))[None],
               (index // 4 * 8 + thread % 4 * 2 + index % 2)[None]) for index in range(n // 2)]  # fmt: skip
    total = a @ b.transpose(0, 2, 1)
    mine = set(names)
    waiting, machine.under_way = machine.under_way, machine.under_way - mine  # products into one D follow each other
    kept = machine.predicate(keep)[::128][groups] if keep.startswith("%") else np.full(len(groups), keep != "0")
    if kept.any():
        before = np.zeros_like(total)
        for place, name in zip(places, names, strict=True):
            before[place] = machine.read(name, "f32").reshape(-1, 128)[groups]
        total = np.where(kept[:, None, None], total + before, total)
    total = total.astype(np.float32)
    for place, name in zip(places, names, strict=True):
        value = np.zeros((machine.count // 128, 128), np.float32)
        value[groups] = total[place]
        machine.write(name, value.reshape(-1), active)
    machine.under_way = waiting | mine | set(a_names)
    machine.products.append((names + a_names, reads))


def _fragment(machine: Machine, names: list[str], form: str, k: int) -> np.ndarray:
    """A from registers: (warpgroups, 64, k)."""
    per = 4 // BYTES[form]
    thread, item = np.arange(128)[:, None], np.arange(per)
    out = np.empty((machine.count // 128, 64, k))
    for index, name in enumerate(names):
        values = _items(machine, name, form).reshape(-1, 128, per)
        row = thread // 32 * 16 + thread % 32 // 4 + 8 * (index % 2)
        out[:, row, thread % 4 * per + item + index // 2 * 4 * per] = values
    return out


def _matrix(
    machine: Machine, operand: str, rows: int, k: int, form: str, transposed: bool, groups: np.ndarray, reads: list
) -> np.ndarray:
    """(warpgroups, rows, k) from shared memory, by a matrix descriptor; ``reads`` learns which bytes are in use."""
    words = machine.read(operand, "u64").reshape(-1, 128)[groups]
    if (words != words[:, :1]).any():
        raise ValueError(f"threads of a warpgroup hold different descriptors in {operand}")
    word = words[:, 0].astype(np.int64)[:, None, None]
    start, leading, stride = ((word >> low & 0x3FFF) << 4 for low in (0, 16, 32))
    modes, offsets = {int(each) & 3 for each in (word >> 62).ravel()}, {int(each) & 7 for each in (word >> 49).ravel()}
    if offsets != {0} or len(modes) != 1 or not modes <= set(SWIZZLE_WIDTH):
        raise NotImplementedError(f"descriptors with swizzling modes {modes} and base offsets {offsets}")
    width, size = SWIZZLE_WIDTH[modes.pop()], BYTES[form]
    row, column = np.arange(rows)[:, None], np.arange(k * size)[None, :]
    if not transposed:  # K-major: eight rows of `width` bytes, then the next eight
        address = start + row // 8 * stride + row % 8 * width + column % width + column // width * leading
        if width > 16 and (column >= width).any():
            raise NotImplementedError(f"{k * size} bytes of K, swizzled within {width}")
    elif width == 16:
        raise NotImplementedError("a transposed matrix that is not swizzled")
    else:
        across = width // size  # rows next to each other, eight of K below one another
        inner = column // size % 8 * width + row % across * size + column % size
        address = start + row // across * leading + column // size // 8 * stride + inner
    address = address ^ ((address >> 7 & (width // 16 - 1)) << 4)
    if (address + 1 > machine.shared.size).any():
        raise IndexError(f"a descriptor in {operand} reaches byte {address.max()} of {machine.shared.size}")
    at = (np.broadcast_to(machine.block[::128][groups][:, None, None], address.shape), address)
    data = machine.shared.for_tensor_cores(at)
    reads.append(at)
    return DECODE[form](np.ascontiguousarray(data))


def _whole(machine: Machine, each: Instruction, active: np.ndarray, size: int) -> None:
    """Raise unless all threads of a warp or warpgroup take part, or none."""
    together = active.reshape(-1, size)
    if (together.any(axis=1) != together.all(axis=1)).any():
        raise ValueError(f"not all of {size} threads take part in {each.text}")
