"""The noise that block quantization must add to a random tensor, from its distribution alone: nothing is drawn.

An element's error depends on its own value and on the scale of its block, and the scale on the largest magnitude in the
block. Where elements are independent, both are known from the distribution of one magnitude, and the mean square error
is an integral over it. Nothing is approximated but the integral: rounding, clipping and flushing are the format's own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log10

import torch
from torch import Tensor

from chipmath.formats import FRACTION_BITS, ElementFormat
from chipmath.quantize import scale_constant

LOWEST, HIGHEST = -30, 14  # binades of magnitudes that are integrated over
POINTS = 256  # in a binade, evenly: no interval straddles the middle between two numbers of a format, or a rule's step


def expected_sqnr_db(cdf: Callable[[Tensor], Tensor], fmt: ElementFormat, scale_rule: str, block: int) -> float:
    """SQNR, in decibels, of ``quantize(x, fmt, scale_rule, block=block)`` for independent elements.

    cdf     P(abs(x) <= t) for a float64 tensor t >= 0; what lies outside 2**-30 .. 2**14 should carry no energy
    returns the ratio of mean squares, which the SQNR of a sample approaches as the sample grows
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
    binades = 2.0 ** torch.arange(LOWEST, HIGHEST, dtype=torch.float64)
    edges = (binades[:, None] * (1 + torch.arange(POINTS) / POINTS)).flatten()
    x, probability = (edges[1:] + edges[:-1]) / 2, cdf(edges).diff()
    within = edges.diff().square() / 12  # mean square distance from the middle of an interval
    step_up = 2 - scale_constant(fmt, scale_rule) / 2**FRACTION_BITS  # significand of amax where the scale doubles

    def below(limit: float) -> Tensor:
        """P(the whole block is below ``limit``, this element having the value x)."""
        return (x < limit) * cdf(torch.tensor(limit, dtype=torch.float64)) ** (block - 1)

    noise, product = 0.0, 0.0
    for exponent in range(LOWEST, HIGHEST + 1):  # of amax, after stepping up
        weight = probability * (below(step_up * 2.0**exponent) - below(step_up * 2.0 ** (exponent - 1)))
        if weight.max() > 1e-18:
            scale = 2.0 ** (exponent - fmt.emax)
            restored = fmt.decode(fmt.encode((x / scale).float())).double() * scale
            noise += float((weight * ((restored - x).square() + within)).sum())
            product += float((weight * restored * x).sum())
    signal = float((probability * (x.square() + within)).sum())
    return noise / signal, product / signal
