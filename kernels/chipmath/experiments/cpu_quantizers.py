"""Quantizers on a CPU beside a copy: PYTHONPATH=kernels python -m chipmath.experiments.cpu_quantizers

Prints gigabytes of input a second and the ratio to ``copy_`` into a warm buffer in the same round, p10, median and p90.
Every candidate writes the reference's bytes before it is timed. Everything is done in three processes: as it is, where
a large output costs a page fault every 4 KiB; with glibc told to keep memory; and with OpenMP's threads told to sleep
as well. After an operation of torch they spin for milliseconds, which Numba's threads, and other processes, pay for.
Nothing is recorded: recordings are of GPUs, and a shared CPU gives no number to quote. Peers that are not installed are
named.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from chipmath import quantize, quantize_cpu
from chipmath.experiments.experiment import ExperimentError
from chipmath.experiments.here import cpu_record
from chipmath.experiments.timing import Spread, host_stopwatch, spread, take_turns
from chipmath.formats import E4M3, E8M0, FLOAT32_BIAS, FRACTION_BITS, INFINITY, MAGNITUDE, normalize
from chipmath.processes import leave

SHAPE = (4096, 4096)
ROUNDS = 15
SEED = 0
COPY, OURS, TORCHAO = "copy_ into a warm buffer", "chipmath.quantize_cpu", "torchao to_mx, eager"
# glibc gives memory above the first limit back at once, and memory on top of the heap above the second.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
SETTINGS: dict[str, dict[str, str]] = {
    "allocator as it is": {},
    "allocator keeps memory": KEEP_MEMORY,
    "allocator keeps memory, OpenMP sleeps": KEEP_MEMORY | {"GOMP_SPINCOUNT": "0"},
}

Bytes = tuple[Tensor, Tensor]  # elements and scales, uint8
Quantizer = Callable[[Tensor, str], Bytes]


# --- candidates -------------------------------------------------------------------------------------------------------


def ours(x: Tensor, scale_rule: str) -> Bytes:
    """The compiled one."""
    quantized = quantize_cpu.quantize(x, E4M3, scale_rule)
    return quantized.elements, quantized.scales


def ours_into_warm_buffers(x: Tensor, scale_rule: str) -> Bytes:
    """The compiled one without its memory: it writes where it wrote before, as ``copy_`` does."""
    elements, scales = _warm_buffers(x)
    quantize_cpu.quantize_into(x, E4M3, scale_rule, elements, scales)
    return elements, scales


@lru_cache(maxsize=1)
def _warm_buffers(x: Tensor) -> Bytes:
    return torch.empty(x.shape, dtype=torch.uint8), torch.empty(*x.shape[:-1], x.shape[-1] // 32, dtype=torch.uint8)


def reference(x: Tensor, scale_rule: str) -> Bytes:
    """The definition, in chunks that stay in the cache."""
    quantized = quantize.quantize(x, E4M3, scale_rule)
    return quantized.elements, quantized.scales


def reference_at_once(x: Tensor, scale_rule: str) -> Bytes:
    """The definition's integers without the chunks: for a compiler to fuse."""
    bits = x.view(-1, 32).float().view(torch.int32)
    amax = (bits & MAGNITUDE).amax(1, keepdim=True)
    field = normalize(amax) + quantize.scale_constant(E4M3, scale_rule) >> FRACTION_BITS
    scales = E8M0.encode(field - FLOAT32_BIAS - E4M3.emax)
    scales = torch.where(amax >= INFINITY, E8M0.nan_code, scales)
    codes = E4M3.encode_bits(bits, scales.int() - E8M0.bias)
    return torch.where(scales == E8M0.nan_code, E4M3.nan_code, codes), scales


def straightforward(x: Tensor, scale_rule: str) -> Bytes:
    """What one would write first: multiply, clamp, cast. No NaN, no Inf, no block near the ends of float32."""
    blocks = x.view(-1, 32).float()
    amax = blocks.abs().amax(1, keepdim=True).view(torch.int32)
    field = (amax + quantize.scale_constant(E4M3, scale_rule) >> FRACTION_BITS) - E4M3.emax
    reciprocal = (2 * FLOAT32_BIAS - field << FRACTION_BITS).view(torch.float32)
    elements = (blocks * reciprocal).clamp(-E4M3.max, E4M3.max).to(torch.float8_e4m3fn)
    return elements.view(torch.uint8), field.to(torch.uint8)


def torchao(x: Tensor, scale_rule: str) -> Bytes:
    """torchao's prototype, with our rule in its words."""
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    scales, elements = to_mx(x, torch.float8_e4m3fn, 32, getattr(ScaleCalculationMode, scale_rule.upper()))
    return elements.view(torch.uint8), scales.view(torch.uint8)


def numpy_and_ml_dtypes(x: Tensor, scale_rule: str) -> Bytes:
    """numpy for the scales, on one thread, and a cast by ml_dtypes, which has to be kept from overflowing."""
    import ml_dtypes

    blocks = x.float().numpy().reshape(-1, 32)
    amax = np.abs(blocks).max(1, keepdims=True).view(np.int32)
    field = (amax + quantize.scale_constant(E4M3, scale_rule) >> FRACTION_BITS) - E4M3.emax
    scaled = np.clip(np.ldexp(blocks, FLOAT32_BIAS - field), -E4M3.max, E4M3.max)
    codes = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return torch.from_numpy(codes), torch.from_numpy(field.astype(np.uint8))


def gfloat(x: Tensor, scale_rule: str) -> Bytes:
    """gfloat: Python, a value at a time. It knows the floor rule; other scales are handed to it."""
    from gfloat import encode_block
    from gfloat.formats import format_info_mxfp8_e4m3

    scales = reference(x, scale_rule)[1].reshape(-1)
    powers = E8M0.decode(scales).double().numpy()
    rows = x.double().numpy().reshape(-1, 32)
    blocks = [list(encode_block(format_info_mxfp8_e4m3, power, row / power)) for power, row in zip(powers, rows)]
    coded = torch.tensor(blocks, dtype=torch.uint8)
    return coded[:, 1:], coded[:, 0]


def candidates(compile_too: bool) -> tuple[dict[str, tuple[Quantizer, int]], list[str]]:
    """Name -> quantizer and the share of the rows it gets (one in so many); and what is missing here."""
    found: dict[str, tuple[Quantizer, int]] = {
        "torch eager, straightforward": (straightforward, 1),
        "chipmath.quantize, the reference": (reference, 4),
    }
    missing = []
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        missing.append("a C++ compiler, for torch.compile")
    elif compile_too:
        found["torch.compile, straightforward"] = (torch.compile(straightforward, fullgraph=True), 1)
        found["torch.compile of the reference's integers"] = (torch.compile(reference_at_once, fullgraph=True), 1)
    optional: dict[str, dict[str, tuple[Quantizer, int]]] = {
        "numba": {OURS: (ours, 1), f"{OURS}, warm buffers": (ours_into_warm_buffers, 1)},
        "torchao": {TORCHAO: (torchao, 1)},
        "ml_dtypes": {"numpy and ml_dtypes, one thread": (numpy_and_ml_dtypes, 8)},
        "gfloat": {"gfloat": (gfloat, 512)},
    }
    for package, quantizers in optional.items():
        if importlib.util.find_spec(package):
            found |= quantizers
        else:
            missing.append(package)
    return found, missing


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    x: Tensor, scale_rule: str, quantizers: dict[str, tuple[Quantizer, int]], rounds: int
) -> dict[str, tuple[Spread, Spread]]:
    """Name -> GB/s of input and ratio to the copy of the same round; refuses a quantizer with a wrong byte."""
    target = torch.empty_like(x)
    work: dict[str, Callable[[int], object]] = {COPY: lambda i: target.copy_(x), "clone()": lambda i: x.clone()}
    sizes = dict.fromkeys(work, x.nbytes)
    for name, (quantizer, share) in quantizers.items():
        part = x[: max(1, len(x) // share)]
        _check(name, quantizer(part, scale_rule), reference(part, scale_rule))
        work[name] = lambda i, quantizer=quantizer, part=part: quantizer(part, scale_rule)
        sizes[name] = part.nbytes
    seconds = take_turns(work, host_stopwatch, rounds=rounds)
    rates = {name: [sizes[name] / s for s in seconds[name]] for name in work}
    return {
        name: (spread([rate / 1e9 for rate in rates[name]]), spread([r / c for r, c in zip(rates[name], rates[COPY])]))
        for name in work
    }


def _check(name: str, got: Bytes, expected: Bytes) -> None:
    wrong = sum(int((g.reshape(-1) != e.reshape(-1)).sum()) for g, e in zip(got, expected))
    if wrong:
        raise ExperimentError(f"{name} differs from the reference in {wrong} bytes: it is not timed")


def print_table(results: dict[str, tuple[Spread, Spread]]) -> None:
    """One line a candidate, fastest first."""
    quantiles = [f"{name:>9}" for name in ("p10", "p50", "p90")]
    heads = ["GB/s of input, and its ratio to copy_".ljust(44), *quantiles, "  ", *(head[1:] for head in quantiles)]
    print("".join(heads) + "  x torchao")
    torchao_rate = results[TORCHAO][0].p50 if TORCHAO in results else None
    for name, (rate, ratio) in sorted(results.items(), key=lambda item: -item[1][0].p50):
        times = f"{rate.p50 / torchao_rate:11.1f}" if torchao_rate else ""
        rates = "".join(f"{value:9.4f}" for value in (rate.p10, rate.p50, rate.p90))
        ratios = "".join(f"{value:8.3f}" for value in (ratio.p10, ratio.p50, ratio.p90))
        print(f"{name:44}{rates}  {ratios}{times}")


def run_here(options: argparse.Namespace) -> None:
    """Measure in this process, whose setting has a name."""
    quantizers, missing = candidates(options.compile)
    for dtype in options.dtype:
        x = torch.randn(options.shape, generator=torch.manual_seed(SEED)).to(getattr(torch, dtype))
        for scale_rule in options.rule:
            torch.compiler.reset()
            before = os.getloadavg()[0]
            results = measure(x, scale_rule, quantizers, options.rounds)
            where = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
            print(f"\n{' x '.join(map(str, x.shape))} {dtype}, E4M3, {scale_rule}; {options.here}; {where}")
            print_table(results)
            sys.stdout.flush()
    if missing:
        print(f"not measured, for lack of: {', '.join(missing)}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rule", nargs="+", choices=quantize.SCALE_RULES, default=["floor", "rceil"])
    parser.add_argument("--shape", nargs=2, type=int, default=SHAPE, metavar=("M", "K"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--here", metavar="SETTING", help="in this process, whose setting is called so")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.here:
        run_here(options)
        return 0
    versions = [f"{name} {version(name)}" for name in ("torch", "numba", "torchao") if importlib.util.find_spec(name)]
    cpu = cpu_record()
    print(f"{cpu['name']}, {cpu['threads']} threads of torch; {', '.join(versions)}", flush=True)
    plain = {name: value for name, value in os.environ.items() if name not in {*KEEP_MEMORY, "GOMP_SPINCOUNT"}}
    failed = 0
    for name, variables in SETTINGS.items():
        command = [sys.executable, "-m", "chipmath.experiments.cpu_quantizers", "--here", name, *arguments]
        failed |= subprocess.run(command, env=plain | variables, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    leave(main)
