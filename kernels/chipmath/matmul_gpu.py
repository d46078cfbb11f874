"""Products of MXFP8 tensors on a GPU, by five routes: `chipmath.matmul` is what they are all held against.

A route is chosen by name and has no default, as each states something else about its result:

dot_scaled         gfx950, sm_100, sm_103 and sm_120 take codes and scales: always exact. Elsewhere element * scale
                   becomes a bfloat16: exact while scale exponents are within `bf16_scales`, else a ValueError
fp16_relative      element * scale / 2**exponent of the row becomes a float16: exact while the scales of a row span at
                   most `fp16_span` binades, else a ValueError
folded_128         one power of two for 128 FP8 codes: exact while no code loses a bit (`fold`), else rounded
folded_cublas      the same operands through cuBLAS
dequantize_cublas  element * scale written as bfloat16: exact while scale exponents are within `bf16_scales`, else a
                   ValueError

"Exact" is said of what enters, and of powers of two put back afterwards. The sum is the tensor cores' own: float32 at
best, and the FP8 ones of Hopper keep fewer bits, which is why folded_128 adds up 128 products there and not more.

A folded code is off by at most half of the format's smallest step in units of the new scale, 2**-10 of it for E4M3.

A NaN scale makes its row of C NaN on every route; zero blocks have no say in any range or span, whatever their scale.
Blocks hold 32 elements, codes are E4M3 or E5M2 (folded_cublas: E4M3; dequantize_cublas: any format).
"""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chipmath.devices import device
from chipmath.formats import E4M3, E5M2, E8M0, ElementFormat, float32_bits
from chipmath.matmul import check_pair, checked_sizes
from chipmath.matmul_tiles import Tile, constants_of, tile_of
from chipmath.on_gpu import arch_of, require_triton
from chipmath.quantize import MXTensor

FP8 = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
DOT_SCALED_NAMES = {E4M3: "e4m3", E5M2: "e5m2"}
# Where a route's kernel compiles and its number formats are the chip's. gfx90a is nowhere: its matrix instructions
# flush subnormal float16 and bfloat16. gfx942 has another E4M3 (FNUZ), so that no FP8 instruction of it will do.
NATIVE_SCALES = ("gfx950", "sm_100", "sm_103", "sm_120")
ROUTE_ARCHS = {
    "dot_scaled": ("gfx942", *NATIVE_SCALES, "sm_89", "sm_90"),
    "fp16_relative": ("gfx942", *NATIVE_SCALES, "sm_89", "sm_90"),
    "folded_128": ("gfx950", "sm_89", "sm_90", "sm_120"),  # sm_100 would spill, and has no need of it
    "folded_cublas": ("sm_90",),  # torch: BlockWise1x128 on both sides; compute capability 9, cublasLt 12.9 or later
    "dequantize_cublas": ("gfx942", *NATIVE_SCALES, "sm_80", "sm_86", "sm_89", "sm_90"),
}
# 3.6 converts FP8 with an instruction of gfx950, and has no dot_scaled with two scales for gfx942. For sm_89 it
# converts FP16 to BF16 with an instruction of sm_90. Before 3.8 the interpreter has no dot_scaled.
NEED_TRITON = {
    ("dot_scaled", "gfx942"): (3, 9),
    ("fp16_relative", "gfx942"): (3, 9),
    ("dot_scaled", "sm_89"): (3, 9),
    ("dot_scaled", "cpu"): (3, 8),
}
ROUTES = tuple(ROUTE_ARCHS)
KERNEL_ROUTES = ("dot_scaled", "fp16_relative", "folded_128")
BLOCK = 32  # elements of an MX block
FOLDED_BLOCK = 128
FOLDED_A_LANE = 16  # codes: one load
DEQUANTIZED_BLOCKS = 64  # a program: 16 elements of 128 threads each
# Only whole products of two scales that are normal float32 numbers are put back exactly.
FLOAT32_EXPONENTS = (-126, 127)
INT32_MAX = 2**31 - 1
FLOAT16_LOWEST, FLOAT16_HIGHEST = -24, 15  # exponents of the smallest subnormal and the largest normal number


def matmul(a: MXTensor, b: MXTensor, route: str) -> Tensor:
    """``a @ b.T`` for ``a`` (M, K) and ``b`` (N, K), both blocked along K: float32 (M, N).

    Raises ValueError where the route is not exact for these scales, or the chip does not have it. The check waits for
    the device; `plan` does it once for many products.
    """
    return plan(a, b, route)()


def grouped_matmul(a: MXTensor, b: MXTensor, sizes: Sequence[int] | Tensor, route: str) -> Tensor:
    """``chipmath.matmul.grouped_matmul`` by a route: float32 (sum(sizes), N) for ``b`` (G, N, K)."""
    return grouped_plan(a, b, sizes, route)()


def plan(a: MXTensor, b: MXTensor, route: str, *, tile: Tile | None = None) -> Callable[[], Tensor]:
    """Checks and conversions of a route, done once; what is returned multiplies, into a new tensor each time.

    tile  another than the route's own, as `chipmath.matmul_tiles` writes them: for comparisons
    """
    check_pair(a, b, ndim_b=2)
    _check_route(a, b, route)
    if tile is None:
        return _PLANS[route](a, b, len(b.elements), [len(a.elements)])
    if route not in KERNEL_ROUTES:
        raise ValueError(f"tile = {tile}: route {route} has no kernel of ours")
    return _PLANS[route](a, b, len(b.elements), [len(a.elements)], tile)


def grouped_plan(a: MXTensor, b: MXTensor, sizes: Sequence[int] | Tensor, route: str) -> Callable[[], Tensor]:
    """`plan` for `grouped_matmul`."""
    check_pair(a, b, ndim_b=3)
    _check_route(a, b, route)
    sizes = checked_sizes(sizes, groups=len(b.elements), rows=len(a.elements))
    rows = MXTensor(b.elements.flatten(0, 1), b.scales.flatten(0, 1), b.fmt, -1, b.block)
    return _PLANS[route](a, rows, b.elements.shape[1], sizes)


# ------------------------------------------------------------------------------------------------ conversions, exact


def bf16_scales(fmt: ElementFormat) -> tuple[int, int]:
    """Scale exponents, lowest and highest, with which every element is a bfloat16 without subnormals."""
    return -126 - _lowest_bit(fmt), 127 - fmt.emax


def fp16_span(fmt: ElementFormat) -> int:
    """Binades that scales of a row may span for every element to be a float16, subnormals included.

    The largest scale is put as high as the largest element allows, 2**(15 - emax); an element's lowest bit may then
    move down from there to 2**-24. E4M3: 15 - 8 - 9 + 24 = 22 binades. E5M2: 8.
    """
    return FLOAT16_HIGHEST - fmt.emax + _lowest_bit(fmt) - FLOAT16_LOWEST


def relative_scales(mx: MXTensor) -> tuple[Tensor, Tensor]:
    """Scales of (R, K) as float16 (R, K / 32), and for each row the exponent (int32) that they leave out.

    scale = relative * 2**exponent, and relative * element is exact in float16. A NaN scale stays NaN; that of a zero
    block is 0. Raises ValueError naming the first row whose scales span more than `fp16_span`.
    """
    exponents, live = _exponents(mx)
    top = torch.where(live, exponents, -FLOAT32_EXPONENTS[1] - 1).amax(-1, keepdim=True)
    span = torch.where(live, top - exponents, 0).amax(-1)
    if span.numel() and int(span.max()) > fp16_span(mx.fmt):
        row = int(span.argmax())
        raise ValueError(
            f"scales of row {row} span {int(span[row])} binades; route fp16_relative is exact up to "
            f"{fp16_span(mx.fmt)} for {mx.fmt}: take dequantize_cublas or dot_scaled"
        )
    headroom = FLOAT16_HIGHEST - mx.fmt.emax
    # float32, not float16, builds the power: torch has no half-precision ldexp on every device
    relative = torch.where(live, torch.exp2((exponents - top + headroom).float()), 0.0)
    relative = torch.where(mx.scales == E8M0.nan_code, torch.nan, relative)
    return relative.half(), (top - headroom).squeeze(-1).int()


def fold(mx: MXTensor, block: int = FOLDED_BLOCK) -> MXTensor:
    """The same tensor with one scale for ``block`` elements: the largest of its blocks' scales that are not all zero.

    Codes of a block whose scale was d binades lower are divided by 2**d and rounded to nearest even. That is lossless
    for an element whose lowest set bit stays at or above the format's smallest step; else it is off by at most half of
    that step. Zero blocks are left out, and a block with a NaN scale becomes NaN codes. Which NaN is the chip's choice.
    """
    if mx.elements.shape[-1] % block or block % mx.block:
        raise ValueError(f"K = {mx.elements.shape[-1]} in blocks of {mx.block} does not fold into blocks of {block}")
    if _has_fold_kernel(mx, block // mx.block):
        return _fold_in_one_pass(mx, block)
    exponents, live = _exponents(mx)
    wide = (*exponents.shape[:-1], -1, block // mx.block)
    lowest = torch.iinfo(torch.int32).min
    top = torch.where(live, exponents, lowest).view(wide).amax(-1)
    top = torch.where(top == lowest, 0, top)  # nothing but zeros and NaN
    down = top.repeat_interleave(block // mx.block, -1) - exponents
    codes = _divided(mx.fmt).to(mx.elements.device)[
        torch.where(live, down, 0).clamp(max=_vanishes(mx.fmt)).repeat_interleave(mx.block, -1), mx.elements.int()
    ]
    codes = torch.where((mx.scales == E8M0.nan_code).repeat_interleave(mx.block, -1), mx.fmt.nan_code, codes)
    return MXTensor(codes.to(torch.uint8), E8M0.encode(top), mx.fmt, -1, block)


def _has_fold_kernel(mx: MXTensor, parts: int) -> bool:
    known = mx.fmt in FP8 and mx.block == BLOCK and parts & (parts - 1) == 0  # tl.arange wants a power of two
    return known and _arch(mx.elements.device) in ROUTE_ARCHS["folded_128"]


def _fold_in_one_pass(mx: MXTensor, block: int) -> MXTensor:
    from chipmath import matmul_kernels

    codes, scales = _fp8(mx), mx.scales.contiguous()
    folded = torch.empty_like(codes)
    wide = torch.empty(*scales.shape[:-1], scales.shape[-1] * BLOCK // block, dtype=torch.uint8, device=codes.device)
    warps = 4
    blocks = warps * device(_arch(codes.device)).wave_lanes * FOLDED_A_LANE // block
    if wide.numel():
        matmul_kernels.fold[(-(-wide.numel() // blocks),)](
            codes, codes.view(torch.int32), scales, folded, wide, wide.numel(),
            PARTS=block // BLOCK, BLOCKS=blocks, num_warps=warps,
        )  # fmt: skip
    return MXTensor(folded.view(torch.uint8), wide, mx.fmt, -1, block)


def dequantize(mx: MXTensor) -> Tensor:
    """``mx.dequantize(torch.bfloat16)`` in one pass over memory, for scales within `bf16_scales`; no check.

    Where no kernel is to be had (a CPU, formats that are not FP8, chips or Triton releases that cannot decode it) the
    reference does it.
    """
    arch = _arch(mx.elements.device)
    if mx.fmt not in FP8 or not _decodes_fp8(arch):
        return mx.dequantize(torch.bfloat16)
    from chipmath import matmul_kernels

    codes, scales = _fp8(mx), mx.scales.contiguous()
    out = torch.empty(codes.shape, dtype=torch.bfloat16, device=codes.device)
    if scales.numel():
        grid = (-(-scales.numel() // DEQUANTIZED_BLOCKS),)
        matmul_kernels.dequantize[grid](codes, scales, out, scales.numel(), BLOCKS=DEQUANTIZED_BLOCKS, num_warps=4)
    return out


def _decodes_fp8(arch: str) -> bool:
    if arch == "gfx942":
        return _triton_release() >= (3, 9)
    return _interpreting() if arch == "cpu" else arch in ROUTE_ARCHS["fp16_relative"]


def _lowest_bit(fmt: ElementFormat) -> int:
    """Exponent of the smallest step."""
    return fmt.emin - fmt.mantissa_bits


def _exponents(mx: MXTensor) -> tuple[Tensor, Tensor]:
    """Scale exponents (int32), and where they matter: neither NaN nor of a block of zeros."""
    magnitude = mx.elements if not mx.fmt.exponent_bits else mx.elements & (mx.fmt.sign_code - 1)
    nonzero = (magnitude.reshape(*mx.scales.shape, mx.block) != 0).any(-1)
    return mx.scales.int() - E8M0.bias, nonzero & (mx.scales != E8M0.nan_code)


def _vanishes(fmt: ElementFormat) -> int:
    """Binades down after which every number rounds to zero."""
    return fmt.emax - _lowest_bit(fmt) + 2


def _divided(fmt: ElementFormat) -> Tensor:
    """Code of (number of a code) / 2**d, for d = 0 … `_vanishes` and every code; NaN and Inf stay what they are."""
    codes = torch.arange(256, dtype=torch.uint8)
    values = fmt.decode(codes)
    rows = [
        torch.where(values.isfinite(), fmt.encode_bits(float32_bits(values), d), codes)
        for d in range(_vanishes(fmt) + 1)
    ]
    return torch.stack(rows).int()


def _check_exponents(name: str, mx: MXTensor, allowed: tuple[int, int], route: str) -> None:
    exponents, live = _exponents(mx)
    wrong = live & ((exponents < allowed[0]) | (exponents > allowed[1]))
    if bool(wrong.any()):
        row, block = (int(at) for at in wrong.nonzero()[0])
        raise ValueError(
            f"{name}: scale exponent {int(exponents[row, block])} of row {row}, block {block}; route {route} is exact "
            f"for {mx.fmt} with {allowed[0]} to {allowed[1]}"
        )


def _check_scale_products(a: MXTensor, b: MXTensor, route: str) -> None:
    """A route that multiplies scales in float32 needs their products to be normal numbers."""
    (low_a, high_a), (low_b, high_b) = (
        (int(scales.min()) - E8M0.bias, int(scales.max()) - E8M0.bias) for scales in (a.scales, b.scales)
    )
    low, high = FLOAT32_EXPONENTS
    if min(low_a, low_b, low_a + low_b) < low or high_a + high_b > high:
        raise ValueError(
            f"scale exponents {low_a} to {high_a} in a and {low_b} to {high_b} in b: route {route} multiplies scales "
            f"in float32, so exponents and their sums must lie between {low} and {high}"
        )


# ------------------------------------------------------------------------------------------------------------ routes


def _check_route(a: MXTensor, b: MXTensor, route: str) -> None:
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {route!r}")
    for name, operand in (("a", a), ("b", b)):
        if route != "dequantize_cublas" and operand.fmt not in FP8:
            raise ValueError(f"{name} holds {operand.fmt}; route {route} takes E4M3 and E5M2")
        if route == "folded_cublas" and operand.fmt != E4M3:
            raise ValueError(f"{name} holds {operand.fmt}; route folded_cublas takes E4M3")
        if operand.block != 32:
            raise ValueError(f"{name} has blocks of {operand.block}; routes take blocks of 32")
    if a.elements.device != b.elements.device:
        raise ValueError(f"a is on {a.elements.device}, b on {b.elements.device}")
    arch = _arch(a.elements.device)
    interpreted = arch == "cpu" and (route == "dequantize_cublas" or _interpreting()) and route != "folded_cublas"
    if arch not in ROUTE_ARCHS[route] and not interpreted:
        where = "a CPU without TRITON_INTERPRET=1" if arch == "cpu" else arch
        raise ValueError(f"route {route} does not run on {where}; it does on {', '.join(ROUTE_ARCHS[route])}")
    if route == "folded_cublas" and not hasattr(torch.nn.functional, "scaled_mm"):
        raise ValueError(
            f"route folded_cublas needs a torch with torch.nn.functional.scaled_mm, this is {torch.__version__}"
        )
    if has_too_old_triton(route, arch):
        needed, here = (".".join(map(str, release)) for release in (NEED_TRITON[route, arch], _triton_release()))
        raise ValueError(f"route {route} needs Triton {needed} or later on {arch}, this is {here}")


def has_too_old_triton(route: str, arch: str) -> bool:
    """Whether the Triton that is installed compiles a route wrongly, or not at all, for a chip or a "cpu"."""
    return (route, arch) in NEED_TRITON and _triton_release() < NEED_TRITON[route, arch]


def _arch(where: torch.device) -> str:
    return "cpu" if where.type == "cpu" else arch_of(where.index)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_release() -> tuple[int, int]:
    major, minor = require_triton("chipmath.matmul_gpu").__version__.split(".")[:2]
    return int(major), int(minor)


def _plan_dot_scaled(
    a: MXTensor, b: MXTensor, n: int, sizes: list[int], tile: Tile | None = None
) -> Callable[[], Tensor]:
    if _arch(a.elements.device) not in NATIVE_SCALES:
        for name, operand in (("a", a), ("b", b)):
            _check_exponents(name, operand, bf16_scales(operand.fmt), "dot_scaled")
    launch = _Launch("dot_scaled", a, b, n, sizes, tile)
    operands = [_fp8(a), a.scales.contiguous(), _fp8(b), b.scales.contiguous()]
    return launch(operands, {"A_FORMAT": DOT_SCALED_NAMES[a.fmt], "B_FORMAT": DOT_SCALED_NAMES[b.fmt]})


def _plan_fp16_relative(
    a: MXTensor, b: MXTensor, n: int, sizes: list[int], tile: Tile | None = None
) -> Callable[[], Tensor]:
    launch = _Launch("fp16_relative", a, b, n, sizes, tile)
    operands, widths = [], []
    for operand, by_tile in ((a, launch.by_row_tile), (b, launch.by_column_tile)):
        relative, exponents = relative_scales(operand)
        steps = -relative.shape[1] % (launch.tile_k // operand.block)
        scales = by_tile(torch.nn.functional.pad(relative.float(), (0, steps)))
        operands += [_fp8(operand), scales, by_tile(exponents[:, None])]
        widths.append(scales.shape[1])
    return launch(operands, constants_of("fp16_relative", launch.arch), widths)


def _plan_folded_128(
    a: MXTensor, b: MXTensor, n: int, sizes: list[int], tile: Tile | None = None
) -> Callable[[], Tensor]:
    a, b = fold(a), fold(b)
    _check_scale_products(a, b, "folded_128")
    launch = _Launch("folded_128", a, b, n, sizes, tile)
    scales = launch.by_row_tile(E8M0.decode(a.scales)), launch.by_column_tile(E8M0.decode(b.scales))
    operands = [_fp8(a), scales[0], _fp8(b), scales[1]]
    return launch(operands, {}, [each.shape[1] for each in scales])


def _plan_folded_cublas(a: MXTensor, b: MXTensor, n: int, sizes: list[int]) -> Callable[[], Tensor]:
    """Through `torch.nn.functional.scaled_mm`; its scales are (rows, K / 128) with rows next to each other."""
    from torch.nn.functional import ScalingType, scaled_mm

    if n % 16:
        raise ValueError(f"b has {n} rows a group; route folded_cublas needs a multiple of 16")
    recipe = ScalingType.BlockWise1x128
    a, b = fold(a), fold(b)
    _check_scale_products(a, b, "folded_cublas")
    rights = [(codes.T, _columns(scales).T) for codes, scales in zip(_fp8(b).split(n), b.scales.split(n))]
    lefts = [(codes, _columns(scales).T) for codes, scales in zip(_fp8(a).split(sizes), a.scales.split(sizes))]

    def multiply() -> Tensor:
        parts = [
            scaled_mm(left, right, left_scales, recipe, right_scales, recipe, output_dtype=torch.float32)
            for (left, left_scales), (right, right_scales) in zip(lefts, rights)
            if len(left)
        ]
        return _joined(parts, a, n)

    return multiply


def _plan_dequantize_cublas(a: MXTensor, b: MXTensor, n: int, sizes: list[int]) -> Callable[[], Tensor]:
    for name, operand in (("a", a), ("b", b)):
        _check_exponents(name, operand, bf16_scales(operand.fmt), "dequantize_cublas")
    lefts, right = dequantize(a).split(sizes), dequantize(b)
    rights = right.split(n) if n else [right] * len(sizes)

    def multiply() -> Tensor:
        parts = [bfloat16_product(left, right) for left, right in zip(lefts, rights)]
        return _joined(parts, a, n)

    return multiply


def _joined(parts: list[Tensor], a: MXTensor, n: int) -> Tensor:
    """Groups one below the other; none at all is an empty product."""
    return parts[0] if len(parts) == 1 else torch.cat([torch.empty(0, n, device=a.elements.device), *parts])


def bfloat16_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` in float32; only GPUs have the mixed product, and elsewhere float32 operands give the same sums."""
    if a.device.type == "cpu":
        return a.float() @ b.float().T
    return torch.mm(a, b.T, out_dtype=torch.float32)


_PLANS = {
    "dot_scaled": _plan_dot_scaled,
    "fp16_relative": _plan_fp16_relative,
    "folded_128": _plan_folded_128,
    "folded_cublas": _plan_folded_cublas,
    "dequantize_cublas": _plan_dequantize_cublas,
}


# ----------------------------------------------------------------------------------------------------------- launches


def _fp8(mx: MXTensor) -> Tensor:
    return mx.elements.contiguous().view(FP8[mx.fmt])


def _columns(scales: Tensor) -> Tensor:
    """Scale bytes (rows, K / block) as float32 (K / block, rows), contiguous."""
    return E8M0.decode(scales).T.contiguous()


class _Launch:
    """A route's kernel and its tiles for one product; b holds n rows for each group."""

    def __init__(self, route: str, a: MXTensor, b: MXTensor, n: int, sizes: list[int], chosen: Tile | None):
        self.route, self.arch = route, _arch(a.elements.device)
        chosen = chosen or tile_of(route, self.arch)
        (self.tile_m, self.tile_n, self.tile_k), self.num_warps, self.num_stages = chosen
        self.m, self.n, self.k = len(a.elements), n, a.elements.shape[1]
        most = INT32_MAX // max(self.tile_m, self.tile_n)
        if max(self.n, self.k) > most:
            raise ValueError(
                f"N = {n}, K = {self.k}: route {route} takes {most} at most, as offsets in a tile are int32"
            )
        self.tiles = tile_table(sizes, self.tile_m)
        firsts = range(0, n, self.tile_n)
        self.columns = torch.tensor(
            [n * group + first for group in range(len(sizes)) for first in firsts], dtype=torch.int64
        )
        self.grid = (len(self.tiles) * len(firsts),)

    def by_row_tile(self, scales: Tensor) -> Tensor:
        """Scales (rows of a, blocks) as (blocks, tiles of rows * tile_m), contiguous."""
        return _by_tile(scales, self.tiles[:, 1], self.tile_m)

    def by_column_tile(self, scales: Tensor) -> Tensor:
        """Scales (rows of b, blocks) as (blocks, groups * tiles of columns * tile_n), contiguous."""
        return _by_tile(scales, self.columns, self.tile_n)

    def __call__(
        self, operands: list[Tensor], constexprs: dict[str, str | bool], tail: Sequence[int] = ()
    ) -> Callable[[], Tensor]:
        """The product of operands that are ready."""
        require_triton("chipmath.matmul_gpu")

        from chipmath import matmul_kernels

        kernel, where = getattr(matmul_kernels, self.route), operands[0].device
        tiles = self.tiles.to(where)
        sizes = {"TILE_M": self.tile_m, "TILE_N": self.tile_n, "TILE_K": self.tile_k}
        meta = sizes | {"EVEN_K": self.k % self.tile_k == 0} | constexprs

        def multiply() -> Tensor:
            c = torch.empty(self.m, self.n, device=where)
            if self.grid[0]:
                arguments = [*operands, c, tiles, len(tiles), self.n, self.k, *tail]
                kernel[self.grid](*arguments, **meta, num_warps=self.num_warps, num_stages=self.num_stages)
            return c

        return multiply


def _by_tile(scales: Tensor, firsts: Tensor, size: int) -> Tensor:
    """(rows, blocks) as (blocks, len(firsts) * size): ``size`` rows from each first one; what exceeds is never used."""
    rows = firsts[:, None] + torch.arange(size)
    return scales[rows.flatten().clamp(max=max(len(scales) - 1, 0)).to(scales.device)].T.contiguous()


def tile_table(sizes: Sequence[int], tile_m: int) -> Tensor:
    """(tiles, 3) int32: group, first row, row after the group's last, for every tile of rows of every group."""
    rows, end = [], 0
    for group, size in enumerate(sizes):
        first, end = end, end + size
        rows += [(group, row, end) for row in range(first, end, tile_m)]
    return torch.tensor(rows, dtype=torch.int32).view(-1, 3)
