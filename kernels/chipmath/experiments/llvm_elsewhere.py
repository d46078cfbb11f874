"""Run as a program by a Python that has another LLVM: LLVM IR from standard input, who compiled it and the result out.

    python llvm_elsewhere.py triton gfx950          assembly, by the LLVM inside an installed Triton
    python llvm_elsewhere.py tvm gfx950 PASS        machine code as it is after PASS, by the LLVM inside TVM's backend

It imports nothing of this package, as that Python need not have what the package needs.
"""

import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

TRIPLE = "amdgcn-amd-amdhsa"


def by_triton(ir: str, arch: str) -> tuple[str, str]:
    """Assembly by Triton's LLVM."""
    from triton._C import libtriton

    libtriton.llvm.init_targets()
    assembly = libtriton.llvm.translate_to_asm(ir, TRIPLE, arch, "", [], False, False, False)
    llvm = _first(rb"LLVM version (\d[\w.]*)", libtriton.__file__)
    return f"LLVM {llvm}, in Triton {version('triton')}", assembly


def by_tvm(ir: str, arch: str, after: str) -> tuple[str, str]:
    """Machine code by TVM's LLVM, which prints assembly without comments: what they say is read one step earlier."""
    import tvm_ffi
    import tvm_tirx  # noqa: F401 - registers the functions
    import tvm_tirx_llvm_targets

    target = json.dumps({"kind": "llvm", "mtriple": TRIPLE, "mcpu": arch, "cl-opt": [f"-stop-after:string={after}"]})
    flag = f'!llvm.module.flags = !{{!0}}\n!0 = !{{i32 4, !"tvm_target", !"{target}"}}\n'.replace(
        target, target.replace('"', r"\22")
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ll"
        source.write_text(f"{ir}\n{flag}")
        module = tvm_ffi.get_global_func("ffi.Module.load_from_file.ll")(str(source), "ll")
    major = tvm_ffi.get_global_func("codegen.llvm_version_major")()
    llvm = _first(rb"\0(%d\.\d+\.\d+)\0" % major, tvm_tirx_llvm_targets.get_lib_path())
    return f"TVM {version('apache-tvm-tirx-llvm-targets')}, LLVM {llvm}", module.inspect_source("s")


def _first(pattern: bytes, library: str) -> str:
    """The version that a library has among its strings; nothing hands out more than the major one."""
    return re.search(pattern, Path(library).read_bytes())[1].decode()


if __name__ == "__main__":
    sys.stdout.write("\n".join({"triton": by_triton, "tvm": by_tvm}[sys.argv[1]](sys.stdin.read(), *sys.argv[2:])))
