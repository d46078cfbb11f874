"""The GPU quantizers: their bytes wherever a CPU can compute them, their code for every chip, and a GPU's own bytes.

Three ways to the bytes without a GPU, none of which is the machine: the kernels' sources executed with layouts dropped
and casts by the vendors' documents; Triton's interpreter for the row kernel, which rounds by integers there; and every
number through the device functions one by one.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chipmath import gluon_on_cpu, quantize_gpu
from chipmath.devices import GIB
from chipmath.experiments import EXPERIMENTS, ExperimentError, quantizer_code, quantizers, timing
from chipmath.formats import E2M1, E4M3, E5M2
from chipmath.gpu import Gpu
from chipmath.quantize import SCALE_RULES, MXTensor, quantize, scale_constant, to_blocked
from test_quantize import GOLDEN, boundaries, every_float32_pattern

KERNELS = Path(quantize_gpu.__file__).resolve().parent.parent
FORMATS = (E4M3, E5M2)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHIPS = {"cvt": "sm_90", "scaled": "gfx950", "fnuz": "gfx942", "integer": "sm_80"}  # encoder -> a chip that has it
X = torch.zeros(64, 64)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


# --- what is refused --------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("function", [quantize_gpu.quantize_rows, quantize_gpu.quantize_columns])
def test_a_tensor_on_the_cpu_is_refused(function):
    with pytest.raises(ValueError, match="must be on a GPU, got cpu; chipmath"):
        function(X, E4M3, "floor")


@pytest.mark.parametrize(
    ("x", "fmt", "rule", "layout", "message"),
    [
        (X, E2M1, "floor", "plain", "fmt must be E4M3 or E5M2 on a GPU, got E2M1"),
        (X, E4M3, "round", "plain", "scale_rule must be one of floor, ceil, rceil, even, got 'round'"),
        (X, E4M3, "floor", "4x128", "scale_layout must be one of plain, 128x4, got '4x128'"),
        (X.double(), E4M3, "floor", "plain", "x must be float32, bfloat16 or float16, got torch.float64"),
        (torch.zeros(32, 40), E4M3, "floor", "plain", "axis -1 has size 40, which is not a multiple of the"),
        (torch.zeros(40, 32), E4M3, "floor", "plain", "axis 0 has size 40"),
        (torch.zeros(2, 32, 32), E4M3, "floor", "plain", r"x must be \(M, K\) here, got shape \(2, 32, 32\)"),
        (torch.zeros(0, 1 << 21), E4M3, "floor", "plain", "at most 1048576 rows and columns here, got shape"),
    ],
)
def test_what_both_directions_refuse(on_cpu, x, fmt, rule, layout, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quantize_gpu.quantize_both(x, fmt, rule, scale_layout=layout)


def test_a_missing_triton_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    monkeypatch.setattr(quantize_gpu, "_require_gpu", lambda x: None)
    with pytest.raises(ModuleNotFoundError, match="needs Triton, which is not installed: GPU builds of torch bring it"):
        quantize_gpu.quantize_rows(X, E4M3, "floor")


# --- the kernels' sources, executed -----------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(monkeypatch):
    """The public functions with the kernels' sources executed for sm_90, or another chip: ``on_cpu("gfx950")``."""
    pytest.importorskip("triton")

    def use(arch):
        def launch(direction, x, buffers, fmt, rule, layout):
            scale_constant(fmt, rule)
            if x.numel():
                for buffer in buffers:  # poison, but for the padding that a caller zeroed
                    buffer.fill_(0xAA if layout == "plain" else 0)
                made = quantize_gpu.prepare(direction, x, buffers, fmt, rule, arch, scale_layout=layout)
                chosen = made.configuration
                gluon_on_cpu.run(chosen.kernel, made.grid, made.arguments, chosen.constexprs)

        monkeypatch.setattr(quantize_gpu, "_launch", launch)

    monkeypatch.setattr(quantize_gpu, "_require_gpu", lambda x: None)
    use("sm_90")
    return use


def assert_same(got, x, fmt, rule, axis, layout="plain"):
    expected = quantize(x.cpu(), fmt, rule, axis=axis)
    assert torch.equal(got.elements.cpu(), expected.elements), f"elements, {fmt} {rule} {axis} {layout}"
    if layout == "plain":
        assert torch.equal(got.scales.cpu(), expected.scales), f"scales, {fmt} {rule} {axis}"
        assert (got.fmt, got.axis, got.block) == (fmt, axis, 32)
        assert got.elements.stride()[axis] == 1, "the blocked axis is contiguous"
    else:
        assert torch.equal(got.scales.cpu(), to_blocked(expected.scales if axis else expected.scales.T))


def assert_all_same(x, fmt, rule, layout="plain"):
    both = quantize_gpu.quantize_both(x, fmt, rule, scale_layout=layout)
    assert_same(both[0], x, fmt, rule, -1, layout)
    assert_same(both[1], x, fmt, rule, 0, layout)
    assert_same(quantize_gpu.quantize_rows(x, fmt, rule, scale_layout=layout), x, fmt, rule, -1, layout)
    assert_same(quantize_gpu.quantize_columns(x, fmt, rule, scale_layout=layout), x, fmt, rule, 0, layout)


SPECIAL = [0.0, -0.0, 2**-149, -(2**-149), 2**-133, 2**-126, 2**-24, 1.0, -3.0, 448.0, 6e4, 3e38]
SPECIAL += [torch.inf, -torch.inf]
NEGATIVE_NAN = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
SIGNED_NANS = {dtype: torch.tensor([-1], dtype=words).view(dtype)[0] for dtype, words in
               ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16))}  # fmt: skip


def mixed(dtype, shape=(96, 160)):
    """Every kind of block in both directions: any bits, NaN of either sign, Inf, zeros, subnormal beside large."""
    x = every_float32_pattern(shape[0] * shape[1], seed=3).view(shape)
    x[:32, :32] = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    x[32:64, 64:96] *= 0.0
    x[40, 5], x[70, 70] = torch.inf, torch.nan
    x[64:96, 128:160] = torch.tensor([*SPECIAL[:12], 1.0, -1.0, 2.0, 5.0] * 2).expand(32, 32)
    x = x.to(dtype)  # which may drop a NaN's sign
    x[5, 100] = SIGNED_NANS[dtype]
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("encoder", CHIPS)
def test_every_kind_of_block_on_every_kind_of_chip(on_cpu, encoder, fmt, rule, dtype):
    """96 x 160 is no multiple of any tile, so edges are masked."""
    on_cpu(CHIPS[encoder])
    assert quantize_gpu.encoder_of(CHIPS[encoder]) == encoder
    assert_all_same(mixed(dtype), fmt, rule)


@pytest.mark.parametrize("shape", [(128, 128), (96, 160), (160, 32), (32, 416)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])  # tiles of 64 lanes are wider
def test_scales_in_the_order_of_tensor_cores(on_cpu, arch, dtype, shape):
    on_cpu(arch)
    assert_all_same(mixed(dtype, (192, 448))[: shape[0], : shape[1]].contiguous(), E4M3, "rceil", "128x4")


@pytest.mark.parametrize("shape", [(256, 512), (32, 32), (1024, 128), (288, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])
def test_even_tiles_and_several_groups(on_cpu, arch, dtype, shape):
    on_cpu(arch)
    assert_all_same(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype), E4M3, "rceil")


def test_strides_ranks_and_empty_tensors(on_cpu):
    x = torch.randn(96, 128, generator=torch.Generator().manual_seed(2))
    for view in (x.T, x[:, ::2], x[::3], x.expand(96, 128), x.bfloat16().T):
        assert_all_same(view, E4M3, "even")
    deep = x.view(2, 3, 16, 128)
    assert_same(quantize_gpu.quantize_rows(deep, E5M2, "ceil"), deep, E5M2, "ceil", -1)
    odd = x[:64, :77]  # columns take any K
    assert_same(quantize_gpu.quantize_columns(odd, E4M3, "floor"), odd, E4M3, "floor", 0)
    for shape in ((0, 64), (64, 0), (0, 0)):
        assert_all_same(torch.zeros(shape), E4M3, "rceil")
    with pytest.raises(ValueError, match="scale_rule must be one of"):
        quantize_gpu.quantize_rows(torch.zeros(0, 64), E4M3, "nearest")


@pytest.mark.parametrize("encoder", CHIPS)
def test_constant_blocks_worked_by_hand(on_cpu, encoder):
    on_cpu(CHIPS[encoder])
    for (fmt, rule, value), (scale_byte, element_byte) in GOLDEN.items():
        if fmt in FORMATS:
            got = quantize_gpu.quantize_rows(torch.full((1, 32), value), fmt, rule)
            assert (got.scales.tolist(), got.elements.tolist()) == ([[scale_byte]], [[element_byte] * 32]), value


def test_results_are_what_they_say(on_cpu):
    assert isinstance(quantize_gpu.quantize_rows(X, E4M3, "floor"), MXTensor)
    blocked = quantize_gpu.quantize_columns(torch.ones(64, 64), E4M3, "floor", scale_layout="128x4")
    assert blocked.scales.shape == (512,)
    assert int((blocked.scales == 119).sum()) == 64 * 2  # the rest is padding
    assert int((blocked.scales == 0).sum()) == 512 - 64 * 2


# --- device functions, over everything they can meet ------------------------------------------------------------------


def call(name, encoder, *arguments):
    """A device function of the kernels, on torch tensors."""
    kernels = pytest.importorskip("chipmath.quantize_kernels")
    return gluon_on_cpu.call(getattr(kernels, name), encoder, *arguments)


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_scales_on_both_sides_of_every_step_and_of_every_16_bit_number(fmt, rule):
    half = torch.arange(1 << 15, dtype=torch.int16)
    amax = torch.cat([boundaries(), half.view(torch.bfloat16).float(), half.view(torch.float16).float(), NEGATIVE_NAN])
    inverse = call("reciprocal", "integer", amax.view(torch.int32), scale_constant(fmt, rule), fmt.emax)
    byte = call("scale_byte", "integer", inverse.view(torch.int32))
    expected = quantize(amax[:, None].expand(-1, 32), fmt, rule).scales[:, 0]
    assert torch.equal(byte, expected)
    valid = expected != 255
    assert torch.equal(inverse[valid].double(), 2.0 ** (127 - expected[valid].double()))
    assert inverse[~valid].isnan().all()


@pytest.mark.parametrize("encoder", ["integer", "fnuz"])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_encoders_without_ocp_converters_round_every_scaled_number(fmt, encoder):
    """Every 16-bit pattern, ties and their neighbours, any float32: against the format's own encoder."""
    codes = fmt.decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8))
    ties = (codes[:-1] + codes[1:]) / 2
    up, down = (torch.nextafter(ties, torch.tensor(to)) for to in (torch.inf, 0.0))
    y = torch.cat([codes, ties, up, down, every_float32_pattern(1 << 18), torch.tensor(SPECIAL[:-2])])
    y = torch.cat([y, -y, torch.tensor([torch.nan]), NEGATIVE_NAN])
    got = call("encode", encoder, y, fmt.name, fmt.mantissa_bits, fmt.emin, fmt.max, encoder)
    expected = torch.where(y.isnan(), fmt.nan_code, fmt.encode(y)).to(torch.uint8)
    assert torch.equal(got, expected)


def test_cdna3s_formats_are_those_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = torch.arange(256, dtype=torch.uint8)
    for fmt, name in ((gluon_on_cpu.E4M3FNUZ, "float8_e4m3fnuz"), (gluon_on_cpu.E5M2FNUZ, "float8_e5m2fnuz")):
        theirs = torch.from_numpy(codes.numpy().view(getattr(ml_dtypes, name)).astype("float32"))
        numbers = codes != gluon_on_cpu.FNUZ_NAN
        assert torch.equal(fmt.decode(codes)[numbers], theirs[numbers])
        assert theirs[gluon_on_cpu.FNUZ_NAN].isnan()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_converter_that_overflows_would_be_seen(fmt):
    """The model of gfx950's converter makes NaN or Inf of Inf and keeps NaN's sign: kernels must rely on neither."""
    cast = gluon_on_cpu.CASTS["scaled"][fmt.name]
    assert cast(torch.tensor([fmt.max, fmt.max * 1.9, torch.inf])).tolist() == [fmt.max_code] * 2 + [fmt.max_code + 1]
    assert cast(NEGATIVE_NAN).tolist() == [0xFF]


INTERPRETED = """
import itertools, torch
from chipmath import quantize_gpu
from chipmath.formats import E4M3, E5M2
from chipmath.quantize import SCALE_RULES, quantize
from test_quantize_gpu import mixed

for fmt, rule, dtype in itertools.product((E4M3, E5M2), SCALE_RULES, (torch.bfloat16, torch.float16, torch.float32)):
    x = mixed(dtype)
    elements, scales = (torch.full(s, 0xAA, dtype=torch.uint8) for s in ((96, 160), (96, 5)))
    made = quantize_gpu.prepare("rows", x, [elements, scales], fmt, rule, "gfx90a", row_elements=16)
    assert made.configuration.constexprs["ENCODER"] == "integer" and not made.configuration.constexprs["FLOAT_MAX"]
    made.configuration.kernel[made.grid](*made.arguments, **made.configuration.constexprs)
    expected = quantize(x, fmt, rule)
    assert torch.equal(elements, expected.elements), (fmt, rule, dtype)
    assert torch.equal(scales, expected.scales), (fmt, rule, dtype)
    print("same")
"""


@needs_triton
def test_the_row_kernel_under_tritons_interpreter():
    """Upstream's semantics of loads, masks and integers; elements by the integer encoder, as its cast is inexact."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(KERNELS), str(Path(__file__).parent)]),
    }
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 24


# --- the code that compilers make of them -----------------------------------------------------------------------------

ARCHS = ("sm_90", "sm_100", "gfx950", "gfx942")
BARS = {
    "rows": {"sm_90": 8, "sm_100": 8, "gfx950": 8},
    "columns": {"sm_90": 11, "sm_100": 11, "gfx950": 11},
    "both": {"sm_90": 16, "sm_100": 16, "gfx950": 13},
}
DIRECTIONS = ("rows", "columns", "both")


def compiled(direction, arch, dtype="bfloat16", fmt=E4M3, rule="rceil", *, aligned=True, **options):
    pytest.importorskip("triton")
    chosen = quantize_gpu.configuration(direction, dtype, fmt, rule, arch, **options)
    return chosen, quantizer_code.compile_quantizer(chosen, arch, aligned=aligned)


def global_loads(binary):
    return set(binary.instructions(quantizer_code.LOADS))


def bar_cases():
    """Every scale layout, with masks and without, in every dtype and format; rules that clip and one that does not."""
    kinds = [("bfloat16", E4M3, "rceil"), ("float16", E5M2, "floor"), ("float32", E4M3, "even")]
    for kind, layout, even in itertools.product(kinds, quantize_gpu.LAYOUTS, (True, False)):
        options = dict(zip(("dtype", "fmt", "rule"), kind)) | {"scale_layout": layout, "even": even}
        marks = () if kind == kinds[0] else pytest.mark.slow
        yield pytest.param(options, marks=marks, id=" ".join(map(str, options.values())))


@pytest.mark.parametrize("options", list(bar_cases()))
@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "gfx950"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_whatever_users_get_is_within_the_bars(direction, arch, options):
    """Also for float32, though the more bytes of it leave time for more instructions."""
    chosen, binary = compiled(direction, arch, **options)
    every = (binary.instructions() - binary.instructions(quantizer_code.PADDING)).total()
    assert every / chosen.elements_a_thread <= BARS[direction][arch]
    assert binary.spills == 0
    stores = set(binary.instructions(quantizer_code.STORES))
    wide = {"sm_90": "STG.E.128", "sm_100": "STG.E.128"}.get(arch, "buffer_store_dwordx4")
    assert (wide in stores) == (direction != "both")  # both writes 8 bytes a lane, in whole sectors


SOME = [
    *({"scale_layout": layout, "even": even} for layout, even in (("plain", False), ("128x4", True))),
    {"dtype": "float32", "fmt": E5M2, "rule": "floor"},
    {"dtype": "float16", "rule": "even"},
]


def pairwise_cases():
    """Direction, chip and options of 48 cases, in which every two values of different factors meet."""
    for at, (direction, arch) in enumerate(itertools.product(DIRECTIONS, ARCHS)):
        for step, rule in enumerate(SCALE_RULES):
            yield (
                direction,
                arch,
                {
                    "dtype": ("bfloat16", "float16", "float32")[(at + step) % 3],
                    "fmt": FORMATS[(at + step // 2) % 2],
                    "rule": rule,
                    "scale_layout": ("plain", "128x4")[(at // 2 + step) % 2],
                    "even": bool((at // 4 + (step + 1) // 2) % 2),
                },
            )


def test_every_two_values_meet():
    cases = [(direction, arch, *options.values()) for direction, arch, options in pairwise_cases()]
    factors = [set(values) for values in zip(*cases)]
    assert [len(values) for values in factors] == [3, 4, 3, 2, 4, 2, 2]
    for i, j in itertools.combinations(range(len(factors)), 2):
        met = {(case[i], case[j]) for case in cases}
        assert len(met) == len(factors[i]) * len(factors[j]), (i, j)


CASES = [(direction, arch, options) for direction in DIRECTIONS for arch in ARCHS for options in ({}, *SOME)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in pairwise_cases()]


@pytest.mark.parametrize(
    ("direction", "arch", "options"), CASES, ids=lambda v: " ".join(map(str, v.values())) if isinstance(v, dict) else v
)
def test_every_kernel_and_layout_compiles_as_designed(direction, arch, options):
    """No spills, loads of 16 bytes, a converter an element and direction, scales once, no transpose, no flushing.

    Shared memory is for scale bytes alone: of columns where nothing is masked, so that a tile's four are one word.
    """
    chosen, binary = compiled(direction, arch, **options)
    assert binary.spills == 0
    assert global_loads(binary) == {"LDG.E.128" if arch.startswith("sm") else "buffer_load_dwordx4"}
    every = binary.instructions(quantizer_code.CONVERTERS)
    assert all("F32" in opcode.upper() for opcode in every), "straight from float32: by float16 it would round twice"
    assert every.total() == chosen.elements_a_thread // 2 * (2 if direction == "both" else 1)
    shared = binary.instructions(quantizer_code.SHARED).total()
    assert shared <= 9, "only scale bytes may pass through shared memory"
    if len(chosen.tile) == 2:
        words = direction != "rows" and options.get("even", True)
        assert binary.shared_bytes == (chosen.tile[0] * chosen.tile[1] // 32 if words else 0)
        assert (shared > 0) == words
        assert binary.instructions(r"STG\.E$|store_dword$").total() == words
        held = every.total() // 16 - (chosen.elements_a_thread // 32 if words else 0)
        scales = binary.instructions(r"STG\.E\.U8|store_byte").total()
        assert scales == held, "of the lanes that share a block, one writes its scale"
    if arch == "gfx950":
        saturates = r"s_setreg_imm32_b32 hwreg\(HW_REG_MODE, 23, 1\), 1\b(?=.*v_cvt_scalef32)"  # FP16_OVFL
        assert re.search(saturates, binary.isa, re.DOTALL), "the converter must saturate"
    if arch.startswith("sm"):
        assert not binary.instructions(r"\.FTZ")
    else:
        assert re.search(r"\.amdhsa_float_denorm_mode_32 3$", binary.isa, re.MULTILINE)


@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sizes_that_are_no_multiple_of_16_compile_without_spills(direction, arch):
    _, binary = compiled(direction, arch, aligned=False, even=False)
    assert binary.spills == 0


@needs_triton
def test_chips_without_a_trusted_converter_encode_by_integers():
    """sm_89 has one that Triton reaches through float16, which rounds twice."""
    for arch in ("sm_80", "sm_89", "gfx90a"):
        _, binary = compiled("both", arch)
        assert binary.spills == 0
        assert binary.instructions(quantizer_code.CONVERTERS).total() == 0


# --- the experiments --------------------------------------------------------------------------------------------------

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")


def silent(done, total, text):
    pass


# Variants that users never launch: their counts say nothing unless they compute the same. Shapes are whole tiles.
RUNGS = {
    "rows: integer scale, integer encoder, in tiles": (96, 1024),
    "columns: through shared memory": (128, 256),
    "both: through shared memory": (128, 192),
    "both: through shared memory, 32 x 256": (96, 256),
    "both: through shared memory, 32 x 512": (96, 512),
}


@needs_triton
@pytest.mark.parametrize("arch", ["sm_90", "gfx950", "gfx942"])
@pytest.mark.parametrize("variant", RUNGS)
def test_sources_of_the_rungs_write_the_references_bytes(variant, arch):
    x, chosen = mixed(torch.bfloat16, RUNGS[variant]), quantizer_code.VARIANTS[variant](arch, "bfloat16")
    rows, columns = (quantize(x, E4M3, "rceil", axis=axis) for axis in (1, 0))
    expected = [rows.elements, rows.scales, columns.elements.T.contiguous(), columns.scales.T.contiguous()]
    given = [~part for part in expected]
    grid = tuple(size // tile for size, tile in zip(x.shape, chosen.tile))
    gluon_on_cpu.run(chosen.kernel, grid, [x.view(torch.int16), *given, *x.shape], chosen.constexprs)
    wanted = {"rows": slice(0, 2), "columns": slice(2, 4), "both": slice(0, 4)}[variant.split(":")[0]]
    assert all(torch.equal(got, its) for got, its in zip(given[wanted], expected[wanted], strict=True))


NAN_CODES = {"cvt": (0x7F, 0x7F), "scaled": (0x7F, 0xFF), "fnuz": (0x80, 0x80)}  # of NaN, of negative NaN


@pytest.mark.parametrize(("encoder", "codes"), NAN_CODES.items(), ids=NAN_CODES)
def test_models_of_converters_take_nan_of_either_sign(encoder, codes):
    cast = gluon_on_cpu.CASTS[encoder]["E4M3FNUZ" if encoder == "fnuz" else "E4M3"]
    nans = torch.tensor([0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert tuple(cast(nans).tolist()) == codes


def test_loads_ahead_are_those_before_the_first_exchange():
    opcodes = ["LDG.E.128", "LDG.E.128", "FMNMX", "SHFL.BFLY", "LDG.E.128", "LDG.E", "STG.E"]
    assert quantizer_code.loads_ahead(opcodes) == 0.5
    assert quantizer_code.loads_ahead([each for each in opcodes if each != "SHFL.BFLY"]) == 1, "nothing waits"
    assert quantizer_code.loads_ahead(["buffer_load_dwordx4", "v_max_f32_dpp", "buffer_load_dwordx4"]) == 0.5


def test_bytes_moved_are_those_of_one_pass():
    values = 64 * 64
    assert quantizers.bytes_moved("rows", (64, 64), "bfloat16") == 3.03125 * values
    assert quantizers.bytes_moved("both", (64, 64), "bfloat16") == 4.0625 * values
    assert quantizers.bytes_moved(quantizers.TWO_PASSES, (64, 64), "bfloat16") == 6.0625 * values
    assert quantizers.bytes_moved(quantizers.COPY, (64, 64), "float32") == 8 * values


@needs_triton
def test_a_wrong_quantizer_is_not_timed(monkeypatch):
    prepare = quantize_gpu.prepare
    monkeypatch.setattr(quantize_gpu, "prepare", lambda d, x, b, f, rule, arch: prepare(d, x, b, f, "floor", arch))
    with pytest.raises(
        ExperimentError, match=r"rows, torch.bfloat16: \d+ bytes differ from the reference's: not timed"
    ):
        quantizers.rehearse(silent)


@pytest.fixture
def timed_once(monkeypatch):
    """Each candidate runs once: the kernels' sources, executed on a CPU, take a second a call."""

    def turns(candidates, stopwatch, *, rounds):
        return {name: [stopwatch(candidate, 1)] * rounds for name, candidate in candidates.items()}

    monkeypatch.setattr(quantizers, "take_turns", turns)


@needs_triton
@pytest.mark.usefixtures("timed_once")
def test_a_rehearsal_times_everything_and_a_peer_that_fails_says_why(monkeypatch):
    def fails(x):
        raise RuntimeError("no such dtype\nmore")

    monkeypatch.setattr(quantizers, "plain_rows", fails)
    told = []
    _, rows = quantizers.rehearse(lambda done, total, text: told.append(text))
    asked = {row["kernel"] for row in rows} - {quantizers.TWO_PASSES, quantizers.COPY}
    assert asked <= set(told), "a page can give up before each"
    peer = next(row for row in rows if row["kernel"].startswith("torch eager"))
    assert (peer["note"], peer["wrong_bytes"]) == ("does not run here: no such dtype", None)
    assert peer["bytes_per_s_p50"] is None
    timed = {row["kernel"]: row for row in rows if row["bytes_per_s_p50"]}
    assert set(timed) == {*quantizers.OURS, *quantizers.STEPS, quantizers.TWO_PASSES, quantizers.COPY}
    assert timed["both"]["time_over_two_passes_p50"] > 0
    assert timed[quantizers.COPY]["ratio_to_copy_p50"] == 1


@needs_triton
@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("what", ["resources", "a pass"])
def test_a_step_that_is_wrong_or_does_not_run_costs_itself_alone(monkeypatch, what):
    """Too much of a chip is a TritonError; what a pass of the compiler does not know, a RuntimeError."""
    from triton.runtime.errors import OutOfResources

    wide, sixteen = "both: through shared memory, 32 x 512", "both: 16 rows a thread"
    run, prepared = quantizers._OnCpu.run, quantizers._prepared
    by_pass = RuntimeError("PassManager::run failed")
    error = OutOfResources(300000, 232448, "shared memory") if what == "resources" else by_pass
    told = "out of resource: shared memory, Required: 300000" if what == "resources" else "PassManager::run failed"

    def refuses(on, launch):
        if launch.configuration.tile == (32, 512):
            raise error
        run(on, launch)

    def by_floor(name, x, buffers, arch):
        if name != sixteen:
            return prepared(name, x, buffers, arch)
        return quantize_gpu.prepare("both", x, buffers, E4M3, "floor", arch)

    monkeypatch.setattr(quantizers._OnCpu, "run", refuses)
    monkeypatch.setattr(quantizers, "_prepared", by_floor)
    rows = {row["kernel"]: row for row in quantizers.rehearse(silent)[1]}
    assert rows[wide]["note"].startswith(f"does not run here: {told}")
    assert rows[sixteen]["wrong_bytes"] > 0
    assert {name for name, row in rows.items() if row["bytes_per_s_p50"] is None} == {wide, sixteen}


@needs_triton
@pytest.mark.parametrize("name", quantizers.CHANGES)
def test_timed_choices_are_the_compiled_ones(name):
    x = torch.zeros(128, 128, dtype=torch.bfloat16)
    buffers = [torch.empty(0, dtype=torch.uint8)] * 4
    chosen = quantizers._prepared(name, x, buffers, "sm_90").configuration
    assert chosen == quantizer_code.VARIANTS[name]("sm_90", "bfloat16")


SETS, SHAPE = 3, (32, 512)


@pytest.fixture
def timed_here(monkeypatch):
    """``timed_here()``: candidates as they are timed, each on three sources, and the launches that they make.

    meddle  is called after each launch of the check, with its kernel, its number and its buffers
    idle    the kernel that writes nothing
    """
    made, true = {}, quantizers._prepared

    def prepared(name, x, buffers, arch):
        launch = true(name, x, buffers, arch)
        made[id(launch)] = launch, name, buffers
        return launch

    monkeypatch.setattr(quantizers, "_prepared", prepared)
    first = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows, columns = quantize(first, E4M3, "rceil"), quantize(first, E4M3, "rceil", axis=0)
    expected = [rows.elements, rows.scales, columns.elements.T, columns.scales.T]

    def start(meddle=lambda name, number, buffers: None, idle=""):
        launched = []

        class Here(quantizers._OnCpu):
            def run(self, launch):
                _, name, buffers = made[id(launch)]
                if name != idle:
                    super().run(launch)
                launched.append((name, launch.arguments[0].data_ptr()))
                meddle(name, sum(each == name for each, _ in launched) - 1, buffers)

        candidates, _, _ = quantizers._ours(Here("sm_90"), [first.clone() for _ in range(SETS)], expected, (), str)
        launched.clear()
        return candidates, launched

    return start


@needs_triton
@pytest.mark.parametrize("number", [0, SETS - 1])
@pytest.mark.parametrize(
    ("name", "part"), [("rows", 0), ("rows", 1), ("columns", 2), ("columns", 3), *(("both", part) for part in range(4))]
)
def test_every_byte_of_every_source_is_checked(timed_here, name, part, number):
    """One wrong byte in elements or scales, of either direction, on the first or the last source."""

    def flip(ran, turn, buffers):
        if (ran, turn) == (name, number):
            buffers[part].view(-1)[-1] ^= 1

    with pytest.raises(ExperimentError, match=f"^{name}, torch.bfloat16: 1 bytes differ from the reference's: not tim"):
        timed_here(flip)


@needs_triton
def test_a_kernel_that_writes_nothing_is_noticed(timed_here):
    """Though the kernels before it have written the same bytes into the same buffers."""
    wrong = 2 * (SHAPE[0] * SHAPE[1] * 33 // 32) * SETS
    with pytest.raises(ExperimentError, match=f"^both, torch.bfloat16: {wrong} bytes differ"):
        timed_here(idle="both")


@needs_triton
def test_copy_and_peers_rotate_among_sources(monkeypatch):
    seen, copies = [], []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            if function is torch.Tensor.copy_:
                copies.append(tuple(each.data_ptr() for each in arguments))
            return function(*arguments, **(options or {}))

    def turns(candidates, stopwatch, *, rounds):
        seen.clear()
        for i in range(4):
            candidates["a peer"](i)
        with Watch():
            for i in range(4):
                candidates[quantizers.COPY](i)
        return {name: [1.0, 1.0] for name in candidates}

    def peer(x):
        seen.append(x.data_ptr())
        return quantizers.plain_rows(x)

    monkeypatch.setattr(quantizers, "take_turns", turns)
    on = quantizers._OnCpu("sm_90")
    rows = quantizers._measure(on, SHAPE, "bfloat16", 0, timing.host_stopwatch, 3, {"a peer": peer}, (), str)
    assert {row["kernel"]: row["wrong_bytes"] for row in rows}["a peer"] == 0
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]
    assert copies[:2] == copies[2:]
    assert len({*copies[0], *copies[1]}) == 4, "two sources and two targets"


@needs_triton
def test_a_peer_with_other_bytes_is_named_and_not_timed(monkeypatch):
    def peer(x):
        elements, scales = quantizers.plain_rows(x)
        return elements ^ 1, scales

    timed = []

    def turns(candidates, stopwatch, *, rounds):
        timed.extend(candidates)
        return {name: [1.0, 1.0] for name in candidates}

    monkeypatch.setattr(quantizers, "take_turns", turns)
    on = quantizers._OnCpu("sm_90")
    rows = quantizers._measure(on, SHAPE, "bfloat16", 0, timing.host_stopwatch, 3, {"a peer": peer}, (), str)
    row = {row["kernel"]: row for row in rows}["a peer"]
    assert (row["wrong_bytes"], row["bytes_per_s_p50"]) == (SHAPE[0] * SHAPE[1], None)
    assert "a peer" not in timed


def test_results_of_another_size_are_wrong_altogether():
    expected = [torch.zeros(2, 4), torch.zeros(3)]
    assert quantizers._wrong_bytes([torch.zeros(8), torch.zeros(3)], expected) == 0
    assert quantizers._wrong_bytes([torch.zeros(4), torch.zeros(3)], expected) == 8
    assert quantizers._wrong_bytes([torch.zeros(8), torch.zeros(6)], expected) == 3


@needs_triton
def test_kernels_rotate_among_sources_and_two_passes_are_both(timed_here):
    candidates, launched = timed_here()
    for name in (*quantizers.OURS, quantizers.TWO_PASSES):
        launched.clear()
        for i in range(2 * SETS):
            candidates[name](i)
        passes = ["rows", "columns"] if name == quantizers.TWO_PASSES else [name]
        assert [ran for ran, _ in launched] == passes * (2 * SETS)
        sources = [source for _, source in launched[:: len(passes)]]
        assert sources[:SETS] == sources[SETS:]
        assert len(set(sources)) == SETS
    pairs = zip(launched[::2], launched[1::2])  # of the last, two passes
    assert all(rows != columns for (_, rows), (_, columns) in pairs), "a cache would serve the second pass"


def test_the_plain_peers_write_our_bytes():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(4)).bfloat16()
    rows, columns = quantize(x, E4M3, "rceil"), quantize(x, E4M3, "rceil", axis=0)
    expected = (rows.elements, rows.scales, columns.elements.T, columns.scales.T)
    assert all(torch.equal(a, b) for a, b in zip(quantizers.plain_both(x), expected, strict=True))


def test_a_small_gpu_is_refused():
    pytest.importorskip("triton")
    small = Gpu("A Card", "NVIDIA", "sm_90", 8 * GIB, None, "CUDA 13.0")
    with pytest.raises(ExperimentError, match="wants 16 GiB of memory, this GPU has 8"):
        quantizers.measure(small, True, silent)


@needs_triton
@pytest.mark.parametrize("quick", [False, True])
def test_steps_are_timed_in_one_case_of_the_full_form(monkeypatch, quick):
    cases = []
    monkeypatch.setattr(quantizers, "_peers", lambda quick: {})
    monkeypatch.setattr(quantizers, "_measure", lambda on, *rest: cases.append((*rest[:2], rest[-2])) or [{}])
    quantizers.measure(Gpu("A Card", "NVIDIA", "sm_90", 80 * GIB, None, "CUDA 13.0"), quick, silent)
    steps = [case[:2] for case in cases if case[2]]
    assert [case[:2] for case in cases if case[2] == quantizers.STEPS] == steps
    if quick:
        assert (steps, cases) == ([], [((8192, 8192), "bfloat16", ())])
    else:
        sizes, dtypes = {case[0] for case in cases}, {case[1] for case in cases}
        assert steps == [((8192, 8192), "bfloat16")]
        assert (sizes, dtypes) == ({(n, n) for n in (4096, 8192, 16384)}, {"bfloat16", "float32"})
        assert len(cases) == len(sizes) * len(dtypes)


def test_predictions_are_bytes_over_the_data_sheets_rate():
    rows = {(row["device"], row["kernel"]): row for row in EXPERIMENTS["quantizers"].predict()}
    h100 = rows["NVIDIA H100 SXM5 80GB", "both"]
    assert h100["s_at_least"] == pytest.approx(4.0625 * 16384**2 / 3.35e12)
    assert h100["time_over_two_passes_p50"] == pytest.approx(4.0625 / 6.0625)


def test_a_wrong_byte_costs_its_own_case_and_the_recording_says_so():
    cases = [((4096, 4096), "bfloat16"), ((8192, 8192), "bfloat16")]

    def case(shape, dtype, tell, wrong=(4096,)):
        if shape[0] in wrong:
            raise ExperimentError(f"both, torch.{dtype}: 3 bytes differ from the reference's: not timed\nmore")
        return [{"rows": shape[0]}]

    told = "both, torch.bfloat16: 3 bytes differ from the reference's: not timed"
    rows, left_out = quantizers._all_that_can_be_trusted(cases, case, silent)
    assert rows == [{"rows": 8192}]
    assert left_out == {"4096 x 4096, bfloat16": told}
    with pytest.raises(ExperimentError, match=f"4096 x 4096, bfloat16: {told}; 8192 x 8192"):
        quantizers._all_that_can_be_trusted(cases, lambda *c: case(*c, wrong=(4096, 8192)), silent)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@needs_gpu
def test_a_graph_repeats_the_calls_that_were_captured():
    seen = torch.zeros(2, device="cuda")
    stopwatch = timing.GraphStopwatch()
    seconds = stopwatch(lambda i: seen[i % 2].add_(1), 6)
    assert seconds > 0
    assert seen.tolist() == [6, 6], (
        "three calls a set, in the replay before the clock and in the timed one; none at capture"
    )


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_gpus_own_bytes(fmt, rule, dtype):
    for shape in ((96, 160), (512, 1024)):
        assert_all_same(mixed(dtype, shape).cuda(), fmt, rule)
    assert_all_same(mixed(dtype).cuda(), fmt, rule, "128x4")
