"""AMD's compiler as an oracle: the LLVM inside the Triton wheel assembles kernels for any CDNA chip, without a GPU.

It runs in a process of its own, because it prints a warning for every register that a kernel names and the chip
reserves. As a script: stdin is a JSON list of [arch, LLVM IR], stdout {"version": ..., "assembly": [...]}.

Before LLVM 24 (Triton 3.9.0) the compiler neither rounded LDS to blocks on gfx950 nor charged SGPRs for the trap
handler (llvm PR 205637 and 201342), so older ones are not asked.
"""

import importlib.util
import json
import mmap
import re
import subprocess
import sys

import pytest

OLDEST_LLVM = 24
TRIPLE = "amdgcn-amd-amdhsa"

# Clobbering the highest register of a kind makes a kernel use that many. The implicit inputs are switched off because
# they would occupy registers of their own.
KERNEL = """
@lds{index} = internal addrspace(3) global [{shared_bytes} x i8] poison, align 16
define amdgpu_kernel void @k{index}() #{index} {{
  call void asm sideeffect "", "s,{clobbers}"(ptr addrspace(3) @lds{index})
  ret void
}}
attributes #{index} = {{ nounwind "amdgpu-flat-work-group-size"="{threads},{threads}" "amdgpu-no-dispatch-ptr"
  "amdgpu-no-queue-ptr" "amdgpu-no-dispatch-id" "amdgpu-no-implicitarg-ptr" "amdgpu-no-workitem-id-x"
  "amdgpu-no-workitem-id-y" "amdgpu-no-workitem-id-z" "amdgpu-no-workgroup-id-x" "amdgpu-no-workgroup-id-y"
  "amdgpu-no-workgroup-id-z" }}
"""


def kernel(index: int, *, vgprs: int, accvgprs: int, sgprs: int, shared_bytes: int, threads: int) -> str:
    highest = [f"~{{{kind}{count - 1}}}" for kind, count in (("v", vgprs), ("a", accvgprs), ("s", sgprs)) if count]
    return KERNEL.format(index=index, clobbers=",".join(highest), shared_bytes=shared_bytes, threads=threads)


def comments(assembly: str, name: str) -> list[int]:
    """The values of one line of the "Kernel info" comment, for every kernel in order."""
    return [int(value) for value in re.findall(rf"^; {name}: (\d+)", assembly, re.MULTILINE)]


def assemble(modules: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """LLVM's version and the assembly of each (arch, IR)."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: its LLVM is this oracle")
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(modules), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    if int(answer["version"].split(".")[0]) < OLDEST_LLVM:
        pytest.skip(f"Triton carries LLVM {answer['version']}: before {OLDEST_LLVM} it had other occupancy rules")
    return answer["version"], answer["assembly"]


def main() -> None:
    from triton._C import libtriton

    libtriton.llvm.init_targets()
    with open(libtriton.__file__, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        version = re.search(rb"LLVM version (\d[\w.]*)", binary)[1].decode()
    modules = json.load(sys.stdin) if int(version.split(".")[0]) >= OLDEST_LLVM else []
    assembly = [
        libtriton.llvm.translate_to_asm(f'target triple = "{TRIPLE}"\n{ir}', TRIPLE, arch, "", [], False, False, False)
        for arch, ir in modules
    ]
    json.dump({"version": version, "assembly": assembly}, sys.stdout)


if __name__ == "__main__":
    main()
