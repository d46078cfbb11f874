"""How many workgroups a CU or SM holds at once, limiter by limiter, for AMD CDNA and NVIDIA.

Each resource answers one question: how many whole groups fit? The smallest answer wins. Resources are handed out in
steps, to each wave (registers) or to each group (shared memory, barriers).

The result is a ceiling from what a launch asks for. Not in it: thread-block clusters, scratch slots (AMD), and the time
a kernel spends filling and draining the chip. Nor tensor memory (Blackwell): no launch asks for it. A block that is
resident does, by tcgen05.alloc, and waits there until enough of `Multiprocessor.tensor_memory_columns` are free (PTX
ISA): blocks of N columns each may be resident beyond columns / N, but only so many compute.

AMD publishes no rule for placing waves on SIMDs. We let each wave take any SIMD with room, as HIP's
hipOccupancyMaxActiveBlocksPerMultiprocessor does: if W waves fit a SIMD, floor(4 W / waves) groups fit the CU. If every
group had to start at the same SIMD, as Tensile counts, it would be floor(W / ceil(waves / 4)). The two bounds are equal
where a group's waves are a multiple of 4 (256, 512, 768, 1024 threads); elsewhere only silicon can decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from chipmath.devices import ComputeUnit, Multiprocessor, device

UNLIMITED = 1 << 31  # groups: what a limiter that does not apply admits
MAX_COUNT = (1 << 31) - 1  # arguments end here, so that no product overflows 64 bits

# The keys of `Occupancy.limits`, in each vendor's words.
LIMITER_WORDS = {
    "AMD": {
        "waves": "wave slots",
        "registers": "vector registers",
        "scalars": "scalar registers",
        "shared": "LDS",
        "barriers": "barriers",
    },
    "NVIDIA": {
        "waves": "warp slots",
        "groups": "block slots",
        "registers": "registers",
        "shared": "shared memory",
        "barriers": "named barriers",
    },
}


@dataclass(frozen=True)
class Occupancy:
    """What one launch configuration gets on one CU or SM.

    limits     groups per unit that each limiter alone would admit; keys: waves, groups (NVIDIA), registers, scalars
               (AMD), shared, barriers. A limiter that does not apply is absent: shared without LDS, barriers for
               one-wave groups on AMD and below compute capability 9.0
    allocated  what is taken after rounding up: registers a thread, scalars a wave (AMD, with the trap handler's),
               shared bytes a group (NVIDIA, with the driver's)
    reason     why nothing can launch, with the arguments at fault; None if something can
    """

    arch: str
    groups_per_unit: int
    waves_per_unit: int
    max_waves_per_unit: int
    limits: dict[str, int]
    allocated: dict[str, int]
    reason: str | None

    @property
    def fraction(self) -> float:
        """Resident waves over wave slots."""
        return self.waves_per_unit / self.max_waves_per_unit

    @property
    def limiters(self) -> tuple[str, ...]:
        """Every limiter that ties for the smallest answer."""
        return tuple(name for name, groups in self.limits.items() if groups == self.groups_per_unit)

    @property
    def limiter_words(self) -> tuple[str, ...]:
        """``limiters`` as the vendor calls them: "warp slots", "LDS"."""
        words = LIMITER_WORDS[device(self.arch).vendor]
        return tuple(words[name] for name in self.limiters)


def occupancy(
    arch: str,
    *,
    registers: int,
    accumulators: int = 0,
    scalars: int = 0,
    shared_bytes: int = 0,
    threads: int,
    barriers: int = 1,
) -> Occupancy:
    """Resident groups per CU or SM for one launch configuration.

    registers     per thread: architectural VGPRs (AMD), or what ptxas reports (NVIDIA); 0 is charged as one step
    accumulators  AccVGPRs per thread; AMD only
    scalars       SGPRs per wave as .sgpr_count states them, VCC and the like included; AMD only; 0 is one step
    shared_bytes  per group: LDS, or static plus dynamic shared memory with the opt-in above 48 KiB
    threads       per group
    barriers      named barriers per block (NVIDIA; a limit from compute capability 9.0 on); AMD has exactly one

    What cannot launch has 0 groups and a ``reason``. A count that makes no sense raises ValueError.
    """
    unit = device(arch)
    request = {
        "registers": _count("registers", registers),
        "accumulators": _count("accumulators", accumulators),
        "scalars": _count("scalars", scalars),
        "shared_bytes": _count("shared_bytes", shared_bytes),
        "threads": _count("threads", threads),
        "barriers": _count("barriers", barriers),
    }
    find_demands, find_limits, find_reasons = RULES[unit.vendor]
    _check(find_demands(unit, request))
    limits, allocated = find_limits(unit, **request)
    limits = {name: groups for name, groups in limits.items() if groups < UNLIMITED}
    groups = min(limits.values())
    return Occupancy(
        arch=unit.arch,
        groups_per_unit=groups,
        waves_per_unit=groups * _ceil_div(request["threads"], unit.wave_lanes),
        max_waves_per_unit=unit.max_waves,
        limits=limits,
        allocated=allocated,
        reason=None if groups else "; ".join(why for so, why in find_reasons(unit, limits, allocated, request) if so),
    )


def occupancy_table(
    arch: str,
    *,
    registers,
    accumulators=0,
    scalars=0,
    shared_bytes=0,
    threads,
    barriers=1,
) -> np.ndarray:
    """``groups_per_unit`` of `occupancy` for whole numbers or arrays of them, broadcast against each other."""
    unit = device(arch)
    request = {
        "registers": _counts("registers", registers),
        "accumulators": _counts("accumulators", accumulators),
        "scalars": _counts("scalars", scalars),
        "shared_bytes": _counts("shared_bytes", shared_bytes),
        "threads": _counts("threads", threads),
        "barriers": _counts("barriers", barriers),
    }
    find_demands, find_limits, _ = RULES[unit.vendor]
    _check(find_demands(unit, request))
    limits, _ = find_limits(unit, **request)
    return np.asarray(reduce(np.minimum, limits.values()))


def register_ceilings(arch: str) -> dict[int, int]:
    """The most registers a thread may use for each number of waves per SIMD (AMD: VGPRs and AccVGPRs together)."""
    unit = device(arch)
    one_wave_each = unit.simds * unit.wave_lanes  # threads, so that groups per unit are waves per SIMD
    registers = np.arange(1, unit.vector_rows_per_simd + 1)
    accumulators = np.zeros_like(registers)
    if unit.vendor == "AMD":
        accumulators = np.maximum(registers - unit.max_vgprs, 0)
    waves = occupancy_table(arch, registers=registers - accumulators, accumulators=accumulators, threads=one_wave_each)
    return {k: int(registers[waves >= k].max()) for k in range(1, waves.max() + 1)}


def shared_ceilings(arch: str) -> dict[int, int]:
    """The most shared memory in bytes that a group may use for each number of groups per CU or SM."""
    unit = device(arch)
    pool = unit.lds_bytes if unit.vendor == "AMD" else unit.shared_bytes
    shared_bytes = np.arange(pool + 1)
    groups = occupancy_table(arch, registers=1, shared_bytes=shared_bytes, threads=unit.wave_lanes)
    return {k: int(shared_bytes[groups >= k].max()) for k in range(1, groups.max() + 1)}


# The rules. Each line works on whole numbers and on arrays alike, so that the two entries above cannot disagree;
# a comparison counts as 0 or 1, and a limit multiplied by one is 0 where the launch is refused. No rule branches on an
# argument, so that the book's explorer can run them once on symbols and take them into the browser.


def _amd_demands(cu: ComputeUnit, request):
    """What an argument must satisfy to make sense: its name, its value, whether it does, and the demand in words."""
    yield "barriers", request["barriers"], request["barriers"] == 1, "an AMD workgroup has exactly one"


def _nvidia_demands(sm: Multiprocessor, request):
    most = sm.max_barriers_per_group
    yield "accumulators", request["accumulators"], request["accumulators"] == 0, "an NVIDIA thread has no AccVGPRs"
    yield "scalars", request["scalars"], request["scalars"] == 0, "an NVIDIA warp has no SGPRs"
    yield "barriers", request["barriers"], request["barriers"] <= most, f"a block names {most} at most"


def _amd_limits(cu: ComputeUnit, registers, accumulators, scalars, shared_bytes, threads, barriers):
    waves = _ceil_div(threads, cu.wave_lanes)
    # LLVM getTotalNumVGPRs: AccVGPRs follow the VGPRs in one allocation, from a multiple of 4 on.
    rows = _step_up(_round_up(registers, cu.accumulator_granule_rows) + accumulators, cu.vector_granule_rows)
    addressable = (registers <= cu.max_vgprs) * (accumulators <= cu.max_accvgprs)
    sgprs = _step_up(scalars, cu.scalar_granule) + cu.trap_handler_scalars
    lds = _round_up(shared_bytes, cu.lds_block_bytes)
    limits = {
        "waves": _launchable(cu, threads) * _fit(cu.max_waves, waves),
        "registers": addressable * _fit(cu.simds * (cu.vector_rows_per_simd // rows), waves),
        "scalars": (scalars <= cu.max_scalars) * _fit(cu.simds * (cu.scalar_registers_per_simd // sgprs), waves),
        "shared": _fit(cu.lds_bytes, lds),
        "barriers": _fit(cu.barriers, barriers * (waves > 1)),
    }
    return limits, {"registers": rows, "scalars": sgprs, "shared": lds}


def _nvidia_limits(sm: Multiprocessor, registers, accumulators, scalars, shared_bytes, threads, barriers):
    warps = _ceil_div(threads, sm.wave_lanes)
    rows = _step_up(registers, sm.vector_granule_rows)
    shared = _round_up(shared_bytes + sm.shared_reserved_bytes, sm.shared_granule_bytes)
    limits = {
        "waves": _launchable(sm, threads) * _fit(sm.max_waves, warps),
        "groups": sm.max_groups,
        # cudaOccMaxBlocksPerSMRegsLimit fills each sub-partition for itself. Its two refusals of blocks that need more
        # than 65536 registers follow: 4 floor(512 / rows) < warps exactly if rows * ceil4(warps) * 32 > 65536.
        "registers": (registers <= sm.max_registers_per_thread)
        * _fit(sm.simds * (sm.vector_rows_per_simd // rows), warps),
        # cudaOccMaxBlocksPerSMSmemLimit with the largest carve-out; more than the opt-in leaves room for no block.
        "shared": _fit(sm.shared_bytes, shared),
    }
    if sm.barriers is not None:
        limits["barriers"] = _fit(sm.barriers, barriers)
    return limits, {"registers": rows, "shared": shared}


def _amd_reasons(cu: ComputeUnit, limits, allocated, request):
    """Pairs: whether this is why nothing launches, and the reason in words."""
    registers, accumulators, scalars = request["registers"], request["accumulators"], request["scalars"]
    yield _threads_reason(cu, limits, request)
    yield registers > cu.max_vgprs, f"registers={registers}: a wave addresses {cu.max_vgprs} VGPRs"
    yield accumulators > cu.max_accvgprs, f"accumulators={accumulators}: a wave addresses {cu.max_accvgprs} AccVGPRs"
    yield scalars > cu.max_scalars, f"scalars={scalars}: .sgpr_count ends at {cu.max_scalars}"
    lds = f"shared_bytes={request['shared_bytes']}: a CU has {cu.lds_bytes} bytes of LDS"
    yield limits.get("shared") == 0, lds
    yield _wave_reason(cu, allocated, request)


def _nvidia_reasons(sm: Multiprocessor, limits, allocated, request):
    registers, most = request["registers"], sm.max_registers_per_thread
    yield _threads_reason(sm, limits, request)
    yield registers > most, f"registers={registers}: a thread addresses {most}"
    shared = f"shared_bytes={request['shared_bytes']}: a block can have {sm.shared_optin_bytes} bytes"
    yield limits["shared"] == 0, shared
    yield _wave_reason(sm, allocated, request)


def _threads_reason(unit: ComputeUnit | Multiprocessor, limits, request):
    group, most = unit.words.group, unit.max_threads_per_group
    return limits["waves"] == 0, f"threads={request['threads']}: a {group} has 1 to {most}"


def _wave_reason(unit: ComputeUnit | Multiprocessor, allocated, request):
    waves = _ceil_div(request["threads"], unit.wave_lanes)
    room = unit.simds * (unit.vector_rows_per_simd // allocated["registers"])
    return waves > room, (
        f"threads={request['threads']}: a {unit.words.group} is {waves} {unit.words.wave}s of "
        f"{allocated['registers']} registers a thread, and the register file holds {room}"
    )


Rule = Callable[..., Any]  # on whole numbers, on arrays and on the explorer's symbols alike

# Of each vendor: demands, limits, reasons.
RULES: dict[str, tuple[Rule, Rule, Rule]] = {
    "AMD": (_amd_demands, _amd_limits, _amd_reasons),
    "NVIDIA": (_nvidia_demands, _nvidia_limits, _nvidia_reasons),
}


def _launchable(unit: ComputeUnit | Multiprocessor, threads):
    return (threads >= 1) & (threads <= unit.max_threads_per_group)


def _fit(pool, charge):
    """How many times ``charge`` fits into ``pool``; a charge of 0 takes nothing and limits nothing."""
    free = charge == 0
    return pool // (charge + free) + free * UNLIMITED


def _ceil_div(value, step: int):
    return (value + (step - 1)) // step


def _round_up(value, step: int):
    return _ceil_div(value, step) * step


def _step_up(value, step: int):
    """Round up to whole steps, at least one: no wave goes without registers."""
    return _round_up(value + (value == 0), step)


def _count(name: str, value) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{name}={value!r} is not a whole number from 0 to {MAX_COUNT}")
    return int(value)


def _counts(name: str, values):
    array = np.asarray(values)
    if array.ndim == 0:
        return _count(name, array.item())
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}, not whole numbers: {values!r}")
    _require(name, array, (array >= 0) & (array <= MAX_COUNT), f"not a whole number from 0 to {MAX_COUNT}")
    return array.astype(np.int64, copy=False)


def _check(demands) -> None:
    for demand in demands:
        _require(*demand)


def _require(name: str, values, allowed, why: str) -> None:
    if not np.all(allowed):
        raise ValueError(f"{name}={np.extract(np.logical_not(allowed), values)[0]}: {why}")
