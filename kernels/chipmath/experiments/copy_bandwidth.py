"""Bytes a second through a GPU's memory: copying and reading, by Triton and by torch, in turns.

Data are random words, never zeros; buffers rotate so that no cache serves them again; every kernel is checked before it
is timed, and a wrong one has no time.
"""

from collections.abc import Callable

from chipmath.crosscompile import find_triton
from chipmath.devices import MIB, PRODUCTS, Product
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Shown
from chipmath.experiments.timing import Candidate, GraphStopwatch, Stopwatch, host_stopwatch, spread, take_turns
from chipmath.gpu import Gpu

BLOCK, NUM_WARPS = 4096, 4
SIZES_MIB, QUICK_SIZES_MIB = (64, 256, 1024, 4096), (256,)
ROUNDS, QUICK_ROUNDS = 30, 9
ROTATION_BYTES = 2048 * MIB  # sources and targets; a read sees half: four times MI355X's cache
SEED = 0
REFERENCE = "torch copy_"
# How drivers name the cards on record. An H100 PCIe is another card; so is part of one (see `datasheet`).
PRODUCT_OF = {"NVIDIA H100 80GB HBM3": "H100 SXM", "NVIDIA H200": "H200 SXM", "NVIDIA B200": "B200"} | {
    f"AMD Instinct {name}": name for name in ("MI300X", "MI355X")
}


def datasheet(gpu_name: str, units: int) -> Product | None:
    """The card's record; None where there is none, or where the GPU is only a partition of a card."""
    product = PRODUCTS.get(PRODUCT_OF.get(gpu_name, ""))
    return product if product is not None and product.units == units else None


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[dict]]:
    """Method and rows on torch's current GPU."""
    import torch

    find_triton()  # says how to get it where it is missing
    product = datasheet(gpu.name, torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)
    sizes = QUICK_SIZES_MIB if quick else SIZES_MIB
    # A buffer set is a source and a target, and at least two sets rotate; leave most of the memory alone.
    sizes = [size * MIB for size in sizes if max(4 * size * MIB, ROTATION_BYTES) < gpu.memory_bytes // 2]
    if not sizes:
        needed, has = 2 * ROTATION_BYTES // MIB, gpu.memory_bytes // MIB
        raise ExperimentError(f"copy_bandwidth wants a GPU of more than {needed} MiB, this one has {has} MiB")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows = _measure("cuda", sizes, ROTATION_BYTES, GraphStopwatch, rounds, product, progress)
    return _method("device events around graphs", rounds, ROTATION_BYTES), rows


def rehearse(progress: Progress) -> tuple[dict, list[dict]]:
    """The same on a CPU: Triton's interpreter runs the kernels, and a host clock stands in for events."""
    rows = _measure("cpu", [64 * 1024], 256 * 1024, lambda: host_stopwatch, 3, PRODUCTS["MI355X"], progress)
    return _method("host clock, rehearsal", 3, 256 * 1024), rows


def predict() -> list[dict]:
    """The most that a data sheet admits: a copy reads and writes every byte."""
    return [
        {
            "device": p.name,
            "bytes_per_s_at_most": p.hbm_bytes_per_s,
            "copy_of_1_gib_s_at_least": 2 * 2**30 / p.hbm_bytes_per_s,
        }
        for p in PRODUCTS.values()
    ]


def _method(timer: str, rounds: int, rotation_bytes: int) -> dict:
    return {
        "timer": timer,
        "rounds": rounds,
        "input": f"random 32-bit words, seed {SEED}",
        "rotation_bytes": rotation_bytes,
        "triton": f"{BLOCK} words a program, {NUM_WARPS} warps",
        "reference": REFERENCE,
    }


def _measure(
    device: str,
    sizes: list[int],
    rotation_bytes: int,
    make_stopwatch: Callable[[], Stopwatch],
    rounds: int,
    product: Product | None,
    progress: Progress,
) -> list[dict]:
    rows = []
    for done, size in enumerate(sizes):
        progress(done, len(sizes), f"buffers of {size / MIB:g} MiB")
        candidates, moved = _candidates(device, size, max(2, -(-rotation_bytes // (2 * size))))
        seconds = take_turns(candidates, make_stopwatch(), rounds=rounds)
        for name in candidates:
            rows.append(_row(name, size, moved[name], seconds[name], seconds[REFERENCE], product))
    progress(len(sizes), len(sizes), "done")
    return rows


def _row(name: str, size: int, moved: int, seconds: list[float], reference: list[float], product) -> dict:
    rate = spread([moved / s for s in seconds])
    # The reference moves 2 bytes for each of the buffer: rates are compared, not times.
    ratio = spread([moved / s / (2 * size / r) for s, r in zip(seconds, reference)])
    return {
        "kernel": name,
        "buffer_bytes": size,
        "bytes_moved": moved,
        **{f"bytes_per_s_{p}": value for p, value in vars(rate).items()},
        **{f"ratio_to_reference_{p}": value for p, value in vars(ratio).items()},
        "fraction_of_datasheet": product and rate.p50 / product.hbm_bytes_per_s,
        "wrong_bytes": 0,
    }


def _candidates(device: str, size: int, sets: int) -> tuple[dict[str, Candidate], dict[str, int]]:
    """What is timed, and the bytes that each reads and writes; every one has been checked on every buffer."""
    import torch

    from chipmath.experiments.streams import copy_stream, read_stream

    generator = torch.Generator(device).manual_seed(SEED)
    words = (size // 4,)
    sources = [
        torch.randint(-(2**31), 2**31 - 1, words, dtype=torch.int32, device=device, generator=generator)
        for _ in range(sets)
    ]
    targets = [torch.empty_like(source) for source in sources]
    parities = [torch.empty(size // 4 // BLOCK, dtype=torch.int32, device=device) for _ in range(sets)]
    grid = (size // 4 // BLOCK,)

    def triton_copy(i: int) -> None:
        copy_stream[grid](sources[i % sets], targets[i % sets], BLOCK=BLOCK, num_warps=NUM_WARPS)

    def triton_read(i: int) -> None:
        read_stream[grid](sources[i % sets], parities[i % sets], BLOCK=BLOCK, num_warps=NUM_WARPS)

    def torch_copy(i: int) -> None:
        targets[i % sets].copy_(sources[i % sets])

    for name, copy in (("triton copy", triton_copy), (REFERENCE, torch_copy)):
        for i in range(sets):
            targets[i].copy_(~sources[i])  # poison: every byte is wrong
            copy(i)
            _check(name, targets[i], sources[i])
    for i in range(sets):
        expected = _parity(sources[i].view(-1, BLOCK))
        parities[i].copy_(~expected)
        triton_read(i)
        _check("triton read", parities[i], expected)
    candidates = {"triton copy": triton_copy, REFERENCE: torch_copy, "triton read": triton_read}
    return candidates, dict.fromkeys(candidates, 2 * size) | {"triton read": size + size // BLOCK}


def _parity(blocks):
    """Exclusive or along the last axis, whose length is a power of two."""
    while blocks.shape[1] > 1:
        half = blocks.shape[1] // 2
        blocks = blocks[:, :half] ^ blocks[:, half:]
    return blocks[:, 0]


def _check(name: str, got, expected) -> None:
    wrong = int((got != expected).sum())
    if wrong:
        raise ExperimentError(f"{name} is wrong in {wrong} of {expected.numel()} words: it is not timed")


EXPERIMENT = MeasuredExperiment(
    name="copy_bandwidth",
    question="How many bytes a second does a copy or a read move, beside torch's own copy in the same run?",
    sources=("experiments/copy_bandwidth.py", "experiments/streams.py", "experiments/timing.py"),
    keys={"kernel": "who moves the bytes", "buffer_bytes": "of the source"},
    values={
        "bytes_moved": "read and written by a call",
        **{f"bytes_per_s_{p}": f"bytes_moved a second, {p}" for p in ("p10", "p50", "p90")},
        **{
            f"ratio_to_reference_{p}": f"to {REFERENCE} in the same round, by bytes a second, {p}"
            for p in ("p10", "p50", "p90")
        },
        "fraction_of_datasheet": "median over the data sheet's bandwidth, where the card is on record",
        "wrong_bytes": "found before timing",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=5,
    prediction="the most that the data sheet admits",
    shown={
        "device": Shown("card"),
        "kernel": Shown("kernel"),
        "buffer_bytes": Shown("buffer in MiB", ".0f", 1 / MIB),
        "bytes_per_s_p10": Shown("TB/s, p10", ".3f", 1e-12),
        "bytes_per_s_p50": Shown("TB/s, median", ".3f", 1e-12),
        "bytes_per_s_p90": Shown("TB/s, p90", ".3f", 1e-12),
        "ratio_to_reference_p50": Shown(f"ratio to {REFERENCE}, median", ".3f"),
        "fraction_of_datasheet": Shown("of the data sheet", ".1%"),
        "bytes_per_s_at_most": Shown("TB/s, at most", ".2f", 1e-12),
        "copy_of_1_gib_s_at_least": Shown("copy of 1 GiB in µs, at least", ".0f", 1e6),
    },
)
