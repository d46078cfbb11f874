"""The GPU quantizers beside a copy, beside each other, and beside their peers, in the same rounds.

Nothing is timed before its bytes are those of `chipmath.quantize`, computed on the same GPU, whose own bytes the
experiment ``reference_quantizer`` holds against the CPU's. Outputs are poisoned before the check. Buffers rotate so
that no cache serves a source again. Our kernels write to buffers of their own, while peers allocate theirs. At one
shape the chapter's rungs and other choices of the same kernels take part.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

from chipmath.crosscompile import find_triton
from chipmath.devices import DEVICES, GIB, PRODUCTS
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Shown
from chipmath.experiments.quantizer_code import VARIANTS
from chipmath.experiments.timing import Candidate, GraphStopwatch, Stopwatch, host_stopwatch, spread, take_turns
from chipmath.gpu import Gpu

RULE = "rceil"
DTYPES, QUICK_DTYPES = ("bfloat16", "float32"), ("bfloat16",)
SHAPES, QUICK_SHAPES = ((4096, 4096), (8192, 8192), (16384, 16384)), ((8192, 8192),)
REHEARSAL_SHAPE, REHEARSAL_ARCH = (64, 1024), "sm_90"
ROUNDS, QUICK_ROUNDS = 30, 9
ROTATION_BYTES = GIB  # of sources: four times the largest cache on record
MEMORY_BYTES = 16 * GIB
SEED = 0
COPY, TWO_PASSES = "torch copy_", "rows, then columns"
OURS = ("rows", "columns", "both")
# Names of `quantizer_code`, whose tiles divide every shape here: rungs in Triton, and changes of what is launched.
TILES = (
    "rows: integer scale, integer encoder, in tiles",
    "columns: through shared memory",
    "both: through shared memory",
    "both: through shared memory, 32 x 512",
)
CHANGES: dict[str, dict] = {
    "rows: integer scale, integer encoder": {"encoder": "integer"},
    "both: 16 rows a thread": {"patch": (16, 8)},
}
STEPS, STEPS_CASE = (*TILES, *CHANGES), ((8192, 8192), "bfloat16")
QUANTILES = ("p10", "p50", "p90")
ITEM = {"bfloat16": 2, "float32": 4}
Tell = Callable[[str], None]  # what is compiled and checked next


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[dict]]:
    """Method and rows on torch's current GPU."""
    find_triton()  # says how to get it where it is missing
    if gpu.arch not in DEVICES:
        raise ExperimentError(f"quantizers knows {', '.join(DEVICES)}, not {gpu.arch}")
    if gpu.memory_bytes < MEMORY_BYTES:
        needed, has = MEMORY_BYTES / GIB, gpu.memory_bytes / GIB
        raise ExperimentError(f"quantizers wants {needed:.0f} GiB of memory, this GPU has {has:.0f}")
    shapes, dtypes, rounds = (QUICK_SHAPES, QUICK_DTYPES, QUICK_ROUNDS) if quick else (SHAPES, DTYPES, ROUNDS)
    peers = _peers(quick)
    cases = [(shape, dtype) for dtype in dtypes for shape in shapes]

    def case(shape: tuple[int, int], dtype: str, tell: Tell) -> list[dict]:
        steps = () if quick or (shape, dtype) != STEPS_CASE else STEPS
        return _measure(_OnGpu(gpu.arch), shape, dtype, ROTATION_BYTES, GraphStopwatch(), rounds, peers, steps, tell)

    rows, left_out = _all_that_can_be_trusted(cases, case, progress)
    return _method("device events around graphs", rounds, ROTATION_BYTES, peers) | {"left_out": left_out}, rows


def _all_that_can_be_trusted(
    cases: list[tuple[tuple[int, int], str]], measure_case: Callable[..., list[dict]], progress: Progress
) -> tuple[list[dict], dict[str, str]]:
    """The rows of every case, and why there are none of others: one wrong byte costs its own case, not all."""
    import torch

    rows, left_out = [], {}
    for done, (shape, dtype) in enumerate(cases):
        name = f"{shape[0]} x {shape[1]}, {dtype}"

        def tell(text: str, done=done, name=name) -> None:
            progress(done, len(cases), f"{name}: {text}")

        try:
            rows += measure_case(shape, dtype, tell)
        except (ExperimentError, torch.OutOfMemoryError) as error:
            left_out[name] = str(error).partition("\n")[0]
    if not rows:
        raise ExperimentError("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    progress(len(cases), len(cases), "done")
    return rows, left_out


def rehearse(progress: Progress) -> tuple[dict, list[dict]]:
    """The same on a CPU: the kernels' sources run by `chipmath.gluon_on_cpu`, a host clock, and the plain peer only."""
    find_triton()
    peers: dict[str, Callable] = {"torch eager, plain definition": plain_rows}

    def tell(text: str) -> None:
        progress(0, 1, text)

    rows = _measure(_OnCpu(REHEARSAL_ARCH), REHEARSAL_SHAPE, "bfloat16", 0, host_stopwatch, 3, peers, STEPS, tell)
    progress(1, 1, "done")
    return _method("host clock, rehearsal", 3, 0, peers), rows


def predict() -> list[dict]:
    """The time below which no card can be, and two passes over one: bytes, at the data sheet's rate."""
    shape, rows = SHAPES[-1], []
    for product in PRODUCTS.values():
        for kernel in (*OURS, TWO_PASSES):
            moved = bytes_moved(kernel, shape, "bfloat16")
            rows.append(
                {
                    "device": product.name,
                    "kernel": kernel,
                    "dtype": "bfloat16",
                    "rows": shape[0],
                    "columns": shape[1],
                    "s_at_least": moved / product.hbm_bytes_per_s,
                    "time_over_two_passes_p50": moved / bytes_moved(TWO_PASSES, shape, "bfloat16")
                    if kernel == "both"
                    else None,
                }
            )
    return rows


def bytes_moved(kernel: str, shape: tuple[int, int], dtype: str) -> int:
    """The least that a kernel reads and writes; one whose name says "both" writes both directions."""
    values = shape[0] * shape[1]
    read, written = ITEM[dtype] * values, values + values // 32
    if kernel == COPY:
        return 2 * read
    if kernel == TWO_PASSES:
        return 2 * (read + written)
    return read + (2 * written if "both" in kernel else written)


# --- who runs the kernels ---------------------------------------------------------------------------------------------


class _OnGpu:
    """Launches a prepared kernel."""

    device = "cuda"

    def __init__(self, arch: str):
        self.arch = arch

    def run(self, launch) -> None:
        chosen = launch.configuration
        chosen.kernel[launch.grid](*launch.arguments, **chosen.constexprs, num_warps=chosen.num_warps)


class _OnCpu:
    """Executes the kernel's source instead."""

    device = "cpu"

    def __init__(self, arch: str):
        self.arch = arch

    def run(self, launch) -> None:
        from chipmath import gluon_on_cpu

        chosen = launch.configuration
        gluon_on_cpu.run(chosen.kernel, launch.grid, launch.arguments, chosen.constexprs)


# --- peers: rows only, as that is what they all do --------------------------------------------------------------------


def plain_rows(x):
    """The definition as one would write it in torch, for finite blocks: what torch.compile gets to fuse."""
    import torch

    from chipmath.formats import E4M3
    from chipmath.quantize import scale_constant

    blocks = x.unflatten(-1, (-1, 32)).float()
    amax = blocks.abs().amax(-1, keepdim=True).view(torch.int32)
    byte = ((amax + scale_constant(E4M3, RULE) >> 23) - E4M3.emax).clamp(min=0)
    inverse = ((254 - byte) << 23).view(torch.float32)
    elements = (blocks * inverse).clamp(-E4M3.max, E4M3.max).to(torch.float8_e4m3fn)
    return elements.view(torch.uint8).flatten(-2), byte.to(torch.uint8).squeeze(-1)


def plain_both(x):
    """The same along both axes."""
    elements, scales = plain_rows(x.T)
    return *plain_rows(x), elements, scales


def torchao_rows(x):
    """torchao's prototype by the same rule, compiled as its documentation does."""
    import torch
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    scales, elements = to_mx(x, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    return elements.view(torch.uint8), scales.view(torch.uint8)


def _peers(quick: bool) -> dict[str, Callable]:
    """By name; the quick form compiles none, which takes longer than all its timing."""
    import torch

    if quick:
        return {"torch eager, plain definition": plain_rows}
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    peers = {
        "torch.compile, plain definition": compiled(plain_rows),
        "torch.compile, plain definition, both": compiled(plain_both),
    }
    if importlib.util.find_spec("torchao"):
        peers["torch.compile, torchao to_mx"] = compiled(torchao_rows)
    return peers


# --- one shape --------------------------------------------------------------------------------------------------------


def _measure(
    on,
    shape: tuple[int, int],
    dtype: str,
    rotation: int,
    stopwatch: Stopwatch,
    rounds: int,
    peers: dict,
    steps: tuple[str, ...],
    tell: Tell,
) -> list[dict]:
    import torch

    from chipmath.formats import E4M3
    from chipmath.quantize import quantize

    generator = torch.Generator(on.device).manual_seed(SEED)
    first = torch.randn(shape, device=on.device, generator=generator).to(getattr(torch, dtype))
    sets = max(2, -(-rotation // first.nbytes))
    # Equal contents at different addresses: no cache holds them all, and one result is every set's.
    sources = [first, *(first.clone() for _ in range(sets - 1))]
    along_rows, along_columns = quantize(first, E4M3, RULE), quantize(first, E4M3, RULE, axis=0)
    expected = [along_rows.elements, along_rows.scales, along_columns.elements.T, along_columns.scales.T]
    candidates, wrong, notes = _ours(on, sources, expected, steps, tell)
    for name, peer in peers.items():
        tell(name)
        candidates[name] = lambda i, peer=peer: peer(sources[i % sets])
        try:
            wrong[name] = _wrong_bytes(peer(first), expected)
            stopwatch(candidates[name], 1)  # what runs may still not be captured in a graph
        except RuntimeError as error:  # what torch.compile raises, whichever stage fails
            wrong[name], notes[name] = None, f"does not run here: {str(error).strip().splitlines()[0][:200]}"
    # A peer that does not run, or writes other bytes, is named all the same: its row has no rate.
    timed = {name: candidate for name, candidate in candidates.items() if wrong[name] == 0}
    targets = [torch.empty_like(first) for _ in range(sets)]
    timed[COPY] = lambda i: targets[i % sets].copy_(sources[i % sets])
    seconds = take_turns(timed, stopwatch, rounds=rounds)
    wrong[COPY] = 0
    return [_row(name, shape, dtype, wrong[name], notes.get(name), seconds) for name in (*candidates, COPY)]


def _ours(
    on, sources: list, expected: list, steps: tuple[str, ...], tell: Tell
) -> tuple[dict[str, Candidate], dict[str, int | None], dict[str, str]]:
    """Our kernels on every source, checked on every source, and why one does not run; each source has its own outputs.

    A step that is wrong or does not run, as it wants more of the chip than there is, is not timed. What users launch
    must be right.
    """
    import torch

    outputs = [[torch.empty_like(part, memory_format=torch.contiguous_format) for part in expected] for _ in sources]
    used = {"rows": slice(0, 2), "columns": slice(2, 4), "both": slice(0, 4)}
    launches = {name: [] for name in (*OURS, *steps)}
    wrong: dict[str, int | None] = dict.fromkeys((*launches, TWO_PASSES), 0)
    notes: dict[str, str] = {}
    for name, its in launches.items():
        tell(name)
        written = used[name.partition(":")[0]]
        try:
            for x, buffers in zip(sources, outputs):
                its.append(_prepared(name, x, buffers, on.arch))
                for buffer, right in zip(buffers, expected):
                    buffer.copy_(~right)  # poison: every byte is wrong
                on.run(its[-1])
                wrong[name] += _wrong_bytes(buffers[written], expected[written])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, find_triton().TritonError) as error:  # Triton's passes raise the former
            wrong[name], notes[name] = None, f"does not run here: {str(error).strip().splitlines()[0][:200]}"
        if wrong[name] != 0 and name in OURS:
            what = notes.get(name) or f"{wrong[name]} bytes differ from the reference's"
            raise ExperimentError(f"{name}, {sources[0].dtype}: {what}: not timed")
    count = len(sources)
    candidates = {name: (lambda i, its=its: on.run(its[i % count])) for name, its in launches.items()}

    def two_passes(i: int) -> None:
        candidates["rows"](i)
        candidates["columns"](i + (count + 1) // 2)  # of another source, or a large cache would serve this one again

    return candidates | {TWO_PASSES: two_passes}, wrong, notes


def _prepared(name: str, x, buffers: list, arch: str):
    """The launch of one of OURS or STEPS into buffers for elements and scales of both directions."""
    from chipmath.formats import E4M3
    from chipmath.quantize_gpu import DTYPES, Launch, prepare

    direction = name.partition(":")[0]
    if name in TILES:
        chosen = VARIANTS[name](arch, DTYPES[x.dtype])
        words = prepare(direction, x, buffers, E4M3, RULE, arch).arguments[0]
        grid = tuple(size // tile for size, tile in zip(x.shape, chosen.tile))
        return Launch(chosen, grid, [words, *buffers, *x.shape])
    given = buffers[:2] if direction == "rows" else buffers
    return prepare(direction, x, given, E4M3, RULE, arch, **CHANGES.get(name, {}))


def _wrong_bytes(got, expected) -> int:
    """How many bytes differ; what is compared has one shape, or there are as many wrong as bytes."""
    return sum(
        int((mine.reshape(its.shape) != its).sum()) if mine.numel() == its.numel() else its.numel()
        for mine, its in zip(got, expected)
    )


def _row(
    name: str, shape: tuple[int, int], dtype: str, wrong: int | None, note: str | None, seconds: dict[str, list[float]]
) -> dict:
    moved = bytes_moved(name, shape, dtype)
    columns = [f"{what}_{p}" for what in ("bytes_per_s", "ratio_to_copy", "time_over_two_passes") for p in QUANTILES]
    cells = dict.fromkeys(columns)
    if name in seconds:
        copied = bytes_moved(COPY, shape, dtype)
        pairs = list(zip(seconds[name], seconds[COPY]))
        rate, ratio = (
            spread([moved / s for s, _ in pairs]),
            spread([moved / s / (copied / c) for s, c in pairs]),
        )
        cells |= {f"bytes_per_s_{p}": getattr(rate, p) for p in QUANTILES}
        cells |= {f"ratio_to_copy_{p}": getattr(ratio, p) for p in QUANTILES}
        if name == "both":
            over = spread([s / t for s, t in zip(seconds[name], seconds[TWO_PASSES])])
            cells |= {f"time_over_two_passes_{p}": getattr(over, p) for p in QUANTILES}
    return {
        "kernel": name,
        "dtype": dtype,
        "rows": shape[0],
        "columns": shape[1],
        "wrong_bytes": wrong,
        "bytes_moved": moved,
        **cells,
        "note": note,
    }


def _method(timer: str, rounds: int, rotation: int, peers: dict) -> dict:
    return {
        "timer": timer,
        "rounds": rounds,
        "input": f"standard normal, seed {SEED}; E4M3, {RULE}, blocks of 32, plain scales",
        "rotation_bytes": rotation,
        "reference": f"{COPY} of the same input, in the same round",
        "peers": ", ".join(peers),
        "checked": "every byte of elements and scales, outputs poisoned, against chipmath.quantize on the same device",
    }


EXPERIMENT = MeasuredExperiment(
    name="quantizers",
    question="How close to a copy's bandwidth do the quantizers come, and what does one read for both directions save?",
    sources=(
        *("experiments/quantizers.py", "experiments/timing.py"),
        *("experiments/quantizer_code.py", "experiments/quantizer_rungs.py", "experiments/resources.py"),
        *("quantize_gpu.py", "quantize_kernels.py", "quantize.py", "formats.py"),
    ),
    keys={
        "kernel": "ours by direction, steps as in quantizer_code, peers (rows unless they say both), and the copy",
        "dtype": "of x",
        "rows": "of x",
        "columns": "of x",
    },
    values={
        "wrong_bytes": "that differ from the reference's; a kernel with any is not timed",
        "bytes_moved": "the least: input, elements and scales once a pass",
        **{f"bytes_per_s_{p}": f"bytes_moved a second, {p}" for p in QUANTILES},
        **{f"ratio_to_copy_{p}": f"to {COPY} in the same round, by bytes a second, {p}" for p in QUANTILES},
        **{f"time_over_two_passes_{p}": f"both over rows and columns, same round, {p}" for p in QUANTILES},
        "note": "why a peer was not timed",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    longest_seconds=300,  # most of it torch.compile's
    prediction=(
        f"the least time that the data sheet's bandwidth admits for {SHAPES[-1][0]} × {SHAPES[-1][1]} bfloat16, "
        "and the ratio of bytes as the ratio of times"
    ),
    shown={
        "device": Shown("card"),
        "kernel": Shown("kernel"),
        "dtype": Shown("input"),
        "rows": Shown("rows"),
        "columns": Shown("columns"),
        "wrong_bytes": Shown("bytes that differ"),
        "bytes_per_s_p50": Shown("TB/s, median", ".2f", 1e-12),
        "ratio_to_copy_p10": Shown("of the copy, p10", ".3f"),
        "ratio_to_copy_p50": Shown("of the copy, median", ".3f"),
        "ratio_to_copy_p90": Shown("of the copy, p90", ".3f"),
        "time_over_two_passes_p50": Shown("time over two passes, median", ".3f"),
        "s_at_least": Shown("µs, at least", ".0f", 1e6),
    },
)
