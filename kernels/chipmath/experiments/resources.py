"""A compiled kernel's resources as cells of a recording, the same columns for every compiled experiment."""

from chipmath.crosscompile import Binary
from chipmath.devices import device

MATRIX_OPCODE = "mfma|MMA"

RESOURCES = {
    "registers": "per thread; AMD: architectural VGPRs",
    "accumulators": "AccVGPRs per thread (AMD)",
    "scalars": "SGPRs per wave, VCC and the like included (AMD)",
    "shared_bytes": "LDS or shared memory per group, in bytes",
    "spills": "stores of a 32-bit register for want of registers",
    "code_bytes": "size of the machine code",
    "threads": "per group",
    "groups_per_unit": "whole groups per CU or SM, by chipmath.occupancy",
    "waves_per_unit": "waves or warps per CU or SM, by chipmath.occupancy",
    "limiters": "what admits no further group",
    "compiler_waves_per_simd": 'LLVM\'s own "; Occupancy:" (AMD)',
    "matrix_opcodes": "the matrix instructions in the code",
    "matrix_instructions": "how many of them stand in the code; loops count once",
    "compiler": "who made the code",
}


def resources(binary: Binary, *, dynamic_shared_bytes: int = 0, threads: int | None = None) -> dict:
    """The cells of one binary; what its vendor does not have is None."""
    amd = device(binary.arch).vendor == "AMD"
    occupancy = binary.occupancy(threads, dynamic_shared_bytes=dynamic_shared_bytes)
    opcodes = binary.instructions(MATRIX_OPCODE)
    return {
        "registers": binary.registers,
        "accumulators": binary.accumulators if amd else None,
        "scalars": binary.scalars if amd else None,
        "shared_bytes": binary.shared_bytes + dynamic_shared_bytes,
        "spills": binary.spills,
        "code_bytes": binary.code_bytes,
        "threads": threads or binary.threads,
        "groups_per_unit": occupancy.groups_per_unit,
        "waves_per_unit": occupancy.waves_per_unit,
        "limiters": ", ".join(occupancy.limiters),
        "compiler_waves_per_simd": binary.compiler_waves_per_simd,
        "matrix_opcodes": ", ".join(sorted(opcodes)),
        "matrix_instructions": opcodes.total(),
        "compiler": binary.compiler,
    }
