"""MXFP8 products by every route that this GPU has, in turns with cuBLAS (or hipBLASLt) in bfloat16 and FP8.

All get the same random data. A route is held against float64 before it is timed, on rows from the whole matrix. What a
route does to its operands beforehand is timed apart, as it is written here: in torch operations, except for
dequantize_cublas, whose time holds its conversions. At one shape other tiles of our kernels take part: those that come
close by what `gemm_routes` counts.
"""

from collections.abc import Callable

from chipmath.crosscompile import find_triton
from chipmath.devices import DEVICES, MIB, PRODUCTS
from chipmath.experiments import gemm_routes
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.gemm_routes import KERNEL_ROUTES, RUNNERS_UP, case_of, chosen, least_clocks
from chipmath.experiments.timing import Candidate, Stopwatch, event_stopwatch, host_stopwatch, spread, take_turns
from chipmath.gpu import Gpu
from chipmath.matmul_tiles import Tile
from chipmath.recordings import newest

SHAPES, QUICK_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 14336)), ((4096, 4096, 4096),)
TILES_ARCH, TILES_SHAPE = "sm_90", (8192, 8192, 8192)  # where runners-up take part, in the full form
REHEARSAL_SHAPE = (64, 48, 128)
Shape = tuple[int, int, int]
ROUNDS, QUICK_ROUNDS, CONVERSION_ROUNDS = 15, 5, 5
CHECKED_ROWS = 64
SEED = 0
REFERENCE = "bfloat16 product"
FP8_REFERENCE = "FP8 product, one scale"
# Hopper's FP8 tensor cores keep some 14 bits of a sum; 128 products make four such sums, the rest is float32.
FP8_TOLERANCE = 2e-3
IN_FP8 = ("folded_128", "folded_cublas")


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    find_triton()  # says how to get it where it is missing
    if gpu.arch not in DEVICES:
        raise ExperimentError(f"gemm_speed knows {', '.join(DEVICES)}, not {gpu.arch}")
    shapes = QUICK_SHAPES if quick else SHAPES
    needed = max(16 * (m * k + n * k) + 12 * m * n for m, n, k in shapes)
    if gpu.memory_bytes < 2 * needed:
        raise ExperimentError(f"gemm_speed wants {2 * needed // MIB} MiB, this GPU has {gpu.memory_bytes // MIB}")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    tiled = () if quick or gpu.arch != TILES_ARCH else (TILES_SHAPE,)
    return _measure("cuda", gpu.arch, shapes, tiled, event_stopwatch, rounds, progress)


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same on a CPU, small: Triton's interpreter runs the kernels."""
    return _measure("cpu", "cpu", (REHEARSAL_SHAPE,), (REHEARSAL_SHAPE,), host_stopwatch, 3, progress)


def _measure(
    where: str,
    arch: str,
    shapes: tuple[Shape, ...],
    tiled: tuple[Shape, ...],
    stopwatch: Stopwatch,
    rounds: int,
    progress: Progress,
) -> tuple[dict, list[Row]]:
    rows, left_out = [], {}
    for done, shape in enumerate(shapes):
        m, n, k = shape

        def tell(text: str, done=done, shape=shape) -> None:
            progress(done, len(shapes), f"{' x '.join(map(str, shape))}: {text}")

        candidates, errors, conversions, refused = _candidates(where, arch, shape, shape in tiled, tell)
        left_out |= {f"{name}, {m} x {n} x {k}": why for name, why in refused.items()}
        # Apart: after a conversion, which is light work, a product would find a higher clock than after another.
        seconds = take_turns(candidates, stopwatch, rounds=rounds)
        if conversions:
            seconds |= take_turns(conversions, stopwatch, rounds=CONVERSION_ROUNDS)
        for name in candidates:
            time, ratio = spread(seconds[name]), spread([r / s for r, s in zip(seconds[REFERENCE], seconds[name])])
            rate = spread([2 * m * n * k / s for s in seconds[name]])
            conversion = seconds.get(f"convert for {name}")
            rows.append(
                {"route": name, "m": m, "n": n, "k": k}
                | {f"s_{p}": value for p, value in vars(time).items()}
                | {f"flop_per_s_{p}": value for p, value in vars(rate).items()}
                | {f"speed_of_reference_{p}": value for p, value in vars(ratio).items()}
                | {"conversion_s": conversion and spread(conversion).p50, "relative_error": errors[name]}
            )
    progress(len(shapes), len(shapes), "done")
    method = {
        "timer": "device events" if where == "cuda" else "host clock, rehearsal",
        "rounds": rounds,
        "input": f"standard normal, seed {SEED}, quantized by rceil to E4M3",
        "reference": f"{REFERENCE} of the same values, float32 result",
        "checked": f"{CHECKED_ROWS} rows against float64 before timing",
        "left_out": left_out,
        "conversion": "of both operands, checks included; dequantize_cublas converts inside its time",
    }
    return method, rows


def routes_of(arch: str) -> list[str]:
    """The routes that a chip has; a CPU interprets the kernels."""
    from chipmath.matmul_gpu import ROUTE_ARCHS, has_too_old_triton

    if arch == "cpu":
        return [route for route in (*KERNEL_ROUTES, "dequantize_cublas") if not has_too_old_triton(route, arch)]
    return [route for route, archs in ROUTE_ARCHS.items() if arch in archs]


def tile_name(route: str, tile: Tile) -> str:
    """What a route is called here that runs with another tile than its own."""
    (m, n, k), num_warps, _ = tile
    return f"{route}, {m} x {n} x {k}, {num_warps} warps"


def _candidates(where: str, arch: str, shape: Shape, with_tiles: bool, tell: Callable[[str], None]):
    """What is timed, with its error, the conversions that routes do beforehand, and what is not timed and why.

    tell  is told what is compiled and checked next
    """
    import torch

    from chipmath import matmul_gpu
    from chipmath.formats import E4M3
    from chipmath.quantize import quantize

    m, n, k = shape
    tell("operands")
    generator = torch.Generator(where).manual_seed(SEED)
    a, b = (quantize(torch.randn(rows, k, device=where, generator=generator), E4M3, "rceil") for rows in (m, n))
    checked = torch.arange(0, m, max(m // CHECKED_ROWS, 1), device=where)
    exact = a.dequantize(torch.float64)[checked] @ b.dequantize(torch.float64).T
    wide_a, wide_b = matmul_gpu.dequantize(a), matmul_gpu.dequantize(b)
    candidates: dict[str, Candidate] = {REFERENCE: lambda i: matmul_gpu.bfloat16_product(wide_a, wide_b)}
    conversions: dict[str, Candidate] = {}
    refused: dict[str, str] = {}
    asked: list[tuple[str, str, Tile | None]] = [(route, route, None) for route in routes_of(arch)]
    if with_tiles:
        ours = [route for route in routes_of(arch) if route in RUNNERS_UP]
        asked += [(tile_name(route, tile), route, tile) for route in ours for tile in RUNNERS_UP[route]]
    for name, route, tile in asked:
        tell(name)
        chosen = {} if tile is None else {"tile": tile}
        multiply, why = _begun(lambda route=route, chosen=chosen: matmul_gpu.plan(a, b, route, **chosen))
        if why:
            refused[name] = why
            continue
        if route == "dequantize_cublas":  # what is timed converts each time
            candidates[name] = lambda i: matmul_gpu.bfloat16_product(matmul_gpu.dequantize(a), matmul_gpu.dequantize(b))
            continue
        candidates[name] = lambda i, multiply=multiply: multiply()
        if tile is None:
            conversions[f"convert for {name}"] = lambda i, route=route: matmul_gpu.plan(a, b, route)
    if where == "cuda" and arch in matmul_gpu.ROUTE_ARCHS["folded_128"] + matmul_gpu.NATIVE_SCALES:
        multiply, codes = _fp8_reference(a, b, checked)
        if why := _begun(lambda: multiply)[1]:
            refused[FP8_REFERENCE] = why
        else:
            candidates[FP8_REFERENCE] = lambda i: multiply()
    errors = {}
    for name in list(candidates):
        try:
            errors[name] = _checked(name, candidates[name], checked, codes if name == FP8_REFERENCE else exact, k)
        except ExperimentError as wrong:
            if name == REFERENCE:
                raise
            refused[name] = str(wrong)
            del candidates[name]
            conversions.pop(f"convert for {name}", None)
    return candidates, errors, conversions, refused


def _begun(plan):
    """A product that has been planned and has run once; or None, and why the installed software does not do it.

    The recording says so in left_out. Triton's errors are a compiler's, or of a kernel that wants more than a chip has;
    ValueError is a route's, which knows the releases that it needs.
    """
    try:
        multiply = plan()
        multiply()
    # NotImplementedError (cublasLt before 12.9) is a RuntimeError
    except (RuntimeError, ValueError, find_triton().TritonError) as error:
        return None, str(error).strip().partition("\n")[0]
    return multiply, ""


def _fp8_reference(a, b, checked):
    """The codes' own product, without block scales: what the FP8 tensor cores reach through the library."""
    import torch

    codes_a, codes_b = (x.elements.view(torch.float8_e4m3fn) for x in (a, b))
    one = torch.ones((), device=codes_a.device)

    def multiply():
        return torch._scaled_mm(codes_a, codes_b.T, scale_a=one, scale_b=one, out_dtype=torch.float32)

    exact = a.fmt.decode(a.elements[checked]).double() @ b.fmt.decode(b.elements).double().T
    return multiply, exact


def tolerance(name: str, k: int) -> float:
    """Norm of the error over norm of the result that is admitted for a sum over K.

    Products are exact. Tensor cores add them 16 at a time and may truncate each sum by up to 2**-23 of itself, and no
    sum on the way has a larger norm than the last: K / 16 * 2**-23. A lost block is 1 / sqrt(K / 32).
    """
    in_fp8 = name == FP8_REFERENCE or name.partition(",")[0] in IN_FP8
    return FP8_TOLERANCE if in_fp8 else max(k, 1024) * 2.0**-27


def _checked(name: str, candidate: Candidate, checked, exact, k: int) -> float:
    """Norm of the error over the checked rows; a wrong product is never timed."""
    error = float((candidate(0)[checked].double() - exact).norm() / exact.norm())
    if not error <= tolerance(name, k):
        raise ExperimentError(f"{name}: relative error {error:.3g}, allowed {tolerance(name, k):.3g}: it is not timed")
    return error


def predict() -> list[Row]:
    """What the compiled loops admit on an H100, by `gemm_routes.least_clocks`, and if no unit works beside another."""
    compiled, product = newest(gemm_routes.EXPERIMENT.name), PRODUCTS["H100 SXM"]
    cases = [(route, chosen(product.arch, route)) for route in KERNEL_ROUTES]
    cases += [
        (tile_name(route, tile), case_of(product.arch, route, *tile))
        for route in KERNEL_ROUTES
        for tile in RUNNERS_UP[route]
    ]
    rows = []
    for name, case in cases:
        clocks = least_clocks(compiled.find(**case))
        units = [clocks[unit] for unit in ("tensor cores", "issue slots", "shared memory")]
        flop = 2 * case["tile_m"] * case["tile_n"] * case["tile_k"] * product.units * product.matrix_clock_hz
        rows.append(
            {
                "device": product.name,
                "route": name,
                "tensor_clocks": units[0],
                "issue_clocks": units[1],
                "shared_clocks": units[2],
                "group_clocks": clocks["groups"],
                "flop_per_s_at_most": flop / max(clocks.values()),
                "flop_per_s_without_overlap": flop / sum(units),
            }
        )
    return rows


EXPERIMENT = MeasuredExperiment(
    name="gemm_speed",
    question="How fast is an MXFP8 product by each route, beside the library's bfloat16 and FP8 products?",
    sources=(
        *("experiments/gemm_speed.py", "experiments/timing.py"),
        # The prediction's: what decides the recording that it comes from.
        *("experiments/gemm_routes.py", "experiments/mx_step.py", "experiments/mx_tiles.py"),
        *("experiments/loops.py", "experiments/resources.py", "experiments/scaled_gemm.py"),
        *("matmul_gpu.py", "matmul_kernels.py", "matmul_tiles.py"),
    ),
    keys={
        "route": "of chipmath.matmul_gpu, with its tile where it is not the route's own, or a reference",
        "m": "rows",
        "n": "columns",
        "k": "summed over",
    },
    values={
        "s_p10": "seconds a product",
        "s_p50": "median",
        "s_p90": "",
        "flop_per_s_p10": "2 m n k over the time",
        "flop_per_s_p50": "median",
        "flop_per_s_p90": "",
        "speed_of_reference_p10": "time of the bfloat16 product of the same round over the route's",
        "speed_of_reference_p50": "median",
        "speed_of_reference_p90": "",
        "conversion_s": "preparing both operands beforehand, checks included; None: nothing to do, or inside s",
        "relative_error": "norm of the difference to float64 over norm of the product",
    },
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=14,
    prediction="the most that the compiled loop admits on an H100, and what is left if no unit works beside another",
    predicted_from=(gemm_routes.EXPERIMENT.name,),
    shown={
        "device": Shown("card"),
        "route": Shown("route"),
        "m": Shown("M"),
        "n": Shown("N"),
        "k": Shown("K"),
        "tensor_clocks": Shown("tensor-core clocks a step", ".0f"),
        "issue_clocks": Shown("issue clocks a step", ".0f"),
        "shared_clocks": Shown("shared-memory clocks a step", ".0f"),
        "group_clocks": Shown("a group's clocks over groups an SM", ".0f"),
        "flop_per_s_at_most": Shown("TFLOP/s at most", ".0f", 1e-12),
        "flop_per_s_without_overlap": Shown("without overlap", ".0f", 1e-12),
        "flop_per_s_p50": Shown("TFLOP/s", ".0f", 1e-12),
        "speed_of_reference_p50": Shown("speed of the bfloat16 product", ".2f"),
        "conversion_s": Shown("converting, ms", ".2f", 1e3),
        "relative_error": Shown("relative error", ".1e"),
    },
)
