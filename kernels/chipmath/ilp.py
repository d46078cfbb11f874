"""Independent chains per wave against waves per SIMD: what the timed kernels are given and must give back.

They are written twice: in C++ (ilp_timed.cu for NVIDIA, ilp_timed.hip for AMD), and in Gluon (ilp_gluon.py).

A wave issues CHAINS independent chains of one instruction, and dynamic shared memory alone sets how many waves a SIMD
holds. Little's law knows only the product: with T clocks an instruction occupies the unit, L clocks until its result
can be added to, and x = waves per SIMD * chains per wave,

    instructions a clock and SIMD = min(1 / T, x / L)

so every point of a sweep lies on one curve in x. Time is the unit's own clock, so no frequency enters.
"""

from dataclasses import dataclass, replace

from chipmath.devices import DEVICES


@dataclass(frozen=True)
class Instruction:
    """One instruction of the sweep: its shape, how it is compiled, and what the data sheet's rate says of it.

    products     multiply-adds
    waves        that issue it together (a warpgroup has four)
    columns      N: each element of A meets so many ones of B
    accumulators  of one chain, a thread
    a_elements   of one chain, for all waves that issue it together
    encoding     of A's and B's elements in the words that the kernel reads
    step         instructions of all chains in a step of the loop, at most; a power of two
    iterations   of every chain in a launch: it lasts long beside its start, and accumulators stay exact
    rate         key of ``devices.DEVICES[arch].matrix_rates``; None: not a matrix instruction
    gluon        its kernel in ilp_gluon.py; None: Triton cannot be made to emit it
    """

    arch: str
    opcode: str  # how the machine code calls it, as a regular expression
    macros: dict[str, object]
    products: int
    waves: int
    columns: int
    accumulators: int
    a_elements: int
    encoding: str
    step: int
    threads: int
    most_chains: int
    rate: str | None
    iterations: int
    gluon: str | None

    @property
    def sources(self) -> tuple[str, ...]:
        """The languages that the timed kernel is written in."""
        own = "CUDA" if self.arch.startswith("sm_") else "HIP"
        return (own, "Gluon") if self.gluon else (own,)

    def depth(self, chains: int) -> int:
        """Instructions of each chain in a step: so many that steps are about as long whatever the number of chains.

        A loop's own instructions then cost every point alike. With as many of each chain at every point, they would
        cost a warp of one chain eight times what they cost a warp of eight.
        """
        return self.step >> (chains - 1).bit_length()

    @property
    def flop_per_clock_at_most(self) -> float:
        """Of the whole unit, at the data sheet's rate; FFMA: one a lane and clock (H100 white paper: 128 an SM)."""
        return 2.0 * 128 if self.rate is None else DEVICES[self.arch].matrix_rates[self.rate]


# Hopper's FP8 accumulators keep 13 bits after the leading one (arXiv:2412.19437 sec. 3.3.2 says "around 14 bits").
# Rows of A that add up to one make a sum count its instructions, which is exact up to here.
WGMMA_ITERATIONS = 1 << 13

MFMA = Instruction(
    arch="gfx950",
    opcode=r"v_mfma_f32_16x16x128_f8f6f4",
    macros={"SCALED": 0},
    products=16 * 16 * 128,
    waves=1,
    columns=16,
    accumulators=4,
    a_elements=16 * 128,
    encoding="e4m3",
    step=64,
    threads=256,
    most_chains=8,
    rate="fp8",
    iterations=1 << 15,
    gluon=None,
)

INSTRUCTIONS = {
    "FFMA": Instruction(
        arch="sm_90",
        opcode=r"FFMA",
        macros={"KIND": "FFMA"},
        products=32,
        waves=1,
        columns=1,
        accumulators=1,
        a_elements=32,
        encoding="float32",
        step=512,
        threads=128,
        most_chains=8,
        rate=None,
        iterations=1 << 15,
        gluon="ffma",
    ),
    "mma.sync m16n8k16 bf16": Instruction(
        arch="sm_90",
        opcode=r"HMMA\.16816\.F32\.BF16",
        macros={"KIND": "MMA_BF16"},
        products=16 * 8 * 16,
        waves=1,
        columns=8,
        accumulators=4,
        a_elements=16 * 16,
        encoding="bfloat16",
        step=128,
        threads=128,
        most_chains=8,
        rate="bf16",
        iterations=1 << 15,
        gluon="mma",
    ),
    "wgmma m64n64k32 e4m3": Instruction(
        arch="sm_90",
        opcode=r"QGMMA\.64x64x32\.F32\.E4M3\.E4M3",
        macros={"KIND": "WGMMA_E4M3"},
        products=64 * 64 * 32,
        waves=4,
        columns=64,
        accumulators=32,
        a_elements=64 * 32,
        encoding="e4m3",
        step=128,
        threads=128,
        most_chains=4,  # beyond, ptxas lacks registers in Gluon's kernel and waits for every product
        rate="fp8",
        iterations=WGMMA_ITERATIONS,
        gluon="wgmma",
    ),
    "mfma 16x16x128": MFMA,
    "mfma_scale 16x16x128": replace(
        MFMA, opcode=r"v_mfma_scale_f32_16x16x128_f8f6f4", macros={"SCALED": 1}, gluon="mfma_scale"
    ),
}


def expected_fraction(chains_per_simd: float, clocks: float, latency: float) -> float:
    """Share of an instruction's best rate by Little's law: T is ``clocks``, L is ``latency``."""
    return min(1.0, chains_per_simd * clocks / latency)


def operands(name: str, chains: int, seed: int = 0):
    """The words that the kernel reads (int32 tensor), and the sum of all elements of A that are in them.

    A holds -1, 0, 1 and 2 at random, B ones. wgmma has one A for all chains, whose rows add up to one.
    """
    import torch

    instruction = INSTRUCTIONS[name]
    shared = name.startswith("wgmma")
    count = instruction.a_elements * (1 if shared else chains)
    generator = torch.Generator().manual_seed(seed)
    a = _rows_of_one(generator) if shared else torch.randint(-1, 3, (count,), generator=generator)
    lanes = DEVICES[instruction.arch].wave_lanes
    b_count = {"float32": lanes, "bfloat16": 2 * 2 * lanes, "e4m3": 64 * 32 if shared else 8 * 4 * lanes}
    ones = torch.ones(b_count[instruction.encoding], dtype=torch.long)
    words = torch.cat([_words(a, instruction.encoding), _words(ones, instruction.encoding)])
    return words, int(a.sum()) * (chains if shared else 1)


def _rows_of_one(generator):
    """64 rows of 32 whole numbers from -2 to 2 that add up to one, in the order of ilp_timed.cu's tile."""
    import torch

    half = torch.randint(-1, 3, (64, 15), generator=generator)
    rest = torch.tensor([[1, 0]]).expand(64, 2)
    rows = torch.cat([half, -half, rest], 1)[:, torch.randperm(32, generator=generator)]
    return rows.view(8, 8, 2, 16).transpose(1, 2).flatten()  # 8 rows of 16 bytes, twice, for every 8 rows


def _words(whole, encoding: str):
    import torch

    from chipmath.formats import E4M3

    if encoding == "e4m3":
        return E4M3.encode(whole.float()).view(torch.int32)
    return whole.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[encoding]).view(torch.int32)


@dataclass(frozen=True)
class Trace:
    """What a launch left behind: sums of every thread; of every group its first and last clock and its unit."""

    sums: list[int]
    starts: list[int]
    stops: list[int]
    units: list[int]


def span_of_units(trace: Trace, groups_per_unit: int) -> list[int]:
    """Clocks from the first start to the last stop on each unit, if all its groups were there together.

    Raises ValueError where a unit held another number of groups, or one had left before another came.
    """
    spans = []
    for unit in sorted(set(trace.units)):
        mine = [i for i, where in enumerate(trace.units) if where == unit]
        if len(mine) != groups_per_unit:
            raise ValueError(f"unit {unit} held {len(mine)} groups, not {groups_per_unit}")
        starts, stops = [trace.starts[i] for i in mine], [trace.stops[i] for i in mine]
        if max(starts) >= min(stops):
            raise ValueError(f"on unit {unit} a group left {max(starts) - min(stops)} clocks before another came")
        spans.append(max(stops) - min(starts))
    return spans


def wrong_waves(trace: Trace, name: str, a_sum: int, iterations: int) -> int:
    """How many waves (or warpgroups) added up to anything but iterations * N * sum(A), which is exact."""
    instruction = INSTRUCTIONS[name]
    size = DEVICES[instruction.arch].wave_lanes * instruction.waves
    expected = iterations * instruction.columns * a_sum
    sums = [sum(trace.sums[at : at + size]) for at in range(0, len(trace.sums), size)]
    return sum(found != expected for found in sums)
