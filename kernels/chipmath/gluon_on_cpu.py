"""A Triton or Gluon kernel's own source on a CPU, with layouts dropped: for kernels that no interpreter runs.

Gluon has no interpreter, and Triton's has no exact 8-bit casts. `run` executes the kernel's Python functions as they
stand, one program after another, with the names ``tl`` and ``gl`` bound to the small language below: tensors are torch
tensors, pointers are flat torch tensors with offsets, and a layout is an argument that nothing looks at. This shows
which bytes the source computes; it cannot show whether a compiler, or a layout, does what the source says.

Casts to 8 bits follow the instruction that a chip has, by the vendor's own document, not torch's cast:

cvt     PTX ISA, cvt.rn.satfinite.{e4m3,e5m2}x2.f32: saturates to ±max, Inf too; every NaN becomes 0x7F
scaled  CDNA4 ISA, V_CVT_SCALEF32_PK_FP8_F32 and ..._BF8_F32, with the bit MODE.FP16_OVFL, which Triton sets: saturates
        what is finite. Inf, which by section 7.3 saturates as well, is made NaN or Inf here, and a NaN keeps its sign:
        a kernel that relies on either shows up in codes
fnuz    CDNA3 ISA, V_CVT_PK_FP8_F32 and ..._BF8_F32: FNUZ codes, whose only NaN is 0x80

Integers are 32-bit and wrap, as on a GPU. Out-of-bounds addresses raise IndexError; what a mask leaves unloaded has
every bit set, which is a NaN.
"""

from __future__ import annotations

import itertools
import operator
import types
from typing import Any

import torch
from torch import Tensor

from chipmath.formats import E4M3, E5M2, ElementFormat

FNUZ_NAN = 0x80


def run(kernel: Any, grid: tuple[int, ...], arguments: list[Any], constexprs: dict[str, Any]) -> None:
    """Execute ``kernel`` (a @triton.jit or @gluon.jit function) for every program of ``grid``.

    arguments  contiguous torch tensors on the CPU, written in place, and numbers
    constexprs by name; ENCODER says which chip's casts are meant
    """
    language = _Language(constexprs["ENCODER"])
    language.grid = grid
    function = _bind(kernel, language)
    values = [Pointer(each) if isinstance(each, Tensor) else each for each in arguments]
    for program in itertools.product(*(range(size) for size in grid)):
        language.program = program
        function(*values, **constexprs)


def call(function: Any, encoder: str, *arguments: Any) -> Any:
    """What one device function returns for torch tensors and numbers, as torch tensors."""
    language = _Language(encoder)
    given = [Lanes(each, language) if isinstance(each, Tensor) else each for each in arguments]
    result = _bind(function, language)(*given)
    return tuple(each.data for each in result) if isinstance(result, tuple) else result.data


def _bind(kernel: Any, language: _Language) -> types.FunctionType:
    """The plain function, in a module where jit functions are plain, too, and the language is ours."""
    names: dict[str, Any] = {}
    here, elsewhere = kernel.fn.__globals__, {}
    for value in here.values():  # an imported function brings the names of its own module
        elsewhere |= value.fn.__globals__ if hasattr(value, "fn") else {}
    for name, value in (elsewhere | here).items():
        if hasattr(value, "fn"):
            plain = types.FunctionType(value.fn.__code__, names, name, value.fn.__defaults__)
            plain.__kwdefaults__ = value.fn.__kwdefaults__
            names[name] = plain
        else:
            names[name] = value.value if hasattr(value, "value") else value  # a constexpr of the module
    names |= {"tl": language, "gl": language}
    return names[kernel.fn.__name__]


# --- tensors and pointers ---------------------------------------------------------------------------------------------


# Torch computes little with unsigned integers, so they are carried in 64 bits.
UNSIGNED = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}
SIGNED = {torch.float16: torch.int16, torch.float32: torch.int32}


class Lanes:
    """A tensor of a kernel; also a scalar, which is a tensor of no dimension."""

    def __init__(self, data: Tensor, language: _Language):
        """Wrap a torch tensor."""
        self.data, self.language = data, language

    def to(self, dtype: Any, bitcast: bool = False) -> Lanes:
        """Convert, or read the same bits as another dtype; to 8-bit floats as the chip does."""
        if dtype in self.language.casts:
            return Lanes(self.language.casts[dtype](self.data), self.language)
        if dtype in UNSIGNED:
            return Lanes(self.data.long() & UNSIGNED[dtype], self.language)
        if bitcast and self.data.dtype == torch.int64:  # an unsigned integer
            return Lanes(self.data.to(SIGNED[dtype]).view(dtype), self.language)
        return Lanes(self.data.view(dtype) if bitcast else self.data.to(dtype), self.language)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.data.shape

    def __getitem__(self, index: Any) -> Lanes:
        """Insert axes."""
        return Lanes(self.data[index], self.language)

    def __neg__(self) -> Lanes:
        """Flip the sign."""
        return Lanes(-self.data, self.language)

    def _with(self, other: Any, operation: Any, swapped: bool = False) -> Lanes:
        a, b = _same_dtype(self.data, other.data if isinstance(other, Lanes) else other)
        return Lanes(operation(b, a) if swapped else operation(a, b), self.language)


def _same_dtype(a: Any, b: Any) -> tuple[Any, Any]:
    """Two tensors as their common dtype: torch would let a scalar tensor give way, which Triton does not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        return a.to(dtype), b.to(dtype)
    return a, b


def _product(a: Any, b: Any) -> Any:
    """Of two NaN, ISAs differ in which one comes through: here a negative one if there is one, to show up in codes."""
    product = a * b
    if isinstance(a, Tensor) and isinstance(b, Tensor) and product.is_floating_point():
        sign = torch.where(a.signbit() | b.signbit(), -1.0, 1.0)
        product = torch.where(a.isnan() & b.isnan(), torch.copysign(product, sign), product)
    return product


def _operators() -> None:
    names = ("add", "sub", "floordiv", "mod", "lshift", "rshift", "lt", "ge", "gt", "eq", "ne")
    operations = {name: getattr(operator, name) for name in names}
    operations |= {"mul": _product, "and": operator.and_, "or": operator.or_}
    for name, operation in operations.items():
        setattr(Lanes, f"__{name}__", lambda self, other, o=operation: self._with(other, o))
        setattr(Lanes, f"__r{name}__", lambda self, other, o=operation: self._with(other, o, swapped=True))


_operators()


class Pointer:
    """An address, or a tensor of them: elements of a flat tensor."""

    def __init__(self, memory: Tensor, offsets: Lanes | int = 0):
        """Point at the first element."""
        self.memory, self.offsets = memory, offsets

    def __add__(self, offsets: Lanes) -> Pointer:
        """Move."""
        return Pointer(self.memory, offsets + self.offsets)

    def places(self) -> Tensor:
        """Offsets, as torch indexes with."""
        return self.offsets.data.long()


# --- the language -----------------------------------------------------------------------------------------------------


class _Language:
    """What ``tl`` and ``gl`` are bound to: as much of them as the book's quantizers use."""

    int32, int64, uint8, float16, float32 = torch.int32, torch.int64, torch.uint8, torch.float16, torch.float32
    uint16, uint32 = "uint16", "uint32"
    float8e4nv, float8e5, float8e4b8, float8e5b16 = "E4M3", "E5M2", "E4M3FNUZ", "E5M2FNUZ"
    constexpr = None

    PropagateNan = types.SimpleNamespace(ALL=True)
    static_range = range

    def __init__(self, encoder: str):
        self.program: tuple[int, ...] = (0,)
        self.grid: tuple[int, ...] = (1,)
        self.casts = CASTS.get(encoder, {})
        self.amd = types.SimpleNamespace(cdna3=self)

    def program_id(self, axis):
        return Lanes(torch.tensor(self.program[axis], dtype=torch.int32), self)

    def num_programs(self, axis):
        return self.grid[axis]

    def arange(self, start, end, layout=None):
        return Lanes(torch.arange(start, end, dtype=torch.int32), self)

    def cdiv(self, a, b):
        return -(-a // b)

    def SliceLayout(self, axis, parent):
        return None

    def convert_layout(self, value, layout):
        return value

    def expand_dims(self, value, axis):
        return Lanes(value.data.unsqueeze(axis), self)

    def reshape(self, value, shape):
        return Lanes(value.data.reshape(shape), self)

    def permute(self, value, axes):
        return Lanes(value.data.permute(axes), self)

    def trans(self, value):
        return Lanes(value.data.T, self)

    def abs(self, value):
        return Lanes(value.data.abs(), self)

    def where(self, condition, a, b):
        a, b = (each.data if isinstance(each, Lanes) else each for each in (a, b))
        return Lanes(torch.where(condition.data, a, b), self)

    def maximum(self, a, b, propagate_nan=False):
        return self._pairwise(a, b, torch.maximum if propagate_nan else torch.fmax)

    def minimum(self, a, b):
        return self._pairwise(a, b, torch.fmin)  # the number, where the other is NaN

    def clamp(self, value, low, high):
        return self.minimum(self.maximum(value, low), high)

    def max(self, value, axis):
        return Lanes(value.data.amax(axis), self)

    def reduce(self, value, axis, combine):
        parts = [Lanes(part, self) for part in value.data.unbind(axis)]
        total = parts[0]
        for part in parts[1:]:
            total = combine(total, part)
        return total

    def load(self, pointer, mask=None):
        places = pointer.places()
        if mask is None:
            return Lanes(pointer.memory.view(-1)[places], self)
        mask, places = torch.broadcast_tensors(mask.data, places)
        loaded = torch.full(places.shape, -1, dtype=pointer.memory.dtype)
        loaded[mask] = pointer.memory.view(-1)[places[mask]]
        return Lanes(loaded, self)

    def store(self, pointer, value, mask=None):
        mask = torch.tensor(True) if mask is None else mask.data
        places, values, mask = torch.broadcast_tensors(pointer.places(), value.data, mask)
        pointer.memory.view(-1)[places[mask]] = values[mask]

    def buffer_load(self, pointer, offsets, mask=None):
        return self.load(pointer + offsets, mask)

    def buffer_store(self, value, pointer, offsets, mask=None):
        self.store(pointer + offsets, value, mask)

    def _pairwise(self, a, b, operation):
        like = next(each.data for each in (a, b) if isinstance(each, Lanes))
        a, b = (each.data if isinstance(each, Lanes) else torch.tensor(each, dtype=like.dtype) for each in (a, b))
        return Lanes(operation(a, b), self)


# --- casts to 8 bits, as the vendors' documents have them -------------------------------------------------------------


def _cvt(fmt):
    return lambda y: torch.where(y.isnan(), fmt.nan_code, fmt.encode(y).int()).to(torch.uint8)


def _scaled(fmt):
    overflow = fmt.max_code + 1  # NaN of E4M3, Inf of E5M2

    def cast(y: Tensor) -> Tensor:
        code = fmt.encode(y).int()
        return torch.where(y.isinf(), code & fmt.sign_code | overflow, code).to(torch.uint8)

    return cast


def _fnuz(fmt):
    """No -0 and no Inf: the code of -0 is the only NaN. Beyond the largest number a mode decides; here it is NaN."""

    def cast(y: Tensor) -> Tensor:
        code = fmt.encode(torch.where(y.isnan(), 0, y)).int()
        code = torch.where(code == FNUZ_NAN, 0, code)
        return torch.where(y.isnan() | (y.abs() > fmt.max), FNUZ_NAN, code).to(torch.uint8)

    return cast


# CDNA3 ISA, "Data formats": the exponent's bias is one more than in OCP's format, and every exponent holds numbers.
E4M3FNUZ = ElementFormat("E4M3FNUZ", bits=8, exponent_bits=4, mantissa_bits=3, bias=8)
E5M2FNUZ = ElementFormat("E5M2FNUZ", bits=8, exponent_bits=5, mantissa_bits=2, bias=16)

CASTS: dict[str, dict[str, Any]] = {
    "cvt": {"E4M3": _cvt(E4M3), "E5M2": _cvt(E5M2)},
    "scaled": {"E4M3": _scaled(E4M3), "E5M2": _scaled(E5M2)},
    "fnuz": {"E4M3FNUZ": _fnuz(E4M3FNUZ), "E5M2FNUZ": _fnuz(E5M2FNUZ)},
}
