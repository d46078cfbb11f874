"""The GPU, or the CPU, that is here, as a recording tells of it: device, clocks, versions. Nothing is ever set."""

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from chipmath.gpu import Gpu

AMD_CARDS = Path("/sys/class/drm")
# A rehearsal's device: no architecture of its kind exists, and chipmath.bench refuses to write it.
STAND_IN = Gpu("CPU stand-in", "none", "cpu", 0, None, "none")


def device_record(gpu: Gpu, clock_before: float | None, clock_after: float | None) -> dict[str, Any]:
    """The recording's ``device``."""
    clocks = {"clock_hz_before": clock_before, "clock_hz_after": clock_after}
    return {"name": gpu.name, "arch": gpu.arch, "memory_bytes": gpu.memory_bytes, **clocks}


def software_record(gpu: Gpu) -> dict[str, str | None]:
    """The recording's ``software``."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {
        "driver": gpu.driver,
        "runtime": gpu.runtime,
        **versions,
        "triton": _triton_version(),
        "python": platform.python_version(),
    }


def cpu_record() -> dict[str, Any]:
    """The ``device`` of a computed recording."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"name": names[0] if names else platform.machine(), "threads": torch.get_num_threads()}


def cpu_software() -> dict[str, str | None]:
    """The ``software`` of a computed recording."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {**versions, "python": platform.python_version()}


def clock_hz(gpu: Gpu) -> float | None:
    """The clock of the compute units now; None where the system does not tell, or not of which GPU."""
    return _nvidia_clock(gpu.name) if gpu.vendor == "NVIDIA" else _amd_clock()


def _nvidia_clock(name: str) -> float | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,clocks.sm", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    parts = [line.rpartition(",") for line in lines]
    clocks = [mhz.strip() for gpu_name, _, mhz in parts if gpu_name.strip() == name]
    # Of several equal cards one cannot tell which is torch's.
    return float(clocks[0]) * 1e6 if len(clocks) == 1 and clocks[0].isdigit() else None


def _amd_clock() -> float | None:
    """The level that amdgpu marks as active: "1: 2100Mhz *" (Linux, GPU documentation, pp_dpm_sclk)."""
    files = sorted(AMD_CARDS.glob("card*/device/pp_dpm_sclk"))
    active = re.search(r"(\d+)Mhz \*", files[0].read_text()) if len(files) == 1 else None
    return float(active[1]) * 1e6 if active else None


def _triton_version() -> str | None:
    """The name of the distribution depends on torch's build, that of the package does not."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return triton.__version__
