"""Recipes: what becomes of the operands of a linear layer's three matrix products.

    output           Y  (M, N) = X W'     sums over K, the input features
    input gradient   dX (M, K) = dY W     sums over N, the output features
    weight gradient  dW (N, K) = dY' X    sums over M, the tokens

A block scale must run along the axis that a product sums over. So X, W and dY are each quantized twice, in rows and in
columns, from high precision: six quantizations a layer and step, as in torchao's MXFP8 linear and in TransformerEngine.

Formats are emulated: operands are quantized, restored and multiplied in float32 (or bfloat16, where E4M3 times a power
of two is exact, on tensor cores). What a format does to the values is exact; the order of summation is the device's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import frexp

import torch
from torch import Tensor

from chipmath.formats import E2M1, E4M3, FLOAT32_BIAS, FRACTION_BITS, INFINITY, ElementFormat
from chipmath.quantize import check_input, clipped, flushed, quantize, scale_constant

BLOCK = 32
SMALLEST_SCALE = -126  # exponent; the reference has one more, 2**-127, which as a float32 is subnormal


@dataclass(frozen=True)
class Recipe:
    """How operands are stored. ``operand`` gives the values that a product sees."""

    name: str  # for commands and recordings
    title: str  # for tables and figures
    fmt: ElementFormat | None = None  # None: no quantization
    scaling: str = "none"  # "block": MX, 32 values a scale; "tensor": amax becomes the largest number; "none": scale 1
    scale_rule: str | None = None  # of the block scale
    one_copy: bool = False  # quantize rows only, and use that copy for sums along columns too
    bfloat16: bool = False  # operands rounded to bfloat16

    def __str__(self) -> str:
        """The title alone, for sentences and tables."""
        return self.title

    def operand(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        """Values of ``x`` (2-D) for a product that sums over ``axis``, and the factor that is left for its result.

        A block's scale is in the values; a tensor's scale leaves the sum, so it multiplies the result, as in
        ``torch._scaled_mm``. Without a factor there is None.
        """
        if self.fmt is None:
            return (x.to(torch.bfloat16) if self.bfloat16 else x), None
        if self.scaling == "block":
            return block_values(x, self.fmt, self.scale_rule, axis=-1 if self.one_copy else axis), None
        scaled, scale = self._scaled(x)
        return element_values(scaled, self.fmt), scale

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.scaling != "tensor":
            return x.float(), None
        scale = tensor_scale(x, self.fmt)
        return x.float() / scale, scale

    def reference_operand(self, x: Tensor, axis: int) -> Tensor:
        """The values of `operand` in float32, by the codes of the reference: slow, to hold `operand` against."""
        if self.fmt is None:
            return (x.to(torch.bfloat16) if self.bfloat16 else x).float()
        if self.scaling == "block":
            return quantize(x, self.fmt, self.scale_rule, axis=-1 if self.one_copy else axis).dequantize()
        return self.fmt.decode(self.fmt.encode(self._scaled(x)[0]))

    def losses(self, x: Tensor, axis: int) -> tuple[float, float]:
        """Shares of ``x`` (2-D) that this recipe clips at its largest number, and that it flushes from nonzero to zero.

        By the codes of the reference quantizer, for a sum over ``axis``.
        """
        if self.fmt is None:
            return 0.0, 0.0
        if self.scaling == "block":
            quantized = quantize(x, self.fmt, self.scale_rule, axis=-1 if self.one_copy else axis)
            return _share(clipped(x, quantized)), _share(flushed(x, quantized))
        scaled, _ = self._scaled(x)
        restored = self.fmt.decode(self.fmt.encode(scaled))
        return _share(scaled.abs() > self.fmt.max), _share((restored == 0) & (x != 0))


FP32 = Recipe("fp32", "FP32")
BF16 = Recipe("bf16", "BF16", bfloat16=True)
MXFP8_RCEIL = Recipe("mxfp8_rceil", "MXFP8, rceil", E4M3, "block", "rceil")
MXFP8_FLOOR = Recipe("mxfp8_floor", "MXFP8, floor", E4M3, "block", "floor")
FP8_TENSOR = Recipe("fp8_tensor", "FP8, a scale a tensor", E4M3, "tensor")
FP8_UNSCALED = Recipe("fp8_unscaled", "FP8, no scale", E4M3)
MXFP4 = Recipe("mxfp4", "MXFP4, rceil", E2M1, "block", "rceil")
ONE_COPY = Recipe("mxfp8_one_copy", "MXFP8, rceil, one copy", E4M3, "block", "rceil", one_copy=True)

RECIPES = {
    recipe.name: recipe for recipe in (FP32, BF16, MXFP8_RCEIL, MXFP8_FLOOR, FP8_TENSOR, FP8_UNSCALED, MXFP4, ONE_COPY)
}
SIX = (BF16, MXFP8_RCEIL, MXFP8_FLOOR, FP8_TENSOR, FP8_UNSCALED, MXFP4)  # what the chapter compares with FP32


def linear(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype = torch.float32) -> Tensor:
    """``x @ weight.T`` with all three products in a recipe.

    x       (..., K), weight (N, K); for block scales K, N and the number of rows of x are multiples of 32
    dtype   of products and result: float32, or bfloat16 where its tensor cores are; FP32 always computes in float32
    """
    rows = x.reshape(-1, x.shape[-1])
    for name, size in (("rows of x", rows.shape[0]), ("K", weight.shape[1]), ("N", weight.shape[0])):
        if recipe.scaling == "block" and size % BLOCK:
            raise ValueError(f"{name} is {size}, which is not a multiple of the block, {BLOCK}")
    y = _Linear.apply(rows, weight, recipe, torch.float32 if recipe is FP32 else dtype)
    return y.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """Saves x and the weight in high precision, as torchao does: each product quantizes anew along its own axis."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.recipe, ctx.dtype = recipe, dtype
        x_values, x_scale = recipe.operand(x, 1)
        w_values, w_scale = recipe.operand(weight, 1)
        return _product(x_values, x_scale, w_values.T, w_scale, dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, weight), recipe, dtype = ctx.saved_tensors, ctx.recipe, ctx.dtype
        # over N
        dy_values, dy_scale = recipe.operand(dy, 1)
        w_values, w_scale = recipe.operand(weight, 0)
        dx = _product(dy_values, dy_scale, w_values, w_scale, dtype)
        # over M
        dy_values, dy_scale = recipe.operand(dy, 0)
        x_values, x_scale = recipe.operand(x, 0)
        dw = _product(dy_values.T, dy_scale, x_values, x_scale, dtype)
        return dx.to(x.dtype), dw.to(weight.dtype), None, None


def _product(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    product = a.to(dtype) @ b.to(dtype)
    return product if a_scale is None else (product * (a_scale * b_scale)).to(dtype)


def tensor_scale(x: Tensor, fmt: ElementFormat) -> Tensor:
    """The float32 scale that makes amax the largest number of the format; 1 for zeros. As torchao's tensor-wise FP8."""
    amax = x.abs().amax().float()
    # Dividing by a Python number, CUDA multiplies by its reciprocal (BinaryDivTrueKernel.cu): half of all scales would
    # differ from the CPU's in the last place. By a tensor it divides.
    return torch.where(amax == 0, 1.0, amax / torch.full_like(amax, fmt.max))


def element_values(x: Tensor, fmt: ElementFormat) -> Tensor:
    """``fmt.decode(fmt.encode(x))`` for float32 ``x`` in a few operations; the sign of a zero result may be lost.

    On a GPU the operations are fused by torch.compile.
    """
    return _fused(_rounder(fmt), x)


def block_values(x: Tensor, fmt: ElementFormat, scale_rule: str, *, axis: int) -> Tensor:
    """``quantize(x, fmt, scale_rule, axis=axis).dequantize()`` in a few operations, for a matrix.

    The same float32 values, except that a zero may lose its sign, and that a block with 0 < amax < 2**-116 may differ:
    its scale would be the one that float32 holds only as a subnormal number. Many times as fast as going through codes:
    what training spends its time on. On a GPU the operations are fused by torch.compile.
    """
    if x.ndim != 2:
        raise ValueError(f"x must be a matrix, got shape {tuple(x.shape)}")
    check_input(x, axis, BLOCK)
    return _fused(_block_rounder(fmt, scale_rule, axis % 2), x)


@cache
def _rounder(fmt: ElementFormat) -> Callable[[Tensor], Tensor]:
    """float32 -> the nearest number of the format, ties to even, saturating.

    Let 2**e be the power of two at or below abs(y), but not below 2**emin: the numbers near y lie
    2**(e - mantissa_bits) apart. So do the float32 numbers near M = 1.5 * 2**(e - mantissa_bits + 23), on either side.
    Hence (y + M) - M is y rounded to nearest even.
    """
    if not fmt.exponent_bits:
        raise ValueError(f"{fmt.name} has no exponent: training recipes take floating-point elements")
    largest, least_power = fmt.max, (fmt.emin + FLOAT32_BIAS) << FRACTION_BITS
    to_m = ((FRACTION_BITS - fmt.mantissa_bits) << FRACTION_BITS) + (1 << (FRACTION_BITS - 1))  # and the half of 1.5

    def rounded(y: Tensor) -> Tensor:
        y = y.clamp(-largest, largest)  # NaN stays NaN, here and in the sum, whatever m becomes
        power = (y.view(torch.int32) & INFINITY).clamp(min=least_power)
        m = (power + to_m).view(torch.float32)
        return (y + m) - m

    return rounded


@cache
def _block_rounder(fmt: ElementFormat, scale_rule: str, axis: int) -> Callable[[Tensor], Tensor]:
    constant, emax = scale_constant(fmt, scale_rule), frexp(fmt.max)[1] - 1
    rounded = _rounder(fmt)

    def restored(x: Tensor) -> Tensor:
        rows, columns = x.shape
        # in here: a compiler then knows that it reduces over 32 values, whatever the shape
        blocks = x.reshape((rows, columns // BLOCK, BLOCK) if axis else (rows // BLOCK, BLOCK, columns))
        values = blocks.float()
        amax = values.abs().amax(2 if axis else 1, keepdim=True)
        field = (amax.view(torch.int32) + constant) >> FRACTION_BITS
        exponent = (field - (FLOAT32_BIAS + emax)).clamp(min=SMALLEST_SCALE)
        scale = ((FLOAT32_BIAS + exponent) << FRACTION_BITS).view(torch.float32)
        reciprocal = ((FLOAT32_BIAS - exponent) << FRACTION_BITS).view(torch.float32)
        scale = torch.where(amax < torch.inf, scale, torch.nan)  # NaN or Inf: the whole block is NaN
        return (rounded(values * reciprocal) * scale).reshape(rows, columns)

    return restored


@cache
def _compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # fullgraph: what cannot be fused fails, instead of running as a dozen passes through memory
    return torch.compile(function, fullgraph=True)


def _fused(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return _compiled(function)(x) if x.is_cuda else function(x)


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())
