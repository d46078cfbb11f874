"""NVFP4, for comparison: E2M1 elements, an E4M3 scale for every 16 of them, and one float32 scale for the whole tensor.

Unlike an MX scale the block's scale has a mantissa, so it can place the largest element of a block almost exactly at
the top of E2M1. E4M3 alone has too little range to be a scale; the tensor's scale moves it to where it is needed.
Source: NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149.
"""

import reprlib

import torch
from torch import Tensor

from chipmath.formats import E2M1, E4M3

BLOCK = 16
BITS_PER_VALUE = E2M1.bits + E4M3.bits / BLOCK  # without the tensor's four bytes


def nvfp4_roundtrip(x: Tensor) -> Tensor:
    """``x`` quantized to NVFP4 and back, rounding to nearest even throughout.

    x        float32, at least one axis, the last a multiple of 16
    returns  float32, the shape of x; all NaN where any of x is NaN or infinite, as the tensor's scale then is.
             No gradient goes through it
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got a {type(x).__name__}: {reprlib.repr(x)}")
    if x.dtype != torch.float32:
        raise TypeError(f"x must be torch.float32, got {x.dtype}")
    if not x.ndim or x.shape[-1] % BLOCK:
        raise ValueError(f"the last axis of x must be a multiple of {BLOCK}, got shape {tuple(x.shape)}")
    if not x.numel():
        return x.detach().clone()
    blocks = x.detach().unflatten(-1, (-1, BLOCK))
    tensor_scale = blocks.abs().amax() / (E4M3.max * E2M1.max)
    wanted = blocks.abs().amax(-1, keepdim=True) / (E2M1.max * tensor_scale)
    scales = E4M3.decode(E4M3.encode(wanted.nan_to_num())) * tensor_scale  # a tensor of zeros wants 0 / 0
    elements = torch.where(scales > 0, blocks / scales, 0.0)
    return (E2M1.decode(E2M1.encode(elements)) * scales).flatten(-2)
