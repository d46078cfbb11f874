"""Cross-compiled code for named chips: what the compilers emit, what the code objects say, and how failures read.

Oracles that we did not write: llvm-readobj and llvm-readelf on AMD code objects, cuobjdump and ptxas on NVIDIA's.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from chipmath import crosscompile
from chipmath.crosscompile import CompileError, CompilerMissing, compile_cuda, compile_hip, compile_triton
from chipmath.devices import DEVICES
from chipmath.occupancy import occupancy

triton = pytest.importorskip("triton", reason="no Triton: nothing to cross-compile Triton kernels with")
import triton.language as tl  # noqa: E402
from triton.experimental import gluon  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
AMD, NVIDIA = ("gfx950", "gfx942"), ("sm_90", "sm_100")


def available(find) -> bool:
    try:
        return find() is not None
    except CompilerMissing:
        return False


needs_clang = pytest.mark.skipif(
    not available(crosscompile.find_clang),
    reason="no clang for gfx950 (apt-get install clang-22 lld-22): HIP sources untested",
)
needs_nvcc = pytest.mark.skipif(
    not available(lambda: crosscompile.find_cuda_tool("nvcc")), reason="no nvcc: CUDA sources untested"
)


# Triton kernels


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def mxfp8_tile(a, b, c, a_scales, b_scales, K, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    """An M x N tile of C = A B', both (rows, K) in E4M3 with one scale for 32 values along K; C has N columns."""
    m, n = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    k, block = tl.arange(0, STEP), tl.arange(0, STEP // 32)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(a + m[:, None] * K + start + k[None, :])
        right = tl.load(b + n[None, :] * K + start + k[:, None])
        left_scales = tl.load(a_scales + m[:, None] * (K // 32) + start // 32 + block[None, :])
        right_scales = tl.load(b_scales + n[:, None] * (K // 32) + start // 32 + block[None, :])
        total = tl.dot_scaled(left, left_scales, "e4m3", right, right_scales, "e4m3", total)
    tl.store(c + m[:, None] * N + n[None, :], total)


COPY = {"x": "*fp32:D", "y": "*fp32:D", "n": "i32"}
TILE = {"a": "*fp8e4nv:D", "b": "*fp8e4nv:D", "c": "*fp32:D", "a_scales": "*u8:D", "b_scales": "*u8:D", "K": "i32:D"}


@functools.cache
def tile(arch: str, warps: int = 4):
    return compile_triton(mxfp8_tile, TILE, {"M": 128, "N": 128, "STEP": 128}, arch, num_warps=warps, num_stages=2)


@functools.cache
def small(arch: str, **options):
    return compile_triton(copy, COPY, {"BLOCK": 1024}, arch, num_warps=4, **options)


@pytest.fixture(params=(*AMD, *NVIDIA))
def arch(request):
    if request.param == "gfx942" and TRITON < (3, 8):
        pytest.skip("Triton before 3.8 has no dot_scaled for gfx942: test_what_triton_cannot_lower")
    return request.param


@pytest.mark.parametrize("arch", DEVICES)
def test_every_chip_compiles_a_copy(arch):
    if arch == "sm_103" and TRITON < (3, 7):
        pytest.skip("Triton 3.6 can compile for sm_103, but its nvdisasm cannot read the result")
    binary = small(arch)
    assert (binary.arch, binary.kernel) == (arch, "copy")
    assert binary.threads == 4 * DEVICES[arch].wave_lanes
    assert binary.num_warps == 4
    assert (binary.shared_bytes, binary.spills) == (0, 0)
    assert f"Triton {triton.__version__}, " in binary.compiler
    assert ("LLVM" if arch in crosscompile.AMD_ARCHS else "ptxas") in binary.compiler


def test_letters_of_the_signature_decide_the_loads():
    """A launch would find alignment and size out by itself; here the signature says it."""

    def loads(arch, letters):
        kinds = {"x": f"*fp32{letters}", "y": f"*fp32{letters}", "n": "i32:D"}
        opcodes = compile_triton(copy, kinds, {"BLOCK": 1024}, arch, num_warps=4).instructions("load|^LDG")
        return {opcode for opcode in opcodes if not opcode.startswith("s_")}

    assert loads("gfx950", "") == {"global_load_dword"}
    assert loads("gfx950", ":D") == {"global_load_dwordx4"}
    assert loads("gfx950", ":DS") == {"buffer_load_dwordx4"}
    assert loads("sm_90", "") == {"LDG.E"}
    assert loads("sm_90", ":D") == {"LDG.E.128"}


@triton.jit
def multiply_add(x):
    tl.store(x, tl.load(x) * tl.load(x + 1) + tl.load(x + 2))


@pytest.mark.parametrize("arch", ["gfx950", "sm_90"])
def test_multiply_and_add_fuse_whatever_the_environment_says(arch, monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")

    def fused(**options):
        opcodes = compile_triton(multiply_add, {"x": "*fp32"}, {}, arch, num_warps=1, **options)
        return opcodes.instructions("^FFMA$|^v_(fma|fmac)_f32").total()

    assert (fused(), fused(enable_fp_fusion=False)) == (1, 0)


# What the chips have and lack


def test_gfx950_scales_in_the_matrix_instruction():
    scaled = tile("gfx950").instructions("^v_mfma_scale_f32_")
    assert set(scaled) == {"v_mfma_scale_f32_32x32x64_f8f6f4"}
    assert tile("gfx950").instructions("mfma") == scaled, "every matrix instruction is a scaled one"
    flop = scaled.total() * 4 * 2 * 32 * 32 * 64  # each of 4 waves executes all of them
    assert flop % (2 * 128 * 128 * 128) == 0, "whole steps of the tile: the loop's body, and what is peeled off it"


@pytest.mark.skipif(TRITON < (3, 8), reason="Triton before 3.8 has no dot_scaled for gfx942")
def test_gfx942_multiplies_in_bfloat16():
    matrix = tile("gfx942").instructions("mfma")
    assert matrix
    assert all(opcode.endswith("_bf16") for opcode in matrix)


def test_hopper_multiplies_in_bfloat16():
    binary = tile("sm_90")
    assert binary.instructions("MMA") == {"HGMMA.64x128x16.F32.BF16": 16}, "2 x 64 rows, 128 / 16 steps of K"
    assert binary.instructions("^F2F")["F2F.BF16.F16"] == 2 * 128 * 128 // 128, (
        "one for every element that a thread has"
    )
    assert "block_scale" not in binary.ptx
    assert binary.tensor_memory_columns == 0


def test_blackwell_scales_in_the_tensor_core():
    binary = tile("sm_100")
    scaled = re.findall(r"tcgen05\.mma\S*kind::mxf8f6f4\.block_scale\S*", binary.ptx)
    assert len(scaled) == 128 // 32, "an instruction a block of 32 along K"
    assert binary.instructions("^UTC.MMA") == {"UTCQMMA": 4}  # SASS has one name for scaled and plain: PTX tells
    assert binary.tensor_memory_columns == 256  # 128 for the float32 tile, rest for scales; a power of two


# Resources, against independent readers


def readobj(binary) -> dict[str, int]:
    tool = shutil.which("llvm-readobj-22") or shutil.which("llvm-readobj")
    if tool is None:
        pytest.skip("no llvm-readobj (apt-get install llvm-22): AMD metadata untested")
    with tempfile.NamedTemporaryFile(suffix=".hsaco") as file:
        file.write(binary.code)
        file.flush()
        notes = subprocess.run([tool, "--notes", "--symbols", file.name], capture_output=True, text=True, check=True)
    code = re.findall(rf"Name: {binary.kernel} .*\n\s+Value: .*\n\s+Size: (\d+)", notes.stdout)
    entries = [
        part
        for part in notes.stdout.split("  - .agpr_count:")
        if f".name: {binary.kernel}\n" in re.sub(" +", " ", part)
    ]
    fields = re.findall(r"^ +(\.\w+): +(\d+)$", f"    .agpr_count: {entries[0]}", re.MULTILINE)
    return {"code": int(code[0]), **{name: int(value) for name, value in fields}}


def check_amd(binary):
    seen = readobj(binary)
    assert binary.registers + binary.accumulators == seen[".vgpr_count"]
    assert binary.accumulators == seen[".agpr_count"]
    assert binary.scalars == seen[".sgpr_count"]
    assert binary.spills == seen[".vgpr_spill_count"]
    assert binary.shared_bytes - binary.dynamic_shared_bytes == seen[".group_segment_fixed_size"]
    assert binary.threads == seen[".max_flat_workgroup_size"]
    assert binary.code_bytes == seen["code"]
    vector, scalar = (int(re.search(rf"\.amdhsa_next_free_{kind}gpr (\d+)", binary.isa)[1]) for kind in "vs")
    assert binary.allocated_registers == -(-vector // 8) * 8
    # The assembler adds VCC, FLAT_SCRATCH and XNACK_MASK (6) to what the directive says.
    assert binary.allocated_scalars == -(-(scalar + 6) // 16) * 16
    if binary.accumulators:
        assert binary.registers == int(re.search(r"\.amdhsa_accum_offset (\d+)", binary.isa)[1])


@pytest.mark.parametrize("options", [{}, {"waves_per_eu": 2}, {"waves_per_eu": 4}])
@pytest.mark.parametrize("arch", AMD)
def test_amd_resources(arch, options):
    check_amd(small(arch, **options))


@pytest.mark.parametrize("arch", AMD)
def test_amd_resources_of_a_tile(arch):
    if arch == "gfx942" and TRITON < (3, 8):
        pytest.skip("Triton before 3.8 has no dot_scaled for gfx942")
    check_amd(tile(arch))
    assert tile(arch).dynamic_shared_bytes == tile(arch).shared_bytes > 0, "all of Triton's LDS comes at launch"


def cuobjdump(binary) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.code)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = re.search(rf"Function {binary.kernel}:\n +(.*)", listing)[1]
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


@pytest.mark.parametrize("make", [small, tile])
@pytest.mark.parametrize("arch", NVIDIA)
def test_nvidia_resources(make, arch):
    binary = make(arch)
    seen = cuobjdump(binary)
    assert binary.registers == seen["REG"]
    # What CUDA reserves in every block is in cuobjdump's number if the kernel has any shared memory at all.
    assert seen["SHARED"] == (1024 if make is tile else 0)
    assert binary.shared_bytes == binary.dynamic_shared_bytes
    assert (binary.accumulators, binary.scalars, binary.compiler_waves_per_simd) == (0, 0, None)
    last = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/", binary.isa, re.MULTILINE)[-1]
    assert binary.code_bytes == int(last, 16) + 16, "from address 0 to the end of the last instruction"


SPILLING = """
extern "C" __global__ __launch_bounds__(1024, 2) void pressed(float4* x, int n) {
  __shared__ float first[40];
  float4 a[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i] = x[i * 1024 + threadIdx.x];
  if (threadIdx.x < 40) first[threadIdx.x] = a[0].x;
  asm volatile("barrier.sync 2, 1024;");
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      a[i].x = a[i].x * a[(i + 1) & 15].y + first[i];
      a[i].y += a[i].z * a[(i + 3) & 15].w;
      a[i].z = a[i].y * a[i].x + 2;
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i * 1024 + threadIdx.x] = a[i];
}
extern "C" __global__ void idle(float* x) { x[threadIdx.x] = 1; }
"""


def ptxas(log: str, kernel: str) -> dict[str, int]:
    """What ptxas -v reports of one kernel; what it leaves out is 0."""
    part = log.split(f"Compiling entry function '{kernel}'")[1].split("Compiling entry")[0]
    units = {"registers": "registers", "barriers": "barriers", "stores": "bytes spill stores", "shared": "bytes smem"}
    found = {name: re.search(rf"(\d+) {unit}", part) for name, unit in units.items()}
    return {name: int(match[1]) if match else 0 for name, match in found.items()}


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_cuda_resources_are_those_that_ptxas_reports(arch, tmp_path):
    """Static shared memory in particular: from sm_90 on the cubin's section has 1 KiB more than the kernel's own."""
    source = tmp_path / "pressed.cu"
    source.write_text(SPILLING)
    suffix = "a" if arch != "sm_80" else ""
    command = ["nvcc", "-cubin", f"-arch={arch}{suffix}", "-Xptxas", "-v", "-o", tmp_path / "x.cubin", source]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for kernel in ("pressed", "idle"):
        binary, seen = compile_cuda(source, arch, {}, kernel=kernel), ptxas(log, kernel)
        assert binary.registers == seen["registers"]
        assert binary.barriers == seen["barriers"]
        assert binary.shared_bytes == seen["shared"] == (160 if kernel == "pressed" else 0)
        assert 4 * binary.spills == seen["stores"]
        assert (kernel == "pressed") == (seen["stores"] > 0)
        assert binary.threads == (1024 if kernel == "pressed" else None)
    if arch == "sm_90":
        pressed = compile_cuda(source, arch, {}, kernel="pressed")
        assert (pressed.barriers, pressed.occupancy(64).limits["barriers"]) == (3, 64 // 3), "barriers 0 to 2 of 64"


def test_spills_of_half_registers_count_by_their_bytes():
    sass = "\n".join(
        f"        /*{i:04x}*/  @P0 {op} [R1], R2 ;" for i, op in enumerate(("STL.S16", "STL", "STL.64", "LDL"))
    )
    assert crosscompile._spill_stores(sass) == 4, "2 + 4 + 8 bytes"


# Occupancy


def test_occupancy_is_the_models_for_the_binarys_resources(arch):
    binary = tile(arch)
    by_hand = occupancy(
        arch,
        registers=binary.registers,
        accumulators=binary.accumulators,
        scalars=binary.scalars,
        shared_bytes=binary.shared_bytes,
        threads=binary.threads,
        barriers=binary.barriers,
    )
    assert binary.occupancy() == binary.occupancy(binary.threads) == by_hand
    assert by_hand.groups_per_unit > 0


@pytest.mark.parametrize("arch", AMD)
def test_llvm_agrees_once_it_is_told_of_no_dynamic_lds(arch):
    """; Occupancy: is a number that we did not compute; groups of 4 waves leave no rounding to differ in."""
    if arch == "gfx942" and TRITON < (3, 8):
        pytest.skip("Triton before 3.8 has no dot_scaled for gfx942")
    binary = tile(arch)
    without = binary.occupancy(dynamic_shared_bytes=-binary.dynamic_shared_bytes)
    assert without.waves_per_unit == 4 * binary.compiler_waves_per_simd


@pytest.mark.skipif(TRITON < (3, 8), reason="earlier Triton uses half the LDS, which does not bind")
def test_llvm_does_not_see_the_lds_that_a_launch_adds():
    binary = tile("gfx950")
    assert (binary.compiler_waves_per_simd, binary.occupancy().groups_per_unit) == (3, 2)
    assert binary.occupancy(dynamic_shared_bytes=-binary.dynamic_shared_bytes).groups_per_unit == 3


@pytest.mark.parametrize("waves", [1, 2, 3, 4])
def test_waves_per_eu_is_a_ceiling_that_the_descriptor_enforces(waves):
    """LLVM raises the register count that the hardware reads; .vgpr_count still says how few are used."""
    binary = small("gfx950", waves_per_eu=waves)
    assert binary.registers < 24, "the kernel itself would fit 8 times"
    assert binary.compiler_waves_per_simd == waves
    assert binary.occupancy().waves_per_unit == 4 * waves


# HIP


CHAINS = """
typedef int v8i __attribute__((ext_vector_type(8)));
typedef float v4f __attribute__((ext_vector_type(4)));

// CHAINS independent chains of matrix instructions: each has its own A and C, all share B.
extern "C" __global__ __launch_bounds__(THREADS) void chains(float* out, int steps) {
  v8i a[CHAINS], b = (v8i)(int)(threadIdx.x * 3);
  v4f c[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) {
    a[i] = (v8i)(int)(threadIdx.x ^ (i + 1));
    c[i] = (v4f)(float)i;
  }
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i)
      c[i] = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a[i], b, c[i], 0, 0, 0, SCALE, 0, SCALE);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum += c[i].x + c[i].y + c[i].z + c[i].w;
  out[threadIdx.x] = sum;
}
"""


@pytest.fixture
def chains(tmp_path):
    source = tmp_path / "chains.hip"
    source.write_text(CHAINS)

    def compile_chains(count, *, scale=127, threads=256):
        return compile_hip(source, "gfx950", {"CHAINS": count, "SCALE": scale, "THREADS": threads})

    return compile_chains


@needs_clang
def test_a_chain_costs_twelve_registers(chains):
    """8 for its A, 4 for its C; beside them 8 for B, one for the scale, one for the thread's number."""
    for count in (1, 2, 3, 4, 8, 12, 16, 20):
        binary = chains(count)
        assert (binary.registers, binary.accumulators, binary.spills) == (10 + 12 * count, 0, 0)
        assert binary.instructions("mfma") == {"v_mfma_scale_f32_16x16x128_f8f6f4": count}
        assert binary.occupancy().waves_per_unit == 4 * binary.compiler_waves_per_simd
    assert [chains(count).compiler_waves_per_simd for count in (1, 2, 4, 5, 6, 7, 8, 16)] == [8, 8, 8, 7, 5, 5, 4, 2]


@needs_clang
def test_accumulators_start_when_256_registers_are_full(chains):
    binary = chains(24)
    assert binary.registers == 256
    assert 0 < binary.accumulators < 64
    check_amd(binary)


@needs_clang
def test_literal_scales_of_zero_fold_to_the_unscaled_instruction(chains):
    """Byte 0 is 2**-127, yet clang drops the scales: a sweep with literal zeros measures another instruction."""
    assert chains(2, scale=0).instructions("mfma") == {"v_mfma_f32_16x16x128_f8f6f4": 2}


@needs_clang
def test_spills_where_the_group_size_leaves_too_few_registers(chains):
    """1024 threads are 4 waves a SIMD: 128 registers each, where 16 chains want 202."""
    binary = chains(16, threads=1024)
    assert binary.allocated_registers == 128
    assert binary.spills > 0
    check_amd(binary)


@needs_clang
def test_only_whole_groups_are_resident(chains):
    binary = chains(1, threads=320)
    assert (binary.compiler_waves_per_simd, binary.occupancy().groups_per_unit) == (8, 6)


@needs_clang
def test_more_threads_than_it_was_compiled_for_cannot_launch(chains):
    few, many = chains(1).occupancy(1024), chains(20).occupancy(1024)
    assert (few.groups_per_unit, few.waves_per_unit, few.limiters) == (0, 0, ("waves",))
    assert few.reason == "threads=1024: chains was compiled for workgroups of 256 at most"
    assert re.search("and the register file holds .*; threads=1024: chains was compiled for", many.reason)


@needs_clang
def test_llvm_before_24_divides_lds_by_bytes(tmp_path):
    """32 KiB is 26 blocks of 1280 bytes, so 4 groups; LLVM before 24 divides bytes by bytes."""
    source = tmp_path / "lds.hip"
    source.write_text(
        'extern "C" __global__ __launch_bounds__(256) void lds(float* x) {\n'
        "  __shared__ volatile float s[8192];\n"
        "  s[threadIdx.x] = x[threadIdx.x];\n"
        "  __syncthreads();\n"
        "  x[threadIdx.x] = s[255 - threadIdx.x];\n"
        "}\n"
    )
    binary = compile_hip(source, "gfx950", {})
    assert binary.shared_bytes == 32768
    assert binary.occupancy().groups_per_unit == 4
    assert binary.occupancy(dynamic_shared_bytes=1 << 15).groups_per_unit == 2
    if re.search(r"clang version (\d+)", binary.compiler)[1] == "22":
        assert binary.compiler_waves_per_simd == 5


@needs_clang
def test_a_source_with_two_kernels_wants_a_name(tmp_path):
    source = tmp_path / "two.hip"
    source.write_text(
        'extern "C" __global__ void one(float* x) { x[threadIdx.x] = 1; }\n'
        'extern "C" __global__ void two(float* x) { x[threadIdx.x] = x[threadIdx.x] * x[1] + x[2]; }\n'
    )
    with pytest.raises(ValueError, match=r"kernel=None: two\.hip has one, two"):
        compile_hip(source, "gfx942", {})
    one, two = (compile_hip(source, "gfx942", {}, kernel=name) for name in ("one", "two"))
    assert not one.instructions("^v_(pk_)?(fma|mul)")
    assert two.instructions("^v_(pk_)?(fma|mul)")
    assert "two" not in one.isa
    check_amd(one)


# CUDA


FP8_MMA = """
extern "C" __global__ void fp8(float* out, const unsigned* in) {
  float c[4] = {0, 0, 0, 0};
  unsigned a = in[threadIdx.x], b = in[threadIdx.x + 32];
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a), "r"(b));
  out[threadIdx.x] = c[0] + c[1] + c[2] + c[3] + BIAS;
}
"""


@pytest.fixture
def fp8_source(tmp_path):
    source = tmp_path / "fp8.cu"
    source.write_text(FP8_MMA)
    return source


@needs_nvcc
@pytest.mark.parametrize(("arch", "native"), [("sm_89", 1), ("sm_90", 0), ("sm_100", 0), ("sm_120a", 1)])
def test_fp8_mma_sync_is_emulated_on_datacenter_chips(fp8_source, arch, native):
    """sm_90 and sm_100 unpack E4M3 to FP16 and issue two HMMA; their FP8 rate needs wgmma and tcgen05."""
    binary = compile_cuda(fp8_source, arch, {"BIAS": 0})
    assert binary.instructions("^QMMA").total() == native
    assert binary.instructions("^HMMA").total() == 2 * (1 - native)
    assert bool(binary.instructions(r"^F2FP\.F16\.E4M3\.UNPACK")) == (not native)
    assert binary.arch == arch.removesuffix("a")
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+", binary.compiler)
    assert "mma.sync" in binary.ptx


def test_nvrtc_stands_in_for_nvcc(fp8_source, monkeypatch):
    if crosscompile._libnvrtc() is None:
        pytest.skip("no NVRTC (pip install nvidia-cuda-nvrtc): the way without nvcc is untested")
    hide(monkeypatch, "nvcc")
    binary = compile_cuda(fp8_source, "sm_90", {"BIAS": 0})
    assert binary.compiler.startswith("NVRTC ")
    assert binary.instructions("^HMMA").total() == 2
    assert binary.ptx is None
    with pytest.raises(CompileError, match=r'^fp8.cu for sm_90a: fp8.cu\(8\): error: identifier "BIAS" is undefined$'):
        compile_cuda(fp8_source, "sm_90", {})


# Failures


@pytest.mark.parametrize(
    ("compile_it", "arch", "known"),
    [
        (lambda arch: compile_triton(copy, COPY, {"BLOCK": 64}, arch, num_warps=1), "gfx1100", "gfx950"),
        (lambda arch: compile_triton(copy, COPY, {"BLOCK": 64}, arch, num_warps=1), "sm_75", "sm_100"),
        (lambda arch: compile_hip("x.hip", arch, {}), "sm_90", "gfx90a, gfx942, gfx950"),
        (lambda arch: compile_cuda("x.cu", arch, {}), "gfx950", "sm_80, sm_86"),
        (lambda arch: compile_hip("x.hip", arch, {}), None, "gfx90a, gfx942, gfx950"),
    ],
)
def test_a_wrong_target_is_named_with_the_right_ones(compile_it, arch, known):
    with pytest.raises(ValueError, match=rf"does not compile for {arch!r}; it does for .*{known}"):
        compile_it(arch)


@needs_clang
def test_a_macro_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match="defines has 'A B', which is no name of a macro"):
        compile_hip("x.hip", "gfx950", {"A B": 1})


@triton.jit
def misspelt(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, nothing_of_that_name + 1)  # noqa: F821


@triton.jit
def helper(i):
    return tl.dot(i, i, colour=3)


@triton.jit
def calls_helper(x, BLOCK: tl.constexpr):
    tl.store(x, helper(tl.arange(0, BLOCK)))


@triton.jit
def bad_assembly(x, BLOCK: tl.constexpr, REGISTER: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.inline_asm_elementwise("no_such_op $0, $1;", REGISTER, [i], tl.int32, True, 1))


def line_of(text: str) -> int:
    """Of the first line with ``text`` in this file."""
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def first_error(capfd, kernel, constexprs, arch) -> str:
    """The message of the CompileError, which is all there is: nothing is printed, and it is one line."""
    with pytest.raises(CompileError) as caught:
        compile_triton(kernel, {"x": "*i32"}, {"BLOCK": 128, **constexprs}, arch, num_warps=4)
    assert capfd.readouterr() == ("", "")
    assert caught.value.__suppress_context__
    message = str(caught.value)
    assert "\n" not in message
    assert str(ROOT) not in message
    assert len(caught.value.log) > 0
    return message


@pytest.mark.parametrize("arch", ["gfx950", "sm_90"])
def test_a_broken_kernel_is_told_by_its_first_error(capfd, arch):
    at = f"test_crosscompile.py:{line_of('nothing_of_that_name')}"
    message = first_error(capfd, misspelt, {}, arch)
    assert message.startswith(f"misspelt for {arch}: {at}: ")
    assert "nothing_of_that_name is not defined" in message


def test_an_error_in_a_called_function_names_both_places(capfd):
    at = f"test_crosscompile.py:{line_of('tl.store(x, helper')}"
    expected = f"calls_helper for sm_90: {at}, line 2 of helper: dot() got an unexpected keyword argument 'colour'"
    assert first_error(capfd, calls_helper, {}, "sm_90") == expected


@pytest.mark.parametrize(("arch", "register"), [("gfx950", "=v,v"), ("sm_90", "=r,r")])
def test_errors_that_compilers_only_print_are_caught(capfd, arch, register):
    message = first_error(capfd, bad_assembly, {"REGISTER": register}, arch)
    assert "no_such_op" in message
    assert "error" in message
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n", "standard error is where it was"


@pytest.mark.skipif(TRITON >= (3, 8), reason="Triton 3.8 lowers dot_scaled to bfloat16 on gfx942")
def test_what_triton_cannot_lower(capfd):
    at = line_of("def mxfp8_tile")
    with pytest.raises(CompileError, match=rf"Unsupported DotScaleOp .* \(at test_crosscompile.py:{at}:0\)"):
        tile("gfx942")


def test_triton_arguments_are_checked():
    def refused(match, signature=COPY, constexprs=None, kernel=copy, warps=4, **options):
        with pytest.raises(ValueError, match=match):
            compile_triton(kernel, signature, constexprs or {"BLOCK": 64}, "gfx950", num_warps=warps, **options)

    refused("num_warps=3", warps=3)
    refused("num_warps=4.0 is not a positive whole number", warps=4.0)
    refused("num_warps=True is not a positive whole number", warps=True)
    refused("num_warps=None is not a positive whole number", warps=None)
    # the code object would state 1024 threads
    refused("num_warps=32: a workgroup of gfx950 has 16 waves at most", warps=32)
    refused("num_stages=-1 is not a positive whole number", num_stages=-1)
    refused('n=32 is no type of Triton with the letters D and S, like "', signature=COPY | {"n": 32})
    refused("n='i32:Q' is no type of Triton", signature=COPY | {"n": "i32:Q"})
    refused("Triton has no option maxnreg for gfx950; it has .*waves_per_eu", maxnreg=64)
    refused("every argument needs exactly one", signature={"x": "*fp32", "y": "*fp32"})
    refused("every argument needs exactly one", constexprs={"BLOCK": 64, "n": 64})
    refused("is no @triton.jit kernel", kernel=copy.fn)


def test_another_chips_code_is_never_returned(monkeypatch):
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", "gfx942")
    with pytest.raises(CompileError, match="asked for gfx950, got code for gfx942; is TRITON_OVERRIDE_ARCH set"):
        compile_triton(copy, COPY, {"BLOCK": 512}, "gfx950", num_warps=4)


@needs_clang
def test_a_broken_hip_source_is_told_by_its_first_error(tmp_path):
    source = tmp_path / "broken.hip"
    source.write_text("#define WRONG 1\n__global__ void f(int* x) { x[0] = nowhere; x[1] = elsewhere; }\n")
    with pytest.raises(CompileError) as caught:
        compile_hip(source, "gfx950", {})
    expected = "broken.hip for gfx950: broken.hip:2:49: error: use of undeclared identifier 'nowhere'"
    assert str(caught.value) == expected
    assert "elsewhere" in caught.value.log


@needs_nvcc
def test_a_broken_cuda_source_is_told_by_its_first_error(fp8_source):
    with pytest.raises(CompileError, match=r'^fp8.cu for sm_90a: fp8.cu\(8\): error: identifier "BIAS" is undefined$'):
        compile_cuda(fp8_source, "sm_90", {})


@needs_nvcc
def test_an_error_of_ptxas_is_told_too(tmp_path):
    source = tmp_path / "asm.cu"
    source.write_text('__global__ void f(int* x) { asm volatile("wgmma.fence.sync.aligned;"); }\n')
    assert compile_cuda(source, "sm_90", {}).instructions("WARPSYNC|WARPGROUP|NOP|EXIT")
    with pytest.raises(CompileError, match=r"^asm.cu for sm_89: ptxas asm.ptx, line \d+; error +: Instruction 'wgmma"):
        compile_cuda(source, "sm_89", {})


def hide(monkeypatch, *names: str) -> None:
    """Make shutil.which find none of these programs."""
    which = shutil.which
    hidden = lambda name, **rest: None if Path(name).name in names else which(name, **rest)  # noqa: E731
    monkeypatch.setattr(crosscompile.shutil, "which", hidden)


def test_missing_clang_is_named(monkeypatch):
    hide(monkeypatch, "clang-22", "clang", "amdclang")
    crosscompile.find_clang.cache_clear()
    with pytest.raises(CompilerMissing, match=r"looked for clang-22, .*found none of them. .*apt-get install clang-22"):
        compile_hip("x.hip", "gfx950", {})
    crosscompile.find_clang.cache_clear()


@needs_clang
def test_a_clang_without_its_linker_is_named(monkeypatch):
    hide(monkeypatch, "ld.lld")
    crosscompile.find_clang.cache_clear()
    with pytest.raises(CompilerMissing, match=r"clang-22 has no ld.lld.*lld-22"):
        compile_hip("x.hip", "gfx950", {})
    crosscompile.find_clang.cache_clear()


def test_missing_nvcc_and_nvrtc_are_named(monkeypatch, fp8_source):
    hide(monkeypatch, "nvcc")
    monkeypatch.setattr(crosscompile, "_libnvrtc", lambda: None)
    with pytest.raises(CompilerMissing, match=r"looked for nvcc in PATH, .*libnvrtc.*pip install nvidia-cuda-nvrtc"):
        compile_cuda(fp8_source, "sm_90", {"BIAS": 0})


def test_missing_nvdisasm_is_named(monkeypatch):
    hide(monkeypatch, "nvdisasm")
    with pytest.raises(CompilerMissing, match=r"no nvdisasm, .*: looked in Triton's wheel, in PATH"):
        compile_triton(copy, COPY, {"BLOCK": 1024}, "sm_90", num_warps=4)


@needs_nvcc
def test_an_nvcc_without_a_host_compiler_is_named(monkeypatch, fp8_source, tmp_path):
    nvcc = crosscompile.find_cuda_tool("nvcc")
    monkeypatch.setattr(crosscompile, "find_cuda_tool", lambda name: nvcc)
    for shell in ("sh", "bash"):  # nvcc may be a script
        if shutil.which(shell):
            (tmp_path / shell).symlink_to(shutil.which(shell))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    with pytest.raises(CompilerMissing, match=f"{re.escape(nvcc)} finds no C\\+\\+ compiler: install g"):
        compile_cuda(fp8_source, "sm_90", {"BIAS": 0})


@needs_nvcc
def test_an_nvcc_that_came_without_nvdisasm_is_named(monkeypatch, fp8_source):
    hide(monkeypatch, "nvdisasm")
    nvcc = re.escape(crosscompile.find_cuda_tool("nvcc"))
    with pytest.raises(CompilerMissing, match=f"looked beside {nvcc}, which came without it.*cuda-nvdisasm"):
        compile_cuda(fp8_source, "sm_90", {"BIAS": 0})


@needs_nvcc
@pytest.mark.parametrize("has_nvrtc", [True, False])
def test_an_old_nvcc_leaves_chips_that_it_does_not_know_to_nvrtc(monkeypatch, fp8_source, has_nvrtc):
    """Ubuntu 22.04's is 11.5, which has no sm_90; torch's wheels bring an NVRTC that does."""
    true = crosscompile._nvcc_build

    def old(nvcc, path, target, macros):
        log = f"nvcc fatal   : Unsupported gpu architecture 'compute_{target}'"
        raise CompileError(f"{path.name} for sm_{target}: {log}", log)

    def nvrtc(path, target, macros):
        return true(crosscompile.find_cuda_tool("nvcc"), path, target, macros)[0], None, "NVRTC 13.0"

    monkeypatch.setattr(crosscompile, "_nvcc_build", old)
    monkeypatch.setattr(crosscompile, "_nvrtc_build", nvrtc)
    monkeypatch.setattr(crosscompile, "_libnvrtc", lambda: Path("libnvrtc.so") if has_nvrtc else None)
    if has_nvrtc:
        assert compile_cuda(fp8_source, "sm_90", {"BIAS": 0}).compiler == "NVRTC 13.0"
    else:
        with pytest.raises(CompileError, match="Unsupported gpu architecture 'compute_90a'"):
            compile_cuda(fp8_source, "sm_90", {"BIAS": 0})


@pytest.mark.parametrize("triton_is_here", [True, False])
def test_a_toolkit_outside_path_is_found_whole(monkeypatch, tmp_path, triton_is_here):
    """As /usr/local/cuda is: nvcc and nvdisasm beside each other, and neither in PATH."""
    toolkit = tmp_path / "cuda-13.0/bin"
    toolkit.mkdir(parents=True)
    for name in ("nvcc", "nvdisasm"):
        (toolkit / name).write_text("#!/bin/sh\n")
        (toolkit / name).chmod(0o755)
    (tmp_path / "cuda").symlink_to("cuda-13.0")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    if not triton_is_here:
        monkeypatch.setattr(crosscompile.importlib.util, "find_spec", lambda name: None)
    nvcc = crosscompile.find_cuda_tool("nvcc")
    assert nvcc == str(tmp_path / "cuda/bin/nvcc")
    assert Path(crosscompile._nvdisasm(nvcc)).samefile(toolkit / "nvdisasm")


STUB_NVRTC = """
#include <dlfcn.h>
int nvrtcVersion(int* major, int* minor) { *major = 99; *minor = 1; return !dlopen("libnvrtc-builtins.so.99.1", 1); }
const char* nvrtcGetErrorString(int status) { return status ? "failed to open builtins" : ""; }
int nvrtcCreateProgram, nvrtcDestroyProgram, nvrtcCompileProgram, nvrtcGetProgramLogSize, nvrtcGetProgramLog;
int nvrtcGetCUBINSize, nvrtcGetCUBIN;
"""


def test_nvrtc_gets_the_builtins_beside_it(tmp_path):
    """CUDA 13.0's wheel: a library without a path to its builtins, which it opens by name. Here both are stubs."""
    compiler = shutil.which("gcc") or pytest.skip("no gcc: how NVRTC finds its builtins is untested")
    for name, source in (("libnvrtc-builtins.so.99.1", "int builtins;"), ("libnvrtc.so.99", STUB_NVRTC)):
        (tmp_path / "stub.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", tmp_path / name, tmp_path / "stub.c"]
        subprocess.run(command, check=True)
    assert crosscompile._Nvrtc(tmp_path / "libnvrtc.so.99").version == "99.1"


def test_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(crosscompile.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match=r"looked for the Python package triton.*pip install"):
        compile_triton(copy, COPY, {"BLOCK": 1024}, "sm_90", num_warps=4)


# Neighbours


def test_tritons_driver_is_left_alone():
    from triton.runtime.driver import driver

    before = dict(vars(driver))
    compile_triton(copy, COPY, {"BLOCK": 256}, "gfx950", num_warps=1)
    assert dict(vars(driver)) == before


def test_importing_needs_neither_torch_nor_triton():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None; import chipmath.crosscompile; "
        "assert not {'torch.cuda', 'triton.language'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "kernels")}, check=True)


@gluon.jit
def gluon_copy(x, y, BLOCK: gl.constexpr, LANES: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([4], [LANES], [4], [0])
    i = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=layout)
    gl.store(y + i, gl.load(x + i))


@pytest.mark.parametrize(("arch", "load"), [("gfx950", "global_load_dwordx4"), ("sm_90", "LDG.E.128")])
def test_gluon_kernels_compile_too(arch, load):
    lanes = DEVICES[arch].wave_lanes
    constexprs = {"BLOCK": 16 * lanes, "LANES": lanes}
    binary = compile_triton(gluon_copy, {"x": "*fp32:D", "y": "*fp32:D"}, constexprs, arch, num_warps=4)
    assert binary.instructions("^global_load|^LDG") == {load: 1}


@pytest.mark.slow
def test_two_processes_share_one_cache(tmp_path):
    """Both compile the same kernels into an empty cache at the same time, as parallel page builds do.

    Not compared is the code itself: ptxas 12.9 (Triton 3.6) orders sm_100a's instructions differently from run to run.
    """
    code = (
        "import test_crosscompile as t\n"
        "for arch in ('gfx950', 'sm_90', 'sm_100'):\n"
        "    b = t.tile(arch); print(arch, b.registers, b.shared_bytes, b.spills)\n"
    )
    paths = f"{ROOT / 'kernels'}{os.pathsep}{ROOT / 'tests'}"
    env = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (process.communicate()[0] for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert first == second
    assert len(first.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("warps", [2, 4, 8])
def test_ptxas_reports_the_spills_that_we_count(warps):
    """Triton's PTX, once more through its own ptxas with the flags it uses, for the report alone."""
    from triton.backends.nvidia.compiler import get_ptxas

    binary = tile("sm_90", warps)
    flags = ["-lineinfo", "-v", *(["--regAllocOptLevel=2"] if TRITON >= (3, 7) else []), "--gpu-name=sm_90a"]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "x.ptx", Path(folder) / "x.cubin"
        source.write_text(binary.ptx)
        command = [get_ptxas(90).path, *flags, source, "-o", target]
        seen = ptxas(subprocess.run(command, capture_output=True, text=True, check=True).stderr, binary.kernel)
    assert binary.spills == -(-seen["stores"] // 4)
    assert (binary.registers, binary.barriers) == (seen["registers"], seen["barriers"])
