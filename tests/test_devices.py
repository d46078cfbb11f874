import dataclasses
import re

import pytest
from chipmath.crosscompile import CompileError, CompilerMissing, compile_cuda
from chipmath.devices import DEVICES, KIB, PRODUCTS, device
from oracles import llvm_amdgpu


def test_names_as_compilers_spell_them():
    assert device("gfx942:sramecc+:xnack-") is DEVICES["gfx942"]
    assert device("gfx90a") is DEVICES["gfx90a"]  # its a is not a suffix
    assert device("sm_90a") is DEVICES["sm_90"]
    assert device("sm_103a") is device("sm_103f") is DEVICES["sm_103"]


@pytest.mark.parametrize("arch", ["gfx940", "gfx1100", "gfx9", "sm_70", "sm_90b", "sm90", "SM_90", "", "cuda:90", 90])
def test_unknown_architecture(arch):
    with pytest.raises(ValueError, match=f"unknown architecture {arch!r}; known: gfx90a, gfx942, gfx950, sm_80, .*120"):
        device(arch)


def test_records_are_frozen_and_keyed_by_their_own_name():
    amd, nvidia = ["gfx90a", "gfx942", "gfx950"], ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"]
    assert list(DEVICES) == amd + nvidia
    for arch, record in DEVICES.items():
        assert record.arch == arch
        hash(record)
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.simds = 8


def test_both_vendors_share_one_register_file():
    """512 rows of 4 bytes for each lane of a SIMD or sub-partition, in steps of 8."""
    for record in DEVICES.values():
        assert (record.simds, record.vector_rows_per_simd, record.vector_granule_rows) == (4, 512, 8)
    cdna = DEVICES["gfx950"]  # ROCm, AMD GPU specifications: VGPR file 512 KiB a CU
    assert cdna.simds * cdna.vector_rows_per_simd * cdna.wave_lanes * 4 == 512 * KIB
    assert DEVICES["sm_90"].registers * 4 == 256 * KIB  # H100 data sheet: register file 256 KB an SM


def test_lds_is_128_blocks_on_every_cdna_chip():
    assert [DEVICES[arch].lds_blocks for arch in ("gfx90a", "gfx942", "gfx950")] == [128, 128, 128]
    assert 4 * DEVICES["gfx950"].scalar_registers_per_simd * 4 == 12.5 * KIB  # ROCm, AMD GPU specifications


def test_the_name_of_a_matrix_instruction_is_its_shape():
    named = [one for unit in DEVICES.values() if unit.vendor == "AMD" for one in unit.matrix_instructions]
    assert len(named) > 20
    for one in named:
        shape = re.search(r"_(\d+)x(\d+)x(\d+)(?!\d)", one.name).groups()
        assert (one.m, one.n, one.k) == tuple(map(int, shape)), one.name


def test_scalars_end_where_the_compiler_ends():
    """A kernel that clobbers s101 states the largest .sgpr_count; beyond it there is no register to name."""
    arch = "gfx950"
    ir = llvm_amdgpu.kernel(0, vgprs=1, accvgprs=0, sgprs=102, shared_bytes=16, threads=64)
    _, (assembly,) = llvm_amdgpu.assemble([(arch, ir)])
    assert re.search(r"\.sgpr_count: +(\d+)", assembly)[1] == str(DEVICES[arch].max_scalars)


# The vendors' published dense peaks, in TFLOP/s: AMD Instinct MI300X and MI355X data sheets, NVIDIA H100 white paper.
PUBLISHED = [
    ("MI300X", "fp32", 163.4),
    ("MI300X", "fp16", 1307.4),
    ("MI300X", "bf16", 1307.4),
    ("MI300X", "fp8", 2614.9),
    ("MI355X", "fp32", 157.3),
    ("MI355X", "fp16", 2516.6),
    ("MI355X", "bf16", 2516.6),
    ("MI355X", "fp8", 5033.2),
    ("MI355X", "fp6", 10066.3),
    ("MI355X", "fp4", 10066.3),
    ("H100 SXM", "fp16", 989.4),
    ("H100 SXM", "bf16", 989.4),
    ("H100 SXM", "fp8", 1978.9),
]


@pytest.mark.parametrize(("name", "fmt", "tera"), PUBLISHED)
def test_peaks_match_the_data_sheets(name, fmt, tera):
    assert PRODUCTS[name].peak_flop_per_s(fmt) / 1e12 == pytest.approx(tera, abs=0.05)  # the last printed digit


# The vendors' published memory bandwidths, in TB/s: AMD Instinct MI300X and MI355X data sheets, NVIDIA H100 data sheet
# (SXM), H200 data sheet, Blackwell data sheet (HGX B200; its driver reports memory clock times bus width as 7.67).
PUBLISHED_BANDWIDTH = {"MI300X": 5.3, "MI355X": 8.0, "H100 SXM": 3.35, "H200 SXM": 4.8, "B200": 7.7}


@pytest.mark.parametrize("name", PRODUCTS)
def test_memory_bandwidths_match_the_data_sheets(name):
    assert PRODUCTS[name].hbm_bytes_per_s / 1e12 == PUBLISHED_BANDWIDTH[name]


# Enabled units, and the highest matrix clock in GHz, from the sources named in the record: 8 XCDs of 38 and of 32 CUs,
# 66 TPCs of 2 SMs.
PUBLISHED_CHIPS = {"MI300X": (8 * 38, 2.1), "MI355X": (8 * 32, 2.4), "H100 SXM": (66 * 2, 1.83)}
PUBLISHED_CHIPS |= {"H200 SXM": PUBLISHED_CHIPS["H100 SXM"], "B200": (148, None)}


@pytest.mark.parametrize("name", PRODUCTS)
def test_units_and_clocks_match_the_data_sheets(name):
    units, gigahertz = PUBLISHED_CHIPS[name]
    assert PRODUCTS[name].units == units
    assert PRODUCTS[name].matrix_clock_hz == (gigahertz and gigahertz * 1e9)


def test_matrix_rates_per_unit():
    """ISSCC 2026, AMD: FP8 went from 4096 to 8192 FLOP per clock and CU."""
    assert DEVICES["gfx942"].matrix_rates["fp8"] == 4096
    assert DEVICES["gfx950"].matrix_rates["fp8"] == 8192
    assert DEVICES["gfx90a"].matrix_rates["fp16"] == 1024  # CDNA2 white paper
    # CUTLASS, "Blackwell SM100 GEMMs": multiples of Hopper's FP8 rate, which the white paper's peak fixes above
    assert DEVICES["sm_100"].matrix_rates == {
        fmt: times * DEVICES["sm_90"].matrix_rates["fp8"] for fmt, times in {"fp8": 2, "fp6": 2, "fp4": 4}.items()
    }


TENSOR_MEMORY = """
extern "C" __global__ void allocate() {
  __shared__ int where;
  const unsigned address = __cvta_generic_to_shared(&where);
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" :: "r"(address), "n"(COLUMNS));
}
"""


@pytest.mark.parametrize("arch", [name for name, unit in DEVICES.items() if unit.vendor == "NVIDIA"])
def test_tensor_memory_is_what_ptxas_lets_a_block_allocate(arch, tmp_path):
    """All columns and no more; none where the chip has no such instruction."""
    source, columns = tmp_path / "allocate.cu", DEVICES[arch].tensor_memory_columns
    source.write_text(TENSOR_MEMORY)
    try:
        if columns:
            compile_cuda(source, arch, {"COLUMNS": columns})
        with pytest.raises(CompileError, match="out of range" if columns else "not supported on .target"):
            compile_cuda(source, arch, {"COLUMNS": 2 * columns or 32})
    except CompilerMissing as error:
        pytest.skip(f"not compiled: {error}")


def test_no_peak_without_a_source():
    with pytest.raises(ValueError, match="no clock on record for NVIDIA B200"):
        PRODUCTS["B200"].peak_flop_per_s("fp8")
    with pytest.raises(ValueError, match="no matrix rate on record for 'fp4' on gfx942; known: fp32, fp16, bf16, fp8"):
        PRODUCTS["MI300X"].peak_flop_per_s("fp4")


# LLVM's intrinsics and their operand types. f8f6f4 names its formats in two immediates: 0 E4M3, 2 E2M3, 4 E2M1.
INTRINSICS = {
    "v_mfma_f32_16x16x4f32": ("mfma.f32.16x16x4f32", "float"),
    "v_mfma_f32_16x16x4_f32": ("mfma.f32.16x16x4f32", "float"),
    "v_mfma_f32_16x16x16f16": ("mfma.f32.16x16x16f16", "<4 x half>"),
    "v_mfma_f32_32x32x8f16": ("mfma.f32.32x32x8f16", "<4 x half>"),
    "v_mfma_f32_16x16x16_f16": ("mfma.f32.16x16x16f16", "<4 x half>"),
    "v_mfma_f32_32x32x8_f16": ("mfma.f32.32x32x8f16", "<4 x half>"),
    "v_mfma_f32_16x16x16bf16_1k": ("mfma.f32.16x16x16bf16.1k", "<4 x i16>"),
    "v_mfma_f32_32x32x8bf16_1k": ("mfma.f32.32x32x8bf16.1k", "<4 x i16>"),
    "v_mfma_f32_16x16x16_bf16": ("mfma.f32.16x16x16bf16.1k", "<4 x i16>"),
    "v_mfma_f32_32x32x8_bf16": ("mfma.f32.32x32x8bf16.1k", "<4 x i16>"),
    "v_mfma_f32_16x16x32_f16": ("mfma.f32.16x16x32.f16", "<8 x half>"),
    "v_mfma_f32_32x32x16_f16": ("mfma.f32.32x32x16.f16", "<8 x half>"),
    "v_mfma_f32_16x16x32_bf16": ("mfma.f32.16x16x32.bf16", "<8 x bfloat>"),
    "v_mfma_f32_32x32x16_bf16": ("mfma.f32.32x32x16.bf16", "<8 x bfloat>"),
    "v_mfma_f32_16x16x32_fp8_fp8": ("mfma.f32.16x16x32.fp8.fp8", "i64"),
    "v_mfma_f32_32x32x16_fp8_fp8": ("mfma.f32.32x32x16.fp8.fp8", "i64"),
    "v_mfma_f32_16x16x128_f8f6f4": ("mfma.scale.f32.16x16x128.f8f6f4", None),
    "v_mfma_f32_32x32x64_f8f6f4": ("mfma.scale.f32.32x32x64.f8f6f4", None),
}
F8F6F4 = {"fp8": (0, "<8 x i32>"), "fp6": (2, "<6 x i32>"), "fp4": (4, "<4 x i32>")}
INSTRUCTIONS = [
    (record.arch, instruction, fmt)
    for record in DEVICES.values()
    if record.vendor == "AMD"
    for instruction in record.matrix_instructions
    for fmt in instruction.formats
]


def matrix_kernel(instruction, fmt: str) -> str:
    """One matrix instruction whose result is stored: the compiler must wait in between."""
    intrinsic, operand = INTRINSICS[instruction.name]
    modifiers = "i32 0, i32 0, i32 0"
    if operand is None:
        code, operand = F8F6F4[fmt]
        intrinsic += 2 * f".v{operand[1]}i32"
        modifiers = f"i32 {code}, i32 {code}, i32 0, i32 0, i32 0, i32 0"  # literal scales 0, 0: the unscaled form
    result = f"<{instruction.m * instruction.n // 64} x float>"
    return f"""
    define amdgpu_kernel void @k(ptr addrspace(1) %out) {{
      %a = call {operand} asm sideeffect "", "=v"()
      %c = call {result} asm sideeffect "", "=v"()
      %d = call {result} @llvm.amdgcn.{intrinsic}({operand} %a, {operand} %a, {result} %c, {modifiers})
      store {result} %d, ptr addrspace(1) %out
      ret void
    }}"""


def wait_states(assembly: str) -> tuple[str, int]:
    """The matrix instruction's name, and the 4-clock slots between it and the first store of its result."""
    lines = [line.split(";")[0].split() for line in assembly.splitlines() if line.startswith("\t")]
    lines = [line for line in lines if line and not line[0].startswith(".")]
    start = next(i for i, line in enumerate(lines) if line[0].startswith("v_mfma"))
    stop = next(i for i, line in enumerate(lines) if line[0].startswith("global_store"))
    slots = [int(line[1]) + 1 if line[0] == "s_nop" else 1 for line in lines[start + 1 : stop]]
    return lines[start][0].removesuffix("_e64"), sum(slots)


def test_passes_as_the_compiler_schedules_them(report):
    """LLVM waits passes + 3 slots before a result is read, + 4 on gfx950; for FP32 from gfx942 on, + 2."""
    version, assembly = llvm_amdgpu.assemble([(arch, matrix_kernel(i, fmt)) for arch, i, fmt in INSTRUCTIONS])
    for (arch, instruction, fmt), text in zip(INSTRUCTIONS, assembly, strict=True):
        assert wait_states(text) == (instruction.name, instruction.wait_states), (arch, fmt)
        beyond = {"gfx90a": 3, "gfx942": 3, "gfx950": 4}[arch]
        if fmt == "fp32" and arch != "gfx90a":
            beyond = 2
        assert instruction.wait_states == instruction.passes + beyond, (arch, instruction.name)
    report(f"LLVM {version}: passes of {len(INSTRUCTIONS)} matrix instructions confirmed")


def test_two_chains_hide_every_matrix_instruction():
    """Little's law: ceil(L / T) independent accumulators keep a SIMD's matrix core busy."""
    for _, instruction, _ in INSTRUCTIONS:
        assert -(-instruction.result_clocks // instruction.issue_clocks) == 2, instruction.name


def test_lanes_a_byte_worked_by_hand():
    """H100: 132 SMs x 128 lanes x 1.98 GHz = 33.45e12 a second, over 3.35e12 bytes. MI355X: 256 x 64 x 2.4 / 8."""
    assert PRODUCTS["H100 SXM"].vector_lanes_per_byte == pytest.approx(33.45 / 3.35, rel=1e-3)
    assert PRODUCTS["MI355X"].vector_lanes_per_byte == pytest.approx(39.32 / 8, rel=1e-3)
    assert PRODUCTS["H200 SXM"].vector_lanes_per_byte < PRODUCTS["H100 SXM"].vector_lanes_per_byte
