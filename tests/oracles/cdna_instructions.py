"""CDNA's instructions that are more than arithmetic on lanes: control, exchanges, packed results, converters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from oracles import cdna_matrix, cdna_memory
from oracles.cdna_arithmetic import F32, PACKED_16, U32, VECTOR, as_words, convert
from oracles.cdna_text import EXEC, LANES, VCC, HazardError, Instruction, operand

if TYPE_CHECKING:
    from oracles.cdna import Machine


def _bits(ins: Instruction, name: str, default: list[int]) -> list[int]:
    """A modifier that lists bits, as op_sel:[0,0,1]."""
    text = ins.modifiers.get(name)
    given = default if text is None else [int(bit) for bit in text[1:-1].split(",")]
    return given + [0] * (len(default) - len(given))


def _nothing(machine: Machine, ins: Instruction) -> None:
    """S_NOP, and hints to the scheduler."""


def _end(machine: Machine, ins: Instruction) -> None:
    machine.running &= ~machine.here
    _release(machine, ins)


def _barrier(machine: Machine, ins: Instruction) -> None:
    """S_BARRIER: stores to LDS must have finished, for the barrier waits for none (section 4.4)."""
    for waves, kind, *_ in machine.queues["lgkmcnt"]:
        if kind == "lds store" and (waves & machine.here).any():
            raise HazardError(f"line {ins.line}: {ins.text}: LDS is still being stored to")
    machine.barrier[machine.here] = ins.line
    _release(machine, ins)


def _release(machine: Machine, ins: Instruction) -> None:
    """Let the groups go on whose waves all wait, or have ended."""
    waiting, running = (x.reshape(-1, machine.waves_a_group) for x in (machine.barrier, machine.running))
    complete = ((waiting >= 0) | ~running).all(1) & (waiting >= 0).any(1)
    if (np.where(waiting < 0, waiting.max(1, keepdims=True), waiting) != waiting.max(1, keepdims=True))[complete].any():
        ins.refuse("waves of a group wait at different barriers")
    machine.barrier[np.repeat(complete, machine.waves_a_group)] = -1
    machine.last_writer[complete] = machine.last_reader[complete] = -1


def _waitcnt(machine: Machine, ins: Instruction) -> None:
    for part in ins.operands:
        match = re.fullmatch(r"(vmcnt|lgkmcnt)\((\d+)\)", part)
        if not match:
            ins.refuse(part)
        machine.wait(match[1], int(match[2]))


def _setreg(machine: Machine, ins: Instruction) -> None:
    """S_SETREG_IMM32_B32: bit 23 of MODE is FP16_OVFL; bits 2 and 3 round float16 and float64, 0 to nearest even.

    CDNA4 ISA, section 3.8. No other is modelled, nor another rounding.
    """
    field, value = ins.operands[0].replace(" ", ""), int(ins.operands[1], 0)
    if field == "hwreg(HW_REG_MODE,23,1)":
        machine.saturate[machine.here] = bool(value)
    elif (field, value) != ("hwreg(HW_REG_MODE,2,2)", 0):
        ins.refuse("only FP16_OVFL, and rounding to nearest even")


def _getreg(machine: Machine, ins: Instruction) -> None:
    """S_GETREG_B32 of XCC_ID and HW_ID: where a wave runs, which is all the same place."""
    ins.only()
    if not re.match(r"hwreg\((HW_REG_XCC_ID|20|HW_REG_HW_ID|4)\b", ins.operands[1]):
        ins.refuse("only XCC_ID and HW_ID")
    machine.put_scalar(ins, ins.operands[0], np.zeros((1, machine.waves), U32), 1)


def _clock(machine: Machine, ins: Instruction) -> None:
    """S_MEMTIME: a clock that goes one on with each instruction; its value comes later, as that of a scalar load."""
    machine.put_scalar(ins, ins.operands[0], np.full((2, 1), [[machine.steps], [0]], U32), 2)
    machine.load_later(ins, "lgkmcnt", "scalar", ("s", operand(ins.operands[0]).index, 2))


def _branch(machine: Machine, ins: Instruction) -> None:
    low, high = (EXEC, EXEC + 1) if "exec" in ins.opcode else (VCC, VCC + 1)
    nothing = (machine.scalars[low] | machine.scalars[high]) == 0
    taken = {"z": nothing, "nz": ~nothing, "0": ~machine.scc, "1": machine.scc}
    which = re.fullmatch(r"s_(?:cbranch_(?:vcc|exec|scc)(n?z|[01])|branch)", ins.opcode)[1]
    jump = machine.here & (taken[which] if which else True)
    machine.pc[jump] = machine.program.labels[ins.operands[0]]


def _saveexec(machine: Machine, ins: Instruction) -> None:
    """S_{AND,OR,ANDN2}_SAVEEXEC_B64: a mask combined with EXEC, and what that was."""
    ins.only()
    combine = {"and": np.bitwise_and, "or": np.bitwise_or, "andn2": lambda mask, old: mask & ~old}[
        ins.opcode.split("_")[1]
    ]
    old = machine.scalars[EXEC : EXEC + 2].copy()
    new = combine(machine.registers(ins, ins.operands[1], 2)[..., 0], old)
    machine.put_scalar(ins, ins.operands[0], old, 2)
    machine.put_scalar(ins, "exec", new, 2)
    machine.scc = np.where(machine.here, (new != 0).any(0), machine.scc)


def _read_lane(machine: Machine, ins: Instruction) -> None:
    """V_READFIRSTLANE_B32: the lowest active lane, or lane 0; V_READLANE_B32: the one that is named."""
    ins.only()
    if ins.opcode == "v_readlane_b32":
        lane = machine.words(ins, operand(ins.operands[2]), 1)[0, :, 0].astype(int) % LANES
        lane = np.broadcast_to(lane, machine.waves)
    else:
        lane = machine.active.argmax(1)
    words = machine.registers(ins, ins.operands[1], 1)[:, np.arange(machine.waves), lane]
    machine.put_scalar(ins, ins.operands[0], words, 1)


def _write_lane(machine: Machine, ins: Instruction) -> None:
    """V_WRITELANE_B32: one lane, whether it is active or not."""
    ins.only()
    value = np.broadcast_to(machine.words(ins, operand(ins.operands[1]), 1)[0, :, 0], machine.waves)
    lane = operand(ins.operands[2])
    if lane.file != "constant":
        ins.refuse("a lane in a register")
    machine.registers(ins, ins.operands[0], 1)[0, machine.here, lane.value % LANES] = value[machine.here]


def _swap_lanes(machine: Machine, ins: Instruction) -> None:
    """V_PERMLANE{16,32}_SWAP_B32 (CDNA4), pseudocode: the source's even rows change place with VDST's odd ones."""
    ins.only()
    if not machine.active[machine.here].all():
        ins.refuse("with lanes that are not active")
    size = 16 if "16" in ins.opcode else 32
    first, second = (machine.registers(ins, text, 1)[0] for text in ins.operands)
    odd = np.arange(LANES) // size % 2 == 1
    even_lanes, odd_lanes = np.flatnonzero(~odd), np.flatnonzero(odd)
    at = np.flatnonzero(machine.here)[:, None]
    kept = second[at, even_lanes].copy()
    second[at, even_lanes] = first[at, odd_lanes]
    first[at, odd_lanes] = kept


def _packed(machine: Machine, ins: Instruction) -> None:
    """V_PK_{MUL,ADD,FMA}_F32: op_sel and op_sel_hi choose a source's word for either result (section 6.7)."""
    ins.only("op_sel", "op_sel_hi")
    compute = VECTOR[ins.opcode.replace("pk_", "")].compute
    sources = []
    for text, low, high in zip(ins.operands[1:], _bits(ins, "op_sel", [0] * 3), _bits(ins, "op_sel_hi", [1] * 3)):
        op = operand(text)
        if op.negative or op.absolute or (op.file == "constant" and (low or high)):
            ins.refuse(f"operand {text}")
        words = machine.words(ins, op, 1 if op.file == "constant" else 2)
        sources.append([np.ascontiguousarray(words[which]).view(F32) for which in (low, high)])
    results = [as_words(compute(*each), "f32")[0] for each in zip(*sources)]
    machine.put_vector(ins, ins.operands[0], np.stack(np.broadcast_arrays(*results)))


def _mix(machine: Machine, ins: Instruction) -> None:
    """V_FMA_MIX_F32 (AMD: V_MAD_MIX_F32), pseudocode: a source is float16 where op_sel_hi says so.

    Of the half that op_sel names. From Vega 20 on it is fused (llvm PR 109873); LLVM's v_mad_mix_f32, which is not, is
    of older chips.
    """
    ins.only("op_sel", "op_sel_hi")
    sources = []
    for text, half, is_half in zip(ins.operands[1:], _bits(ins, "op_sel", [0] * 3), _bits(ins, "op_sel_hi", [0] * 3)):
        op = operand(text)
        if op.file == "constant" and (is_half or half):
            ins.refuse(f"operand {text}")
        word = machine.words(ins, op, 1)[0]
        if is_half:
            word = (word >> U32(16 * half)).astype(np.uint16).view(np.float16).astype(F32).view(U32)
        elif half:
            ins.refuse("op_sel of a float32")
        word = word & U32(0x7FFFFFFF) if op.absolute else word
        sources.append(np.ascontiguousarray(word ^ U32(op.negative << 31)).view(F32))
    machine.put_vector(ins, ins.operands[0], as_words(VECTOR["v_fma_f32"].compute(*sources), "f32"))


def _packed_halves(machine: Machine, ins: Instruction) -> None:
    """V_PK_… of 16 bits: op_sel and op_sel_hi choose a source's half for either result (section 6.7)."""
    ins.only("op_sel", "op_sel_hi")
    compute, halves = PACKED_16[ins.opcode], []
    for text, low, high in zip(ins.operands[1:], _bits(ins, "op_sel", [0, 0]), _bits(ins, "op_sel_hi", [1, 1])):
        op = operand(text)
        if op.negative or op.absolute or (op.file == "constant" and (low or high or isinstance(op.value, float))):
            ins.refuse(f"operand {text}")
        word = machine.words(ins, op, 1)[0]
        halves.append([(word >> U32(16 * which)).astype(np.uint16) for which in (low, high)])
    low, high = (compute(*each).astype(U32) for each in zip(*halves))
    if "f16" in ins.opcode and machine.saturate.any() and any((each & 0x7FFF == 0x7C00).any() for each in (low, high)):
        ins.refuse("Inf with FP16_OVFL")
    machine.put_vector(ins, ins.operands[0], (low | high << U32(16))[None])


def _packed_move(machine: Machine, ins: Instruction) -> None:
    """V_PK_MOV_B32, pseudocode: a word of the first source, then one of the second, by op_sel."""
    ins.only("op_sel")
    sources = [machine.registers(ins, text, 2) for text in ins.operands[1:]]
    words = [source[which] for source, which in zip(sources, _bits(ins, "op_sel", [0, 0]), strict=True)]
    machine.put_vector(ins, ins.operands[0], np.stack(words))


def _convert(machine: Machine, ins: Instruction) -> None:
    """V_CVT_PK_{FP8,BF8}_F32 and V_CVT_SCALEF32_PK_…: two codes into the half that op_sel's last bit names.

    Of two registers of float32, or of the halves of one of float16.
    """
    ins.only("op_sel")
    chip, count = machine.program.chip, len(ins.operands)
    if chip is None:
        ins.refuse("the text names no .amdgcn_target")
    if ins.opcode.endswith("_f16"):
        word = machine.registers(ins, ins.operands[1], 1)[0]
        halves = ((word >> U32(16 * which)).astype(np.uint16).view(np.float16) for which in (0, 1))
        numbers = [half.astype(float) for half in halves]
    else:
        numbers = [
            machine.source(ins, text, "f32", place).astype(float) for place, text in enumerate(ins.operands[1:3])
        ]
    if ins.opcode.endswith("_f16") and operand(ins.operands[2]).value != 1.0:
        ins.refuse("a scale other than 1.0")
    elif "scalef32" in ins.opcode and not ins.opcode.endswith("_f16"):  # the exponent of the last source divides
        exponent = machine.source(ins, ins.operands[3], "u32", 2) >> U32(23) & U32(0xFF)
        if (exponent == 0xFF).any():
            ins.refuse("a scale that is NaN")
        numbers = [np.ldexp(number, 127 - exponent.astype(int)) for number in numbers]
    kind = "bf8" if "_bf8_" in ins.opcode else "fp8"
    low, high = (convert(number, chip, kind, machine.saturate[:, None]) for number in numbers)
    *unused, upper = _bits(ins, "op_sel", [0] * count)
    if any(unused):
        ins.refuse("op_sel of a source")
    old = machine.registers(ins, ins.operands[0], 1)
    pair = low | high << U32(8)
    merged = old & U32(0xFFFF) | pair << U32(16) if upper else old & U32(0xFFFF0000) | pair
    machine.put_vector(ins, ins.operands[0], merged)


def _widen(machine: Machine, ins: Instruction) -> None:
    """V_CVT_SCALEF32_PK_{F16,F32}_{FP8,BF8} (CDNA4), pseudocode: the two codes of the half that op_sel names."""
    ins.only("op_sel")
    which, *others = _bits(ins, "op_sel", [0, 0, 0])
    if any(others) or operand(ins.operands[2]).value != 1.0:
        ins.refuse("op_sel or a scale other than 1.0")
    word = machine.registers(ins, ins.operands[1], 1)[0] >> U32(16 * which)
    codes = ((word >> U32(8 * byte) & U32(0xFF)).astype(np.uint8) for byte in (0, 1))
    pair = [cdna_matrix.numbers(code, ins.opcode[-3:]).astype(F32) for code in codes]
    if "_f32_" in ins.opcode:
        words = np.stack([number.view(U32) for number in pair])
    else:
        low, high = (number.astype(np.float16).view(np.uint16).astype(U32) for number in pair)
        words = (low | high << U32(16))[None]
    machine.put_vector(ins, ins.operands[0], words)


def _matrix(machine: Machine, ins: Instruction) -> None:
    """V_MFMA: `cdna_matrix`."""
    if not cdna_matrix.OPCODE.fullmatch(ins.opcode):
        ins.refuse("unknown opcode")

    def words(text: str, count: int) -> np.ndarray:
        shape = (count, machine.waves, LANES)
        return np.broadcast_to(machine.words(ins, operand(text), 1 if text == "0" else count), shape)

    result = cdna_matrix.multiply_add(machine, ins, words)
    if machine.saturate[machine.here].any() and np.isinf(result.view(F32)[:, machine.here]).any():
        ins.refuse("Inf with FP16_OVFL")
    to = machine.registers(ins, ins.operands[0], len(result))
    np.copyto(to, result, where=machine.here[:, None])


def _with_constant(machine: Machine, ins: Instruction) -> None:
    """S_ADDK_I32, S_MULK_I32, S_CMPK_…_I32: the last operand is 16 bits with a sign."""
    ins.only()
    value = str(int(np.uint16(int(ins.operands[-1], 0) & 0xFFFF).astype(np.int16)))
    first = ins.operands[0]
    operands = (first, value) if "cmpk" in ins.opcode else (first, first, value)
    machine.execute(replace(ins, opcode=ins.opcode.replace("k_", "_"), operands=operands))


def _accumulate(machine: Machine, ins: Instruction) -> None:
    """V_FMAC_F32: the destination is the addend."""
    machine.execute(replace(ins, opcode="v_fma_f32", operands=(*ins.operands, ins.operands[0])))


SPECIAL = {
    r"s_(nop|sleep|setprio)|v_nop": _nothing,
    r"s_endpgm": _end,
    r"s_barrier": _barrier,
    r"s_waitcnt": _waitcnt,
    r"s_setreg_imm32_b32": _setreg,
    r"s_getreg_b32": _getreg,
    r"s_memtime": _clock,
    r"s_(branch|cbranch_(scc[01]|(vcc|exec)n?z))": _branch,
    r"s_(and|or|andn2)_saveexec_b64": _saveexec,
    r"s_load_dword(x\d+)?": cdna_memory.scalar_load,
    r"v_read(first)?lane_b32": _read_lane,
    r"v_writelane_b32": _write_lane,
    r"v_permlane(16|32)_swap_b32": _swap_lanes,
    r"v_pk_(mul|add|fma)_f32": _packed,
    "|".join(PACKED_16): _packed_halves,
    r"v_cvt_scalef32_pk_f(16|32)_(fp8|bf8)": _widen,
    r"v_pk_mov_b32": _packed_move,
    r"v_fma_mix_f32": _mix,
    r"v_cvt_(scalef32_)?pk_[fb][pf]?8_f32|v_cvt_scalef32_pk_(fp8|bf8)_f16": _convert,
    r"(buffer|global)_(load|store)_[a-z0-9]+": cdna_memory.access,
    r"ds_read(2(st64)?)?_[bu]\d+|ds_write(2(st64)?)?_b\d+|ds_write_b(8|16)_d16_hi": cdna_memory.lds,
    r"v_mfma_.*": _matrix,
    r"s_(add|mul|cmp)k_.*i32": _with_constant,
    r"v_fmac_f32": _accumulate,
    r"ds_bpermute_b32": cdna_memory.bpermute,
    r"ds_swizzle_b32": cdna_memory.swizzle,
}


@functools.cache
def special(opcode: str) -> Callable | None:
    """The function that executes an opcode, given the machine and the instruction."""
    return next((function for pattern, function in SPECIAL.items() if re.fullmatch(pattern, opcode)), None)
