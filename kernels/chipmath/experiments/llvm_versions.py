"""The same kernels through LLVM 22 and LLVM 24: two releases that see different limits of the same chip.

Both read the same LLVM IR: clang 22, and the LLVM inside Triton's wheel. Between them LLVM learnt to round LDS to
blocks (llvm PR 205637) and to charge SGPRs for the trap handler (llvm PR 201342).
"""

import functools
import mmap
import re
import tempfile
from pathlib import Path

from chipmath.crosscompile import CompilerMissing, collect_compiler_output, find_clang, find_triton, run_compiler
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment, ExperimentError, Row

ARCH = "gfx950"
TRIPLE = "amdgcn-amd-amdhsa"
LAUNCH = ("registers", "accumulators", "scalars", "shared_bytes", "threads")
LAUNCHES = (
    (96, 0, 32, 32 * 1024, 256),
    (32, 0, 92, 0, 256),
    (32, 0, 104, 0, 256),
    (125, 3, 32, 0, 256),
    (32, 0, 32, 16 * 1024, 128),
    (32, 0, 32, 0, 320),
    (32, 0, 32, 0, 768),
    (88, 0, 32, 0, 512),
    (240, 0, 32, 0, 1024),
    *((16, 0, 32, shared_bytes, 256) for shared_bytes in (32_000, 32_001, 53 * 1024)),
)

# Clobbering the highest register of a kind makes a kernel take that many. The implicit inputs are switched off because
# they would take registers of their own.
KERNEL = """
target triple = "{triple}"
@lds = internal addrspace(3) global [{shared_bytes} x i8] poison, align 16
define amdgpu_kernel void @take() #0 {{
  call void asm sideeffect "", "{inputs}"({arguments})
  ret void
}}
attributes #0 = {{ nounwind "amdgpu-flat-work-group-size"="{threads},{threads}" "amdgpu-no-dispatch-ptr"
  "amdgpu-no-queue-ptr" "amdgpu-no-dispatch-id" "amdgpu-no-implicitarg-ptr" "amdgpu-no-workitem-id-x"
  "amdgpu-no-workitem-id-y" "amdgpu-no-workitem-id-z" "amdgpu-no-workgroup-id-x" "amdgpu-no-workgroup-id-y"
  "amdgpu-no-workgroup-id-z" }}
"""


def kernel(registers, accumulators, scalars, shared_bytes, threads) -> str:
    """LLVM IR of a kernel that takes exactly so much; ``scalars`` with VCC and its like."""
    counts = {"v": registers, "a": accumulators, "s": scalars - device(ARCH).special_scalars}
    clobbers = [f"~{{{kind}{count - 1}}}" for kind, count in counts.items() if count]
    used = {"shared_bytes": shared_bytes, "inputs": ",".join(clobbers), "arguments": ""}
    if shared_bytes:
        used |= {"inputs": ",".join(["s", *clobbers]), "arguments": "ptr addrspace(3) @lds"}
    return KERNEL.format(triple=TRIPLE, threads=threads, **used)


def compile_case(arch, llvm, **launch) -> Row:
    """One row."""
    compiler, assembly = {"22": by_clang, "24": by_triton}[llvm](kernel(**launch), arch)
    says = {name: int(value) for name, value in re.findall(r"^; (\w+): (\d+)", assembly, re.MULTILINE)}
    taken = tuple(says[name] for name in ("NumVgprs", "NumAgprs", "TotalNumSgprs", "LDSByteSize"))
    if taken != tuple(launch.values())[:4]:
        raise ExperimentError(f"asked for {launch}, taken {taken}")
    return {"waves_per_simd": says["Occupancy"], "compiler": compiler}


def by_clang(ir: str, arch: str, *options: str) -> tuple[str, str]:
    """Who compiled LLVM IR for ``arch``, and the assembly: clang, with more of its ``options`` where given."""
    clang = find_clang()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "take.ll"
        source.write_text(ir)
        target = (f"--target={TRIPLE}", f"-mcpu={arch}", "-nogpulib")
        assembly = run_compiler([clang, *target, "-O3", "-S", "-o", "-", *options, source], "take.ll")
    return run_compiler([clang, "--version"], "clang --version").splitlines()[0], assembly


def by_triton(ir: str, arch: str) -> tuple[str, str]:
    """The same by the LLVM inside Triton; CompilerMissing where Triton is older than 3.9."""
    triton = find_triton()
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
        raise CompilerMissing(f"no LLVM 24: that of Triton {triton.__version__} is another, with another interface")
    from triton._C import libtriton

    libtriton.llvm.init_targets()
    with collect_compiler_output([]):  # a warning for every register that the chip reserves
        assembly = libtriton.llvm.translate_to_asm(ir, TRIPLE, arch, "", [], False, False, False)
    return f"Triton {triton.__version__}, LLVM {_version_inside(libtriton.__file__)}", assembly


@functools.cache
def _version_inside(library: str) -> str:
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return re.search(rb"LLVM version (\d[\w.]*)", data)[1].decode()


CASES = tuple({"arch": ARCH, "llvm": llvm, **dict(zip(LAUNCH, launch))} for llvm in ("22", "24") for launch in LAUNCHES)

EXPERIMENT = CompiledExperiment(
    name="llvm_versions",
    question="How many waves do LLVM 22 and LLVM 24 promise to the same kernels?",
    sources=("experiments/llvm_versions.py",),
    keys={
        "arch": "chip compiled for",
        "llvm": "22: clang's; 24: the one in Triton's wheel",
        "registers": "VGPRs per thread",
        "accumulators": "AccVGPRs per thread",
        "scalars": "SGPRs per wave, VCC and the like included",
        "shared_bytes": "static LDS per group, in bytes",
        "threads": "per group",
    },
    values={"waves_per_simd": 'its "; Occupancy:"', "compiler": "who answered"},
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["shared_bytes"] == 32 * 1024),
    compile_case=compile_case,
)
