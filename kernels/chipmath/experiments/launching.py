"""Launch a cross-compiled kernel on the GPU that torch uses, through the driver that `chipmath.gpu` speaks to."""

import contextlib
import ctypes

from chipmath import gpu
from chipmath.crosscompile import Binary
from chipmath.devices import device

_UNSIGNED = ctypes.c_uint
_LAUNCH = [gpu._HANDLE, *[_UNSIGNED] * 7, gpu._HANDLE, ctypes.POINTER(gpu._HANDLE), ctypes.POINTER(gpu._HANDLE)]
CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
CARVEOUT_ALL_SHARED = 100  # percent


def launch(binary: Binary, groups: int, threads: int, arguments: list, *, dynamic_shared_bytes: int = 0) -> None:
    """Run the kernel and wait until it has finished; a refused launch is a DriverError.

    arguments  torch tensors on the GPU (passed as their address) and Python ints (passed as 32-bit integers)
    """
    import torch

    torch.cuda.synchronize()  # the arguments are ready, whichever stream made them
    with _loaded(binary, dynamic_shared_bytes) as (driver, name, function):
        values = [_value(argument) for argument in arguments]
        pointers = (gpu._HANDLE * len(values))(*(ctypes.addressof(value) for value in values))
        shape = (groups, 1, 1, threads, 1, 1, binary.dynamic_shared_bytes + dynamic_shared_bytes)
        driver.call(name, function, *shape, None, pointers, None)
        torch.cuda.synchronize()  # before the module is unloaded; raises what went wrong in the kernel


def _value(argument):
    return ctypes.c_int(argument) if isinstance(argument, int) else gpu._HANDLE(argument.data_ptr())


@contextlib.contextmanager
def _loaded(binary: Binary, dynamic_shared_bytes: int):
    """The driver, the name of its launch call, and the kernel's handle."""
    import torch

    index = torch.cuda.current_device()
    amd = device(binary.arch).vendor == "AMD"
    with (_hip if amd else _cuda)(binary, dynamic_shared_bytes, index) as loaded:
        yield loaded


@contextlib.contextmanager
def _cuda(binary: Binary, dynamic_shared_bytes: int, index: int):
    name = "cuLaunchKernel"
    driver = gpu._Driver(["libcuda.so.1"], gpu.CUDA_SIGNATURES | {name: _LAUNCH}, "cuGetErrorString")
    driver.call("cuInit", 0)
    ordinal = gpu._INT()
    driver.call("cuDeviceGet", ordinal, index)
    with gpu._primary_context(driver, ordinal.value), gpu._function(driver, "cu", binary) as function:
        # The driver would choose the carve-out by its own lights; the count is about the largest.
        for attribute, value in (
            (gpu.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, binary.dynamic_shared_bytes + dynamic_shared_bytes),
            (CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CARVEOUT_ALL_SHARED),
        ):
            driver.call("cuFuncSetAttribute", function, attribute, value)
        yield driver, name, function


@contextlib.contextmanager
def _hip(binary: Binary, dynamic_shared_bytes: int, index: int):
    name = "hipModuleLaunchKernel"
    names = [*gpu._loaded("libamdhip64.so"), "libamdhip64.so.7", "libamdhip64.so.6"]
    driver = gpu._Driver(names, gpu.HIP_SIGNATURES | {name: _LAUNCH}, "hipDrvGetErrorString")
    driver.call("hipInit", 0)
    with gpu._current_device(driver, index), gpu._function(driver, "hip", binary) as function:
        yield driver, name, function
