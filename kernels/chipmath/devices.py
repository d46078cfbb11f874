"""What each chip has: the facts that occupancy and peaks are computed from, each with its source.

``DEVICES`` holds one record an architecture: a `ComputeUnit` (AMD CDNA) or a `Multiprocessor` (NVIDIA). What the
architectures of a vendor share is a field's default; what differs is written in the record. Both kinds have
``vendor``, ``simds``, ``wave_lanes``, ``max_waves``, ``max_threads_per_group``, ``vector_rows_per_simd``,
``vector_granule_rows`` and ``matrix_rates``.
``PRODUCTS`` adds what depends on the card: number of units, clock, memory.

Units are in the names. One multiply-add is 2 FLOP. Every rate is dense: 2:4 sparsity appears nowhere in this file.
Sources, by their names in the comments:

ISA      AMD Instinct MI200, CDNA3 and CDNA4 instruction set architecture guides; section numbers are CDNA4's
LLVM     llvm/lib/Target/AMDGPU: Utils/AMDGPUBaseInfo.cpp, AMDGPUSubtarget.cpp, GCNHazardRecognizer.cpp
usage    LLVM's "User Guide for AMDGPU Backend"
rocprof  ROCm Compute Profiler documentation, "Pipeline descriptions"
guide    NVIDIA CUDA Programming Guide, "Compute Capabilities", technical specifications
header   cuda_occupancy.h of CUDA 13.0, with the function that holds the number
"""

import re
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True)
class MatrixInstruction:
    """A dense CDNA matrix instruction, D = A B + C with A (m, k) and B (k, n), issued by one SIMD."""

    name: str
    formats: tuple[str, ...]  # operand formats that run at this rate
    m: int
    n: int
    k: int
    passes: int  # 4 clocks each (LLVM: SISchedule.td, GCNHazardRecognizer)
    wait_states: int  # 4-clock slots before a vector or memory instruction may read D (LLVM: GCNHazardRecognizer)

    @property
    def flop(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.m * self.n * self.k

    @property
    def issue_clocks(self) -> int:
        """T of Little's law: clocks before the SIMD can start an independent one."""
        return 4 * self.passes

    @property
    def result_clocks(self) -> int:
        """L of Little's law: clocks before anything but the next instruction's C may read the result."""
        return 4 * self.wait_states


@dataclass(frozen=True)
class ComputeUnit:
    """One AMD compute unit (CU) of CDNA2, CDNA3 or CDNA4."""

    arch: str
    lds_bytes: int  # per CU, and the most one workgroup can have (LLVM: FeatureAddressableLocalMemorySize)
    lds_block_bytes: int  # allocation step of a workgroup (ISA 3.6.5; usage: GRANULATED_LDS_SIZE; llvm PR 220051)
    matrix_instructions: tuple[MatrixInstruction, ...]

    simds: int = 4  # per CU (LLVM: getEUsPerCU; rocprof "VALU")
    wave_lanes: int = 64  # (LLVM: getWavefrontSize)
    wave_slots_per_simd: int = 8  # (LLVM: getMaxWavesPerEU; rocprof "Scheduler")
    vector_rows_per_simd: int = 512  # 4-byte rows a lane, shared by VGPRs and AccVGPRs (LLVM: getTotalNumVGPRs)
    vector_granule_rows: int = 8  # allocation step of a wave (ISA 3.6.4; LLVM: getVGPRAllocGranule)
    accumulator_granule_rows: int = 4  # AccVGPRs start at a multiple of it (usage: ACCUM_OFFSET)
    max_vgprs: int = 256  # architectural, per wave (ISA 3.6.4)
    max_accvgprs: int = 256  # accumulation, per wave (ISA 3.6.4)
    scalar_registers_per_simd: int = 800  # 12.5 KiB a CU (rocprof "SALU"; LLVM: getTotalNumSGPRs)
    scalar_granule: int = 16  # allocation step of a wave (ISA 3.6.2; LLVM: getSGPRAllocGranule)
    trap_handler_scalars: int = 16  # in every wave, as ROCm always installs a handler (ISA 3.10; rocm-systems PR 10618)
    addressable_scalars: int = 102  # s0 to s101 (LLVM: getAddressableNumSGPRs)
    special_scalars: int = 6  # VCC, FLAT_SCRATCH and XNACK_MASK, in .sgpr_count too (LLVM: getNumExtraSGPRs)
    barriers: int = 16  # per CU, one for each workgroup of two or more waves (LLVM: getMaxWorkGroupsPerCU)
    max_threads_per_group: int = 1024  # (LLVM: getMaxFlatWorkGroupSize)
    vector_lanes_per_clock: int = 64  # 16 on each SIMD: a wave takes 4 clocks (rocprof "VALU")

    vendor = "AMD"

    @property
    def max_waves(self) -> int:
        """Wave slots of the whole CU."""
        return self.simds * self.wave_slots_per_simd

    @property
    def max_scalars(self) -> int:
        """The largest .sgpr_count that a code object can state."""
        return self.addressable_scalars + self.special_scalars

    @property
    def lds_blocks(self) -> int:
        """128 on every CDNA chip: CDNA4 has larger blocks, not more."""
        return self.lds_bytes // self.lds_block_bytes

    @property
    def matrix_rates(self) -> dict[str, float]:
        """FLOP per clock of the whole CU for each operand format: its best instruction, on every SIMD."""
        rates: dict[str, float] = {}
        for instruction in self.matrix_instructions:
            rate = self.simds * instruction.flop / instruction.issue_clocks
            for fmt in instruction.formats:
                rates[fmt] = max(rate, rates.get(fmt, 0.0))
        return rates


@dataclass(frozen=True)
class Multiprocessor:
    """One NVIDIA streaming multiprocessor (SM): a wave is a warp, a group a block, a SIMD a sub-partition."""

    arch: str
    max_waves: int  # warps per SM (guide)
    max_groups: int  # blocks per SM (header: cudaOccMaxBlocksPerMultiprocessor)
    carveouts_kib: tuple[int, ...]  # sizes of shared memory, the rest is L1 (header: cudaOccAlignUpShmemSizeVoltaPlus)
    barriers: int | None  # named barriers per SM (header: cudaOccMaxBlocksPerSMBlockBarrierLimit); None: not a limit
    tensor_fma_per_clock: tuple[tuple[str, int], ...]  # per SM: (operand format, multiply-adds); empty: no source
    tensor_memory_columns: int = 0  # of 128 rows of 4 bytes; the most that tcgen05.alloc gives a block (PTX ISA)

    simds: int = 4  # sub-partitions (header: cudaOccSubPartitionsPerMultiprocessor)
    wave_lanes: int = 32  # (guide)
    registers: int = 65536  # of 4 bytes per SM, and the most one block can have (guide)
    register_granule: int = 256  # allocation step of a warp (header: cudaOccRegAllocationGranularity)
    max_registers_per_thread: int = 255  # (guide; encoding 255 is RZ, which reads as zero)
    shared_granule_bytes: int = 128  # allocation step of a block (header: cudaOccSMemAllocationGranularity)
    shared_reserved_bytes: int = 1 * KIB  # in every block, for the driver (guide: "Shared Memory" of 8.x and later)
    max_barriers_per_group: int = 16  # barriers 0 to 15 (PTX ISA: barrier)
    max_threads_per_group: int = 1024  # (guide)
    vector_lanes_per_clock: int = 128  # an instruction of a warp on each sub-partition (guide: "Architecture", 8.x on)

    vendor = "NVIDIA"

    @property
    def vector_rows_per_simd(self) -> int:
        """Registers of a sub-partition for each of a warp's lanes: 512, as many as a CDNA SIMD has."""
        return self.registers // self.simds // self.wave_lanes

    @property
    def vector_granule_rows(self) -> int:
        """The allocation step for each lane: 8, again as on CDNA."""
        return self.register_granule // self.wave_lanes

    @property
    def shared_bytes(self) -> int:
        """The most shared memory that an SM can set aside."""
        return self.carveouts_kib[-1] * KIB

    @property
    def shared_optin_bytes(self) -> int:
        """The most that one block can ask for, by opting in above 48 KiB."""
        return self.shared_bytes - self.shared_reserved_bytes

    @property
    def matrix_rates(self) -> dict[str, float]:
        """FLOP per clock of the whole SM for each operand format."""
        return {fmt: 2.0 * fma for fmt, fma in self.tensor_fma_per_clock}


@dataclass(frozen=True)
class Product:
    """A card. None: no source at hand, so nothing is computed from it."""

    name: str
    arch: str
    source: str
    hbm_bytes_per_s: float
    units: int  # enabled CUs or SMs
    matrix_clock_hz: float | None  # the highest clock the vendor states for matrix work
    vector_clock_hz: float  # and for all else

    def peak_flop_per_s(self, fmt: str) -> float:
        """Dense matrix peak for operands in ``fmt``: units x clock x FLOP per clock."""
        rates = DEVICES[self.arch].matrix_rates
        if fmt not in rates:
            raise ValueError(f"no matrix rate on record for {fmt!r} on {self.arch}; known: {', '.join(rates)}")
        if self.matrix_clock_hz is None:
            raise ValueError(f"no clock on record for {self.name}, so no peak follows")
        return self.units * self.matrix_clock_hz * rates[fmt]

    @property
    def vector_lanes_per_byte(self) -> float:
        """Lanes of vector instructions that can issue, at the highest clock, while memory moves a byte at full rate."""
        lanes = self.units * DEVICES[self.arch].vector_lanes_per_clock
        return lanes * self.vector_clock_hz / self.hbm_bytes_per_s


# Passes and wait states as LLVM 24 schedules them; tests/test_devices.py reads them back out of compiled code.
# FP8 of CDNA3 is the FNUZ variant, FP8 of CDNA4 is OCP's; their rate is all that counts here.
CDNA2_MATRIX = (
    MatrixInstruction("v_mfma_f32_16x16x4f32", ("fp32",), 16, 16, 4, passes=8, wait_states=11),
    MatrixInstruction("v_mfma_f32_16x16x16f16", ("fp16",), 16, 16, 16, passes=8, wait_states=11),
    MatrixInstruction("v_mfma_f32_32x32x8f16", ("fp16",), 32, 32, 8, passes=16, wait_states=19),
    MatrixInstruction("v_mfma_f32_16x16x16bf16_1k", ("bf16",), 16, 16, 16, passes=8, wait_states=11),
    MatrixInstruction("v_mfma_f32_32x32x8bf16_1k", ("bf16",), 32, 32, 8, passes=16, wait_states=19),
)
CDNA3_MATRIX = (
    MatrixInstruction("v_mfma_f32_16x16x4_f32", ("fp32",), 16, 16, 4, passes=8, wait_states=10),
    MatrixInstruction("v_mfma_f32_16x16x16_f16", ("fp16",), 16, 16, 16, passes=4, wait_states=7),
    MatrixInstruction("v_mfma_f32_32x32x8_f16", ("fp16",), 32, 32, 8, passes=8, wait_states=11),
    MatrixInstruction("v_mfma_f32_16x16x16_bf16", ("bf16",), 16, 16, 16, passes=4, wait_states=7),
    MatrixInstruction("v_mfma_f32_32x32x8_bf16", ("bf16",), 32, 32, 8, passes=8, wait_states=11),
    MatrixInstruction("v_mfma_f32_16x16x32_fp8_fp8", ("fp8",), 16, 16, 32, passes=4, wait_states=7),
    MatrixInstruction("v_mfma_f32_32x32x16_fp8_fp8", ("fp8",), 32, 32, 16, passes=8, wait_states=11),
)
CDNA4_MATRIX = (
    MatrixInstruction("v_mfma_f32_16x16x4_f32", ("fp32",), 16, 16, 4, passes=8, wait_states=10),
    MatrixInstruction("v_mfma_f32_16x16x32_f16", ("fp16",), 16, 16, 32, passes=4, wait_states=8),
    MatrixInstruction("v_mfma_f32_32x32x16_f16", ("fp16",), 32, 32, 16, passes=8, wait_states=12),
    MatrixInstruction("v_mfma_f32_16x16x32_bf16", ("bf16",), 16, 16, 32, passes=4, wait_states=8),
    MatrixInstruction("v_mfma_f32_32x32x16_bf16", ("bf16",), 32, 32, 16, passes=8, wait_states=12),
    # CDNA3's FP8 shapes still exist and run at half the rate of the f8f6f4 ones.
    MatrixInstruction("v_mfma_f32_16x16x32_fp8_fp8", ("fp8",), 16, 16, 32, passes=4, wait_states=8),
    MatrixInstruction("v_mfma_f32_32x32x16_fp8_fp8", ("fp8",), 32, 32, 16, passes=8, wait_states=12),
    # One FP8 operand is enough for the FP8 rate; the scaled form (v_mfma_scale_...) runs at the same rate.
    MatrixInstruction("v_mfma_f32_16x16x128_f8f6f4", ("fp8",), 16, 16, 128, passes=8, wait_states=12),
    MatrixInstruction("v_mfma_f32_32x32x64_f8f6f4", ("fp8",), 32, 32, 64, passes=16, wait_states=20),
    MatrixInstruction("v_mfma_f32_16x16x128_f8f6f4", ("fp6", "fp4"), 16, 16, 128, passes=4, wait_states=8),
    MatrixInstruction("v_mfma_f32_32x32x64_f8f6f4", ("fp6", "fp4"), 32, 32, 64, passes=8, wait_states=12),
)

# NVIDIA H100 white paper: 4 tensor cores an SM, each with 512 FP16 or BF16 and 1024 FP8 multiply-adds a clock.
HOPPER_TENSOR = (("fp16", 4 * 512), ("bf16", 4 * 512), ("fp8", 4 * 1024))
# CUTLASS "Blackwell SM100 GEMMs": tcgen05.mma runs FP8 and FP6 at 2x and block-scaled FP4 at 4x Hopper's FP8 rate.
BLACKWELL_TENSOR = (("fp8", 2 * 4 * 1024), ("fp6", 2 * 4 * 1024), ("fp4", 4 * 4 * 1024))

CARVEOUTS_100_KIB = (0, 8, 16, 32, 64, 100)
CARVEOUTS_164_KIB = (*CARVEOUTS_100_KIB, 132, 164)
CARVEOUTS_228_KIB = (*CARVEOUTS_164_KIB, 196, 228)

DEVICES = {
    record.arch: record
    for record in (
        ComputeUnit("gfx90a", 64 * KIB, 512, CDNA2_MATRIX),
        ComputeUnit("gfx942", 64 * KIB, 512, CDNA3_MATRIX),
        ComputeUnit("gfx950", 160 * KIB, 1280, CDNA4_MATRIX),
        Multiprocessor("sm_80", 64, 32, CARVEOUTS_164_KIB, None, ()),
        Multiprocessor("sm_86", 48, 16, CARVEOUTS_100_KIB, None, ()),
        Multiprocessor("sm_89", 48, 24, CARVEOUTS_100_KIB, None, ()),
        Multiprocessor("sm_90", 64, 32, CARVEOUTS_228_KIB, 64, HOPPER_TENSOR),
        Multiprocessor("sm_100", 64, 32, CARVEOUTS_228_KIB, 64, BLACKWELL_TENSOR, tensor_memory_columns=512),
        Multiprocessor("sm_103", 64, 32, CARVEOUTS_228_KIB, 64, (), tensor_memory_columns=512),
        Multiprocessor("sm_120", 48, 24, CARVEOUTS_100_KIB, 24, ()),
    )
}

PRODUCTS = {
    "MI300X": Product(
        "AMD Instinct MI300X",
        "gfx942",
        source="AMD Instinct MI300X data sheet; ROCm documentation, AMD GPU specifications",
        hbm_bytes_per_s=5.3e12,
        units=304,
        matrix_clock_hz=2.1e9,
        vector_clock_hz=2.1e9,
    ),
    "MI355X": Product(
        "AMD Instinct MI355X",
        "gfx950",
        source="AMD Instinct MI355X data sheet; ROCm documentation, AMD GPU specifications",
        hbm_bytes_per_s=8.0e12,
        units=256,
        matrix_clock_hz=2.4e9,
        vector_clock_hz=2.4e9,
    ),
    "H100 SXM": Product(
        "NVIDIA H100 SXM5 80GB",
        "sm_90",
        source="NVIDIA H100 white paper: 1830 MHz for tensor-core work, 1980 MHz otherwise; H100 data sheet",
        hbm_bytes_per_s=3.35e12,
        units=132,
        matrix_clock_hz=1.83e9,
        vector_clock_hz=1.98e9,
    ),
    "H200 SXM": Product(
        "NVIDIA H200 SXM5 141GB",
        "sm_90",
        source="NVIDIA H200 data sheet (memory); the processor is the H100's",
        hbm_bytes_per_s=4.8e12,
        units=132,
        matrix_clock_hz=1.83e9,
        vector_clock_hz=1.98e9,
    ),
    "B200": Product(
        "NVIDIA B200",
        "sm_100",
        source="NVIDIA Blackwell data sheet, HGX B200 (bandwidth); cudaDeviceProp.multiProcessorCount (SMs); "
        "1965 MHz is the clock that public benchmark logs name, for want of a document",
        hbm_bytes_per_s=7.7e12,
        units=148,
        matrix_clock_hz=None,
        vector_clock_hz=1.965e9,
    ),
}


def device(arch: str) -> ComputeUnit | Multiprocessor:
    """The record of ``arch`` as compilers and drivers spell it: "gfx942:sramecc+:xnack-" and "sm_90a" included."""
    name = str(arch).split(":")[0]  # target features change no limit
    name = re.sub(r"^(sm_\d+)[af]$", r"\1", name)  # nor do architecture- and family-specific variants
    if name not in DEVICES:
        raise ValueError(f"unknown architecture {arch!r}; known: {', '.join(DEVICES)}")
    return DEVICES[name]
