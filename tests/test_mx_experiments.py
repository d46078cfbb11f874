"""The experiments of the MXFP8 article: what the recorded instructions add up to, and the reference on a GPU.

No test here has a GPU; stand-ins only go through the code.
"""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
from chipmath.crosscompile import CompileError
from chipmath.devices import GIB, PRODUCTS
from chipmath.experiments import EXPERIMENTS, ExperimentError, mx_lanes, mx_step, reference_quantizer
from chipmath.experiments.loops import innermost_loop
from chipmath.gpu import Gpu
from chipmath.recordings import newest

torch = pytest.importorskip("torch")

CARD = Gpu("A Card 80GB", "NVIDIA", "sm_90", 80 << 30, "580.1", "CUDA 13.0")


def silent(done, total, text):
    pass


# Instructions of a step


def work(opcode: str) -> tuple[int, int]:
    """Multiply-adds of a matrix instruction, and how many of the eight waves issue each of them together."""
    if opcode == "UTCQMMA":  # 128 x 128 x 32, issued by one thread for the group
        return 128 * 128 * 32, 8
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):  # four warps make a warpgroup
        return math.prod(map(int, shape.groups())), 4
    if opcode.startswith("QMMA.SF.16832."):
        return 16 * 8 * 32, 1
    shape = re.match(r"v_mfma_(?:scale_)?f32_(\d+)x(\d+)x(\d+)_", opcode)
    return math.prod(map(int, shape.groups())), 1


@pytest.mark.parametrize("row", newest("mx_step").select(), ids=lambda row: f"{row['arch']} {row['tile_m']}")
def test_the_matrix_instructions_of_a_step_are_the_product(row):
    """Neither a part of the loop nor more than one step of it was counted."""
    multiply_adds, together = work(row["matrix_opcodes"])
    done = row["matrix_instructions"] * multiply_adds * mx_step.NUM_WARPS // together
    assert done == row["tile_m"] * row["tile_n"] * row["tile_k"]


@pytest.mark.parametrize("row", newest("mx_step").select(arch="sm_90"), ids=lambda row: f"{row['tile_m']}")
def test_hopper_converts_every_element_once(row):
    """F2FP unpacks two elements, F2F converts one: three instructions for two elements; HMUL2 scales two.

    At least: a warpgroup needs A of its own, and where both multiply the same rows both convert them.
    """
    elements = (row["tile_m"] + row["tile_n"]) * row["tile_k"] // (mx_step.NUM_WARPS * 32)
    assert row["conversions"] >= 3 * elements // 2
    assert row["multiplications"] >= elements // 2
    if row["tile_m"] > 64:
        assert row["conversions"] == 3 * elements // 2


def test_only_chips_without_block_scale_convert():
    rows = newest("mx_step").select(tile_m=128, tile_n=128)
    native = {row["arch"] for row in rows if not row["conversions"] and not row["multiplications"]}
    assert native == {"gfx950", "sm_100", "sm_120"}
    assert {row["arch"] for row in rows if "scale" in f"{row['matrix_opcodes']} {row['ptx']}"} == native
    assert {row["spills"] for row in rows} == {0}


LISTING = """
.LBB0_1:
\tv_mul_f32_e32 v0, v1, v2
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
.LBB0_2:
\tv_and_b32_e32 v0, v1, v2
\ts_cbranch_scc1 .LBB0_2
\tv_or_b32_e32 v0, v1, v2
\ts_cbranch_scc0 .LBB0_1
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\ts_branch .LBB0_3
.LBB0_3:
\ts_endpgm
"""


def test_the_loop_is_the_innermost_one_that_multiplies_matrices():
    body = innermost_loop(LISTING, "mfma")
    assert body.startswith(".LBB0_1:")
    assert body.endswith("s_cbranch_scc0 .LBB0_1")
    outer = LISTING.replace("\ts_endpgm", "\ts_cbranch_vccz .LBB0_1\n\ts_endpgm")
    assert innermost_loop(outer, "mfma") == body


# Lanes


# Composable Kernel, test/mx_mfma_op/scale_mapping_*.txt at 1bcc08f, printed on the chip: for each group of lanes with
# all rows and each half of its 32 elements, the group whose scale byte they meet.
PROBED = {
    "16x16x128": {(0, 0): 0, (0, 1): 2, (1, 0): 0, (1, 1): 2, (2, 0): 1, (2, 1): 3, (3, 0): 1, (3, 1): 3},
    "32x32x64": {(0, 0): 0, (0, 1): 1, (1, 0): 0, (1, 1): 1},
}


@pytest.mark.parametrize("row", newest("mx_lanes").select(), ids=lambda row: row["instruction"])
def test_lanes_pair_elements_and_scales_as_the_chip_does(row):
    bits, rows, run = json.loads(row["scale_of_lane_bits"]), row["rows"], row["elements_in_a_run"]
    holds = {}
    for lane in range(64):
        on = [bits[i] for i in range(6) if lane >> i & 1]
        holds[sum(bit[0] for bit in on), sum(bit[1] for bit in on)] = lane
    groups = 64 // rows
    assert holds.keys() == {(r, block) for r in range(rows) for block in range(groups)}, "each scale once"
    found = {}
    for group in range(groups):
        for half in range(32 // run):
            k = (half * groups + group) * run
            assert k // 32 == (k + run - 1) // 32, "a run lies in one block"
            lane = holds[5, k // 32]
            assert lane % rows == 5
            found[group, half] = lane // rows
    assert found == PROBED[row["instruction"]]


TTGIR = """
#linear = #ttg.linear<{register = [[0, 4]], lane = [[1, 0], [2, 0], [0, 1]], warp = [[0, 0]], block = []}>
#linear1 = #ttg.linear<{register = [[0, 4]], lane = [[9, 9]], warp = [[0, 0]], block = []}>
%9 = tt.dot_scaled %1 scale %2, %3 scale %4, %5 : tensor<8x8xf8E4M3FN, #ttg.dot_op<{opIdx = 0, parent = #mma, \
kWidth = 16}>>, tensor<8x1xi8, #linear> * tensor<8x8xf8E4M3FN, #ttg.dot_op<{opIdx = 1, parent = #mma, kWidth = 32}>>, \
tensor<8x1xi8, #linear1> -> tensor<8x8xf32, #mma>
"""


def test_lanes_are_read_of_a_and_its_own_scales(monkeypatch):
    binary = SimpleNamespace(instructions=lambda pattern: ["v_mfma_scale"], compiler="Triton 3.9.0")
    monkeypatch.setattr(mx_lanes, "_compile_with_ttgir", lambda arch, rows: (binary, TTGIR))
    row = mx_lanes.compile_case("gfx950", "16x16x128")
    assert (row["elements_in_a_run"], row["scale_of_lane_bits"]) == (16, "[[1, 0], [2, 0], [0, 1]]")
    monkeypatch.setattr(mx_lanes, "_compile_with_ttgir", lambda arch, rows: (binary, TTGIR.replace("opIdx", "side")))
    with pytest.raises(CompileError, match="another way than this experiment reads"):
        mx_lanes.compile_case("gfx950", "16x16x128")


# The reference on a GPU


def rehearsed() -> dict:
    _, rows = reference_quantizer.rehearse(silent)
    assert all(set(row) == set(EXPERIMENTS["reference_quantizer"].columns) for row in rows)
    return {(row["operation"], row["scale_rule"], row["dtype"]): row for row in rows}


def test_every_rule_and_input_is_measured():
    rows = rehearsed()
    quantized = {("quantize", rule, dtype) for rule in ("floor", "rceil") for dtype in ("float32", "bfloat16")}
    assert set(rows) == quantized | {("matmul", rule, "float32") for rule in ("floor", "rceil")}
    assert {row["wrong_bytes"] for row in rows.values()} == {0}
    for row in rows.values():  # 2048 values: within 1 dB
        assert row["sqnr_db"] == pytest.approx(row["expected_sqnr_db"], abs=1)
    assert rows["matmul", "rceil", "float32"]["bytes_per_s_p50"] is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("elements", "elements of float32, floor: 1 of 2048 bytes differ from the CPU's: not timed"),
        ("scales", "scales of float32, floor: 1 of 64 bytes differ"),
    ],
)
def test_a_wrong_byte_is_never_timed(monkeypatch, part, message):
    """The second of two results, the device's, is off by a bit."""
    from chipmath import quantize as module

    calls = []
    true = module.quantize

    def wrong(*arguments, **options):
        result = true(*arguments, **options)
        calls.append(result)
        if len(calls) % 2 == 0:
            getattr(result, part).view(-1)[3] ^= 1
        return result

    monkeypatch.setattr(module, "quantize", wrong)
    monkeypatch.setattr(reference_quantizer, "take_turns", lambda *a, **k: pytest.fail("a wrong result was timed"))
    with pytest.raises(ExperimentError, match=message):
        reference_quantizer.rehearse(silent)


def test_a_wrong_product_is_refused(monkeypatch):
    from chipmath import matmul as module

    true, calls = module.matmul, []

    def wrong(a, b):
        calls.append(true(a, b) * (1 + 2.0**-20 * (len(calls) % 2)))
        return calls[-1]

    monkeypatch.setattr(module, "matmul", wrong)
    with pytest.raises(ExperimentError, match=r"the product, floor: \d+ of 4096 bytes differ"):
        reference_quantizer.rehearse(silent)


def test_rates_are_bytes_over_time_and_ratios_compare_rates(monkeypatch):
    seconds = {"floor": [2.0] * 3, "rceil": [4.0] * 3, "copy": [1.0] * 3}
    monkeypatch.setattr(reference_quantizer, "take_turns", lambda *a, **k: seconds)
    row = rehearsed()["quantize", "rceil", "bfloat16"]
    values = 32 * 64
    assert row["bytes_moved"] == 2 * values + values + values // 32
    assert row["bytes_per_s_p50"] == row["bytes_moved"] / 4
    assert row["copy_bytes_per_s_p50"] == 4 * values
    assert row["ratio_to_copy_p90"] == pytest.approx(row["bytes_moved"] / 4 / (4 * values))


def test_sources_rotate(monkeypatch):
    """Between two uses of a source lie all others, and they are equal."""
    from chipmath import quantize as module

    true, seen = module.quantize, []
    monkeypatch.setattr(module, "quantize", lambda x, *arguments: seen.append(x) or true(x, *arguments))

    def turns(candidates, stopwatch, *, rounds):
        seen.clear()
        for i in range(8):
            candidates["rceil"](i)
        return {name: [1.0, 1.0] for name in candidates}

    monkeypatch.setattr(reference_quantizer, "take_turns", turns)
    reference_quantizer._quantizers("cpu", (32, 64), "float32", 4 * 32 * 64 * 4, None, 2)
    addresses = [x.data_ptr() for x in seen]
    assert addresses[:4] == addresses[4:]
    assert len(set(addresses)) == 4
    assert all(torch.equal(x, seen[0]) for x in seen)


def test_small_gpus_are_left_alone():
    with pytest.raises(ExperimentError, match="reference_quantizer wants 8 GiB of memory, this GPU has 4"):
        reference_quantizer.measure(dataclasses.replace(CARD, memory_bytes=4 * GIB), True, silent)


def test_the_prediction_is_of_theory_and_data_sheets():
    rows = reference_quantizer.predict()
    assert {row["wrong_bytes"] for row in rows} == {0}
    anywhere = {(row["operation"], row["scale_rule"]): row for row in rows if row["device"] == "any GPU"}
    assert anywhere["quantize", "rceil"]["expected_sqnr_db"] == pytest.approx(31.52, abs=0.01)
    assert anywhere["matmul", "floor"]["expected_sqnr_db"] == pytest.approx(27.62, abs=0.01)
    cards = {row["device"]: row for row in rows if row["s_at_least"]}
    assert cards.keys() == {product.name for product in PRODUCTS.values()}
    least = 8192 * 8192 * (2 + 1 + 1 / 32) / 8.0e12
    assert cards["AMD Instinct MI355X"]["s_at_least"] == pytest.approx(least)
