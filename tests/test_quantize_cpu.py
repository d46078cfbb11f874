"""The compiled CPU quantizer: every byte that the reference writes, from any thread, for every kind of block."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from chipmath import quantize as reference
from chipmath import quantize_cpu
from chipmath.experiments import ExperimentError, cpu_quantizers
from chipmath.formats import E2M1, E4M3, E5M2, FORMATS, INT8, ElementFormat
from chipmath.quantize import SCALE_RULES
from test_quantize import GOLDEN, INF, NAN, X, boundaries, drawn, every_float32_pattern, same

KERNELS = Path(quantize_cpu.__file__).resolve().parent.parent
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Each pair is a compilation of a second or more: a few of them where every test runs, all in the slow ones.
FEW = [
    (torch.float32, E4M3), (torch.float32, E5M2), (torch.float32, E2M1), (torch.float32, INT8),
    (torch.bfloat16, E4M3), (torch.bfloat16, E5M2), (torch.float16, E4M3),
]  # fmt: skip
REST = [(dtype, fmt) for dtype in DTYPES for fmt in FORMATS.values() if (dtype, fmt) not in FEW]
PAIRS = [*FEW, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]


@pytest.fixture
def threads():
    """``torch.set_num_threads``, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_numba_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    quantize_cpu._kernel.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="compiled by Numba, which is not installed: pip install numba"):
        quantize_cpu.quantize(X, E4M3, "floor")


pytest.importorskip("numba")


def assert_same_bytes(x, fmt, scale_rule):
    got, expected = quantize_cpu.quantize(x, fmt, scale_rule), reference.quantize(x, fmt, scale_rule)
    assert got.elements.shape == expected.elements.shape
    assert got.scales.shape == expected.scales.shape
    np.testing.assert_array_equal(got.scales.numpy(), expected.scales.numpy())
    np.testing.assert_array_equal(got.elements.numpy(), expected.elements.numpy())
    assert (got.fmt, got.axis, got.block) == (fmt, -1, 32)


@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_constant_blocks_worked_by_hand(dtype, fmt):
    for (its, scale_rule, value), (scale_byte, element_byte) in GOLDEN.items():
        x = torch.full((1, 32), value)
        if its is fmt and (x.to(dtype) == x).all() | x.isnan().all():
            got = quantize_cpu.quantize(x.to(dtype), fmt, scale_rule)
            assert (got.scales.tolist(), got.elements.tolist()) == ([[scale_byte]], [[element_byte] * 32]), value


# --- every kind of block, against the reference -----------------------------------------------------------------------


def below(amax, seed=0):
    """Blocks with these largest magnitudes, each at a place of its own; the rest smaller, down to where all round to
    zero, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(amax), 32)
    factor = torch.randn(shape, generator=generator).clamp(-1, 1)
    power = torch.randint(0, 24, shape, generator=generator)
    x = (amax.float()[:, None] * factor * 2.0**-power).to(amax.dtype)
    place = torch.arange(len(amax)) % 32
    x[torch.arange(len(amax)), place] = amax * (1 - 2 * (place % 2)).to(amax.dtype)
    return x


def every_16_bit_number(dtype):
    return torch.arange(1 << 15, dtype=torch.int16).view(dtype)


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_largest_magnitudes_on_both_sides_of_every_step(dtype, fmt, scale_rule):
    """float32: every step of every rule in every binade; 16 bits: every number, infinite and NaN too."""
    amax = boundaries()[::5] if dtype == torch.float32 else every_16_bit_number(dtype)[::2]
    assert_same_bytes(below(amax), fmt, scale_rule)


def test_two_s_complement_of_four_bits():
    """A code ends where the format's bits end: -1 is 0xC, not 0xFC."""
    assert_same_bytes(below(boundaries()[::50]), ElementFormat("INT4", 4, 0, 2, 0), "floor")


def test_into_tensors_that_are_there():
    x = X.contiguous()
    elements, scales = torch.full(x.shape, 99, dtype=torch.uint8), torch.full((len(x), x.shape[1] // 32), 99).byte()
    assert quantize_cpu.quantize_into(x, E4M3, "rceil", elements, scales) is None
    expected = reference.quantize(x, E4M3, "rceil")
    assert torch.equal(elements, expected.elements)
    assert torch.equal(scales, expected.scales)


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("elements", torch.empty(32, 2, dtype=torch.uint8).T, "elements must be contiguous uint8 .* got strided"),
        ("elements", torch.empty(2, 32), "elements must be contiguous uint8 .* got contiguous torch.float32 on cpu"),
        ("elements", torch.empty(2, 31, dtype=torch.uint8), r"elements must have shape \(2, 32\), got \(2, 31\)"),
        ("scales", torch.empty(2, dtype=torch.uint8), r"scales must have shape \(2, 1\), got \(2,\)"),
        ("scales", torch.empty(2, 1, dtype=torch.uint8, device="meta"), "scales must be .* on the CPU, got .* on meta"),
    ],
)
def test_tensors_that_could_not_be_written_are_refused(name, output, message):
    outputs = {"elements": torch.empty(2, 32, dtype=torch.uint8), "scales": torch.empty(2, 1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=message):
        quantize_cpu.quantize_into(torch.ones(2, 32), E4M3, "floor", **outputs | {name: output})


@pytest.mark.slow
@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize(("dtype", "fmt"), FEW + REST, ids=str)
def test_all_largest_magnitudes(dtype, fmt, scale_rule):
    amax = boundaries() if dtype == torch.float32 else every_16_bit_number(dtype)
    for seed in range(4):
        assert_same_bytes(below(amax, seed), fmt, scale_rule)


@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_blocks_of_any_bits(dtype, fmt):
    """Uniform bits: a block spans most binades, one in eight holds NaN or Inf; then the same without."""
    bits = np.random.default_rng(7).integers(0, 1 << 32, 1 << 17, dtype=np.uint32)
    x = torch.from_numpy(bits.view(np.float32) if dtype == torch.float32 else bits.view(np.uint16).view(np.int16))
    finite = every_float32_pattern(1 << 17).to(dtype)
    for each in (x.view(dtype), finite.where(finite.isfinite(), 1)):
        assert_same_bytes(each, fmt, "rceil")


@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_ties_and_their_neighbours_at_every_scale(dtype, fmt):
    """The middle of every two numbers of the format, and what is next to it, in blocks of every scale byte."""
    codes = torch.arange(fmt.max_code + 1, dtype=torch.uint8)
    numbers = fmt.decode(codes).numpy()
    middles = ((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)
    near = [numbers[:-1], middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(INF))]
    signed = torch.from_numpy(np.concatenate([*near, *(-each for each in near)]))
    signed = torch.nn.functional.pad(signed, (0, -len(signed) % 31)).view(-1, 31)
    one_scale = torch.cat([signed, torch.full((len(signed), 1), fmt.max)], 1)
    exponents = torch.arange(-149, 128 - fmt.emax)
    x = one_scale.double() * (2.0 ** exponents.double()).view(-1, 1, 1)
    assert_same_bytes(x.to(dtype), fmt, "floor")


SPECIAL = [0.0, -0.0, 2**-149, -(2**-149), 2**-133, 2**-126, 2**-24, 1.0, -3.0, 448.0, 6e4, 3e38, INF, -INF, NAN]


@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_every_pair_of_special_values(dtype, fmt):
    """Signs of zeros, subnormal numbers beside large ones, Inf and NaN at the first and at the last place."""
    pairs = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL))
    x = torch.cat([pairs, pairs[:, :1].expand(-1, 29), pairs[:, 1:]], 1)
    for scale_rule in SCALE_RULES:
        assert_same_bytes(x.to(dtype), fmt, scale_rule)


def test_a_nan_with_its_sign_set_makes_its_block_nan():
    for dtype, bits, integers in ((torch.float32, -1, torch.int32), (torch.bfloat16, -1, torch.int16)):
        x = torch.ones(4, 32, dtype=dtype)
        x[2, 17] = torch.tensor(bits, dtype=integers).view(dtype)
        got = quantize_cpu.quantize(x, E4M3, "floor")
        assert got.scales[:, 0].tolist() == [119, 119, 255, 119]
        assert (got.elements[2] == 0x7F).all()


@pytest.mark.parametrize(("dtype", "fmt"), PAIRS, ids=str)
def test_flushing_subnormals_changes_no_byte(dtype, fmt, threads):
    """On the caller's thread and on others, which inherit the mode when they start."""
    tiny = below(torch.tensor([2.0**e for e in range(-149, -80)])).to(dtype)
    tiny = torch.cat([tiny, drawn(8192, 32).to(dtype)])
    expected = reference.quantize(tiny, fmt, "rceil")
    quantize_cpu.quantize(tiny[:1], fmt, "rceil")  # compiled without the mode
    threads(2)
    quantize_cpu._pool.cache_clear()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        alone, shared = quantize_cpu.quantize(tiny[:69], fmt, "rceil"), quantize_cpu.quantize(tiny, fmt, "rceil")
    finally:
        torch.set_flush_denormal(False)
        quantize_cpu._pool.cache_clear()
    assert torch.equal(alone.elements, expected.elements[:69])
    assert same(shared, expected)


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [*range(1, 6), 31, 63, 64, 65, 127, 129, 1000])
def test_any_number_of_blocks(blocks):
    assert_same_bytes(drawn(blocks * 32, spread=2.0), E4M3, "even")


@pytest.mark.parametrize("shape", [(32,), (3, 32), (2, 3, 64), (1, 2, 3, 4, 32), (0, 32), (4, 0), (2, 0, 64), (0,)])
def test_any_shape(shape):
    assert_same_bytes(torch.randn(shape, generator=torch.manual_seed(0)), E4M3, "rceil")


@pytest.mark.parametrize(
    "view",
    [lambda x: x.T, lambda x: x[::3, 32:], lambda x: x[:, ::2], lambda x: x[5], lambda x: x[:1].expand(7, 128),
     lambda x: torch.complex(x, x).conj().imag, torch._neg_view, lambda x: x.clone().requires_grad_()],
    ids=["transposed", "rows", "columns", "vector", "expanded", "negated lazily", "negated in place", "with gradient"],
)  # fmt: skip
def test_strided_equals_contiguous(view):
    x = drawn(64, 128, spread=2.0)
    assert_same_bytes(view(x), E4M3, "rceil")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_transposed_view_of_every_dtype(dtype):
    assert_same_bytes(drawn(64, 128).to(dtype).T, E4M3, "rceil")


def test_the_input_is_left_alone():
    x = drawn(64, 128)
    before = x.clone()
    quantize_cpu.quantize(x, E4M3, "floor")
    assert torch.equal(x, before)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_number_of_threads_changes_no_byte(count, threads):
    """Sizes around what one more thread is woken for, and parts that do not end with a tile."""
    threads(count)
    for blocks in (8191, 8192, 8193, 12345, 40001):
        x = drawn(blocks, 32, seed=blocks)
        assert same(quantize_cpu.quantize(x, E4M3, "rceil"), reference.quantize(x, E4M3, "rceil"))


def test_calls_from_many_threads(threads):
    """The first of them come at the same time, and one compiles for all; each wants two threads of its own."""
    threads(2)
    quantize_cpu._kernel.cache_clear()
    inputs = [drawn(8192 + i, 64, seed=i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: quantize_cpu.quantize(x, E4M3, "floor"), inputs))
    assert quantize_cpu._kernel.cache_info().misses == 1
    assert all(same(got, reference.quantize(x, E4M3, "floor")) for x, got in zip(inputs, results))


def quantize_in_a_child(x, queue):
    queue.put(quantize_cpu.quantize(x, E4M3, "rceil").elements.numpy().tobytes())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(threads):
    threads(2)
    x = drawn(16384, 32)
    expected = quantize_cpu.quantize(x, E4M3, "rceil").elements.numpy().tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=quantize_in_a_child, args=(x, queue), daemon=True)
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0


# --- other processors -------------------------------------------------------------------------------------------------

ELSEWHERE = """
import torch
from chipmath import quantize, quantize_cpu
from chipmath.formats import E4M3, INT8
bits = torch.randint(-2**31, 2**31 - 1, (1 << 16,), dtype=torch.int32, generator=torch.manual_seed(0))
near = torch.randn(1 << 16, generator=torch.manual_seed(1))
for x in (bits.view(torch.float32), near, near.bfloat16(), bits.view(torch.float16), near.half()):
    for fmt in (E4M3, INT8):
        for rule in ("floor", "rceil"):
            one, other = quantize.quantize(x, fmt, rule), quantize_cpu.quantize(x, fmt, rule)
            assert torch.equal(one.scales, other.scales) and torch.equal(one.elements, other.elements), (x, fmt, rule)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names processors of x86")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512"])
def test_code_for_other_processors_gives_the_same_bytes(processor):
    """LLVM compiles for 128, 256 or 512 bits a vector; this machine has to know the instructions."""
    from llvmlite import binding

    needed = {"x86-64": "sse2", "haswell": "avx2", "skylake-avx512": "avx512bw"}[processor]
    if not binding.get_host_cpu_features()[needed]:
        pytest.skip(f"this processor has no {needed}")
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(KERNELS)}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x must be float32, bfloat16 or float16, got torch.float64", (X.double(), E4M3, "floor")),
        (TypeError, "got torch.int32", (X.int(), E4M3, "floor")),
        (TypeError, r"x must be a tensor, got a list: \[1.0\]$", ([1.0], E4M3, "floor")),
        (TypeError, "got 'E9M9'", (X, "E9M9", "floor")),
        (ValueError, "floor, ceil, rceil, even, got 'nearest'", (X, E4M3, "nearest")),
        (TypeError, "scale_rule", (X, E4M3)),
        (ValueError, "axis -1 has size 33, .* the block, 32", (torch.ones(2, 33), E4M3, "floor")),
        (ValueError, "axis -1 is out of range .* 0 dimensions", (torch.ones(()), E4M3, "floor")),
    ],
)
def test_errors_are_those_of_the_reference(error, message, arguments):
    for quantize in (quantize_cpu.quantize, reference.quantize):
        with pytest.raises(error, match=message):
            quantize(*arguments)


def test_only_the_cpu():
    with pytest.raises(ValueError, match="x must be on the CPU, got meta"):
        quantize_cpu.quantize(torch.empty(2, 32, device="meta"), E4M3, "floor")


# --- its benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_what_is_here(capfd):
    cpu_quantizers.main(
        ["--here", "a setting", "--no-compile", "--shape", "64", "64", "--rounds", "2", "--rule", "rceil"]
    )
    printed = capfd.readouterr().out
    assert printed.count("64 x 64 float32, E4M3, rceil; a setting; load ") == 1
    assert printed.count("64 x 64 bfloat16, E4M3, rceil") == 1
    for name in (cpu_quantizers.COPY, cpu_quantizers.OURS, "clone()", "torch eager, straightforward"):
        assert printed.count(f"\n{name} ") == 2, name


def test_the_benchmark_times_no_wrong_byte():
    def negated(x, scale_rule):
        elements, scales = cpu_quantizers.ours(x, scale_rule)
        return elements ^ 0x80, scales

    with pytest.raises(ExperimentError, match="negated differs from the reference in 2048 bytes: it is not timed"):
        cpu_quantizers.measure(drawn(64, 32), "floor", {"negated": (negated, 1)}, rounds=2)
