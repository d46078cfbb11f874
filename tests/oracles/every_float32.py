"""`encode` of E4M3 and E5M2 on every float32 there is, against encoders that we did not write.

  python tests/oracles/every_float32.py              all 2**32 patterns on two processes; writes every_float32.json
  python tests/oracles/every_float32.py --every 64   every 64th pattern; writes nothing

The other encoders overflow, each in its way (test_peers.py), so they get the number clamped to ±max. A NaN counts as
NaN whatever its code, but with its sign. The same pass compares `encode` with and without the clamp, and with the
elements of the compiled quantizer at scale 1.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from chipmath import quantize_cpu
from chipmath.formats import E4M3, E5M2, ElementFormat
from chipmath.recordings import code_digest

RESULT = Path(__file__).with_suffix(".json")
SOURCES = ("formats.py", "quantize_cpu.py")
COLUMNS = ["format", "encoder", "patterns", "nan_patterns", "differences"]
PATTERNS = 1 << 32
CHUNK = 1 << 23
CASTS = {"E4M3": ("float8_e4m3fn", torch.float8_e4m3fn), "E5M2": ("float8_e5m2", torch.float8_e5m2)}
ML_DTYPES, TORCH, UNCLAMPED, COMPILED = "ml_dtypes", "torch", "encode without clamp", "quantize_cpu at scale 1"


def patterns(start: int, count: int, every: int) -> np.ndarray:
    """One pattern of each run of ``every``: the first of its run on every tie, elsewhere another from run to run."""
    run = np.arange(start, start + count, dtype=np.uint64)
    return (run * np.uint64(every) + run * np.uint64(37) % np.uint64(every)).astype(np.uint32)


def compare(start: int, count: int, every: int) -> list[tuple[str, str, int, int]]:
    """(format, encoder, NaN patterns, differences) on one chunk."""
    torch.set_num_threads(1)
    x = patterns(start, count, every).view(np.float32)
    return [row for fmt in (E4M3, E5M2) for row in compare_format(fmt, x)]


def compare_format(fmt: ElementFormat, x: np.ndarray) -> list[tuple[str, str, int, int]]:
    """The rows of one format."""
    nan = np.isnan(x)
    clamped = np.where(nan, x, np.clip(x, np.float32(-fmt.max), np.float32(fmt.max)))
    ours = fmt.encode(torch.from_numpy(clamped)).numpy()
    others = {
        ML_DTYPES: one_nan(fmt, ml_dtypes_codes(fmt, clamped)),
        TORCH: one_nan(fmt, torch.from_numpy(clamped).to(CASTS[fmt.name][1]).view(torch.uint8).numpy()),
        UNCLAMPED: fmt.encode(torch.from_numpy(x)).numpy(),
        COMPILED: np.where(nan, ours, compiled_codes(fmt, np.where(nan, np.float32(0), clamped))),
    }
    return [(fmt.name, name, int(nan.sum()), int((codes != ours).sum())) for name, codes in others.items()]


def ml_dtypes_codes(fmt: ElementFormat, x: np.ndarray) -> np.ndarray:
    """Codes by ml_dtypes, which warns of NaN."""
    import ml_dtypes

    with np.errstate(invalid="ignore"):
        return x.astype(getattr(ml_dtypes, CASTS[fmt.name][0])).view(np.uint8)


def one_nan(fmt: ElementFormat, codes: np.ndarray) -> np.ndarray:
    """Every NaN code as ours, its sign kept."""
    is_nan = (codes & 0x7F) > fmt.max_code + fmt.has_inf
    return np.where(is_nan, codes & 0x80 | fmt.nan_code, codes).astype(np.uint8)


def compiled_codes(fmt: ElementFormat, x: np.ndarray) -> np.ndarray:
    """Elements of the compiled quantizer where every block holds the largest number, so that its scale is 1."""
    blocks = -(-len(x) // 31)
    numbers = np.zeros((blocks, 32), np.float32)
    numbers[:, 31] = fmt.max
    numbers[:, :31] = np.pad(x, (0, 31 * blocks - len(x))).reshape(blocks, 31)
    quantized = quantize_cpu.quantize(torch.from_numpy(numbers), fmt, "floor")
    assert (quantized.scales == 127).all()
    return quantized.elements.numpy()[:, :31].reshape(-1)[: len(x)]


def run(every: int, processes: int) -> list[list]:
    """All rows, with progress on the terminal."""
    total = PATTERNS // every
    starts = range(0, total, CHUNK)
    counts = [min(CHUNK, total - start) for start in starts]
    begun, done, sums = time.monotonic(), 0, {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for rows, count in zip(pool.map(partial(compare, every=every), starts, counts), counts):
            for name, encoder, nans, differences in rows:
                seen, nan_sum, difference_sum = sums.get((name, encoder), (0, 0, 0))
                sums[name, encoder] = (seen + count, nan_sum + nans, difference_sum + differences)
            done += count
            left = (time.monotonic() - begun) * (total / done - 1)
            wrong = sum(row[2] for row in sums.values())
            print(f"{done / total:6.1%} of {total} patterns, {wrong} differences, {left:4.0f} s left", file=sys.stderr)
    return [[*key, *values] for key, values in sums.items()]


def record(rows: list[list], seconds: float) -> dict:
    """The result with its origin, in the fields of a recording."""
    git = partial(subprocess.run, cwd=RESULT.parent, capture_output=True, text=True, check=True)
    return {
        "schema": 1,
        "experiment": RESULT.stem,
        "kind": "computed",
        "code": code_digest(SOURCES),
        "commit": git(["git", "rev-parse", "HEAD"]).stdout.strip(),
        "dirty": bool(git(["git", "status", "--porcelain", "--", ":/kernels"]).stdout.strip()),
        "taken": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": {"name": "CPU", "arch": platform.machine()},
        "software": {name: version(name) for name in ("torch", "ml_dtypes", "numpy", "numba")},
        "method": {"form": "full", "seconds": round(seconds)},
        "columns": COLUMNS,
        "rows": rows,
    }


def to_json(result: dict) -> str:
    """One line a field, one line a row."""
    head = [f'  "{name}": {json.dumps(value)},' for name, value in result.items() if name != "rows"]
    rows = ",\n".join(f"    {json.dumps(row)}" for row in result["rows"])
    return "{\n" + "\n".join(head) + '\n  "rows": [\n' + rows + "\n  ]\n}\n"


def main() -> int:
    """Run the command; 0 if no encoder differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="one pattern of each run of so many")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    rows = run(options.every, options.processes)
    if options.every == 1:
        RESULT.write_text(to_json(record(rows, time.monotonic() - begun)), encoding="utf-8")
    for row in rows:
        print(*row, sep="\t")
    return int(any(row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
