"""How a device's properties are read, and that driver calls match the vendors' headers.

No test here pretends to have a GPU. What a driver answers is compared with the model on machines that have one.
"""

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from chipmath import gpu as gpu_module
from chipmath.crosscompile import Binary
from chipmath.devices import DEVICES
from chipmath.gpu import CUDA_SIGNATURES, HIP_SIGNATURES, DriverError, driver_occupancy, gpu

KERNELS = Path(__file__).resolve().parent.parent / "kernels"


def properties(**fields):
    return SimpleNamespace(name="a name", total_memory=80 << 30, **fields)


@pytest.mark.parametrize(
    ("reported", "cuda", "hip", "expected"),
    [
        ({"major": 9, "minor": 0}, "12.8", None, ("NVIDIA", "sm_90", "CUDA 12.8")),
        ({"major": 10, "minor": 3}, "13.0", None, ("NVIDIA", "sm_103", "CUDA 13.0")),
        ({"major": 9, "minor": 5, "gcnArchName": "gfx950:sramecc+:xnack-"}, None, "7.1", ("AMD", "gfx950", "HIP 7.1")),
        ({"major": 9, "minor": 4, "gcnArchName": "gfx942"}, None, "6.4", ("AMD", "gfx942", "HIP 6.4")),
    ],
)
def test_properties_become_a_record(reported, cuda, hip, expected):
    record = gpu_module._describe(properties(**reported), cuda=cuda, hip=hip)
    assert (record.vendor, record.arch, record.runtime) == expected
    assert (record.name, record.memory_bytes) == ("a name", 80 << 30)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: something else", None),
    ],
)
def test_version_of_nvidias_kernel_module(line, version, tmp_path, monkeypatch):
    file = tmp_path / "version"
    file.write_text(f"{line}\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n")
    monkeypatch.setattr(gpu_module, "NVIDIA_KERNEL_MODULE", file)
    assert gpu_module._nvidia_driver() == version
    monkeypatch.setattr(gpu_module, "NVIDIA_KERNEL_MODULE", tmp_path / "none")
    assert gpu_module._nvidia_driver() is None


def test_version_of_amds_kernel_module(tmp_path, monkeypatch):
    file = tmp_path / "version"
    file.write_text("6.14.14\n")
    monkeypatch.setattr(gpu_module, "AMD_KERNEL_MODULE", file)
    assert gpu_module._amd_driver() == "6.14.14"
    monkeypatch.setattr(gpu_module, "AMD_KERNEL_MODULE", tmp_path / "none")
    assert gpu_module._amd_driver().startswith("amdgpu of Linux ")


def test_gpu_agrees_with_torch():
    torch = pytest.importorskip("torch")
    record = gpu()
    assert (record is not None) == torch.cuda.is_available()
    if record:
        assert record.name == torch.cuda.get_device_name()


def test_the_runtime_is_the_one_that_torch_was_built_with(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties(major=9, minor=index))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert (gpu().arch, gpu().runtime) == ("sm_91", "CUDA 12.8")


def test_without_torch_there_is_no_gpu():
    code = "import sys; sys.modules['torch'] = None; from chipmath.gpu import gpu; assert gpu() is None"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(KERNELS)}, check=True)


# Driver calls


def binary(arch: str, threads: int | None = 128) -> Binary:
    """Not code: enough of a Binary to get as far as the driver."""
    resources = dict.fromkeys(
        ("registers", "accumulators", "scalars", "shared_bytes", "dynamic_shared_bytes", "spills", "code_bytes"), 0
    )
    rest = {"barriers": 0, "allocated_registers": 0, "allocated_scalars": 0, "compiler_waves_per_simd": None}
    return Binary(
        arch=arch, kernel="k", compiler="none", threads=threads, isa="", ptx=None, code=b"\x7fELF", **resources, **rest
    )


@pytest.mark.parametrize(("arch", "library"), [("sm_90", "libcuda.so.1"), ("gfx950", "libamdhip64.so")])
def test_a_missing_driver_is_named(arch, library):
    try:
        ctypes.CDLL(library)
    except OSError:
        with pytest.raises(DriverError, match=rf"no driver library: {re.escape(library)}.*: cannot open shared object"):
            driver_occupancy(binary(arch))
    else:
        pytest.skip(f"{library} is here")


def test_threads_must_be_known():
    with pytest.raises(ValueError, match="compiled for blocks of any size: pass threads"):
        driver_occupancy(binary("sm_90", threads=None))


def test_a_drivers_refusal_becomes_an_exception_in_its_words():
    """Any library stands in for the driver here: libc's abs is called, and its answer taken for a status."""

    class Words:
        def __call__(self, status, text):
            text.value = f"words for {status}".encode()
            return 0

    driver = object.__new__(gpu_module.Driver)
    driver.library, driver.error_string = ctypes.CDLL(None), Words()
    assert driver.call("abs", 0) is None
    with pytest.raises(DriverError, match=r"^abs: error 7, words for 7$"):
        driver.call("abs", -7)


def header(vendor: str, name: str) -> str:
    """A vendor's header as Triton's wheel carries it, without comments."""
    triton = pytest.importorskip("triton", reason="no Triton, whose wheel has the headers")
    text = (Path(triton.__file__).parent / "backends" / vendor / "include" / name).read_text()
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


BASE = {
    **dict.fromkeys(("int", "CUdevice", "CUresult", "CUfunction_attribute", "hipError_t"), ctypes.c_int),
    **dict.fromkeys(("CUcontext", "CUmodule", "CUfunction", "hipModule_t", "hipFunction_t"), ctypes.c_void_p),
    **{"unsigned int": ctypes.c_uint, "size_t": ctypes.c_size_t},
    **{"char*": ctypes.c_char_p, "void*": ctypes.c_void_p},
}


def ctypes_of(parameter: str):
    """The ctypes type for a parameter such as "const char **text"."""
    kind, stars, _ = re.fullmatch(r"(?:const )?([\w ]+?) ?(\*{0,2}) ?(\w+)", parameter).groups()
    if kind in ("char", "void"):
        kind, stars = f"{kind}*", stars[1:]
    return ctypes.POINTER(BASE[kind]) if stars else BASE[kind]


@pytest.mark.parametrize(
    ("signatures", "vendor", "name", "status"),
    [
        (CUDA_SIGNATURES, "nvidia", "cuda.h", "CUresult CUDAAPI"),
        (HIP_SIGNATURES, "amd", "hip/hip_runtime_api.h", "hipError_t"),
    ],
)
def test_signatures_are_those_of_the_headers(signatures, vendor, name, status):
    text = header(vendor, name)
    for function, arguments in signatures.items():
        declared = function.removesuffix("_v2")
        if function != declared:
            assert re.search(rf"#define {declared}\s+{function}\b", text)
        parameters = re.search(rf"\b{status} {declared}\s*\(([^)]*)\)\s*;", text)[1]
        assert arguments == [ctypes_of(" ".join(part.split())) for part in parameters.split(",")], function


def test_attribute_number_is_that_of_the_header():
    found = re.search(r"\bCU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES\s*=\s*(\d+)", header("nvidia", "cuda.h"))
    assert int(found[1]) == gpu_module.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


# With a GPU


def test_the_driver_and_the_model_agree_on_this_gpu():
    pytest.importorskip("triton", reason="no Triton to compile with")
    here = gpu() or pytest.skip("no GPU: what its driver says about occupancy is untested")
    from test_crosscompile import small

    kernel, unit = small(here.arch), DEVICES[here.arch]
    # On AMD whole fractions of the LDS: in between HIP's formula divides bytes by bytes, the chip blocks by blocks.
    amd = here.vendor == "AMD"
    sizes = [0, *(unit.lds_bytes // k for k in (1, 2, 4, 8))] if amd else [0, 1024, 16384, 49152, 65536, 98304]
    for threads in (64, 128, 256, 512, 1024):
        for added in sizes:
            model = kernel.occupancy(threads, dynamic_shared_bytes=added).groups_per_unit
            assert driver_occupancy(kernel, threads, dynamic_shared_bytes=added) == model, (threads, added)
