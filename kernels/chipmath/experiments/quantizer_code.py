"""What compilers make of the quantizers: instructions an element, resources, memory operations, converters.

The kernels of `chipmath.quantize_gpu` as they are launched, other choices of the same, and the steps that lead to them.
Instructions are all those in the code but padding, over the elements that a thread holds: the kernels have no loop. On
AMD chips some are scalar or wait states, which take no vector slot: ``vector_instructions`` leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from chipmath.crosscompile import Binary, compile_triton, find_triton
from chipmath.devices import device
from chipmath.experiments.experiment import CompiledExperiment
from chipmath.experiments.resources import RESOURCES, resources

if TYPE_CHECKING:
    from chipmath.quantize_gpu import Configuration

ARCHS = ("sm_90", "sm_100", "gfx950", "gfx942")
RULE = "rceil"
LOADS = r"LDG|(buffer|global)_load"
STORES = r"STG|(buffer|global)_store"
CONVERTERS = r"F2FP.*E[45]M[23]|v_cvt_(scalef32_)?pk_[fb]"
SHARED = r"LDS|STS|LDSM|STSM|^ds_(read|write)"  # ds_bpermute only moves values between lanes
MAXIMA = r"^FMNMX|^v_(pk_)?max"
EXCHANGES = r"^SHFL|^ds_bpermute|_dpp$|permlane|^ds_swizzle"  # between lanes of a wave
# NVIDIA: all that issues for half of a warp a clock if only 64 of an SM's 128 lanes have a unit for it. Integers'
# multiply-adds have such a unit of their own; exchanges go another way.
HALF_RATE = r"^(FMNMX|FSEL|FSETP|VIMNMX|VIADD|IADD|ISETP|LOP3|PLOP3|LEA|PRMT|SEL|SHF\.|F2FP)"
PADDING = r"^NOP$|^s_code_end$"
SCALAR = r"^s_"  # AMD: wait states, branches and scalar arithmetic, issued beside the vector instructions


def _tile(shape: tuple[int, int], rows: bool, columns: bool, encoder: str | None = None, log2: bool = False):
    def choose(arch: str, dtype: str) -> Configuration:
        from chipmath.experiments.quantizer_rungs import tile_kernel

        changes = {} if encoder is None else {"encoder": encoder}
        ours = _configure("rows", arch, dtype, **changes)
        constexprs = {name: ours.constexprs[name] for name in tile_kernel.arg_names if name in ours.constexprs}
        constexprs |= {"ROWS": rows, "COLUMNS": columns, "TILE_M": shape[0], "TILE_K": shape[1], "LOG2": log2}
        held = shape[0] * shape[1] // (ours.num_warps * device(arch).wave_lanes)
        return replace(ours, kernel=tile_kernel, constexprs=constexprs, tile=shape, elements_a_thread=held)

    return choose


def _ours(direction: str, **options):
    return lambda arch, dtype: _configure(direction, arch, dtype, **options)


def _configure(direction: str, arch: str, dtype: str, *, rule: str = RULE, **options) -> Configuration:
    from chipmath.formats import E4M3
    from chipmath.quantize_gpu import configuration

    return configuration(direction, dtype, E4M3, rule, arch, **options)


# Everything that the chapter compares; the first of a direction named "… as launched" is what users get.
VARIANTS: dict[str, Callable[[str, str], Configuration]] = {
    "rows: logarithm, integer encoder": _tile((8, 1024), True, False, "integer", log2=True),
    "rows: integer scale, integer encoder, in tiles": _tile((8, 1024), True, False, "integer"),
    "rows: integer scale, integer encoder": _ours("rows", encoder="integer"),
    "rows: as launched": _ours("rows"),
    "rows: masked": _ours("rows", even=False),
    "rows: 128x4 scales": _ours("rows", scale_layout="128x4"),
    "rows: 128x4 scales, masked": _ours("rows", scale_layout="128x4", even=False),
    "columns: through shared memory": _tile((64, 128), False, True),
    "columns: as launched": _ours("columns"),
    "columns: masked": _ours("columns", even=False),
    "columns: 128x4 scales": _ours("columns", scale_layout="128x4"),
    "columns: 128x4 scales, masked": _ours("columns", scale_layout="128x4", even=False),
    "columns: 8 rows a thread": _ours("columns", patch=(8, 8)),
    "both: through shared memory": _tile((64, 64), True, True),
    "both: through shared memory, 32 x 256": _tile((32, 256), True, True),
    "both: through shared memory, 32 x 512": _tile((32, 512), True, True),
    "both: as launched": _ours("both"),
    "both: masked": _ours("both", even=False),
    "both: 128x4 scales": _ours("both", scale_layout="128x4"),
    "both: 128x4 scales, masked": _ours("both", scale_layout="128x4", even=False),
    "both: scales by floor": _ours("both", rule="floor"),
    "both: 4 rows a thread": _ours("both", patch=(4, 8)),
    "both: 16 rows a thread": _ours("both", patch=(16, 8)),
    "both: 4 columns a thread": _ours("both", patch=(8, 4)),
}
LAUNCHED = tuple(name for name in VARIANTS if name.endswith("as launched"))


def compile_quantizer(chosen: Configuration, arch: str, *, aligned: bool = True) -> Binary:
    """A configuration as a launch would compile it; ``aligned``: sizes are multiples of 16, as a launch finds out."""
    find_triton()
    letters = "DS" if device(arch).vendor == "AMD" else "D"
    names = [name for name in chosen.kernel.arg_names if name not in chosen.constexprs]
    word = "*i32" if chosen.constexprs["DTYPE"] == "float32" else "*i16"
    kinds = {"x": word, "blocks": "i32", "M": "i32", "K": "i32"}
    signature = {name: kinds.get(name, "*u8") for name in names}
    specialised = {
        name: f"{kind}:{letters}" if kind[0] == "*" else f"{kind}:D" if aligned else kind
        for name, kind in signature.items()
    }
    return compile_triton(chosen.kernel, specialised, chosen.constexprs, arch, num_warps=chosen.num_warps)


def compile_case(arch, variant, dtype) -> dict:
    """One row."""
    find_triton()
    chosen = VARIANTS[variant](arch, dtype)
    binary = compile_quantizer(chosen, arch)
    amd = device(arch).vendor == "AMD"
    every = binary.instructions() - binary.instructions(PADDING)
    vector = every.total() - (binary.instructions(SCALAR).total() if amd else 0)
    cells = resources(binary)
    del cells["matrix_opcodes"], cells["matrix_instructions"]
    held = chosen.elements_a_thread
    return cells | {
        "elements_a_thread": held,
        "instructions_an_element": every.total() / held,
        "vector_instructions_an_element": vector / held,
        "loads": _written(binary, LOADS),
        "stores": _written(binary, STORES),
        "converters": _written(binary, CONVERTERS),
        "shared_operations": binary.instructions(SHARED).total(),
        "maxima_an_element": binary.instructions(MAXIMA).total() / held,
        "exchanges_an_element": binary.instructions(EXCHANGES).total() / held,
        "half_rate_an_element": None if amd else binary.instructions(HALF_RATE).total() / held,
        "loads_ahead": loads_ahead(binary.opcodes()),
    }


def loads_ahead(opcodes: list[str]) -> float:
    """Share of a thread's loads that stand before its first exchange with another lane: what can be under way at once.

    A compiler that has begun to combine maxima waits for what they are maxima of.
    """
    exchanges = [place for place, opcode in enumerate(opcodes) if re.search(EXCHANGES, opcode)]
    loads = [place for place, opcode in enumerate(opcodes) if re.search(LOADS, opcode)]
    first = exchanges[0] if exchanges else len(opcodes)
    return sum(place < first for place in loads) / len(loads)


def _written(binary: Binary, pattern: str) -> str:
    return ", ".join(f"{count} {opcode}" for opcode, count in sorted(binary.instructions(pattern).items()))


def _cases() -> tuple[dict, ...]:
    every = [{"arch": arch, "variant": variant, "dtype": "bfloat16"} for arch in ARCHS for variant in VARIANTS]
    others = [
        {"arch": arch, "variant": variant, "dtype": dtype}
        for arch in ARCHS
        for variant in LAUNCHED
        for dtype in ("float16", "float32")
    ]
    one_load = [{"arch": arch, "variant": "both: 4 columns a thread", "dtype": "float32"} for arch in ARCHS]
    return (*every, *others, *one_load)


EXPERIMENT = CompiledExperiment(
    name="quantizer_code",
    question="How many instructions does a quantizer spend on an element, and what does a thread hold?",
    sources=(
        *("experiments/quantizer_code.py", "experiments/quantizer_rungs.py", "experiments/resources.py"),
        *("quantize_gpu.py", "quantize_kernels.py", "formats.py"),
    ),
    keys={
        "arch": "chip compiled for",
        "variant": "which kernel",
        "dtype": "of x; elements are E4M3, scales by rceil unless the variant says otherwise",
    },
    values={name: text for name, text in RESOURCES.items() if not name.startswith("matrix")}
    | {
        "elements_a_thread": "of x",
        "instructions_an_element": "all in the code but padding, over elements_a_thread",
        "vector_instructions_an_element": "without scalar instructions and wait states (AMD)",
        "loads": "from global memory, with their widths",
        "stores": "to global memory, with their widths",
        "converters": "to 8-bit floats, in hardware",
        "shared_operations": "on shared memory or LDS",
        "maxima_an_element": "floating-point maxima and minima, over elements_a_thread",
        "exchanges_an_element": "between lanes, over elements_a_thread",
        "half_rate_an_element": "comparisons, selections, integers but no multiply-add, logic, conversions (NVIDIA)",
        "loads_ahead": "share of a thread's loads before its first exchange with another lane",
    },
    cases=_cases(),
    quick_cases=tuple({"arch": arch, "variant": "both: as launched", "dtype": "bfloat16"} for arch in ARCHS[:3]),
    compile_case=compile_case,
)
