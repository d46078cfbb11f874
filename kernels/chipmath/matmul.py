"""Matrix products of block-scaled tensors: the dot product of OCP MX v1.0, sec. 6.1 and 6.2.

A block contributes X_A * X_B * sum(P_A * P_B), and an output element is the sum over its blocks. The specification
leaves the internal precision and the order open. Here everything is float64, rounded to float32 once, at the end:

- Scale times element is exact, and so is every product: two elements need at most 14 bits together, and their scales
  only move the exponent, to between 2**-286 and 2**286, well inside float64. So scaling may come before the sum.
- Only the sum is rounded. Before the last rounding it is off by at most (K - 1) * 2**-53 * sum(|a * b|), and not at all
  where 53 bits hold it, as they hold every block of 32 without E5M2: products of E4M3 are multiples of 2**-18, and 32
  of them stay below 2**23, which is 41 bits.

A NaN scale makes every output of its row NaN. What exceeds float32 after the sum is Inf.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable

import torch
from torch import Tensor

from chipmath.quantize import MXTensor


def matmul(a: MXTensor, b: MXTensor) -> Tensor:
    """``a @ b.T`` for ``a`` (M, K) and ``b`` (N, K), both blocked along K: float32 (M, N). Formats may differ."""
    check_pair(a, b, ndim_b=2)
    return (a.dequantize(torch.float64) @ b.dequantize(torch.float64).T).float()


def grouped_matmul(a: MXTensor, b: MXTensor, sizes: Iterable[int] | Tensor) -> Tensor:
    """One ``matmul`` a group of rows, as in a mixture of experts: float32 (sum(sizes), N).

    a      (sum(sizes), K), the rows of group 0, then those of group 1, ...; blocked along K
    b      (G, N, K), blocked along K: rows of group g meet b[g]
    sizes  G row counts, whole numbers of any library; 0 is fine
    """
    check_pair(a, b, ndim_b=3)
    sizes = checked_sizes(sizes, groups=len(b.elements), rows=len(a.elements))
    out = torch.empty(sum(sizes), b.elements.shape[1], device=a.elements.device)
    parts = zip(out.split(sizes), a.elements.split(sizes), a.scales.split(sizes), b.elements, b.scales)
    for part, elements_a, scales_a, elements_b, scales_b in parts:
        group_a = MXTensor(elements_a, scales_a, a.fmt, -1, a.block)
        part[:] = matmul(group_a, MXTensor(elements_b, scales_b, b.fmt, -1, b.block))
    return out


def check_pair(a: MXTensor, b: MXTensor, ndim_b: int) -> None:
    """Refuse operands that no product here takes, with the value in the message; ``b`` has ``ndim_b`` dimensions."""
    for name, operand, ndim in (("a", a, 2), ("b", b, ndim_b)):
        if not isinstance(operand, MXTensor):
            raise TypeError(f"{name} must be an MXTensor, got {type(operand).__name__}")
        if operand.elements.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(operand.elements.shape)}")
        if operand.axis not in (-1, ndim - 1):
            raise ValueError(f"{name} must be blocked along K, its last axis, got axis {operand.axis}")
    if a.elements.shape[-1] != b.elements.shape[-1]:
        raise ValueError(f"K differs: {a.elements.shape[-1]} in a, {b.elements.shape[-1]} in b")
    if a.block != b.block:
        raise ValueError(f"block differs: {a.block} in a, {b.block} in b")
    if a.elements.device != b.elements.device:
        raise ValueError(f"a is on {a.elements.device}, b on {b.elements.device}")


def checked_sizes(sizes: Iterable[int] | Tensor, groups: int, rows: int) -> list[int]:
    """The rows of each group as Python's integers; ValueError, with the value, where they do not fit the operands."""
    try:
        counts = [_row_count(size) for size in (sizes.tolist() if isinstance(sizes, Tensor) else sizes)]
    except (TypeError, ValueError):
        raise ValueError(f"sizes must be row counts, got {reprlib.repr(sizes)}") from None
    if len(counts) != groups:
        raise ValueError(f"b has {groups} groups, sizes has {len(counts)}")
    if sum(counts) != rows:
        raise ValueError(f"a has {rows} rows, sizes add up to {sum(counts)}")
    return counts


def _row_count(size: int) -> int:
    count = operator.index(size)
    if isinstance(size, bool) or count < 0:
        raise ValueError
    return count
