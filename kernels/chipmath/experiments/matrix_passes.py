"""How long the matrix instructions of CDNA take, read from the wait states that a compiler inserts.

LLVM's hazard recognizer knows how many passes of 4 clocks each instruction makes: a vector or memory instruction may
read the result only so many slots later, and where nothing else is to be done LLVM fills them with s_nop. From the
passes follow FLOP per clock and, with a card's units and clock, its dense peak. `chipmath.devices` holds the same
numbers as facts; a test compares the two.
"""

import re

from chipmath.crosscompile import compile_hip
from chipmath.devices import DEVICES, PRODUCTS, MatrixInstruction
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.recordings import PACKAGE

# Slots between the last pass and the first reader, in LLVM's GCNHazardRecognizer.cpp:
# GFX940_XDL_N_PassWriteVgprVALUMemExpReadWaitStates and, for FP32, GFX940_SMFMA_N_Pass…
# (gfx950: llvm PR 126727 and 126732).
SLOTS_BEYOND = {"gfx90a": 3, "gfx942": 3, "gfx950": 4}
SLOTS_BEYOND_FP32 = 2  # from gfx942 on
FORMAT_CODES = {"fp8": 0, "fp6": 2, "fp4": 4}  # cbsz and blgp of f8f6f4: E4M3, E2M3, E2M1
OPERANDS = {  # what the builtin's name ends in -> type of A and B
    "f8f6f4": "int8v",
    "4f32": "float",
    "16f16": "half4",
    "8f16": "half4",
    "32_f16": "half8",
    "16_f16": "half8",
    "bf16_1k": "short4",
    "_bf16": "bfloat8",
    "fp8_fp8": "long",
}
# The assembler's names of gfx942 and gfx950 are not the builtins' for the instructions that CDNA2 had already.
CDNA2_BUILTINS = {
    "v_mfma_f32_16x16x4_f32": "v_mfma_f32_16x16x4f32",
    "v_mfma_f32_16x16x16_f16": "v_mfma_f32_16x16x16f16",
    "v_mfma_f32_32x32x8_f16": "v_mfma_f32_32x32x8f16",
    "v_mfma_f32_16x16x16_bf16": "v_mfma_f32_16x16x16bf16_1k",
    "v_mfma_f32_32x32x8_bf16": "v_mfma_f32_32x32x8bf16_1k",
}


def wait_slots(isa: str) -> tuple[str, int]:
    """The matrix instruction's name, and the slots between it and the first instruction that reads its result."""
    lines = [line.split(";")[0].split() for line in isa.splitlines() if re.match(r"\t[a-z]", line)]
    start = next(i for i, line in enumerate(lines) if line[0].startswith("v_mfma"))
    # Where the result is in AccVGPRs, moving it out is what waits.
    stop = next(i for i, line in enumerate(lines) if i > start and re.match(r"(global|flat)_store|v_acc", line[0]))
    slots = (int(line[1]) + 1 if line[0] == "s_nop" else 1 for line in lines[start + 1 : stop])
    return lines[start][0].removesuffix("_e64"), sum(slots)


def compile_case(arch, instruction, fmt) -> dict:
    """One row."""
    fact = next(i for i in DEVICES[arch].matrix_instructions if i.name == instruction and fmt in i.formats)
    binary = compile_hip(PACKAGE / "experiments/matrix_pass.hip", arch, _macros(fact, fmt))
    opcode, slots = wait_slots(binary.isa)
    beyond = SLOTS_BEYOND_FP32 if fmt == "fp32" and arch != "gfx90a" else SLOTS_BEYOND[arch]
    passes = slots - beyond
    per_simd = fact.flop / (4 * passes)
    product = next((p for p in PRODUCTS.values() if p.arch == arch), None)
    rate = product and product.units * product.matrix_clock_hz * DEVICES[arch].simds * per_simd
    return {
        "opcode": opcode,
        "wait_slots": slots,
        "passes": passes,
        "flop": fact.flop,
        "flop_per_clock_per_simd": per_simd,
        "product": product and product.name,
        "dense_flop_per_s": rate,
        "compiler": binary.compiler,
    }


def _macros(fact: MatrixInstruction, fmt: str) -> dict[str, str]:
    name = CDNA2_BUILTINS.get(fact.name, fact.name).removeprefix("v_mfma_")
    scaled = name.endswith("f8f6f4")
    operand = next(kind for ending, kind in OPERANDS.items() if name.endswith(ending))
    code = FORMAT_CODES.get(fmt)
    return {
        "BUILTIN": f"__builtin_amdgcn_mfma_{'scale_' if scaled else ''}{name}",
        "OPERAND": operand,
        "RESULT": {4: "float4", 16: "float16v"}[fact.m * fact.n // 64],
        # format of A and B, then operand selects and scales: literal scales 0, 0 give the unscaled instruction
        "MODIFIERS": f"{code},{code},0,0,0,0" if scaled else "0,0,0",
    }


CASES = tuple(
    {"arch": unit.arch, "instruction": instruction.name, "fmt": fmt}
    for unit in DEVICES.values()
    if unit.vendor == "AMD"
    for instruction in unit.matrix_instructions
    for fmt in instruction.formats
)

EXPERIMENT = CompiledExperiment(
    name="matrix_passes",
    question="How many clocks does each matrix instruction of CDNA take, and which peak follows?",
    sources=("experiments/matrix_passes.py", "experiments/matrix_pass.hip", "mini_hip.h"),
    keys={"arch": "chip compiled for", "instruction": "as chipmath.devices names it", "fmt": "operand format"},
    values={
        "opcode": "what the compiler emitted",
        "wait_slots": "4-clock slots before the result may be read",
        "passes": "of 4 clocks: wait_slots less what lies between the last pass and a reader",
        "flop": "per instruction, two for each multiply-add",
        "flop_per_clock_per_simd": "flop / (4 passes)",
        "product": "the card whose peak follows",
        "dense_flop_per_s": "its units x clock x SIMDs x FLOP per clock, without sparsity",
        "compiler": "who made the code",
    },
    cases=CASES,
    quick_cases=tuple(case for case in CASES if case["arch"] == "gfx950" and "f8f6f4" in case["instruction"])[:4],
    compile_case=compile_case,
)
