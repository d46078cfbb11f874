"""Two kernels under NVIDIA's profiler: how many warps were resident, and which unit was busy.

`ncu` runs a process of its own that launches one kernel (this module, as a program), reads the chip's counters, and
writes a table. Clocks stay as they are: left alone, ncu would fix them at the base clock. Occupancy is counted there
in warps a cycle, over the cycles in which an SM had any, and set beside what `chipmath.occupancy` admits.
"""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chipmath.crosscompile import find_cuda_tool
from chipmath.devices import PRODUCTS, device
from chipmath.experiments import gemm_routes, quantizer_code
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.resources import resources
from chipmath.gpu import Gpu
from chipmath.processes import run_group
from chipmath.recordings import PACKAGE, newest

# Nsight Compute, Kernel Profiling Guide, "Metrics Reference"; the first two are its "Achieved" and "Theoretical
# Occupancy". All are of one launch, after another that compiled the kernel and warmed up.
METRICS = {
    "resident": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "admitted_by_profiler": "sm__maximum_warps_per_active_cycle_pct",
    "issue_slots": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "tensor_pipe": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "memory": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
}
REGISTERS = "launch__registers_per_thread"
QUANTIZER, PRODUCT = "quantize_both", "fp16_relative"
FUNCTIONS = {QUANTIZER: "patches_kernel", PRODUCT: "fp16_relative"}  # what is launched, and its name in the code
NSIGHT = Path("/opt/nvidia/nsight-compute")  # where its packages put it, each version in a folder of its own
PROFILE_SECONDS = 75  # of which most start Python; counting replays one launch a few times
SIZE = 8192  # rows, columns, and K
SEED = 0
ARCHS = ("sm_90", "sm_100")
PREDICTED = PRODUCTS["H100 SXM"]
Profile = Callable[[str], str]  # a kernel -> ncu's table
Code = Callable[[str], Row]  # a kernel -> registers, waves_per_unit and limiters of its machine code


def find_ncu() -> str | None:
    """Path of the profiler: from PATH, the CUDA toolkit, or its own installer's folder, the newest version there."""
    versions = sorted(NSIGHT.glob("*/ncu"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)])
    return find_cuda_tool("ncu") or next((str(path) for path in reversed(versions)), None)


def unavailable() -> str:
    """Why nothing can be counted here, or an empty string."""
    return "" if find_ncu() else f"no ncu (NVIDIA Nsight Compute) on the PATH, in the CUDA toolkit or in {NSIGHT}"


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    if gpu.arch not in ARCHS:
        raise ExperimentError(f"hardware_counters knows {', '.join(ARCHS)}, not {gpu.arch}")
    if why := unavailable():
        raise ExperimentError(f"hardware_counters asks the profiler, and there is {why}")
    kernels = [QUANTIZER] if quick else list(FUNCTIONS)
    its = partial(profile, seconds=EXPERIMENT.live_seconds) if quick else profile
    return _measure(gpu.arch, kernels, its, lambda kernel: resources(_compile(kernel, gpu.arch)), progress)


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same with a made-up table in the place of ncu's, and recorded code, as the interpreter compiles none."""

    def made_up(kernel: str) -> str:
        names = ["ID", "Kernel Name", *METRICS.values(), REGISTERS]
        units = ["", "", *["%"] * len(METRICS), "register/thread"]
        values = ["0", FUNCTIONS[kernel], *["12.5"] * len(METRICS), "64"]
        lines = "\n".join(",".join(f'"{cell}"' for cell in line) for line in (names, units, values))
        return f"==PROF== Connected\n{lines}\n"

    return _measure(PREDICTED.arch, list(FUNCTIONS), made_up, recorded_code, progress)


def profile(kernel: str, seconds: float = PROFILE_SECONDS) -> str:
    """What ncu writes of the second launch of a kernel in a process of its own, which has so many seconds for it."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        command = [find_ncu(), "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(table)]
        command += ["--clock-control", "none", "--metrics", ",".join([*METRICS.values(), REGISTERS])]
        command += ["--kernel-name", FUNCTIONS[kernel], "--launch-skip", "1", "--launch-count", "1"]
        command += [sys.executable, "-m", "chipmath.experiments.hardware_counters", kernel]
        try:
            done = run_group(
                command,
                timeout=seconds,
                cwd=PACKAGE.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            raise ExperimentError(f"ncu, {kernel}: ended after {seconds} s without a table") from None
        text = table.read_text() if table.exists() else ""
    if done.returncode:
        raise ExperimentError(f"ncu, {kernel}: {_first_error(text + done.stdout) or f'exit status {done.returncode}'}")
    return text


def _first_error(text: str) -> str:
    found = re.search(r"^==ERROR== *(.*)$", text, re.MULTILINE)
    return found[1] if found else text.strip().rpartition("\n")[2]


def _measure(arch: str, kernels: list[str], its: Profile, code: Code, progress: Progress) -> tuple[dict, list[Row]]:
    rows, left_out = [], {}
    for done, kernel in enumerate(kernels):
        progress(done, len(kernels), kernel)
        try:
            counted, taken = read(its(kernel), FUNCTIONS[kernel]), code(kernel)
        except ExperimentError as error:  # the other kernel's counts stand all the same
            left_out[kernel] = str(error)
            continue
        rows.append(
            {"kernel": kernel}
            | {name: counted[metric] / 100 for name, metric in METRICS.items()}
            | {"registers": int(counted[REGISTERS]), "compiled_registers": taken["registers"]}
            | {"admitted_by_model": _share(taken, arch), "limiters": taken["limiters"]}
        )
    if not rows:
        raise ExperimentError("; ".join(left_out.values()))
    progress(len(kernels), len(kernels), "done")
    method = {
        "left_out": left_out,
        "profiler": "ncu, clocks as they are, second launch of a process of its own",
        "metrics": ", ".join([*METRICS.values(), REGISTERS]),
        "input": f"standard normal, {SIZE} x {SIZE}, seed {SEED}",
    }
    return method, rows


def read(table: str, function: str) -> dict[str, float]:
    """The metrics of the one launch in ncu's raw page: a line of names, one of units, one of values.

    Raises ExperimentError where a metric is missing or is no number, or the launch is of another kernel.
    """
    lines = [line for line in table.splitlines() if line.startswith('"')]
    if len(lines) != 3:
        raise ExperimentError(f"ncu profiled {max(len(lines) - 2, 0)} launches of {function}, not one")
    names, _, values = csv.reader(lines)
    cells = dict(zip(names, values))
    if cells.get("Kernel Name", "").partition("(")[0] != function:
        raise ExperimentError(f"ncu profiled {cells.get('Kernel Name')!r}, not {function}")
    found = {}
    for metric in (*METRICS.values(), REGISTERS):
        text = cells.get(metric, "").replace(",", "")
        if not re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d+)?", text):
            raise ExperimentError(f"ncu has no number for {metric}: {cells.get(metric)!r}")
        found[metric] = float(text)
    return found


def _compile(kernel: str, arch: str):
    """The machine code that the launch has."""
    if kernel == QUANTIZER:
        return quantizer_code.compile_quantizer(quantizer_code.VARIANTS["both: as launched"](arch, "bfloat16"), arch)
    case = gemm_routes.chosen(arch, PRODUCT)
    tile = (case["tile_m"], case["tile_n"], case["tile_k"])
    return gemm_routes.compile_route(arch, PRODUCT, tile, case["num_warps"], case["num_stages"])


def recorded_code(kernel: str) -> Row:
    """What the recorded machine code for an H100 takes, and how many groups an SM holds of it."""
    if kernel == QUANTIZER:
        case = {"variant": "both: as launched", "dtype": "bfloat16"}
        return newest(quantizer_code.EXPERIMENT.name).find(arch=PREDICTED.arch, **case)
    row = newest(gemm_routes.EXPERIMENT.name).find(**gemm_routes.chosen(PREDICTED.arch, PRODUCT))
    waves, limiters = row["groups_per_unit"] * row["num_warps"], "not recorded"
    return row | {"waves_per_unit": waves, "limiters": limiters}


def _share(code: Row, arch: str) -> float:
    """Warps that an SM admits, of its most."""
    return code["waves_per_unit"] / device(arch).max_waves


def predict() -> list[Row]:
    """What the model admits for the recorded code of both kernels on an H100."""
    shares = {kernel: _share(recorded_code(kernel), PREDICTED.arch) for kernel in FUNCTIONS}
    return [
        {"device": PREDICTED.name, "kernel": kernel, "admitted_by_model": share} for kernel, share in shares.items()
    ]


EXPERIMENT = MeasuredExperiment(
    name="hardware_counters",
    question="Which unit do two kernels keep busy, and how many of the admitted warps are resident?",
    sources=(
        "experiments/hardware_counters.py",
        *quantizer_code.EXPERIMENT.sources,
        *(name for name in gemm_routes.EXPERIMENT.sources if name not in quantizer_code.EXPERIMENT.sources),
        *("matmul_gpu.py", "quantize.py"),
    ),
    keys={"kernel": "of chipmath.quantize_gpu, or the route of chipmath.matmul_gpu"},
    values={
        "resident": f"warps resident, of an SM's most: {METRICS['resident']}",
        "admitted_by_profiler": f"warps that may be resident: {METRICS['admitted_by_profiler']}",
        "admitted_by_model": "the same by chipmath.occupancy",
        "limiters": "what admits no further group, by chipmath.occupancy",
        "issue_slots": f"of all cycles in which an SM had warps: {METRICS['issue_slots']}",
        "tensor_pipe": f"of the same cycles: {METRICS['tensor_pipe']}",
        "memory": f"of the memory's peak over the whole time: {METRICS['memory']}",
        "registers": f"per thread: {REGISTERS}",
        "compiled_registers": "per thread, as chipmath.crosscompile reads them",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=20,  # two processes start, and the kernel is launched some times over
    unavailable=unavailable,
    prediction="the share of an SM's warps that the model admits for the recorded code",
    predicted_from=(quantizer_code.EXPERIMENT.name, gemm_routes.EXPERIMENT.name),
    shown={
        "device": Shown("card"),
        "kernel": Shown("kernel"),
        "admitted_by_model": Shown("warps admitted, model, %", ".1f", 100),
        "admitted_by_profiler": Shown("profiler, %", ".1f", 100),
        "resident": Shown("resident, %", ".1f", 100),
        "issue_slots": Shown("issue slots busy, %", ".1f", 100),
        "tensor_pipe": Shown("tensor pipe busy, %", ".1f", 100),
        "memory": Shown("memory's peak, %", ".1f", 100),
    },
)


def _launch_twice(kernel: str) -> None:
    """What ncu profiles: one launch that compiles, one that counts."""
    import torch

    from chipmath import matmul_gpu, quantize_gpu
    from chipmath.formats import E4M3
    from chipmath.quantize import quantize

    generator = torch.Generator("cuda").manual_seed(SEED)
    x = torch.randn(SIZE, SIZE, device="cuda", generator=generator).bfloat16()
    if kernel == QUANTIZER:
        call = partial(quantize_gpu.quantize_both, x, E4M3, quantizer_code.RULE)
    else:
        operand = quantize(x, E4M3, quantizer_code.RULE)
        call = matmul_gpu.plan(operand, operand, PRODUCT)
    for _ in range(2):
        call()
        torch.cuda.synchronize()


if __name__ == "__main__":
    _launch_twice(sys.argv[1])
