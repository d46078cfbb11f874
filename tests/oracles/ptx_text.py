"""Reads PTX: a kernel's text as instructions, registers, labels and variables in shared memory.

NotImplementedError for what is not known here, with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

TYPES = {
    **{f"{kind}{bits}": f"u{bits // 8}" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{"f16": "f2", "f32": "f4", "f64": "f8", "pred": "?"},
}
TYPES = {name: np.dtype(code) for name, code in TYPES.items()}


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
