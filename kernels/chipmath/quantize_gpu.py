"""The block quantizer on a GPU in one read of x: the bytes of `chipmath.quantize`, along rows, along columns, or both.

A training step needs a matrix quantized along both axes, as scales run along the inner dimension of each product.
`quantize_both` reads x once for the two. CUDA and ROCm, by Triton 3.6 to 3.9; the device code, and which converter is
used on which chip, is in `chipmath.quantize_kernels`.

Configurations are fixed, one a kernel, dtype and vendor, and were chosen from the compilers' resource tables, which the
experiment ``quantizer_code`` records: no spills, loads of 16 bytes a lane, the fewest instructions an element. Nothing
is tuned at run time: an autotuner that is keyed on a shape runs again for every new shape.

One exception: on gfx950 the NaN elements of E5M2 are NaN, but which of its three codes for it no document says.

x is read as it lies in memory if it is contiguous, else copied first. Offsets within a tile are 32-bit, so neither
dimension may exceed `LARGEST` for columns and both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chipmath.devices import device
from chipmath.formats import E4M3, E5M2, ElementFormat
from chipmath.on_gpu import arch_of, require_triton
from chipmath.quantize import MXTensor, check_input, scale_constant

BLOCK = 32
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
LAYOUTS = ("plain", "128x4")
LARGEST = 1 << 20  # of M and K for columns and both: 65,535 tiles along K, and 32-bit offsets within a tile
NUM_WARPS = 4
GROUP = 8  # tiles along M: 8 x 4 scale bytes of a column are one 32-byte sector of memory
# Elements a thread of the row kernel holds; `quantizer_code` has what else was compiled.
ROW_ELEMENTS = {"bfloat16": 64, "float16": 64, "float32": 32}
# Rows and columns of a thread's patch. 16 along the blocks make stores of 16 bytes and the fewest instructions; for
# both directions they would leave too few waves. A thread's columns are whole loads of 16 bytes: one, or more.
PATCHES = {
    "rows": {"bfloat16": (4, 16), "float16": (4, 16), "float32": (4, 16)},
    "columns": {"bfloat16": (16, 8), "float16": (16, 8), "float32": (16, 4)},
    "both": {"bfloat16": (8, 8), "float16": (8, 8), "float32": (8, 8)},
}


class TensorCoreOperand(NamedTuple):
    """A quantized matrix with its scales in the order in which Blackwell's tensor cores read them."""

    elements: Tensor  # uint8 codes, logical shape of x; for columns a transposed view
    scales: Tensor  # uint8, what `chipmath.quantize.to_blocked` gives for the scales (of the transpose, for columns)


def quantize_rows(
    x: Tensor, fmt: ElementFormat, scale_rule: str, *, scale_layout: str = "plain"
) -> MXTensor | TensorCoreOperand:
    """Quantize ``x`` in blocks of 32 along its last axis; `chipmath.quantize.quantize` says what that means.

    x             bfloat16, float16 or float32 on a GPU; any rank for plain scales, (M, K) for "128x4"
    fmt           E4M3 or E5M2
    scale_layout  "plain": an MXTensor; "128x4": a TensorCoreOperand, whose scales are padded with byte 0

    Raises ModuleNotFoundError without Triton, ValueError for a tensor on the CPU.
    """
    _check(x, fmt, scale_layout, axes=(-1,))
    elements = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scales = _scales(x, (*x.shape[:-1], x.shape[-1] // BLOCK), scale_layout)
    _launch("rows", x, [elements, scales], fmt, scale_rule, scale_layout)
    return _result(elements, scales, fmt, -1, scale_layout)


def quantize_columns(
    x: Tensor, fmt: ElementFormat, scale_rule: str, *, scale_layout: str = "plain"
) -> MXTensor | TensorCoreOperand:
    """Quantize ``x`` in blocks of 32 along its first axis: what ``quantize(x, fmt, scale_rule, axis=0)`` returns.

    x  (M, K), M a multiple of 32, K any; the rest as for `quantize_rows`

    Elements and scales lie transposed in memory, (K, M) and (K, M / 32), so that blocks are contiguous.
    """
    _check(x, fmt, scale_layout, axes=(0,))
    return _patches("columns", x, fmt, scale_rule, scale_layout)[1]


def quantize_both(
    x: Tensor, fmt: ElementFormat, scale_rule: str, *, scale_layout: str = "plain"
) -> tuple[MXTensor, MXTensor] | tuple[TensorCoreOperand, TensorCoreOperand]:
    """What `quantize_rows` and `quantize_columns` return, in one read of ``x``.

    x  (M, K), both multiples of 32; the rest as for `quantize_rows`
    """
    _check(x, fmt, scale_layout, axes=(0, -1))
    return _patches("both", x, fmt, scale_rule, scale_layout)


# --- how a kernel is launched -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that is decided before it is compiled."""

    kernel: Any  # the Triton or Gluon function
    constexprs: dict[str, Any]
    num_warps: int
    tile: tuple[int, ...]  # blocks of a program (rows), or its rows and columns
    elements_a_thread: int


@cache  # a layout takes longer to describe than a small matrix to quantize
def configuration(
    direction: str,
    dtype: str,
    fmt: ElementFormat,
    scale_rule: str,
    arch: str,
    *,
    scale_layout: str = "plain",
    even: bool = True,
    **changes: Any,
) -> Configuration:
    """What `quantize_rows`, ``_columns`` or ``_both`` compile for a chip; experiments and tests compile the same.

    direction  "rows", "columns" or "both"
    dtype      name of x's dtype
    even       whether the tile divides x
    changes    other choices, for experiments: ``encoder``, ``patch``, ``row_elements``
    """
    kernels = _kernels()
    encoder = changes.get("encoder", encoder_of(arch))
    constexprs = {
        "CONSTANT": scale_constant(fmt, scale_rule),
        **format_numbers(fmt),
        "DTYPE": dtype,
        "ENCODER": encoder,
        "FLOAT_MAX": _has_nan_maximum(arch),
        "EVEN": even,
    }
    wave = device(arch).wave_lanes
    if direction == "rows" and scale_layout == "plain":
        held = changes.get("row_elements", ROW_ELEMENTS[dtype])
        tile = NUM_WARPS * wave * held // BLOCK
        return Configuration(kernels.rows_kernel, constexprs | {"TILE": tile}, NUM_WARPS, (tile,), held)
    rows, columns = changes.get("patch", PATCHES[direction][dtype])
    layouts = kernels.patch_layouts(wave, rows, columns, NUM_WARPS)
    constexprs |= layouts | {"ROWS": direction != "columns", "COLUMNS": direction != "rows"}
    constexprs |= {"SCALES_128X4": scale_layout == "128x4", "BUFFER": device(arch).vendor == "AMD"}
    tile = (BLOCK * layouts["ROW_BLOCKS"], BLOCK * layouts["COLUMN_BLOCKS"])
    return Configuration(kernels.patches_kernel, constexprs, NUM_WARPS, tile, rows * columns)


def format_numbers(fmt: ElementFormat) -> dict[str, Any]:
    """What the kernels know of an element format."""
    return {
        "FORMAT": fmt.name,
        "EMAX": fmt.emax,
        "EMIN": fmt.emin,
        "MANTISSA_BITS": fmt.mantissa_bits,
        "MAX": fmt.max,
    }


def encoder_of(arch: str) -> str:
    """How a chip rounds elements: the names of `chipmath.quantize_kernels`.

    sm_89 has the converter, but up to 3.9 Triton feeds it by way of float16, which rounds twice; it may have it back
    when https://github.com/triton-lang/triton/pull/11753 is in every version supported here.
    """
    unit = device(arch)
    if unit.vendor == "AMD":
        return {"gfx942": "fnuz", "gfx950": "scaled"}.get(unit.arch, "integer")
    return "cvt" if int(unit.arch[3:]) >= 90 else "integer"


def _has_nan_maximum(arch: str) -> bool:
    """PTX ISA, max: .NaN from sm_80 on. CDNA4 ISA: v_maximum3_f32; before, LLVM needs three instructions."""
    return device(arch).vendor == "NVIDIA" or device(arch).arch == "gfx950"


def _kernels() -> ModuleType:
    require_triton("chipmath.quantize_gpu")
    from chipmath import quantize_kernels

    return quantize_kernels


# --- the public edge, and the launch ----------------------------------------------------------------------------------


def _check(x: Tensor, fmt: ElementFormat, scale_layout: str, axes: tuple[int, ...]) -> None:
    """Refuse what the kernels do not take, with the value in the message."""
    check_input(x, axes[0], 1)  # dtype and rank; the size follows
    if (scale_layout != "plain" or 0 in axes) and x.ndim != 2:
        raise ValueError(f"x must be (M, K) here, got shape {tuple(x.shape)}")
    for axis in axes:
        check_input(x, axis, BLOCK)
    if fmt not in (E4M3, E5M2):
        raise ValueError(f"fmt must be E4M3 or E5M2 on a GPU, got {fmt}")
    if scale_layout not in LAYOUTS:
        raise ValueError(f"scale_layout must be one of {', '.join(LAYOUTS)}, got {scale_layout!r}")
    if (scale_layout != "plain" or 0 in axes) and max(x.shape) > LARGEST:
        raise ValueError(f"x must have at most {LARGEST} rows and columns here, got shape {tuple(x.shape)}")
    _require_gpu(x)
    _kernels()


def _require_gpu(x: Tensor) -> None:
    if x.device.type != "cuda":
        raise ValueError(f"x must be on a GPU, got {x.device}; chipmath.quantize_cpu is for the CPU")


def _patches(direction: str, x: Tensor, fmt: ElementFormat, scale_rule: str, scale_layout: str) -> tuple:
    """Results of rows (None unless both) and of columns."""
    (rows, columns), both = x.shape, direction == "both"
    unused = torch.empty(0, dtype=torch.uint8, device=x.device)
    transposed = torch.empty(columns, rows, dtype=torch.uint8, device=x.device)
    buffers = [
        torch.empty(x.shape, dtype=torch.uint8, device=x.device) if both else unused,
        _scales(x, (rows, columns // BLOCK), scale_layout) if both else unused,
        transposed,
        _scales(x, (columns, rows // BLOCK), scale_layout),
    ]
    _launch(direction, x, buffers, fmt, scale_rule, scale_layout)
    column_scales = buffers[3].T if scale_layout == "plain" else buffers[3]
    along_rows = _result(buffers[0], buffers[1], fmt, -1, scale_layout) if both else None
    return along_rows, _result(transposed.T, column_scales, fmt, 0, scale_layout)


def _result(elements: Tensor, scales: Tensor, fmt: ElementFormat, axis: int, scale_layout: str):
    if scale_layout == "plain":
        return MXTensor(elements, scales, fmt, axis, BLOCK)
    return TensorCoreOperand(elements, scales)


def _scales(x: Tensor, shape: tuple[int, ...], scale_layout: str) -> Tensor:
    if scale_layout == "plain":
        return torch.empty(shape, dtype=torch.uint8, device=x.device)
    padded = -(-shape[0] // 128) * 128 * (-(-shape[1] // 4) * 4)
    make = torch.empty if padded == shape[0] * shape[1] else torch.zeros  # the padding is byte 0
    return make(padded, dtype=torch.uint8, device=x.device)


def _words(x: Tensor) -> Tensor:
    """The bits of x, contiguous, as signed integers of its width."""
    plain = x.detach().resolve_neg().contiguous()
    return plain.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def _launch(direction: str, x: Tensor, buffers: list[Tensor], fmt: ElementFormat, rule: str, layout: str) -> None:
    scale_constant(fmt, rule)  # refuses an unknown rule for an empty x, too
    if not x.numel():
        return
    arch = arch_of(x.device.index)
    made = prepare(direction, x, buffers, fmt, rule, arch, scale_layout=layout)
    with torch.cuda.device(x.device):
        chosen = made.configuration
        chosen.kernel[made.grid](*made.arguments, **chosen.constexprs, num_warps=chosen.num_warps)


@dataclass(frozen=True)
class Launch:
    """A configuration, and what it is called with."""

    configuration: Configuration
    grid: tuple[int, ...]
    arguments: list[Any]


def prepare(
    direction: str,
    x: Tensor,
    buffers: list[Tensor],
    fmt: ElementFormat,
    scale_rule: str,
    arch: str,
    *,
    scale_layout: str = "plain",
    **changes: Any,
) -> Launch:
    """The launch that quantizes ``x`` into ``buffers``, which rehearsals and tests also carry out without a GPU."""
    dtype, words = DTYPES[x.dtype], _words(x)
    blocks = x.numel() // BLOCK
    tile = configuration(direction, dtype, fmt, scale_rule, arch, scale_layout=scale_layout, **changes).tile
    stream = len(tile) == 1
    shape = (blocks,) if stream else tuple(x.shape)
    even = not any(size % step for size, step in zip(shape, tile))
    chosen = configuration(direction, dtype, fmt, scale_rule, arch, scale_layout=scale_layout, even=even, **changes)
    tiles = [-(-size // step) for size, step in zip(shape, tile)]
    group = gcd(tiles[0], GROUP)
    grid = tuple(tiles) if stream else (group, tiles[1], tiles[0] // group)
    unused = [] if stream or direction != "rows" else buffers  # a kernel without columns writes none
    return Launch(chosen, grid, [words, *buffers, *unused, *shape])
