"""LLVM's assembly text of a CDNA kernel: instructions, labels, the descriptor's directives, operands."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

LANES = 64  # of a wave
VCC, M0, EXEC = 106, 124, 126  # numbers of scalar registers (CDNA4 ISA, table 23)


class HazardError(RuntimeError):
    """Code that reads a register before its load has finished, or LDS that no barrier protects."""


@dataclass(frozen=True)
class Instruction:
    """One line of assembly."""

    line: int
    text: str
    opcode: str  # without the encoding
    encoding: str  # "", "e32", "e64", "sdwa" or "dpp"
    operands: tuple[str, ...]
    modifiers: dict[str, str]

    def refuse(self, why: str):
        """Raise for what is not modelled."""
        raise NotImplementedError(f"line {self.line}: {self.text}: {why}")

    def only(self, *modifiers: str) -> None:
        """Refuse any other modifier."""
        if set(self.modifiers) - set(modifiers):
            self.refuse("modifier")


@dataclass(frozen=True)
class Program:
    """A kernel's text: instructions, labels, directives of its descriptor."""

    instructions: list[Instruction]
    labels: dict[str, int]
    descriptor: dict[str, int]
    chip: str | None
    preloaded_entry: int  # first instruction for firmware that loads arguments into SGPRs


def _split(text: str, separator: str) -> list[str]:
    """Split outside of brackets and parentheses."""
    parts, depth, last = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == separator and not depth:
            parts.append(text[last:at].strip())
            last = at + 1
    return [part for part in [*parts, text[last:].strip()] if part]


def _instruction(line: int, text: str) -> Instruction:
    opcode, _, rest = text.partition(" ")
    match = re.fullmatch(r"(\w+?)(?:_(e32|e64|sdwa|dpp))?", opcode)
    if opcode == "s_waitcnt":
        return Instruction(line, text, opcode, "", tuple(_split(rest.replace("&", " "), " ")), {})
    operands, modifiers = [], {}
    for part in _split(rest, ","):
        operand, *more = _split(part, " ")
        operands.append(operand)
        for name, _, value in (modifier.partition(":") for modifier in more):
            modifiers[name] = value
    return Instruction(line, text, match[1], match[2] or "", tuple(operands), modifiers)


@functools.lru_cache(maxsize=8)
def parse(assembly: str) -> Program:
    """Read LLVM's text of one kernel; ``.amdgcn_target`` names the chip, where the text has it."""
    instructions, labels, descriptor, chip, aligned = [], {}, {}, None, []
    for number, raw in enumerate(assembly.splitlines(), 1):
        text = re.sub(r";.*|//.*", "", raw).strip()
        if match := re.fullmatch(r"([\w.$]+):", text):
            labels[match[1]] = len(instructions)
        elif match := re.fullmatch(r"\.amdhsa_(\w+) (\d+)", text):
            descriptor[match[1]] = int(match[2])
        elif match := re.fullmatch(r"\.amdgcn_target .*-(gfx\w+).*", text):
            chip = match[1]
        elif text == ".p2align\t8":
            aligned.append(len(instructions))
        elif text and text[0] != ".":
            instructions.append(_instruction(number, " ".join(text.split())))
    return Program(instructions, labels, descriptor, chip, aligned[-1] if aligned else 0)


@dataclass(frozen=True)
class Operand:
    """A source or destination: registers of a file, or a constant."""

    file: str  # "v", "a", "s" or "constant"
    index: int = 0
    count: int = 1
    value: int | float = 0
    absolute: bool = False
    negative: bool = False
    signed: bool = False  # sext(): SDWA


NAMED = {"vcc": (VCC, 2), "vcc_lo": (VCC, 1), "vcc_hi": (VCC + 1, 1), "m0": (M0, 1)}
NAMED |= {"exec": (EXEC, 2), "exec_lo": (EXEC, 1), "exec_hi": (EXEC + 1, 1)}


@functools.cache
def operand(text: str) -> Operand:
    """Decode an operand as LLVM writes it ("Syntax of AMDGPU Instruction Operands")."""
    if match := re.fullmatch(r"sext\((.*)\)", text):
        return Operand(**(operand(match[1]).__dict__ | {"signed": True}))
    if match := re.fullmatch(r"neg\((.*)\)|-([va|s].*)", text):
        return Operand(**(operand(match[1] or match[2]).__dict__ | {"negative": True}))
    if match := re.fullmatch(r"\|(.*)\|", text):
        return Operand(**(operand(match[1]).__dict__ | {"absolute": True}))
    if text in NAMED:
        return Operand("s", *NAMED[text])
    if match := re.fullmatch(r"([vas])(\d+)", text):
        return Operand(match[1], int(match[2]))
    if match := re.fullmatch(r"([vas])\[(\d+):(\d+)\]", text):
        return Operand(match[1], int(match[2]), int(match[3]) - int(match[2]) + 1)
    if re.fullmatch(r"-?(\d+|0x[0-9a-f]+)", text):
        return Operand("constant", value=int(text, 0))
    if re.fullmatch(r"-?\d+\.\d+", text):
        return Operand("constant", value=float(text))
    raise NotImplementedError(f"operand {text}")
