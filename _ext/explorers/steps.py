"""Rules written down as steps: what a Python function does with its arguments, for another machine to repeat.

A rule runs once with symbols in place of numbers. Each addition, division or comparison of a symbol becomes a step, a
triple (operation, operand, operand); an operand is a whole number, the name of an argument, or "t12", the result of
step 12. A text with a symbol in it becomes a template, as ``f"{waves} waves"`` turns into "{t12} waves".
"""

from __future__ import annotations


class Program:
    """The steps that rules took, each of them once."""

    def __init__(self):
        """Start without steps."""
        self.steps = []

    def step(self, operation: str, left, right) -> Symbol:
        """Take a step, unless it was taken before, and return its result."""
        step = [operation, operand(left), operand(right)]
        if step not in self.steps:
            self.steps.append(step)
        return Symbol(self, f"t{self.steps.index(step)}")


def _operator(operation: str, *, reflected: bool = False):
    def method(self, other):
        return self.program.step(operation, *((other, self) if reflected else (self, other)))

    return method


class Symbol:
    """A number that is not known yet: an argument of the rules, or the result of a step."""

    __add__, __radd__ = _operator("+"), _operator("+", reflected=True)
    __mul__, __rmul__ = _operator("*"), _operator("*", reflected=True)
    __floordiv__, __rfloordiv__ = _operator("//"), _operator("//", reflected=True)
    __and__, __eq__ = _operator("&"), _operator("==")
    __lt__, __le__, __gt__, __ge__ = _operator("<"), _operator("<="), _operator(">"), _operator(">=")
    __hash__ = None

    def __init__(self, program: Program, name: str):
        """Name a symbol whose steps go to ``program``."""
        self.program, self.name = program, name

    def __str__(self) -> str:
        """Return the placeholder under which a text mentions it."""
        return f"{{{self.name}}}"

    def __bool__(self):
        """Refuse: a rule that branches on an argument cannot be written down as steps."""
        raise TypeError(f"a rule branches on {self.name}; its steps cannot be written down")


def operand(value) -> int | str:
    """Return how steps mention a number or a symbol."""
    return value.name if isinstance(value, Symbol) else int(value)
