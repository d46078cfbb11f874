"""What the kernels for GPUs ask before a launch: the chip that a tensor lies on, and Triton."""

import importlib.util
from functools import cache
from types import ModuleType

import torch

from chipmath.devices import device


def chip_name(properties, hip: str | None) -> str:
    """The chip of torch's device properties, without its features; ``hip`` is None in a build for CUDA."""
    # gcnArchName is like "gfx942:sramecc+:xnack-"
    return properties.gcnArchName.split(":")[0] if hip else f"sm_{properties.major}{properties.minor}"


@cache
def arch_of(index: int) -> str:
    """GPU number ``index`` of torch, as `chipmath.devices` names it; ValueError for a chip that is not there."""
    return device(chip_name(torch.cuda.get_device_properties(index), torch.version.hip)).arch


def require_triton(user: str) -> ModuleType:
    """Triton, or a ModuleNotFoundError that names the module which needs it."""
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            f"{user} needs Triton, which is not installed: GPU builds of torch bring it", name="triton"
        )
    import triton

    return triton
