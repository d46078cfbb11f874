"""The reference on a GPU: the same bytes as on the CPU, the noise that the law implies, and how far from a copy it is.

`chipmath.quantize` and `chipmath.matmul` are plain torch operations, one pass through memory each: no kernel to be
proud of, but the yardstick of every faster one. Nothing is timed before its bytes are those of the CPU.

The product is compared by bytes too. It is summed in float64, where sums of these operands are exact in any order:
products of E4M3 are multiples of 2**-18 below 2**17.7, 1024 of them add 10 bits, and the scales of Gaussian blocks span
few powers of two, so that less than 53 bits hold every partial sum.
"""

from math import sqrt

from chipmath.devices import GIB, PRODUCTS
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Shown
from chipmath.experiments.timing import Candidate, Stopwatch, event_stopwatch, host_stopwatch, spread, take_turns
from chipmath.gpu import Gpu

RULES = ("floor", "rceil")
DTYPES = {"float32": 4, "bfloat16": 2}  # name in torch -> bytes
SHAPE, QUICK_SHAPE, REHEARSAL_SHAPE = (8192, 8192), (4096, 4096), (32, 64)
PRODUCT, QUICK_PRODUCT, REHEARSAL_PRODUCT = (1024, 1024), (512, 1024), (32, 64)  # rows of A and of B; K
ROUNDS, QUICK_ROUNDS = 30, 9
ROTATION_BYTES = GIB  # of sources, and of the copy's targets: four times MI355X's Infinity Cache
MEMORY_BYTES = 8 * GIB  # more than sources, targets and temporaries take
SEED = 0
QUANTILES = ("p10", "p50", "p90")


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[dict]]:
    """Method and rows on torch's current GPU."""
    if gpu.memory_bytes < MEMORY_BYTES:
        needed, has = MEMORY_BYTES / GIB, gpu.memory_bytes / GIB
        raise ExperimentError(f"reference_quantizer wants {needed:.0f} GiB of memory, this GPU has {has:.0f}")
    shape, product, rounds = (QUICK_SHAPE, QUICK_PRODUCT, QUICK_ROUNDS) if quick else (SHAPE, PRODUCT, ROUNDS)
    rows = _measure("cuda", shape, product, ROTATION_BYTES, event_stopwatch, rounds, progress)
    return _method("device events", rounds, ROTATION_BYTES), rows


def rehearse(progress: Progress) -> tuple[dict, list[dict]]:
    """The same on a CPU, with a host clock."""
    rows = _measure("cpu", REHEARSAL_SHAPE, REHEARSAL_PRODUCT, 0, host_stopwatch, 3, progress)
    return _method("host clock, rehearsal", 3, 0), rows


def predict() -> list[dict]:
    """The same bytes everywhere, the noise of the law, and the time below which no card can be."""

    def row(device: str, operation: str, rule: str, seconds: float | None = None) -> dict:
        return {
            "device": device,
            "operation": operation,
            "scale_rule": rule,
            "wrong_bytes": 0,
            "expected_sqnr_db": _expected_db(operation, rule),
            "s_at_least": seconds,
        }

    moved = _bytes_moved(SHAPE, "bfloat16")
    anywhere = [row("any GPU", operation, rule) for operation in ("quantize", "matmul") for rule in RULES]
    return anywhere + [row(p.name, "quantize", "rceil", moved / p.hbm_bytes_per_s) for p in PRODUCTS.values()]


def _method(timer: str, rounds: int, rotation_bytes: int) -> dict:
    return {
        "timer": timer,
        "rounds": rounds,
        "input": f"standard normal, drawn on the CPU, seed {SEED}; E4M3, blocks of 32",
        "rotation_bytes": rotation_bytes,
        "reference": "torch copy_ of the same input, in the same round",
        "checked": "bytes of elements and scales, and of the product, against the CPU",
    }


def _measure(
    device: str,
    shape: tuple[int, int],
    product: tuple[int, int],
    rotation_bytes: int,
    stopwatch: Stopwatch,
    rounds: int,
    progress: Progress,
) -> list[dict]:
    rows = []
    total = len(DTYPES) + 1
    for done, dtype in enumerate(DTYPES):
        progress(done, total, f"quantizer, {shape[0]} x {shape[1]}, {dtype}")
        rows += _quantizers(device, shape, dtype, rotation_bytes, stopwatch, rounds)
    progress(total - 1, total, "product")
    rows += [_product(device, product, rule) for rule in RULES]
    progress(total, total, "done")
    return rows


def _quantizers(
    device: str, shape: tuple[int, int], dtype: str, rotation_bytes: int, stopwatch: Stopwatch, rounds: int
) -> list[dict]:
    import torch

    from chipmath.formats import E4M3
    from chipmath.quantize import quantize, sqnr_db

    x = _normal(shape, SEED).to(getattr(torch, dtype))
    first = x.to(device)
    rows = {}
    for rule in RULES:
        here, there = quantize(x, E4M3, rule), quantize(first, E4M3, rule)
        for name in ("elements", "scales"):
            _check(f"{name} of {dtype}, {rule}", getattr(there, name).cpu(), getattr(here, name))
        rows[rule] = {"sqnr_db": sqnr_db(first, there.dequantize()), "wrong_bytes": 0}
    del here, there

    # Equal contents at different addresses: no cache holds them all.
    sets = max(2, -(-rotation_bytes // (x.numel() * DTYPES[dtype])))
    sources = [first, *(first.clone() for _ in range(sets - 1))]
    targets = [torch.empty_like(first) for _ in range(sets)]
    candidates: dict[str, Candidate] = {
        rule: (lambda i, rule=rule: quantize(sources[i % sets], E4M3, rule)) for rule in RULES
    }
    candidates["copy"] = lambda i: targets[i % sets].copy_(sources[i % sets])
    seconds = take_turns(candidates, stopwatch, rounds=rounds)
    moved, copied = _bytes_moved(shape, dtype), 2 * x.numel() * DTYPES[dtype]
    times = {rule: (moved, seconds[rule], copied, seconds["copy"]) for rule in RULES}
    return [_row("quantize", rule, dtype, shape, rows[rule], *times[rule]) for rule in RULES]


def _product(device: str, product: tuple[int, int], rule: str) -> dict:
    import torch

    from chipmath.formats import E4M3
    from chipmath.matmul import matmul
    from chipmath.quantize import quantize, sqnr_db

    a, b = (_normal(product, SEED + n) for n in (1, 2))
    here = matmul(*(quantize(operand, E4M3, rule) for operand in (a, b)))
    a, b = a.to(device), b.to(device)
    there = matmul(*(quantize(operand, E4M3, rule) for operand in (a, b)))
    _check(f"the product, {rule}", there.cpu().view(torch.uint8), here.view(torch.uint8))
    exact = a.double() @ b.double().T
    return _row("matmul", rule, "float32", product, {"sqnr_db": sqnr_db(exact, there), "wrong_bytes": 0})


def _row(
    operation: str,
    rule: str,
    dtype: str,
    shape: tuple[int, int],
    checked: dict,
    moved: int | None = None,
    seconds: list[float] | None = None,
    copied: int | None = None,
    copy_seconds: list[float] | None = None,
) -> dict:
    rates = dict.fromkeys([*(f"bytes_per_s_{p}" for p in QUANTILES), *(f"ratio_to_copy_{p}" for p in QUANTILES)])
    if seconds is not None:
        rate = spread([moved / s for s in seconds])
        ratio = spread([moved / s / (copied / c) for s, c in zip(seconds, copy_seconds)])
        rates = {f"bytes_per_s_{p}": getattr(rate, p) for p in QUANTILES}
        rates |= {f"ratio_to_copy_{p}": getattr(ratio, p) for p in QUANTILES}
    return {
        "operation": operation,
        "scale_rule": rule,
        "dtype": dtype,
        "rows": shape[0],
        "columns": shape[1],
        **checked,
        "expected_sqnr_db": _expected_db(operation, rule),
        "bytes_moved": moved,
        **rates,
        "copy_bytes_per_s_p50": None if seconds is None else spread([copied / c for c in copy_seconds]).p50,
    }


def _bytes_moved(shape: tuple[int, int], dtype: str) -> int:
    """The least a quantizer moves: every input read, every element and scale written, once."""
    values = shape[0] * shape[1]
    return values * DTYPES[dtype] + values + values // 32


def _expected_db(operation: str, rule: str) -> float:
    import torch

    from chipmath.formats import E4M3
    from chipmath.noise import expected_product_db, expected_sqnr_db

    expected = {"quantize": expected_sqnr_db, "matmul": expected_product_db}[operation]
    return expected(lambda t: torch.erf(t / sqrt(2)), E4M3, rule, 32)


def _normal(shape: tuple[int, int], seed: int):
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check(name: str, got, expected) -> None:
    wrong = int((got != expected).sum())
    if wrong:
        raise ExperimentError(f"{name}: {wrong} of {expected.numel()} bytes differ from the CPU's: not timed")


EXPERIMENT = MeasuredExperiment(
    name="reference_quantizer",
    question="Does the reference quantizer write the same bytes on this GPU, and how far is it from a copy?",
    sources=(
        *("experiments/reference_quantizer.py", "experiments/timing.py"),
        *("formats.py", "quantize.py", "matmul.py", "noise.py"),
    ),
    keys={
        "operation": "quantize, or matmul of two quantized operands",
        "scale_rule": "of chipmath.quantize",
        "dtype": "of the input",
        "rows": "of the input; of A and of B",
        "columns": "of the input; K",
    },
    values={
        "wrong_bytes": "that differ from the CPU's: elements and scales, or the float32 product",
        "sqnr_db": "restored beside input; quantized product beside the exact one",
        "expected_sqnr_db": "by chipmath.noise for Gaussian inputs",
        "bytes_moved": "the least: input, elements and scales once (products are not timed)",
        **{f"bytes_per_s_{p}": f"bytes_moved a second, {p}" for p in QUANTILES},
        **{f"ratio_to_copy_{p}": f"to torch copy_ in the same round, by bytes a second, {p}" for p in QUANTILES},
        "copy_bytes_per_s_p50": "read and written by torch copy_ of the input, median",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=5,
    prediction=(
        "the CPU's bytes, the SQNR that follows from the Gaussian law, and the least time that the data sheet's "
        f"bandwidth admits for {SHAPE[0]} × {SHAPE[1]} bfloat16"
    ),
    shown={
        "device": Shown("card"),
        "operation": Shown("operation"),
        "scale_rule": Shown("rule"),
        "dtype": Shown("input"),
        "rows": Shown("rows"),
        "columns": Shown("columns"),
        "wrong_bytes": Shown("bytes that differ"),
        "sqnr_db": Shown("SQNR in dB", ".2f"),
        "expected_sqnr_db": Shown("SQNR expected", ".2f"),
        "bytes_per_s_p10": Shown("GB/s, p10", ".0f", 1e-9),
        "bytes_per_s_p50": Shown("GB/s, median", ".0f", 1e-9),
        "bytes_per_s_p90": Shown("GB/s, p90", ".0f", 1e-9),
        "ratio_to_copy_p50": Shown("of torch copy_, median", ".3f"),
        "s_at_least": Shown("µs, at least", ".0f", 1e6),
    },
)
