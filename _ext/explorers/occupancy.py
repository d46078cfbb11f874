"""The occupancy explorer: the rules of chipmath.occupancy as steps for the browser, words, and the first result.

No rule is written a second time. The Python functions run once for each chip with symbols in place of numbers; the
steps that they take go to the page as a list, and the page works the list off for any launch.
"""

from __future__ import annotations

from inspect import Parameter, signature

from chipmath.devices import DEVICES, KIB, PRODUCTS, ComputeUnit, Multiprocessor
from chipmath.evidence import NO_BREAK_SPACE, Computed, Table
from chipmath.occupancy import LIMITER_WORDS, MAX_COUNT, RULES, UNLIMITED, occupancy

from explorers.options import options
from explorers.steps import Program, Symbol, operand

PARAMETERS = dict(list(signature(occupancy).parameters.items())[1:])  # all but the chip
DEFAULTS = {name: argument.default for name, argument in PARAMETERS.items() if argument.default is not Parameter.empty}

# The launch that the explorer opens with: one stage of a 128 x 128 x 128 FP8 tile, as in the occupancy chapter.
LAUNCH = {"registers": 96, "accumulators": 0, "scalars": 50, "shared_bytes": 32 * KIB, "threads": 256, "barriers": 1}
CHIP = "gfx950"

WORDS = {unit.vendor: vars(unit.words) for unit in DEVICES.values()}
LABELS = {  # of the arguments that each vendor has
    "AMD": {
        "registers": "VGPRs per thread",
        "accumulators": "AccVGPRs per thread",
        "scalars": "SGPRs per wave",
        "shared_bytes": "LDS per workgroup, bytes",
        "threads": "Threads per workgroup",
    },
    "NVIDIA": {
        "registers": "Registers per thread",
        "shared_bytes": "Shared memory per block, bytes",
        "threads": "Threads per block",
        "barriers": "Named barriers per block",
    },
}
RESOURCES = ("waves", "groups", "registers", "scalars", "shared", "barriers")  # the order of the bars


def data() -> dict:
    """Return everything that the occupancy explorer's script needs."""
    return {
        "arguments": list(PARAMETERS),
        "defaults": DEFAULTS,
        "max_count": MAX_COUNT,
        "unlimited": UNLIMITED,
        "chip": CHIP,
        "launch": LAUNCH,
        "words": WORDS,
        "labels": LABELS,
        "resources": RESOURCES,
        "limiters": LIMITER_WORDS,
        "chips": {arch: _chip(unit) for arch, unit in DEVICES.items()},
    }


def _chip(unit: ComputeUnit | Multiprocessor) -> dict:
    """Return one chip: its rules as steps, and where among the results each answer lies."""
    program = Program()
    request = {name: Symbol(program, name) for name in PARAMETERS}
    find_demands, find_limits, find_reasons = RULES[unit.vendor]
    limits, allocated = find_limits(unit, **request)
    demands = list(find_demands(unit, request))
    reasons = list(find_reasons(unit, limits, allocated, request))
    waves = (request["threads"] + (unit.wave_lanes - 1)) // unit.wave_lanes
    return {
        "vendor": unit.vendor,
        "max_waves": unit.max_waves,
        "limits": {name: operand(limit) for name, limit in limits.items()},
        "allocated": {name: operand(taken) for name, taken in allocated.items()},
        "waves": operand(waves),
        "demands": [[name, operand(holds), why] for name, _, holds, why in demands],
        "reasons": [[operand(applies), why] for applies, why in reasons],
        "charges": _charges(unit, request, allocated, waves),
        "inputs": _inputs(unit),
        "steps": program.steps,
    }


def _charges(unit: ComputeUnit | Multiprocessor, request, allocated, waves) -> dict[str, str]:
    """Say for each limiter what a launch takes of what there is."""
    group, wave = unit.words.group, unit.words.wave
    charges = {
        "waves": f"{waves} of {unit.max_waves} a {group}",
        "registers": f"{allocated['registers']} of {unit.vector_rows_per_simd} rows a {wave}",
    }
    if unit.vendor == "AMD":
        return charges | {
            "scalars": f"{allocated['scalars']} of {unit.scalar_registers_per_simd} a {wave}",
            "shared": f"{allocated['shared']} of {unit.lds_bytes:,} bytes a {group}",
            "barriers": f"{request['barriers']} of {unit.barriers} a {group}",
        }
    return charges | {
        "groups": f"1 of {unit.max_groups} a {group}",
        "shared": f"{allocated['shared']} of {unit.shared_bytes:,} bytes a {group}",
        "barriers": f"{request['barriers']} of {unit.barriers} a {group}",
    }


def _inputs(unit: ComputeUnit | Multiprocessor) -> dict[str, dict[str, int]]:
    """Return each argument's range: the slider's ends and step, and where the search for the next cliff ends.

    ``search_step`` is a whole wave for threads, as part of a wave costs as much as all of it. The search ends one step
    above the most that can launch, so that it finds this edge too; more named barriers than exist make no sense at all.
    """
    lanes, most = unit.wave_lanes, unit.max_threads_per_group
    inputs = {"threads": {"min": lanes, "max": most, "step": lanes, "search_step": lanes, "last": most + lanes}}
    if unit.vendor == "AMD":
        inputs["registers"] = _range(1, unit.max_vgprs)
        inputs["accumulators"] = _range(0, unit.max_accvgprs)
        inputs["scalars"] = _range(1, unit.max_scalars)
        inputs["shared_bytes"] = _range(0, unit.lds_bytes, step=256)
    else:
        inputs["registers"] = _range(1, unit.max_registers_per_thread)
        inputs["shared_bytes"] = _range(0, unit.shared_optin_bytes, step=256)
        inputs["barriers"] = _range(0, unit.max_barriers_per_group) | {"last": unit.max_barriers_per_group}
    return inputs


def _range(least: int, most: int, step: int = 1) -> dict[str, int]:
    return {"min": least, "max": most, "step": step, "search_step": 1, "last": most + 1}


def launch_on(arch: str, launch: dict[str, int]):
    """Return the occupancy of a launch on a chip, without the arguments that its vendor does not have."""
    labels = LABELS[DEVICES[arch].vendor]
    return occupancy(arch, **{name: value for name, value in launch.items() if name in labels})


def first() -> dict[str, str | Computed]:
    """Return what the explorer shows without JavaScript: its first launch on every chip."""
    rows = []
    for arch in DEVICES:
        got = launch_on(arch, LAUNCH)
        binding = ", ".join(got.limiter_words)
        waves = f"{got.waves_per_unit} of {got.max_waves_per_unit}"
        percent = f"{100 * got.fraction:.1f}{NO_BREAK_SPACE}%"
        rows.append([_chip_name(arch), got.groups_per_unit, waves, percent, binding])
    columns = ["chip", "groups", "waves", "of the slots", "bound by"]
    caption = (
        f"The same launch on every chip: {LAUNCH['registers']} registers a thread, "
        f"{LAUNCH['shared_bytes'] // KIB}{NO_BREAK_SPACE}KiB of shared memory and {LAUNCH['threads']} threads a group"
    )
    return {"first": Computed(Table(columns, rows, caption=caption)), "chips": _chip_options()}


def _chip_options() -> str:
    groups = []
    for vendor in LABELS:
        chips = {arch: _chip_name(arch) for arch, unit in DEVICES.items() if unit.vendor == vendor}
        groups.append(f'<optgroup label="{vendor}">{options(chips, CHIP)}</optgroup>')
    return "".join(groups)


def _chip_name(arch: str) -> str:
    return " · ".join([arch, *(name for name, card in PRODUCTS.items() if card.arch == arch)])
