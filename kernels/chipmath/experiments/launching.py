"""Launch a cross-compiled kernel on the GPU that torch uses, through the driver that `chipmath.gpu` speaks to."""

import contextlib
import ctypes

from chipmath import gpu
from chipmath.crosscompile import Binary
from chipmath.devices import device

_UNSIGNED = ctypes.c_uint
_LAUNCH = [gpu.HANDLE, *[_UNSIGNED] * 7, gpu.HANDLE, ctypes.POINTER(gpu.HANDLE), ctypes.POINTER(gpu.HANDLE)]
CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
CARVEOUT_ALL_SHARED = 100  # percent


def launch(binary: Binary, groups: int, threads: int, arguments: list, *, dynamic_shared_bytes: int = 0) -> None:
    """Run the kernel and wait until it has finished; a refused launch is a DriverError.

    arguments  torch tensors on the GPU (passed as their address) and Python ints (passed as 32-bit integers)
    """
    import torch

    torch.cuda.synchronize()  # the arguments are ready, whichever stream made them
    with loaded(binary, threads, dynamic_shared_bytes=dynamic_shared_bytes) as enqueue:
        enqueue(groups, arguments)


@contextlib.contextmanager
def loaded(binary: Binary, threads: int, *, dynamic_shared_bytes: int = 0):
    """Load the kernel; gives ``enqueue(groups, arguments)``, which launches on the default stream and does not wait.

    The end of the block waits, before the module is unloaded, and raises what went wrong in a kernel.
    """
    import torch

    shared_bytes = binary.dynamic_shared_bytes + dynamic_shared_bytes
    with _loaded(binary, shared_bytes, torch.cuda.current_device()) as (driver, function):

        def enqueue(groups: int, arguments: list) -> None:
            values = [_value(argument) for argument in arguments]
            pointers = (gpu.HANDLE * len(values))(*(ctypes.addressof(value) for value in values))
            shape = (groups, 1, 1, threads, 1, 1, shared_bytes)
            driver.call(_launch_call(binary), function, *shape, None, pointers, None)

        yield enqueue
        torch.cuda.synchronize()


def _value(argument):
    return ctypes.c_int(argument) if isinstance(argument, int) else gpu.HANDLE(argument.data_ptr())


def _launch_call(binary: Binary) -> str:
    return "hipModuleLaunchKernel" if device(binary.arch).vendor == "AMD" else "cuLaunchKernel"


def _loaded(binary: Binary, shared_bytes: int, index: int):
    """A context: the driver and the kernel's handle."""
    call = {_launch_call(binary): _LAUNCH}
    if device(binary.arch).vendor == "AMD":
        return gpu.hip_function(binary, index, call)
    # The driver would choose the carve-out by its own lights; the count is about the largest.
    attributes = {
        gpu.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: shared_bytes,
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: CARVEOUT_ALL_SHARED,
    }
    return gpu.cuda_function(binary, index, attributes, call)
