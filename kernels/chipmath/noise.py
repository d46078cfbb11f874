"""The noise that block quantization must add to a random tensor, from its distribution alone: nothing is drawn.

An element's error depends on its own value and on the scale of its block, and the scale on the largest magnitude in the
block. Where elements are independent, both are known from the distribution of one magnitude, and the mean square error
is an integral over it. Nothing is approximated but the integral: rounding, clipping and flushing are the format's own.

Where a few values carry the energy, as in heavy tails, no two samples have the same. `expected_sqnr_given_maxima_db`
takes the energy and the maximum of each block from the sample, and only what lies below the maxima from the law.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log10

import torch
from torch import Tensor

from chipmath.formats import E8M0, FRACTION_BITS, ElementFormat
from chipmath.quantize import check_block, check_input, quantize, scale_constant

LOWEST, HIGHEST = -30, 14  # binades of magnitudes that are integrated over
OUTSIDE = 1e-4  # share of the energy that may lie there: 0.0004 dB
POINTS = 256  # in a binade, evenly: no interval straddles the middle between two numbers of a format, or a rule's step


def expected_sqnr_db(cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scale_rule: str, block: int) -> float:
    """SQNR, in decibels, of ``quantize(x, fmt, scale_rule, block=block)`` for independent elements.

    cdf     P(abs(x) <= t), float64, for a float64 tensor t >= 0 of any shape
    block   elements that share a scale
    returns the ratio of mean squares, which the SQNR of a sample approaches as the sample grows

    Raises ValueError for a law with energy outside 2**-30 .. 2**14, which is not integrated over: shift it by a power
    of two, which changes no ratio.
    """
    return -10 * log10(noise_and_gain(cdf, fmt, scale_rule, block)[0])


def expected_product_db(cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scale_rule: str, block: int) -> float:
    """SQNR, in decibels, of ``matmul`` for two operands whose elements are independent, symmetric and follow ``cdf``.

    With p = E(y**2) / E(x**2) and g = E(x * y) / E(x**2) of an operand x quantized to y, an output of power 1 has the
    noise p**2 - 2 * g**2 + 1. Were error and value uncorrelated, g would be 1 and this the noise of both operands.
    """
    noise, gain = noise_and_gain(cdf, fmt, scale_rule, block)
    power = noise - 1 + 2 * gain  # E((x - y)**2) = E(x**2) - 2 E(x * y) + E(y**2)
    return -10 * log10(power**2 - 2 * gain**2 + 1)


def noise_and_gain(
    cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scale_rule: str, block: int
) -> tuple[float, float]:
    """E((x - y)**2) / E(x**2) and E(x * y) / E(x**2), where y is the quantized x; arguments of ``expected_sqnr_db``."""
    check_block(block)
    edges, x, within = _grid()
    probability = _probabilities(cdf, edges)
    signal = float((probability * (x.square() + within)).sum())
    _require_energy_inside(cdf, edges, signal)
    step_up = 2 - scale_constant(fmt, scale_rule) / 2**FRACTION_BITS  # significand of amax where the scale doubles

    def below(limit: float) -> Tensor:
        """P(the whole block is below ``limit``, this element having the value x)."""
        return (x < limit) * cdf(torch.tensor(limit, dtype=torch.float64)) ** (block - 1)

    noise, product = 0.0, 0.0
    for exponent in range(LOWEST, HIGHEST + 1):  # of amax, after stepping up
        weight = probability * (below(step_up * 2.0**exponent) - below(step_up * 2.0 ** (exponent - 1)))
        if weight.max() > 1e-18:
            restored = _restored(fmt, 2.0 ** (exponent - fmt.emax))
            noise += float((weight * ((restored - x).square() + within)).sum())
            product += float((weight * restored * x).sum())
    return noise / signal, product / signal


def expected_sqnr_given_maxima_db(
    x: Tensor, cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scale_rule: str, block: int
) -> float:
    """SQNR, in decibels, of ``quantize(x, fmt, scale_rule, block=block)`` for independent elements that follow ``cdf``.

    Of the sample x, as ``quantize`` takes it, only its energy and the largest magnitude of each block are used. A
    sample of zeros, which nothing can disturb, has no SQNR: ValueError.
    """
    check_input(x, -1, block)
    if not x.any():
        raise ValueError(f"x, of shape {tuple(x.shape)}, holds nothing but zeros")
    largest = x.reshape(-1, block).abs().amax(-1)
    alone = quantize(largest[:, None], fmt, scale_rule, block=1)  # the same scale: it depends on nothing else
    own = (alone.dequantize(torch.float64)[:, 0] - largest).square()
    others = (block - 1) * expected_noise(cdf, fmt, alone.scales[:, 0], largest.double())
    return 10 * log10(float(x.double().square().sum() / (own + others).sum()))


def expected_noise(
    cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scales: Tensor, largest: Tensor | None = None
) -> Tensor:
    """Mean square error of an element of a block, for each of ``scales`` (E8M0 bytes).

    cdf       as for ``expected_sqnr_db``
    scales    uint8, any number of them
    largest   float64, one for each scale: the element is known to lie at or below it. None: it may be any
    """
    edges, x, within = _grid()
    probability = _probabilities(cdf, edges)
    if largest is None:
        largest = edges[-1].expand(scales.shape)
    right = torch.searchsorted(edges, largest.contiguous()).clamp_(1, len(edges) - 1)
    # Beyond either end of the grid there is nothing to add or to take off.
    part = ((largest - edges[right - 1]) / (edges[right] - edges[right - 1])).clamp_(0, 1)
    noise = torch.empty(scales.shape, dtype=torch.float64)
    for code in scales.unique():
        squares = (_restored(fmt, float(E8M0.decode(code[None]))) - x).square() + within
        below = torch.nn.functional.pad((probability * squares).cumsum(0), (1, 0))
        here = scales == code
        noise[here] = torch.lerp(below[right[here] - 1], below[right[here]], part[here])
    # Where no element can be, as below the zero of a block of zeros, there is no noise.
    return torch.where(noise > 0, noise / cdf(largest), noise)


def _probabilities(cdf: Callable[[Tensor], Tensor], edges: Tensor) -> Tensor:
    """Of a magnitude between each two edges."""
    below = cdf(edges)
    if below.dtype != torch.float64 or below.shape != edges.shape:
        raise ValueError(
            f"cdf must return float64 of its argument's shape {tuple(edges.shape)}, got {below.dtype}, "
            f"{tuple(below.shape)}"
        )
    return below.diff()


def _require_energy_inside(cdf: Callable[[Tensor], Tensor], edges: Tensor, signal: float) -> None:
    """What lies below the grid has this energy at most, what lies above it at least."""
    low, high = cdf(edges[[0, -1]]).tolist()
    outside = {"below": low * float(edges[0]) ** 2, "above": (1 - high) * float(edges[-1]) ** 2}
    for where, energy in outside.items():
        if energy > OUTSIDE * signal:
            limit, share = (LOWEST, low) if where == "below" else (HIGHEST, 1 - high)
            raise ValueError(
                f"{share:.3g} of the values lie {where} 2**{limit}, and with them energy that would be lost"
            )


@cache
def _grid() -> tuple[Tensor, Tensor, Tensor]:
    """Edges of the intervals, their middles, and the mean square distances from the middle."""
    binades = 2.0 ** torch.arange(LOWEST, HIGHEST, dtype=torch.float64)
    edges = (binades[:, None] * (1 + torch.arange(POINTS) / POINTS)).flatten()
    return edges, (edges[1:] + edges[:-1]) / 2, edges.diff().square() / 12


@cache
def _restored(fmt: ElementFormat, scale: float) -> Tensor:
    """The middles of all intervals as a block with this scale restores them."""
    _, x, _ = _grid()
    return fmt.decode(fmt.encode((x / scale).float())).double() * scale
