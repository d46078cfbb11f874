"""CDNA's loads, stores and exchanges of lanes: kernarg segment, buffers, global memory, LDS."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from oracles.cdna_arithmetic import I64, U32
from oracles.cdna_text import LANES, M0, HazardError, Instruction, operand
from oracles.memory import AccessError

if TYPE_CHECKING:
    from oracles.cdna import Machine


def scalar_load(machine: Machine, ins: Instruction) -> None:
    """S_LOAD_DWORD: base, and an offset that is a constant."""
    ins.only()
    count = int(ins.opcode.removeprefix("s_load_dword").removeprefix("x") or 1)
    base = machine.registers(ins, ins.operands[1], 2)[..., 0].astype(I64)
    offset = operand(ins.operands[2])
    if offset.file != "constant":
        ins.refuse("an offset in a register")
    words = machine.scalar_bytes(ins, (base[0] | base[1] << 32) + offset.value, 4 * count)
    machine.put_scalar(ins, ins.operands[0], words, count)
    machine.load_later(ins, "lgkmcnt", "scalar", ("s", operand(ins.operands[0]).index, count))


WIDTHS = {"byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def access(machine: Machine, ins: Instruction) -> None:
    """BUFFER_ and GLOBAL_ loads and stores, without D16 or sign extension."""
    space, direction, size = ins.opcode.split("_")
    width = WIDTHS.get(size) or ins.refuse("unknown width")
    loads = direction == "load"
    if "lds" in ins.modifiers and loads:
        return _load_to_lds(machine, ins, width)
    if space == "buffer":
        data, *place = ins.operands
        addresses, active = _buffer_addresses(machine, ins, place, width)
    else:
        data = ins.operands[0 if loads else 1]
        place = ins.operands[1 if loads else 0], ins.operands[2]
        addresses, active = _global_addresses(machine, ins, *place), machine.active
    count = max(1, width // 4)
    if loads:
        machine.put_vector(ins, data, machine.fetch(addresses, width, active))
        op = operand(data)
        machine.load_later(ins, "vmcnt", "load", (op.file, op.index, count))
    else:
        words = np.moveaxis(machine.registers(ins, data, count), 0, 2).reshape(-1, count)
        values = np.ascontiguousarray(words).view(np.uint8)[:, :width]
        machine.memory.store(addresses.ravel(), values, active.ravel())
        machine.load_later(ins, "vmcnt", "store", None)


def _buffer_addresses(machine: Machine, ins: Instruction, place: list[str], width: int):
    """Addresses of a raw buffer, and the lanes that are active and within its range (section 9.1.5).

    The descriptor's words: base, base and stride, number of bytes, flags (section 9.1.8).
    """
    ins.only("offen", "offset", "nt", "sc0", "sc1", "lds")
    vector, descriptor, scalar = place
    words = machine.registers(ins, descriptor, 4)[..., 0].astype(I64)
    swizzled, with_thread = words[1] >> 31, words[3] >> 23 & 1
    if (swizzled | with_thread)[machine.here].any():
        ins.refuse("a buffer that is not raw")
    offset = np.full((machine.waves, LANES), int(ins.modifiers.get("offset", "0")), I64)
    if "offen" in ins.modifiers:
        offset += machine.registers(ins, vector, 1)[0]
    elif vector != "off":
        ins.refuse("an address without offen")
    first, last = (offset + byte < words[2][:, None] for byte in (0, width - min(width, 4)))
    if (first != last)[machine.active].any():
        ins.refuse("partly out of range")
    base = words[0] | (words[1] & 0xFFFF) << 32  # stride and cache swizzle say nothing without an index
    return offset + (base[:, None] + machine.words(ins, operand(scalar), 1)[0].astype(I64)), machine.active & first


def _load_to_lds(machine: Machine, ins: Instruction, width: int) -> None:
    """BUFFER_LOAD with LDS (section 9.1.9): a lane's words go to M0, and 4 or 16 bytes a lane; they come later."""
    if width not in (4, 16) or "offset" in ins.modifiers or len(ins.operands) != 3:
        ins.refuse("to LDS")
    addresses, in_range = _buffer_addresses(machine, ins, list(ins.operands), width)
    words = np.moveaxis(machine.fetch(addresses, width, in_range), 0, 2)
    machine.touch(ins, "s", M0, 1)
    place = (machine.scalars[M0] & 0x3FFFF).astype(I64)[:, None] + np.arange(LANES) * width
    filled = _lds_write(machine, ins, place, np.ascontiguousarray(words).view(np.uint8), later=True)
    machine.load_later(ins, "vmcnt", "load", None, filled)


def _global_addresses(machine: Machine, ins: Instruction, vector: str, scalar: str) -> np.ndarray:
    """64-bit addresses in VGPRs, or 32-bit offsets there from a pair of SGPRs (section 10.3)."""
    ins.only("offset", "nt", "sc0", "sc1")
    offset = int(ins.modifiers.get("offset", "0"))
    if scalar == "off":
        words = machine.registers(ins, vector, 2).astype(I64)
        return (words[0] | words[1] << 32) + offset
    base = machine.registers(ins, scalar, 2).astype(I64)
    return (base[0] | base[1] << 32) + machine.registers(ins, vector, 1)[0].astype(I64) + offset


LDS_WIDTHS = {"u8": 1, "b8": 1, "u16": 2, "b16": 2, "b32": 4, "b64": 8, "b128": 16}


def lds(machine: Machine, ins: Instruction) -> None:
    """DS_READ and DS_WRITE, of one address or of two with offsets in units of their width (section 11.3)."""
    match = re.fullmatch(r"ds_(read|write)(2?)(st64)?_(\w+?)(_d16_hi)?", ins.opcode)
    width = LDS_WIDTHS.get(match[4]) or ins.refuse("unknown width")
    loads, count = match[1] == "read", max(1, width // 4)
    if match[2]:
        ins.only("offset0", "offset1")
        unit = width * (64 if match[3] else 1)
        offsets = [unit * int(ins.modifiers.get(f"offset{which}", "0")) for which in (0, 1)]
    else:
        ins.only("offset")
        offsets = [int(ins.modifiers.get("offset", "0"))]
    address = machine.registers(ins, ins.operands[1 if loads else 0], 1)[0].astype(I64)
    if loads:
        words = np.concatenate([_lds_read(machine, ins, address + offset, width) for offset in offsets])
        machine.put_vector(ins, ins.operands[0], words)
        op = operand(ins.operands[0])
        machine.load_later(ins, "lgkmcnt", "lds load", (op.file, op.index, len(words)))
    else:
        for offset, data in zip(offsets, ins.operands[1:], strict=True):
            words = np.moveaxis(machine.registers(ins, data, count), 0, 2)
            words = words >> U32(16) if match[5] else words
            values = np.ascontiguousarray(words).view(np.uint8)[..., :width]
            _lds_write(machine, ins, address + offset, values)
        machine.load_later(ins, "lgkmcnt", "lds store", None)


def _lds_places(machine: Machine, ins: Instruction, address: np.ndarray, width: int):
    """For one wave of every group at a time: (waves' numbers, lanes, groups, bytes) of its accesses, checked."""
    active = machine.active
    wrong = active & ((address % width != 0) | (address + width > machine.lds.shape[1]))
    if wrong.any():
        raise AccessError(f"line {ins.line}: {ins.text}: address {address[wrong][0]} of {machine.lds.shape[1]} bytes")
    for number in range(machine.waves_a_group):
        waves, lanes = np.nonzero(active[number :: machine.waves_a_group])
        waves = waves * machine.waves_a_group + number
        groups, at = machine.group[waves], address[waves, lanes, None] + np.arange(width)
        yield waves[:, None], lanes[:, None], groups[:, None], at


def _lds_read(machine: Machine, ins: Instruction, address: np.ndarray, width: int) -> np.ndarray:
    out = np.zeros((machine.waves, LANES, max(width, 4)), np.uint8)
    for waves, lanes, groups, at in _lds_places(machine, ins, address, width):
        writer, reader = machine.last_writer[groups, at], machine.last_reader[groups, at]
        if ((writer >= 0) & (writer != waves)).any():
            raise HazardError(f"line {ins.line}: {ins.text}: another wave wrote here since the last barrier")
        if machine.lds_filling[groups, at].any():
            raise HazardError(f"line {ins.line}: {ins.text}: this part of LDS is still being loaded")
        machine.last_reader[groups, at] = np.where((reader == -1) | (reader == waves), waves, -2)
        out[waves, lanes, np.arange(width)] = machine.lds[groups, at]
    return np.moveaxis(out.view(U32), 2, 0)


def _lds_write(machine: Machine, ins: Instruction, address: np.ndarray, values: np.ndarray, later=False) -> list:
    """Store to LDS; ``later``: it must not be read before a wait has covered it. The places, as `load_later` wants."""
    places = []
    for waves, lanes, groups, at in _lds_places(machine, ins, address, values.shape[-1]):
        writer, reader = machine.last_writer[groups, at], machine.last_reader[groups, at]
        if (((writer >= 0) & (writer != waves)) | ((reader != -1) & (reader != waves))).any():
            raise HazardError(f"line {ins.line}: {ins.text}: another wave used this since the last barrier")
        if machine.lds_filling[groups, at].any():
            raise HazardError(f"line {ins.line}: {ins.text}: this part of LDS is still being loaded")
        machine.lds_filling[groups, at] = later
        machine.last_writer[groups, at] = waves
        machine.lds[groups, at] = values[waves[:, 0], lanes[:, 0]]
        places.append((waves, groups, at))
    return places


def bpermute(machine: Machine, ins: Instruction) -> None:
    """DS_BPERMUTE_B32, pseudocode: every lane pulls from lane (address + offset) / 4 mod 64; 0 if that is disabled."""
    ins.only("offset")
    address, data = (machine.registers(ins, text, 1)[0] for text in ins.operands[1:])
    lanes = (address + U32(int(ins.modifiers.get("offset", "0")))) // U32(4) % U32(LANES)
    _pull(machine, ins, lanes, data)


def swizzle(machine: Machine, ins: Instruction) -> None:
    """DS_SWIZZLE_B32, pseudocode, as LLVM writes one of its modes: every lane pulls from lane ^ N of its half."""
    swap = re.fullmatch(r"swizzle\(SWAP,(\d+)\)", ins.modifiers.get("offset", ""))
    ins.only("offset")
    if not swap:
        ins.refuse("swizzle")
    lanes = np.arange(LANES) ^ int(swap[1])
    _pull(machine, ins, np.broadcast_to(lanes, (machine.waves, LANES)), machine.registers(ins, ins.operands[1], 1)[0])


def _pull(machine: Machine, ins: Instruction, lanes: np.ndarray, data: np.ndarray) -> None:
    waves = np.arange(machine.waves)[:, None]
    machine.put_vector(ins, ins.operands[0], np.where(machine.active[waves, lanes], data[waves, lanes], 0)[None])
    op = operand(ins.operands[0])
    machine.load_later(ins, "lgkmcnt", "lds load", (op.file, op.index, 1))
