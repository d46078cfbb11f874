"""Source to machine code for a named chip, with no GPU: registers, shared memory, spills, instructions, occupancy.

Three compilers, one result. `compile_triton` needs Triton (3.6 to 3.9 were tried), `compile_hip` a clang that knows
gfx950, `compile_cuda` nvcc or NVRTC; the last two also read plain source files. None of them runs anything.

Every resource is read out of the finished code object, not out of a log or a source attribute:

AMD      the code object's metadata note and kernel descriptor
         https://llvm.org/docs/AMDGPUUsage.html#code-object-v3-metadata, .../#kernel-descriptor
NVIDIA   the cubin's .nv.info and .nv.shared sections, and its SASS. NVIDIA documents none of this: the tests hold it
         against cuobjdump and against what ptxas reports

What no code object can say is how much shared memory a launch adds. Triton knows it, so `Binary.shared_bytes` has it;
for HIP and CUDA sources pass it to `Binary.occupancy`.
"""

import contextlib
import ctypes
import functools
import importlib.util
import inspect
import io
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from chipmath.devices import DEVICES, ComputeUnit, Multiprocessor, device
from chipmath.occupancy import Occupancy, occupancy

AMD_ARCHS = tuple(name for name, unit in DEVICES.items() if unit.vendor == "AMD")
NVIDIA_ARCHS = tuple(name for name, unit in DEVICES.items() if unit.vendor == "NVIDIA")


class CompilerMissing(RuntimeError):
    """A compiler that the machine does not have: what was looked for, and how to get it."""


class CompileError(RuntimeError):
    """A source that its compiler refused: the first message, with its location. ``log`` is all that was printed."""

    def __init__(self, message: str, log: str = ""):
        """Keep the log out of what a traceback shows."""
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Binary:
    """One compiled kernel and what it takes from the chip.

    registers     per thread. AMD: architectural VGPRs; where AccVGPRs are used too, rounded up to the multiple of 4 at
                  which those start. NVIDIA: what ptxas reports
    accumulators  AccVGPRs per thread (AMD). The metadata's .vgpr_count is registers + accumulators
    scalars       SGPRs per wave, VCC and the like included: the metadata's .sgpr_count (AMD)
    shared_bytes  per group: static plus what Triton adds at launch (``dynamic_shared_bytes``)
    spills        stores of one 32-bit register to memory for want of registers: AMD's .vgpr_spill_count, or ptxas's
                  bytes of spill stores over 4. NVIDIA's counts stores to a kernel's own local arrays, too
                  AMD's leaves out SGPRs that are kept in lanes of a VGPR, which touch no memory
    code_bytes    size of the kernel's code
    threads       per group, as the kernel was compiled for: exact (Triton) or the most it allows (__launch_bounds__);
                  None if the code object sets no bound
    barriers      named barriers per block (NVIDIA)
    isa           the kernel's own assembly: GCN as its compiler wrote it, SASS as nvdisasm shows it
    ptx           NVIDIA's virtual assembly; None on AMD, and from NVRTC, which does not hand it out for a real chip
    code          the whole code object, as hipModuleLoadData or cuModuleLoadData takes it
    """

    arch: str
    kernel: str
    compiler: str
    registers: int
    accumulators: int
    scalars: int
    shared_bytes: int
    dynamic_shared_bytes: int
    spills: int
    code_bytes: int
    threads: int | None
    barriers: int
    allocated_registers: int  # AMD: what the descriptor makes a wave take, `registers` or more; see _allocation
    allocated_scalars: int
    compiler_waves_per_simd: int | None  # AMD: LLVM's own "; Occupancy:"
    isa: str = field(repr=False)
    ptx: str | None = field(repr=False)
    code: bytes = field(repr=False)

    @property
    def num_warps(self) -> int | None:
        """Waves or warps per group of ``threads``."""
        return None if self.threads is None else -(-self.threads // device(self.arch).wave_lanes)

    @property
    def tensor_memory_columns(self) -> int:
        """Columns of tensor memory that a block allocates (Blackwell)."""
        return sum(int(columns) for columns in re.findall(r"tcgen05\.alloc\S* \[[^]]*\], (\d+)", self.ptx or ""))

    @property
    def parameters(self) -> int:
        """How many arguments a launch has to give; Triton appends pointers to scratch memory to the kernel's own."""
        if self.arch in AMD_ARCHS:
            (entry,) = (entry for entry in _metadata(self.code)["amdhsa.kernels"] if entry[".name"] == self.kernel)
            return sum(not argument[".value_kind"].startswith("hidden_") for argument in entry[".args"])
        return len(_nv_info(_Elf(self.code).section_bytes(f".nv.info.{self.kernel}")).get(EIATTR_KPARAM_INFO, []))

    def opcodes(self) -> list[str]:
        """Of all instructions, in the order of the code."""
        return (AMD_OPCODE if self.arch in AMD_ARCHS else SASS_OPCODE).findall(self.isa)

    def instructions(self, pattern: str = "") -> Counter:
        """How often each opcode that ``pattern`` is found in stands in the code; loops count once."""
        return Counter(opcode for opcode in self.opcodes() if re.search(pattern, opcode))

    def occupancy(self, threads: int | None = None, *, dynamic_shared_bytes: int = 0) -> Occupancy:
        """The model's answer for groups of ``threads`` (None: as compiled) that add so much shared memory at launch.

        Groups of more threads than the kernel was compiled for cannot launch, and have 0 groups and a ``reason``.
        """
        asked, group = self.threads if threads is None else threads, device(self.arch).words.group
        if asked is None:
            raise ValueError(f"{self.kernel} was compiled for {group}s of any size: pass threads")
        answer = occupancy(
            self.arch,
            **_allocation(self),
            shared_bytes=self.shared_bytes + dynamic_shared_bytes,
            threads=asked,
            barriers=self.barriers,
        )
        if self.threads is None or asked <= self.threads:
            return answer
        compiled_for = f"threads={asked}: {self.kernel} was compiled for {group}s of {self.threads} at most"
        reason = "; ".join(why for why in (answer.reason, compiled_for) if why)
        limits = answer.limits | {"waves": 0}
        return replace(answer, groups_per_unit=0, waves_per_unit=0, limits=limits, reason=reason)


def _allocation(binary: Binary) -> dict[str, int]:
    """The counts for which `occupancy` charges what the hardware does.

    They are ``registers``, ``accumulators`` and ``scalars``, unless LLVM raised the descriptor's counts. It does where
    LDS, group size or amdgpu-waves-per-eu (Triton's waves_per_eu) already caps the waves: a kernel that uses 9 VGPRs
    but was told waves_per_eu=2 takes 176, so that never more than 2 waves are resident. The metadata still says 9.
    """
    unit = device(binary.arch)
    counts = {"registers": binary.registers, "accumulators": binary.accumulators, "scalars": binary.scalars}
    if unit.vendor == "NVIDIA":
        return counts
    charged = occupancy(binary.arch, **counts, threads=1).allocated["registers"]
    if binary.allocated_registers <= charged:
        return counts
    architectural = min(binary.allocated_registers, unit.max_vgprs)
    return {
        "registers": architectural,
        "accumulators": binary.allocated_registers - architectural,
        # the least that rounds up to it
        "scalars": max(binary.scalars, binary.allocated_scalars - unit.scalar_granule + 1),
    }


# ----------------------------------------------------------------------------------------------------------- Triton


def compile_triton(
    fn,
    signature: dict[str, str],
    constexprs: dict[str, object],
    arch: str,
    *,
    num_warps: int,
    num_stages: int | None = None,
    **options,
) -> Binary:
    """Compile a @triton.jit (or Gluon) kernel for ``arch``; no GPU, and the active Triton driver stays untouched.

    signature   Triton's type of every argument that is no constexpr: "*bf16", "i32". Facts that a launch would find
                out are appended as the launcher's own letters: "*bf16:D" is a pointer aligned to 16 bytes (as every
                tensor from torch's allocator is), "i32:D" a multiple of 16, "*bf16:DS" also a tensor below 2 GiB, which
                lets AMD chips use buffer loads
    constexprs  value of every constexpr; arguments that are None or specialised to 1 go here too
    num_stages  None: Triton's default for the chip
    options     any option of the chip's backend: waves_per_eu, matrix_instr_nonkdim (AMD), maxnreg (NVIDIA), …

    sm_90 and later compile as their "a" variant, as Triton does. Multiplies and adds fuse unless
    enable_fp_fusion=False: Triton 3.10 will turn its default around, and a count must not change with it. Compiled code
    is kept in Triton's cache (TRITON_CACHE_DIR). An error that LLVM calls fatal may end the process: Triton's doing.
    """
    unit = _unit(arch, tuple(DEVICES), "compile_triton")
    triton = find_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    architecture = unit.arch if unit.vendor == "AMD" else int(unit.arch[3:])
    backend = make_backend(GPUTarget("hip" if unit.vendor == "AMD" else "cuda", architecture, unit.wave_lanes))
    options = {"enable_fp_fusion": True, "num_warps": num_warps, **options}
    if num_stages is not None:
        options["num_stages"] = num_stages
    _check_options(backend, unit, options)
    source = _triton_source(fn, signature, constexprs, backend)
    printed: list[str] = []
    try:
        with collect_compiler_output(printed):
            compiled = triton.compile(source, target=backend.target, options=options)
    except (triton.TritonError, RuntimeError) as error:
        message = f"{fn.__name__} for {unit.arch}: {_triton_message(fn, error, printed[0])}"
        raise CompileError(message, f"{printed[0]}\n{error}") from None
    sys.stderr.write(printed[0])
    read = _amd_binary if unit.vendor == "AMD" else _nvidia_binary
    text = compiled.asm["amdgcn" if unit.vendor == "AMD" else "ptx"]
    return read(
        unit.arch,
        compiled.metadata.name,
        compiled.asm[backend.binary_ext],
        text,
        compiler=_triton_version(triton, backend, compiled.asm[backend.binary_ext]),
        dynamic_shared_bytes=compiled.metadata.shared,
    )


def find_triton() -> ModuleType:
    """The module triton; CompilerMissing, which says how to get it, where it is not installed.

    It is imported only here, so that the rest of the package works without it. Call this before importing a file of
    kernels: their own import of Triton would fail without saying how to get it.
    """
    if importlib.util.find_spec("triton") is None:
        raise CompilerMissing(
            "no Triton: looked for the Python package triton. GPU builds of torch bring it; beside a CPU build, "
            "pip install --no-deps triton==3.9.0"
        )
    import triton

    return triton


def _check_options(backend, unit: ComputeUnit | Multiprocessor, options: dict) -> None:
    """Triton ignores an option that its backend does not have, such as maxnreg on AMD, and a group's size; not we."""
    for name in ("num_warps", "num_stages"):
        if name in options and (type(options[name]) is not int or options[name] < 1):
            raise ValueError(f"{name}={options[name]!r} is not a positive whole number")
    warps, most = options["num_warps"], unit.max_threads_per_group // unit.wave_lanes
    if warps & (warps - 1):
        raise ValueError(f"num_warps={warps}: Triton wants a power of two")
    if warps > most:
        raise ValueError(
            f"num_warps={warps}: a {unit.words.group} of {unit.arch} has {most} {unit.words.wave}s at most"
        )
    known = vars(backend.parse_options({"enable_fp_fusion": True}))
    for name in options:
        if name not in known:
            raise ValueError(
                f"Triton has no option {name} for {backend.target.arch}; it has {', '.join(sorted(known))}"
            )


def _triton_source(fn, signature: dict[str, str], constexprs: dict[str, object], backend):
    """What triton.compile takes, with types in the order of the arguments and the letters after ':' as attributes."""
    if not hasattr(fn, "is_gluon"):
        raise ValueError(f"{fn!r} is no @triton.jit kernel; TRITON_INTERPRET=1 makes interpreted ones, without code")
    given = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    if set(given) != set(fn.arg_names) or set(signature) & set(constexprs):
        raise ValueError(
            f"{fn.__name__}({', '.join(fn.arg_names)}) got types for {', '.join(signature)} "
            f"and values for {', '.join(constexprs)}: every argument needs exactly one"
        )
    for name, kind in signature.items():
        if not isinstance(kind, str) or not re.fullmatch(r"[^:]+(:[DS]+)?", kind):
            raise ValueError(f'{name}={kind!r} is no type of Triton with the letters D and S, like "*bf16:DS"')
    types = {name: given[name].partition(":") for name in fn.arg_names}
    attributes = {(i,): backend.parse_attr(letters) for i, (_, _, letters) in enumerate(types.values()) if letters}
    if fn.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as Source
    else:
        from triton.compiler import ASTSource as Source
    return Source(fn, {name: kind for name, (kind, _, _) in types.items()}, constexprs, attributes)


def _triton_version(triton, backend, code: bytes) -> str:
    """Triton's version and that of what wrote the machine code: ptxas or LLVM.

    From Triton 3.9 on, AMD code comes from a second LLVM, whose revision the backend's hash ends in; the linker's
    comment names only Triton's main LLVM. Before, the two were one.
    """
    revision = backend.hash()
    if ptxas := re.search(r"V(\d+\.\d+\.\d+)", revision):
        return f"Triton {triton.__version__}, ptxas {ptxas[1]}"
    comments = " ".join(_comments(code))
    linker, commit = _found(r"LLD (\S+) \(\S+ ([0-9a-f]{40})\)", comments, "Triton's code object").groups()
    if generator := re.search(r"-([0-9a-f]{40})", revision):
        return f"Triton {triton.__version__}, AMD LLVM {generator[1][:12]}, LLD {linker} {commit[:12]}"
    return f"Triton {triton.__version__}, LLVM {linker} {commit[:12]}"


def _triton_message(fn, error: Any, printed: str) -> str:
    """The first thing that went wrong, and where: Triton's front end, else the first error its compilers printed.

    error  an exception of triton.compile, which has no types
    """
    from triton.compiler.errors import CompilationError

    if not isinstance(error, CompilationError):
        said = str(error).split("stderr:\n")[-1]  # where Triton quotes ptxas
        return _first_error(printed) or _first_error(said) or said.strip().split("\n")[0]
    lines, first = inspect.getsourcelines(fn.fn)
    first += next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))  # Triton counts from there
    where = f"{Path(fn.fn.__code__.co_filename).name}:{first + getattr(error.node, 'lineno', 1) - 1}"
    while isinstance(error.__cause__, CompilationError):  # in a function that it calls, whose file Triton does not say
        error = error.__cause__
        name = _found(r"def (\w+)", error.src, "a function of the kernel")[1]
        where += f", line {error.node.lineno} of {name}"
    return f"{where}: {error.error_message}"


_compiling = threading.Lock()  # file descriptor 2 belongs to the whole process


@contextlib.contextmanager
def collect_compiler_output(printed: list[str]):
    """Append to ``printed`` what compilers write to file descriptor 2 in the block, as one text at its end.

    MLIR and LLVM print an error's cause there and nowhere else. One block at a time: others wait.
    Triton prints the whole PTX file when ptxas refuses it; that is dropped, as the error has the message.
    """
    with _compiling, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))


# ------------------------------------------------------------------------------------------------- HIP and CUDA C++


def compile_hip(path: str | Path, arch: str, defines: dict[str, object], *, kernel: str | None = None) -> Binary:
    """Compile a HIP source for an AMD chip with clang; no ROCm, no GPU.

    defines  preprocessor macros by name, an empty string for none
    kernel   symbol of the kernel if the source has several (extern "C" keeps it readable)

    ROCm's headers and device libraries are left out, so that the code is the same with and without them; mini_hip.h has
    the names that a self-contained kernel needs.
    """
    unit = _unit(arch, AMD_ARCHS, "compile_hip")
    clang = find_clang()
    header = Path(__file__).with_name("mini_hip.h")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.hsaco"
        command: list[str | Path] = [
            clang,
            "-x",
            "hip",
            f"--offload-arch={unit.arch}",
            "--offload-device-only",
            "--no-gpu-bundle-output",
        ]
        command += ["-nogpulib", "-nogpuinc", "-include", header, "-O3", *_macros(defines)]
        command += ["-save-temps=obj", "-c", "-o", target, Path(path).resolve()]  # keeps the assembly it makes code of
        run_compiler(command, f"{Path(path).name} for {unit.arch}")
        code, (assembly,) = target.read_bytes(), Path(folder).glob("*.s")
        text = assembly.read_text()
    kernel = _pick(kernel, [entry[".name"] for entry in _metadata(code)["amdhsa.kernels"]], path)
    compiler = next(comment for comment in _comments(code) if "clang" in comment)
    return _amd_binary(unit.arch, kernel, code, text, compiler=compiler, dynamic_shared_bytes=0)


def compile_cuda(path: str | Path, arch: str, defines: dict[str, object], *, kernel: str | None = None) -> Binary:
    """Compile a CUDA source for an NVIDIA chip with nvcc or, where there is none, NVRTC; no GPU.

    defines, kernel  as for `compile_hip`

    sm_90 and later compile as their "a" variant (sm_90a), which alone has wgmma, tcgen05 and block scaling.
    """
    unit = _unit(arch, NVIDIA_ARCHS, "compile_cuda")
    target = unit.arch[3:] + ("a" if int(unit.arch[3:]) >= 90 else "")
    nvcc = find_cuda_tool("nvcc")
    source = (Path(path).resolve(), target, _macros(defines))
    try:
        code, ptx, compiler = _nvcc_build(nvcc, *source) if nvcc else _nvrtc_build(*source)
    except CompileError as error:
        # An old toolkit on the PATH, beside a torch whose wheels bring a newer NVRTC.
        if not nvcc or "Unsupported gpu architecture" not in error.log or not _libnvrtc():
            raise
        nvcc, (code, ptx, compiler) = None, _nvrtc_build(*source)
    names = [name[len(".text.") :] for name in _Elf(code).sections if name.startswith(".text.")]
    return _nvidia_binary(
        unit.arch,
        _pick(kernel, names, path),
        code,
        ptx,
        compiler=compiler,
        dynamic_shared_bytes=0,
        nvcc=nvcc,
    )


def _unit(arch: str, supported: tuple[str, ...], caller: str) -> ComputeUnit | Multiprocessor:
    """The device record of ``arch`` ("sm_90a" is sm_90), if ``caller`` compiles for it."""
    name = re.sub(r"^(sm_\d+)a$", r"\1", str(arch))
    if name not in supported:
        raise ValueError(f"{caller} does not compile for {arch!r}; it does for {', '.join(supported)}")
    return DEVICES[name]


def _macros(defines: dict[str, object]) -> list[str]:
    for name in defines:
        if not name.isidentifier():  # a compiler would take "A B" for the macro A
            raise ValueError(f"defines has {name!r}, which is no name of a macro")
    return [f"-D{name}={value}" for name, value in defines.items()]


def _pick(kernel: str | None, names: list[str], path) -> str:
    """The kernel asked for, or the only one there is."""
    if kernel is None and len(names) == 1:
        return names[0]
    if kernel not in names:
        raise ValueError(f"kernel={kernel!r}: {Path(path).name} has {', '.join(sorted(names)) or 'no kernel'}")
    return kernel


def run_compiler(command: list, what: str) -> str:
    """Run a program of a compiler and give what it printed to both streams; ``what`` names it in errors.

    CompileError, with the first error that it printed, for any exit status but 0.
    """
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        message = _first_error(done.stdout) or f"exit status {done.returncode} without a message"
        raise CompileError(f"{what}: {message}", done.stdout)
    return done.stdout


def _found(pattern: str, text: str, where: str) -> re.Match[str]:
    """What every compiler tried here writes; CompileError where this one wrote something else."""
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise CompileError(f"{where} has no {pattern}", text)
    return found


ERROR_LINE = re.compile(r"^.*?\b(?:(?:fatal )?error|fatal|LLVM ERROR)(?: #\S+)?\s*: *\S.*$", re.MULTILINE)


def _first_error(log: str) -> str | None:
    """The first error that a compiler printed, without folders; with the location that MLIR gives only further down."""
    found = ERROR_LINE.search(log)
    if not found:
        return None
    message = found[0].strip()
    if re.match(r"(triton-amdgpu-assembler:\S+ )?error:", message):  # LLVM's assembler: the instruction comes next
        message += f": {log[found.end() :].strip().partition(chr(10))[0]}"
    located = re.search(r"^(\S+:\d+:\d+): (?:error|note)", log, re.MULTILINE)
    if located and not re.search(r":\d+|\(\d+\)|line \d+", message):
        message += f" (at {located[1]})"
    return re.sub(r"(?<![\w.])/(?:[^\s/:(),]+/)+", "", message)


# ------------------------------------------------------------------------------------------------ finding compilers


@functools.cache
def find_clang() -> str:
    """Path of a clang that compiles for gfx950 and has its linker, the version of the recordings first.

    CompilerMissing, with what was tried and how to get one, where there is none.
    """
    names = ("clang-22", "clang", "amdclang", "/opt/rocm/llvm/bin/clang")
    tried = []
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        cpus = subprocess.run(
            [path, "--target=amdgcn-amd-amdhsa", "--print-supported-cpus"], capture_output=True, text=True, check=False
        )
        linker = subprocess.run([path, "-print-prog-name=ld.lld"], capture_output=True, text=True, check=False)
        if "gfx950" not in cpus.stdout + cpus.stderr:
            tried.append(f"{path} does not know gfx950")
        elif not shutil.which(linker.stdout.strip()):
            tried.append(f"{path} has no ld.lld")
        else:
            return path
    found = "; ".join(tried) or "found none of them"
    raise CompilerMissing(
        f"no clang for gfx950: looked for {', '.join(names)}: {found}. "
        "On Debian and Ubuntu: apt-get install clang-22 lld-22 (apt.llvm.org); or ROCm 7"
    )


def find_cuda_tool(name: str) -> str | None:
    """Path of the CUDA toolkit's program ``name``, from PATH, CUDA_HOME or its usual place; None if it is in none."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(f"{home}/bin" for home in _cuda_homes()))


def _cuda_homes() -> list[str]:
    """Where a CUDA toolkit may lie that is not in PATH."""
    return [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]


def _nvdisasm(nvcc: str | None) -> str:
    """NVIDIA's disassembler: the compiler's neighbour first, as it knows the file; then Triton's; then any."""
    folders = [str(Path(nvcc).resolve().parent)] if nvcc else []
    if triton := importlib.util.find_spec("triton"):
        folders += [f"{folder}/backends/nvidia/bin" for folder in triton.submodule_search_locations or ()]
    found = shutil.which("nvdisasm", path=os.pathsep.join(folders)) or find_cuda_tool("nvdisasm")
    if found is None:
        beside = f"beside {nvcc}, which came without it, " if nvcc else ""
        raise CompilerMissing(
            f"no nvdisasm, which turns a cubin into SASS: looked {beside}in Triton's wheel, in PATH, CUDA_HOME and "
            "/usr/local/cuda. pip install --no-deps triton==3.9.0 brings one, and so does the toolkit's cuda-nvdisasm"
        )
    return found


def _libnvrtc() -> Path | None:
    """NVIDIA's run-time compiler, from PyPI's wheels (torch's CUDA builds bring them) or the CUDA toolkit."""
    wheels = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (wheels and wheels.submodule_search_locations) or ()]
    found = [hit for root in roots for hit in sorted(root.glob("*/lib/libnvrtc.so.*"), reverse=True)]
    found += [hit for home in _cuda_homes() for hit in sorted(Path(home).glob("lib64/libnvrtc.so.*"))]
    return next(iter(found), None)


# --------------------------------------------------------------------------------------------------- nvcc and NVRTC


def _nvcc_build(nvcc: str, path: Path, target: str, macros: list[str]) -> tuple[bytes, str, str]:
    """The cubin, the PTX and the compiler's version."""
    version = _found(r"V(\d+\.\d+\.\d+)", run_compiler([nvcc, "--version"], "nvcc --version"), "nvcc --version")[1]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command: list[str | Path] = [nvcc, "-x", "cu", f"-gencode=arch=compute_{target},code=sm_{target}", *macros]
        command += ["-cubin", "--keep", "--keep-dir", folder, "-o", cubin, path]
        try:
            run_compiler(command, f"{path.name} for sm_{target}")
        except CompileError as error:
            if "host compiler" in error.log:  # "Failed to preprocess host compiler properties", for one
                raise CompilerMissing(f"{nvcc} finds no C++ compiler: install g++, or set NVCC_CCBIN") from error
            raise
        (ptx,) = Path(folder).glob("*.ptx")
        return cubin.read_bytes(), ptx.read_text(), f"nvcc {version}"


def _nvrtc_build(path: Path, target: str, macros: list[str]) -> tuple[bytes, None, str]:
    """The same from NVRTC, which compiles in this process; it does not hand out the PTX of a real chip."""
    library_path = _libnvrtc()
    if library_path is None:
        raise CompilerMissing(
            "no CUDA compiler: looked for nvcc in PATH, CUDA_HOME and /usr/local/cuda, and for libnvrtc there and in "
            "PyPI's nvidia wheels. Install the CUDA toolkit, or pip install nvidia-cuda-nvrtc"
        )
    nvrtc = _Nvrtc(library_path)
    return nvrtc.cubin(path, target, macros), None, f"NVRTC {nvrtc.version}"


class _Nvrtc:
    """The part of nvrtc.h that makes a cubin: https://docs.nvidia.com/cuda/nvrtc/."""

    def __init__(self, path: Path):
        # NVRTC opens its builtins by their bare name, and that of CUDA 13.0's wheel has no library path to find them by
        # (those of 12.4 and 13.5 have one). A library that is loaded already is not looked for.
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        self.library = ctypes.CDLL(str(path))
        pointer, size, text = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_char_p
        integer, texts = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_char_p)
        for name, arguments in {
            "nvrtcVersion": [integer, integer],
            "nvrtcCreateProgram": [ctypes.POINTER(pointer), text, text, ctypes.c_int, texts, texts],
            "nvrtcDestroyProgram": [ctypes.POINTER(pointer)],
            "nvrtcCompileProgram": [pointer, ctypes.c_int, texts],
            "nvrtcGetProgramLogSize": [pointer, size],
            "nvrtcGetProgramLog": [pointer, text],
            "nvrtcGetCUBINSize": [pointer, size],
            "nvrtcGetCUBIN": [pointer, text],
        }.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.library.nvrtcGetErrorString.argtypes, self.library.nvrtcGetErrorString.restype = [ctypes.c_int], text

    def check(self, what: str, status: int) -> None:
        if status:
            raise CompileError(f"NVRTC: {what}: {self.library.nvrtcGetErrorString(status).decode()}")

    @property
    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check("version", self.library.nvrtcVersion(major, minor))
        return f"{major.value}.{minor.value}"

    def cubin(self, path: Path, target: str, macros: list[str]) -> bytes:
        options = [f"--gpu-architecture=sm_{target}", *macros]
        program = ctypes.c_void_p()
        source, name = path.read_bytes(), path.name.encode()
        self.check("create program", self.library.nvrtcCreateProgram(program, source, name, 0, None, None))
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self.library.nvrtcCompileProgram(program, len(options), arguments):
                log = self._bytes("ProgramLog", program).decode(errors="replace")
                raise CompileError(f"{path.name} for sm_{target}: {_first_error(log) or log.strip()}", log)
            return self._bytes("CUBIN", program)
        finally:
            self.library.nvrtcDestroyProgram(program)

    def _bytes(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        self.check(f"size of {what}", getattr(self.library, f"nvrtcGet{what}Size")(program, size))
        buffer = ctypes.create_string_buffer(size.value)
        self.check(what, getattr(self.library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw


# ------------------------------------------------------------------------------------------------- reading binaries

AMD_OPCODE = re.compile(r"^\t([a-z]\w*)", re.MULTILINE)
SASS_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def _amd_binary(
    arch: str, kernel: str, code: bytes, assembly: str, *, compiler: str, dynamic_shared_bytes: int
) -> Binary:
    """A Binary from a linked AMD code object and the assembly it was made of."""
    elf, metadata = _Elf(code), _metadata(code)
    _check_arch(arch, metadata["amdhsa.target"].split("-")[-1].split(":")[0])
    (entry,) = (entry for entry in metadata["amdhsa.kernels"] if entry[".name"] == kernel)
    descriptor = elf.symbol_bytes(entry[".symbol"])
    (resources,) = struct.unpack_from("<I", descriptor, 48)  # COMPUTE_PGM_RSRC1
    isa = _amd_isa(assembly, kernel)
    return Binary(
        arch=arch,
        kernel=kernel,
        compiler=compiler,
        registers=entry[".vgpr_count"] - entry[".agpr_count"],
        accumulators=entry[".agpr_count"],
        scalars=entry[".sgpr_count"],
        shared_bytes=entry[".group_segment_fixed_size"] + dynamic_shared_bytes,
        dynamic_shared_bytes=dynamic_shared_bytes,
        spills=entry[".vgpr_spill_count"],
        code_bytes=elf.symbols[kernel].size,
        threads=entry[".max_flat_workgroup_size"],
        barriers=1,
        allocated_registers=8 * ((resources & 63) + 1),  # GRANULATED_WORKITEM_VGPR_COUNT, gfx90a and later
        allocated_scalars=16 * ((resources >> 6 & 15) // 2 + 1),  # GRANULATED_WAVEFRONT_SGPR_COUNT, GFX9
        compiler_waves_per_simd=int(_found(r"^; Occupancy: (\d+)", isa, "LLVM's assembly")[1]),
        isa=isa,
        ptx=None,
        code=code,
    )


def _amd_isa(assembly: str, kernel: str) -> str:
    """The kernel's part of a file as LLVM writes it, down to its "; Occupancy:" and the lines after."""
    begin = assembly.index(f"; -- Begin function {kernel}\n")
    rest = assembly[assembly.rindex("\n", 0, begin) + 1 :]
    return re.split(r"\n(?=.*; -- Begin function)|\n\t\.section\t\.AMDGPU\.gpr_maximums", rest)[0]


def _nvidia_binary(
    arch: str,
    kernel: str,
    code: bytes,
    ptx: str | None,
    *,
    compiler: str,
    dynamic_shared_bytes: int,
    nvcc: str | None = None,
) -> Binary:
    """A Binary from a cubin."""
    elf = _Elf(code)
    _check_arch(arch, f"sm_{elf.flags >> 8 & 0xFF if elf.abi_version >= 8 else elf.flags & 0xFF}")
    common, own = _nv_info(elf.section_bytes(".nv.info")), _nv_info(elf.section_bytes(f".nv.info.{kernel}"))
    registers = dict(struct.unpack("<II", value) for value in common[EIATTR_REGCOUNT])
    symbol = elf.symbols[kernel]
    threads = own.get(EIATTR_REQNTID) or own.get(EIATTR_MAX_THREADS)
    isa = _sass(code, kernel, _nvdisasm(nvcc))
    return Binary(
        arch=arch,
        kernel=kernel,
        compiler=compiler,
        registers=registers[symbol.index],
        accumulators=0,
        scalars=0,
        shared_bytes=_static_shared(elf, kernel, arch) + dynamic_shared_bytes,
        dynamic_shared_bytes=dynamic_shared_bytes,
        spills=_spill_stores(isa),
        code_bytes=symbol.size,
        threads=math.prod(struct.unpack("<III", threads[0])) if threads else None,
        barriers=own[EIATTR_NUM_BARRIERS][0][0] if EIATTR_NUM_BARRIERS in own else _barriers_of_section(elf, kernel),
        allocated_registers=registers[symbol.index],
        allocated_scalars=0,
        compiler_waves_per_simd=None,
        isa=isa,
        ptx=ptx,
        code=code,
    )


# Attribute numbers as `cuobjdump -elf` names them.
EIATTR_MAX_THREADS = 0x05
EIATTR_REQNTID = 0x10
EIATTR_KPARAM_INFO = 0x17  # one for each parameter
EIATTR_REGCOUNT = 0x2F
EIATTR_NUM_BARRIERS = 0x4C


def _nv_info(data: bytes) -> dict[int, list[bytes]]:
    """The attributes of a .nv.info section: a byte of format, one of name, then two of value or of the value's size."""
    attributes: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        form, name, size = struct.unpack_from("<BBH", data, at)
        length = size if form == 4 else 0
        value = data[at + 4 : at + 4 + length] if form == 4 else data[at + 2 : at + 4]
        attributes.setdefault(name, []).append(value)
        at += 4 + length
    return attributes


def _static_shared(elf: "_Elf", kernel: str, arch: str) -> int:
    """The kernel's own shared memory, as ptxas -v reports it.

    From sm_90 on the section also has what CUDA reserves in every block, which `occupancy` charges anyway.
    """
    section = elf.sections.get(f".nv.shared.{kernel}")
    if section is None:
        return 0
    unit = device(arch)
    reserved = unit.shared_reserved_bytes if unit.vendor == "NVIDIA" and int(arch[3:]) >= 90 else 0
    return section.size - reserved


def _barriers_of_section(elf: "_Elf", kernel: str) -> int:
    """Cubins of CUDA 12 keep the number of barriers in the flags of the code's section."""
    return elf.sections[f".text.{kernel}"].flags >> 20 & 0x7F


def _sass(code: bytes, kernel: str, nvdisasm: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = run_compiler([nvdisasm, "-c", file.name], "nvdisasm")
    start = listing.index(f"\n.text.{kernel}:\n")
    return listing[start:].split("\n//-----", 1)[0]


def _spill_stores(sass: str) -> int:
    """32-bit words that go to local memory: ptxas's "bytes spill stores" over 4, rounded up."""
    widths = {"S8": 1, "U8": 1, "S16": 2, "U16": 2, "64": 8, "128": 16}
    stores = (opcode.split(".") for opcode in SASS_OPCODE.findall(sass))
    return -(-sum(next((widths[s] for s in store if s in widths), 4) for store in stores if store[0] == "STL") // 4)


def _check_arch(wanted: str, found: str) -> None:
    """TRITON_OVERRIDE_ARCH makes Triton compile for another chip than it was asked to."""
    if wanted != found:
        raise CompileError(f"asked for {wanted}, got code for {found}; is TRITON_OVERRIDE_ARCH set?")


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Symbol:
    index: int
    section: int
    value: int
    size: int


class _Elf:
    """As much of a 64-bit little-endian ELF file as code objects need: sections and symbols by name."""

    def __init__(self, data: bytes):
        self.data = data
        self.abi_version = data[8]
        (table,) = struct.unpack_from("<Q", data, 40)
        (self.flags,) = struct.unpack_from("<I", data, 48)
        step, count, names = struct.unpack_from("<HHH", data, 58)
        self.table = [_Section(*struct.unpack_from("<IIQQQQI", data, table + i * step)) for i in range(count)]
        self.sections = {self._string(self.table[names], section.name): section for section in self.table}
        self.symbols = dict(self._read_symbols(self.sections[".symtab"]))

    def section_bytes(self, name: str) -> bytes:
        section = self.sections[name]
        return self.data[section.offset : section.offset + section.size]

    def symbol_bytes(self, name: str) -> bytes:
        symbol = self.symbols[name]
        section = self.table[symbol.section]
        start = section.offset + symbol.value - section.address
        return self.data[start : start + symbol.size]

    def _read_symbols(self, table: _Section):
        for index in range(table.size // 24):
            name, _, _, section, value, size = struct.unpack_from("<IBBHQQ", self.data, table.offset + 24 * index)
            yield self._string(self.table[table.link], name), _Symbol(index, section, value, size)

    def _string(self, strings: _Section, at: int) -> str:
        start = strings.offset + at
        return self.data[start : self.data.index(b"\0", start)].decode()


def _comments(code: bytes) -> list[str]:
    """Who made an AMD code object, in the words of its compiler and linker."""
    return [part.decode() for part in _Elf(code).section_bytes(".comment").split(b"\0") if part]


def _metadata(code: bytes) -> dict:
    """The metadata of an AMD code object: MessagePack in the note named AMDGPU."""
    note = _Elf(code).section_bytes(".note")
    name_size = struct.unpack_from("<I", note)[0]  # then two words more
    return _unpack(note, 12 + -(-name_size // 4) * 4)[0]


def _unpack(data: bytes, at: int):
    """One MessagePack value (https://github.com/msgpack/msgpack/blob/master/spec.md) and the place after it."""
    head, at = data[at], at + 1
    if head < 0x80:
        return head, at
    if head < 0x90:
        return _unpack_map(data, at, head & 15)
    if head < 0xA0:
        return _unpack_array(data, at, head & 15)
    if head < 0xC0:
        return _unpack_text(data, at, head & 31)
    if head in (0xC2, 0xC3):
        return head == 0xC3, at
    if head not in _UNPACK:
        raise ValueError(f"MessagePack type {head:#x}, which no AMD code object used so far")
    form, read = _UNPACK[head]
    (value,) = struct.unpack_from(form, data, at)
    return read(data, at + struct.calcsize(form), value)


def _unpack_map(data: bytes, at: int, count: int):
    result = {}
    for _ in range(count):
        key, at = _unpack(data, at)
        result[key], at = _unpack(data, at)
    return result, at


def _unpack_array(data: bytes, at: int, count: int):
    result = []
    for _ in range(count):
        value, at = _unpack(data, at)
        result.append(value)
    return result, at


def _unpack_text(data: bytes, at: int, size: int):
    return data[at : at + size].decode(), at + size


def _unpack_number(data: bytes, at: int, value: int):
    return value, at


_UNPACK = {
    0xCC: (">B", _unpack_number),
    0xCD: (">H", _unpack_number),
    0xCE: (">I", _unpack_number),
    0xCF: (">Q", _unpack_number),
    0xD9: (">B", _unpack_text),
    0xDA: (">H", _unpack_text),
    0xDC: (">H", _unpack_array),
    0xDE: (">H", _unpack_map),
}
