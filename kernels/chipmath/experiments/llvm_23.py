"""When LLVM learnt to round LDS to blocks and to charge SGPRs for the trap handler: 22, two of 23, and 24.

Two LLVMs of the 23 series can be had without a build: a development snapshot in Triton 3.8.0, and release 23.1.1 in an
extra of Apache TVM. Both go into a folder of their own, which the variable LLVM_23 names::

    pip install --no-deps --target DIR triton==3.8.0
    pip install --pre --target DIR apache-tvm-tirx-llvm-targets==0.1.0a4
    LLVM_23=DIR PYTHONPATH=kernels python -m chipmath.bench llvm_23

TVM prints assembly without the "; Occupancy:" comment. Its LLVM is asked one step earlier, for the occupancy noted in
the machine code after scheduling. So the kernels here are ones for which the two agree: clang answers both ways.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from chipmath.crosscompile import CompileError, CompilerMissing
from chipmath.experiments import llvm_versions
from chipmath.experiments.experiment import CompiledExperiment, ExperimentError, Row

ARCH = llvm_versions.ARCH
AFTER = "machine-scheduler"
PRINTED, NOTED = "printed", "noted"
RELEASES = (("22", PRINTED), ("22", NOTED), ("23 snapshot", PRINTED), ("23.1", NOTED), ("24", PRINTED))
LDS_BYTES = (32_000, 32_001, 32 * 1024, 53 * 1024)
LIVE_SCALARS = (64, 84)  # with VCC and its like and gaps between the vectors: at most 80, and 81 to 96

# As TVM's LLVM demands it of a module; the other compilers bring their own.
DATA_LAYOUT = (
    "e-m:e-p:64:64-p1:64:64-p2:32:32-p3:32:32-p4:64:64-p5:32:32-p6:32:32-p7:160:256:256:32-p8:128:128:128:48"
    "-p9:192:256:256:32-i64:64-v16:16-v24:32-v32:32-v48:64-v96:128-v192:256-v256:256-v512:512-v1024:1024-v2048:2048"
    "-n32:64-S32-A5-G1-ni:7:8:9"
)


def live_scalars(count: int) -> str:
    """LLVM IR of a kernel that holds so many SGPRs at once, a multiple of 4: made one by one, then all read."""
    widths = [16] * (count // 16) + [4] * (count % 16 // 4)
    made = "".join(f'  %v{i} = call <{n} x i32> asm sideeffect "", "=s"()\n' for i, n in enumerate(widths))
    read = ", ".join(f"<{n} x i32> %v{i}" for i, n in enumerate(widths))
    body = f'{made}  call void asm sideeffect "", "{",".join("s" for _ in widths)}"({read})\n'
    empty = llvm_versions.kernel(registers=0, accumulators=0, scalars=6, shared_bytes=0, threads=256)
    return re.sub(r"  call void asm sideeffect .*\n", lambda _: body, empty)


def compile_case(arch, llvm, read, resource, amount) -> Row:
    """One row."""
    if resource == "LDS":
        ir = llvm_versions.kernel(registers=16, accumulators=0, scalars=32, shared_bytes=amount, threads=256)
    else:
        ir = live_scalars(amount)
    compiler, text = _compile(llvm, read, ir, arch)
    found = re.findall(r"^; Occupancy: (\d+)" if read == PRINTED else r"^  occupancy: +(\d+)", text, re.MULTILINE)
    if len(found) != 1:
        raise ExperimentError(f"LLVM {llvm}: {len(found)} answers instead of one for {resource} {amount}")
    return {"waves_per_simd": int(found[0]), "compiler": compiler}


def _compile(llvm: str, read: str, ir: str, arch: str) -> tuple[str, str]:
    if llvm == "24":
        return llvm_versions.by_triton(ir, arch)
    if llvm == "22":
        stop = () if read == PRINTED else ("-mllvm", f"-stop-after={AFTER}")
        return llvm_versions.by_clang(ir, arch, *stop)
    if read == PRINTED:
        return _elsewhere(ir, "triton", arch)
    return _elsewhere(f'target datalayout = "{DATA_LAYOUT}"\n{ir}', "tvm", arch, AFTER)


def _elsewhere(ir: str, *request: str) -> tuple[str, str]:
    folder = os.environ.get("LLVM_23")
    if folder is None:
        raise CompilerMissing("no LLVM 23: the variable LLVM_23 names no folder; chipmath.experiments.llvm_23 says how")
    command = [sys.executable, Path(__file__).with_name("llvm_elsewhere.py"), *request]
    environment = {**os.environ, "PYTHONPATH": folder}
    done = subprocess.run(command, input=ir, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise CompileError(f"{request[0]} in LLVM_23={folder}: {last}", done.stderr)
    compiler, _, text = done.stdout.partition("\n")
    if "LLVM 23." not in compiler:  # an empty folder leaves the Triton that this Python has
        raise CompilerMissing(f"no LLVM 23 in LLVM_23={folder}: {request[0]} there is {compiler}")
    return compiler, text


CASES = tuple(
    {"arch": ARCH, "llvm": llvm, "read": read, "resource": resource, "amount": amount}
    for llvm, read in RELEASES
    for resource, amounts in (("LDS", LDS_BYTES), ("SGPRs", LIVE_SCALARS))
    for amount in amounts
)

EXPERIMENT = CompiledExperiment(
    name="llvm_23",
    question="Which LLVM is the first to round LDS to blocks and to charge SGPRs for the trap handler?",
    sources=("experiments/llvm_23.py", "experiments/llvm_elsewhere.py", "experiments/llvm_versions.py"),
    keys={
        "arch": "chip compiled for",
        "llvm": "22: clang's; 23 snapshot: Triton 3.8.0's; 23.1: release 23.1.1 in TVM; 24: Triton 3.9.0's",
        "read": 'printed: its "; Occupancy:"; noted: in the machine code after scheduling',
        "resource": "LDS of a group of 256 threads, or SGPRs that are alive at once",
        "amount": "bytes, or registers without VCC and its like",
    },
    values={"waves_per_simd": "what it says", "compiler": "who answered"},
    cases=CASES,
    quick_cases=tuple(c for c in CASES if c["amount"] in (32 * 1024, 84) and c["llvm"] in ("22", "24")),
    compile_case=compile_case,
)
