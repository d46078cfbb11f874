"""Which GPU is here, if any, and how many groups its own driver says fit one unit.

`gpu` asks torch, as everything that runs in this book does. `driver_occupancy` asks the driver about a kernel that
`chipmath.crosscompile` made, without running it: the answer that the model in `chipmath.occupancy` is held against.

CUDA  cuOccupancyMaxActiveBlocksPerMultiprocessor, https://docs.nvidia.com/cuda/cuda-driver-api/
HIP   hipModuleOccupancyMaxActiveBlocksPerMultiprocessor, https://rocm.docs.amd.com/projects/HIP/
"""

import contextlib
import ctypes
import importlib.util
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from chipmath.crosscompile import Binary
from chipmath.devices import device

NVIDIA_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
AMD_KERNEL_MODULE = Path("/sys/module/amdgpu/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use. ``driver`` is None where the system does not tell."""

    name: str
    vendor: str  # "AMD" or "NVIDIA"
    arch: str  # as in chipmath.devices: "gfx950", "sm_90"
    memory_bytes: int
    driver: str | None  # of the kernel module: "580.95.05"
    runtime: str  # that torch was built with: "CUDA 13.0", "HIP 7.1.25424"


def gpu() -> Gpu | None:
    """torch's current GPU; None without one, and without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():  # also ROCm's name for it
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _describe(properties, cuda=torch.version.cuda, hip=torch.version.hip)


def _describe(properties, *, cuda: str | None, hip: str | None) -> Gpu:
    """A record from torch's device properties; ``hip`` is None in a build for CUDA."""
    from chipmath.on_gpu import chip_name  # which imports torch; without torch there is no GPU

    vendor, runtime = ("AMD", f"HIP {hip}") if hip else ("NVIDIA", f"CUDA {cuda}")
    driver = _amd_driver() if hip else _nvidia_driver()
    return Gpu(properties.name, vendor, chip_name(properties, hip), properties.total_memory, driver, runtime)


def _nvidia_driver() -> str | None:
    """The first line reads "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05"; GCC's version follows."""
    if not NVIDIA_KERNEL_MODULE.exists():
        return None
    found = re.search(r"NVRM version:.*?\b(\d+\.\d+(?:\.\d+)?)\b", NVIDIA_KERNEL_MODULE.read_text())
    return found[1] if found else None


def _amd_driver() -> str:
    """The version of ROCm's own amdgpu module; Linux's has no other version than the kernel's."""
    if AMD_KERNEL_MODULE.exists():
        return AMD_KERNEL_MODULE.read_text().strip()
    return f"amdgpu of Linux {platform.release()}"


# ------------------------------------------------------------------------------------------ what the driver answers


class DriverError(RuntimeError):
    """A driver that is not here, or refused: the call, its status and the driver's own words."""


def driver_occupancy(
    binary: Binary, threads: int | None = None, *, dynamic_shared_bytes: int = 0, index: int = 0
) -> int:
    """Groups per CU or SM that the driver of GPU number ``index`` promises for ``binary``; the kernel is not run.

    threads               per group; None: as compiled
    dynamic_shared_bytes  that a launch adds to what Triton already asked for

    A request above what a block may have is a DriverError, where `Binary.occupancy` answers 0. HIP's answer is a
    formula of its runtime: before rocm-systems PR 10618 (August 2026) it left out the trap handler's SGPRs.
    """
    unit = device(binary.arch)
    threads = binary.threads if threads is None else threads
    if threads is None:
        raise ValueError(f"{binary.kernel} was compiled for {unit.words.group}s of any size: pass threads")
    ask = _ask_hip if unit.vendor == "AMD" else _ask_cuda
    return ask(binary, threads, binary.dynamic_shared_bytes + dynamic_shared_bytes, index)


HANDLE = ctypes.c_void_p  # of a context, module, function or stream
_INT, _SIZE, _TEXT = ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_INT_OUT, _HANDLE_OUT, _TEXT_OUT = (ctypes.POINTER(kind) for kind in (_INT, HANDLE, _TEXT))

# Arguments as cuda.h and hip_runtime_api.h declare them; every function returns a status, 0 for success.
CUDA_SIGNATURES: dict[str, list] = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGet": [_INT_OUT, _INT],
    "cuDevicePrimaryCtxRetain": [_HANDLE_OUT, _INT],
    "cuDevicePrimaryCtxRelease_v2": [_INT],
    "cuCtxPushCurrent_v2": [HANDLE],
    "cuCtxPopCurrent_v2": [_HANDLE_OUT],
    "cuModuleLoadData": [_HANDLE_OUT, HANDLE],
    "cuModuleUnload": [HANDLE],
    "cuModuleGetFunction": [_HANDLE_OUT, HANDLE, _TEXT],
    "cuFuncSetAttribute": [HANDLE, _INT, _INT],
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": [_INT_OUT, HANDLE, _INT, _SIZE],
    "cuGetErrorString": [_INT, _TEXT_OUT],
}
HIP_SIGNATURES: dict[str, list] = {
    "hipInit": [ctypes.c_uint],
    "hipGetDevice": [_INT_OUT],
    "hipSetDevice": [_INT],
    "hipModuleLoadData": [_HANDLE_OUT, HANDLE],
    "hipModuleUnload": [HANDLE],
    "hipModuleGetFunction": [_HANDLE_OUT, HANDLE, _TEXT],
    "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor": [_INT_OUT, HANDLE, _INT, _SIZE],
    "hipDrvGetErrorString": [_INT, _TEXT_OUT],
}
CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class Driver:
    """A driver library whose calls raise on any status but 0."""

    def __init__(self, names: list[str], signatures: dict[str, list], error_string: str):
        """Load the first of the libraries ``names`` that is here and declare its functions."""
        self.library = _load(names)
        for name, arguments in signatures.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, _INT
        self.error_string = getattr(self.library, error_string)

    def call(self, name: str, *arguments) -> None:
        """Call a function; DriverError, in the driver's own words, for any status but success."""
        status = getattr(self.library, name)(*arguments)
        if status:
            text = _TEXT()
            self.error_string(status, text)
            words = text.value.decode() if text.value else "no description"
            raise DriverError(f"{name}: error {status}, {words}")


def _load(names: list[str]) -> ctypes.CDLL:
    reasons = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise DriverError(f"no driver library: {'; '.join(reasons)}")


def _ask_cuda(binary: Binary, threads: int, dynamic_bytes: int, index: int) -> int:
    with cuda_function(binary, index, {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: dynamic_bytes}) as loaded:
        driver, function = loaded
        groups = _INT()
        driver.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", groups, function, threads, dynamic_bytes)
        return groups.value


@contextlib.contextmanager
def cuda_function(binary: Binary, index: int, attributes: dict[int, int], more: dict[str, list] | None = None):
    """The driver and the kernel's handle, with torch's context of GPU number ``index`` current inside the block.

    attributes  of the function, by their number in cuda.h; above 48 KiB of shared memory a kernel has to opt in, or
                the driver answers with an error
    more        signatures of further calls, as in ``CUDA_SIGNATURES``
    """
    driver = Driver(["libcuda.so.1"], CUDA_SIGNATURES | (more or {}), "cuGetErrorString")
    driver.call("cuInit", 0)
    ordinal = _INT()
    driver.call("cuDeviceGet", ordinal, index)
    with _primary_context(driver, ordinal.value), _function(driver, "cu", binary) as function:
        for attribute, value in attributes.items():
            driver.call("cuFuncSetAttribute", function, attribute, value)
        yield driver, function


@contextlib.contextmanager
def _primary_context(driver: Driver, ordinal: int):
    """The context that torch uses too, current inside the block."""
    context, popped = HANDLE(), HANDLE()
    driver.call("cuDevicePrimaryCtxRetain", context, ordinal)
    try:
        driver.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            driver.call("cuCtxPopCurrent_v2", popped)
    finally:
        driver.call("cuDevicePrimaryCtxRelease_v2", ordinal)


def _ask_hip(binary: Binary, threads: int, dynamic_bytes: int, index: int) -> int:
    with hip_function(binary, index) as (driver, function):
        groups = _INT()
        driver.call("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", groups, function, threads, dynamic_bytes)
        return groups.value


@contextlib.contextmanager
def hip_function(binary: Binary, index: int, more: dict[str, list] | None = None):
    """The driver and the kernel's handle, with GPU number ``index`` current inside the block.

    more  signatures of further calls, as in ``HIP_SIGNATURES``

    There is no attribute to set: AMD chips have no opt-in, and hipFuncSetAttribute takes a host function, not this one.
    """
    # A second copy of the runtime in one process would not share its state: take the one that torch has loaded.
    names = [*_loaded("libamdhip64.so"), "libamdhip64.so.7", "libamdhip64.so.6"]
    driver = Driver(names, HIP_SIGNATURES | (more or {}), "hipDrvGetErrorString")
    driver.call("hipInit", 0)
    with _current_device(driver, index), _function(driver, "hip", binary) as function:
        yield driver, function


@contextlib.contextmanager
def _current_device(driver: Driver, index: int):
    before = _INT()
    driver.call("hipGetDevice", before)
    driver.call("hipSetDevice", index)
    try:
        yield
    finally:
        driver.call("hipSetDevice", before.value)


@contextlib.contextmanager
def _function(driver: Driver, prefix: str, binary: Binary):
    """The kernel's handle, from a module that is loaded from the binary's bytes and unloaded after the block."""
    module, function = HANDLE(), HANDLE()
    driver.call(f"{prefix}ModuleLoadData", module, ctypes.cast(ctypes.c_char_p(binary.code), HANDLE))
    try:
        driver.call(f"{prefix}ModuleGetFunction", function, module, binary.kernel.encode())
        yield function
    finally:
        driver.call(f"{prefix}ModuleUnload", module)


def _loaded(name: str) -> list[str]:
    """Path of a shared library that this process has already loaded (Linux)."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return sorted({line.split()[-1] for line in lines if f"/{name}" in line})
