"""CDNA's matrix instructions: which lane and byte holds which element, and what is added up.

CDNA4 ISA, sections 7.1 and 7.2. Products are exact and added in float64, then rounded once to float32: the documents do
not say in which order the hardware adds. So test with numbers whose sums are exact, or with a tolerance. The wait
states that must lie between a matrix instruction and the use of its registers (section 7.6) are not modelled.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from oracles.cdna_arithmetic import F32, U32
from oracles.cdna_text import LANES
from oracles.floats import E4M3_CODES, E5M2_CODES, from_bfloat16

OPCODE = re.compile(r"v_mfma_(scale_)?f32_(16|32)x\2x(\d+)_(f8f6f4|bf16|f16)")
SMALL = {"0": "fp8", "1": "bf8"}  # CBSZ and BLGP, of the formats of 8 bits


def rows_of(words: np.ndarray, rows: int, runs: int) -> np.ndarray:
    """Bytes of A by row and place in K, (waves, rows, bytes of a row): the columns of B lie likewise.

    words  uint32 (registers, waves, 64). Lanes that differ by ``rows`` share a row and take turns along K, a run of
           consecutive bytes each; runs: how many such rounds a lane's registers hold
    """
    waves, turns = words.shape[1], LANES // rows
    held = np.ascontiguousarray(np.moveaxis(words, 0, 2)).view(np.uint8)
    held = held.reshape(waves, turns, rows, runs, -1)
    return np.ascontiguousarray(held.transpose(0, 2, 3, 1, 4)).reshape(waves, rows, -1)


def scales_of(words: np.ndarray, rows: int, byte: int) -> np.ndarray:
    """Scales (waves, rows, blocks of 32 along K), powers of two or NaN, of one byte of every lane."""
    code = (words[0] >> U32(8 * byte)) & U32(0xFF)
    scale = np.where(code == 0xFF, np.nan, np.ldexp(1.0, code.astype(int) - 127))
    return scale.reshape(-1, LANES // rows, rows).transpose(0, 2, 1)


def matrix_of(words: np.ndarray, rows: int) -> np.ndarray:
    """C or D, float32 (waves, rows, rows), of its registers, uint32 (rows * rows / 64, waves, 64)."""
    turns = LANES // rows
    held = words.reshape(-1, 4, words.shape[1], turns, rows)  # every turn has four rows
    return np.ascontiguousarray(held.transpose(2, 0, 3, 1, 4)).reshape(-1, rows, rows).view(F32)


def registers_of(matrix: np.ndarray) -> np.ndarray:
    """The inverse of `matrix_of`."""
    waves, rows, _ = matrix.shape
    held = np.ascontiguousarray(matrix, F32).view(U32).reshape(waves, -1, LANES // rows, 4, rows)
    return held.transpose(1, 3, 0, 2, 4).reshape(-1, waves, LANES)


def numbers(data: np.ndarray, kind: str) -> np.ndarray:
    """Float64 of bytes that hold "fp8", "bf8" (of gfx950), "bf16" or "f16"."""
    if kind == "f16":
        return data.view(np.float16).astype(float)
    if kind == "bf16":
        return from_bfloat16(data.view(np.uint16))
    return {"fp8": E4M3_CODES, "bf8": E5M2_CODES}[kind][data]


def multiply_add(machine, ins, words: Callable) -> np.ndarray:
    """Registers of D = A B + C, uint32 (registers, waves, 64). EXEC has no say.

    words  reads registers: (operand's text, how many) -> uint32 (registers, waves, 64)
    """
    scaled, rows, k, kind = OPCODE.fullmatch(ins.opcode).groups()
    rows, k = int(rows), int(k)
    kinds = [kind, kind]
    if kind == "f8f6f4":
        if machine.program.chip != "gfx950":
            ins.refuse("not of gfx950")
        ins.only("cbsz", "blgp", *(("op_sel", "op_sel_hi") if scaled else ()))
        kinds = [SMALL.get(ins.modifiers.get(name, "0")) or ins.refuse(name) for name in ("cbsz", "blgp")]
    else:
        ins.only()
    size = 1 if kind == "f8f6f4" else 2
    count = rows * k * size // LANES // 4
    runs = 2 if kind == "f8f6f4" else 1
    a, b = (
        numbers(rows_of(words(text, count), rows, runs), name)
        for text, name in zip(ins.operands[1:3], kinds, strict=True)
    )
    if scaled:
        low, high = ([int(bit) for bit in ins.modifiers.get(name, "[0,0,0]")[1:-1].split(",")] for name in
                     ("op_sel", "op_sel_hi"))  # fmt: skip
        if "op_sel_hi" not in ins.modifiers:  # LLVM leaves it out where all bits are set, which no code here does
            ins.refuse("no op_sel_hi")
        for which, (matrix, text) in enumerate(zip((a, b), ins.operands[4:6], strict=True)):
            scales = scales_of(words(text, 1), rows, low[which] + 2 * high[which])
            matrix *= np.repeat(scales, 32, axis=2)
    c = matrix_of(words(ins.operands[3], rows * rows // LANES), rows)
    return registers_of((a @ b.transpose(0, 2, 1) + c).astype(F32))
