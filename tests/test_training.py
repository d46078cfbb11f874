"""Training in a recipe: operands, gradients, curves, ranks. Everything runs on a CPU."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from chipmath.experiments import EXPERIMENTS, ExperimentError, training, training_cpu
from chipmath.formats import E2M1, E2M3, E3M2, E4M3, E5M2, INT8
from chipmath.quantize import SCALE_RULES, quantize, sqnr_db
from chipmath.recordings import Recording, newest
from chipmath.training import command, pairs, probes, recipes, run
from chipmath.training.amdahl import accelerated_share, step_speedup
from chipmath.training.loss_figure import loss_figure
from chipmath.training.model import GPT, OUTLIERS, Shape
from chipmath.training.probes import (
    breaking_point,
    capture,
    gradient_sqnr_db,
    lost_shares,
    product_sqnr_db,
    split_difference,
    weight_gradients,
)
from chipmath.training.progress import TerminalLines
from chipmath.training.recipes import (
    BF16,
    FP8_TENSOR,
    FP8_UNSCALED,
    FP32,
    MXFP4,
    MXFP8_FLOOR,
    MXFP8_RCEIL,
    ONE_COPY,
    RECIPES,
    SIX,
    Recipe,
    block_values,
    element_values,
    linear,
)
from chipmath.training.run import TOY, batches, schedule, train, train_all
from chipmath.training.text import batch, language
from chipmath.training.torch_settings import torch_settings

ROOT = Path(__file__).resolve().parent.parent
TINY = run.Setting(Shape(layers=1, width=32, heads=1, context=32), 4, 4, 3e-3, words=8, followers=2, held_out=1)
FLOATS = (E4M3, E5M2, E3M2, E2M3, E2M1)


@pytest.fixture(autouse=True)
def one_thread():
    """Small products: two threads would mostly wait for each other, and one sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(*shape, seed=0, spread=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.exp2(spread * torch.randn(shape, generator=generator))


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def trained(steps=12):
    """A toy model a little trained, and a batch that it has not seen."""
    _, model = train(FP32, TOY, seed=0, steps=steps)
    return model, *next(batches(TOY, 99, 1, "cpu"))


# --- operands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_rule", SCALE_RULES)
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_block_values_are_the_reference_quantizers(fmt, scale_rule, dtype):
    x = drawn(128, 96, spread=6.0 if dtype == torch.float16 else 25.0).to(dtype)
    x[0, 0], x[40, 40], x[64:96, :32], x[100, 50] = torch.nan, -torch.inf, 0, -0.0
    for axis in (0, 1, -1):
        for matrix in (x, x.T):
            expected = quantize(matrix, fmt, scale_rule, axis=axis).dequantize()
            assert same(block_values(matrix, fmt, scale_rule, axis=axis), expected)


@pytest.mark.parametrize("scale_rule", SCALE_RULES)
def test_block_values_at_every_step_of_the_scale_rules(scale_rule):
    """Every amax whose significand is at or beside a step, over all exponents that docs promise."""
    significands = torch.tensor([1, 1 + 2**-23, 1.75, 1.75 + 2**-23, 1.9375 - 2**-23, 1.9375, 2 - 2**-23])
    amax = (significands[:, None] * torch.exp2(torch.arange(-116.0, 127))).reshape(-1, 1)
    x = torch.cat([amax, amax * drawn(1, 31).clamp(-1, 1)], 1)
    for fmt in (E4M3, E2M1):
        assert same(block_values(x, fmt, scale_rule, axis=1), quantize(x, fmt, scale_rule).dequantize())


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_element_values_round_like_the_codes(fmt):
    """Every number of the format, every midpoint of two, both sides of each, and what is out of range."""
    numbers = fmt.decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8))
    middles = (numbers[1:] + numbers[:-1]) / 2
    beside = [torch.nextafter(middles, torch.full_like(middles, to)) for to in (-torch.inf, torch.inf)]
    x = torch.cat([numbers, middles, *beside, torch.tensor([1e9, 1e-30, torch.inf])])
    x = torch.cat([x, -x])
    assert same(element_values(x, fmt), fmt.decode(fmt.encode(x)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_operand_is_the_reference_operand(recipe):
    x = drawn(64, 96, spread=4.0)
    for axis in (0, 1):
        assert same(recipe.operand(x, axis)[0].float(), recipe.reference_operand(x, axis))


def test_a_tensors_scale_is_a_quotient():
    """Half of all amax / 448 are another float32 than amax * (1 / 448), which CUDA takes where 448 is no tensor."""
    for amax in drawn(64).abs():
        scale = recipes.tensor_scale(amax.reshape(1, 1), E4M3)
        assert float(scale) == float(torch.tensor(float(amax) / 448, dtype=torch.float32))
    divisors = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            if "div" in function.__name__:
                divisors.append(arguments[1])
            return function(*arguments, **(options or {}))

    with Seen():
        FP8_TENSOR.operand(X, 1)
    assert len(divisors) == 2
    assert all(torch.is_tensor(divisor) for divisor in divisors)


@pytest.mark.slow
def test_compiled_quantizers_give_the_same_values():
    """torch.compile, here for the CPU: what a GPU's training runs must not change a value."""
    for recipe in (MXFP8_RCEIL, MXFP4):
        for axis in (0, 1):
            function = recipes._block_rounder(recipe.fmt, recipe.scale_rule, axis)
            for shape in ((64, 96), (96, 64), (128, 32)):  # the second is compiled for all further shapes
                x = drawn(*shape, spread=6.0)
                assert torch.equal(recipes._compiled(function)(x), function(x))


def test_all_recipes_compile_in_one_process(monkeypatch):
    """torch counts variants of one source, and by default admits 8; layers of the GPU experiment, graphs not compiled.

    Both passes: within an autograd function gradients are off, while operands are checked they are on, and torch makes
    a variant of each.
    """
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_(function, backend="eager", **how))
    monkeypatch.setattr(recipes, "_fused", lambda function, x: recipes._compiled(function)(x))
    recipes._compiled.cache_clear()
    torch.compiler.reset()
    width, tokens = run.BASE.shape.width, 64
    try:
        with torch_settings():
            training._check_operands("cpu", RECIPES.values())
            for recipe in (*SIX, ONE_COPY):
                for inputs, outputs in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
                    for dtype in (torch.float32, torch.bfloat16):
                        x = torch.ones(tokens, inputs, dtype=dtype, requires_grad=True)
                        weight = torch.ones(outputs, inputs, requires_grad=True)
                        linear(x, weight, recipe, torch.bfloat16).sum().backward()
    finally:
        recipes._compiled.cache_clear()
        torch.compiler.reset()


def test_settings_of_torch_hold_for_the_backward_pass_and_end():
    """On a GPU it would run in a thread of its own, where from torch 2.12 on the limit of variants is 8 again."""

    def settings():
        matmul = torch.backends.cuda.matmul
        limit = torch._dynamo.config.recompile_limit
        return torch._C._is_multithreading_enabled(), matmul.allow_bf16_reduced_precision_reduction, limit

    before = settings()
    assert before[:2] == (True, True)
    with torch_settings():
        assert settings() == (False, False, 256)
    assert settings() == before


def test_what_has_no_recipe_is_refused():
    with pytest.raises(ValueError, match="INT8 has no exponent"):
        element_values(drawn(2, 2), INT8)
    with pytest.raises(ValueError, match="must be a matrix, got shape"):
        block_values(drawn(2, 2, 32), E4M3, "rceil", axis=1)
    with pytest.raises(ValueError, match="axis 1 has size 48, which is not a multiple of the block, 32"):
        block_values(drawn(32, 48), E4M3, "rceil", axis=1)
    with pytest.raises(ValueError, match="rows of x is 33, which is not a multiple of the block, 32"):
        linear(drawn(33, 32), drawn(32, 32), MXFP8_RCEIL)
    with pytest.raises(ValueError, match="N is 40"):
        linear(drawn(32, 32), drawn(40, 32), MXFP4)
    linear(drawn(33, 40), drawn(40, 40), FP8_TENSOR)  # needs no blocks


# --- the three products -----------------------------------------------------------------------------------------------


def products(recipe, x, weight, dy):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = linear(x, weight, recipe)
    y.backward(dy)
    return y.detach(), x.grad, weight.grad


X, WEIGHT, DY = drawn(64, 96, seed=1), drawn(160, 96, seed=2), drawn(64, 160, seed=3)


def test_fp32_is_a_linear_layer():
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y = torch.nn.functional.linear(x, weight)
    y.backward(DY)
    for got, expected in zip(products(FP32, X, WEIGHT, DY), (y.detach(), x.grad, weight.grad)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("product", "operands", "axes"),
    [("output", (X, WEIGHT), (1, 1)), ("input gradient", (DY, WEIGHT), (1, 0)), ("weight gradient", (DY, X), (0, 0))],
)
def test_each_product_is_quantized_along_the_axis_that_it_sums_over(product, operands, axes):
    """From the reference's codes, multiplied in float64: only the order of float32 sums may differ."""
    quantized = [quantize(x, E4M3, "rceil", axis=axis).dequantize().double() for x, axis in zip(operands, axes)]
    a, b = quantized
    results = dict(zip(("output", "input gradient", "weight gradient"), products(MXFP8_RCEIL, X, WEIGHT, DY)))
    expected = {"output": lambda: a @ b.T, "input gradient": lambda: a @ b, "weight gradient": lambda: a.T @ b}[product]
    # sums of at most 160 products below 2**7: an error of 160 * 2**-24 * 160 * 2**7 would be generous
    torch.testing.assert_close(results[product].double(), expected(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("recipe", [MXFP8_RCEIL, MXFP8_FLOOR, FP8_TENSOR, MXFP4], ids=lambda recipe: recipe.name)
def test_noise_of_all_three_products_is_that_of_two_operands(recipe):
    """Independent operands: their noise adds, 3 dB above one. (Gaussian, long sums: facts of the MXFP8 chapter.)"""
    x, weight, dy = drawn(512, 512, seed=4), drawn(512, 512, seed=5), drawn(512, 512, seed=6)
    alone = sqnr_db(x, torch.cat([recipe.operand(x, 1)[0] * (recipe.operand(x, 1)[1] or 1)]))
    for got, exact in zip(products(recipe, x, weight, dy), products(FP32, x, weight, dy)):
        assert sqnr_db(exact, got) == pytest.approx(alone - 10 * math.log10(2), abs=0.2)


def test_six_quantizations_a_layer_and_step(monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipes, "block_values", lambda x, fmt, rule, axis: seen.append((tuple(x.shape), axis % 2)) or x
    )
    products(MXFP8_RCEIL, X, WEIGHT, DY)
    shapes = [tuple(t.shape) for t in (X, WEIGHT, DY)]
    assert sorted(seen) == sorted((shape, axis) for shape in shapes for axis in (0, 1))
    seen.clear()
    products(ONE_COPY, X, WEIGHT, DY)
    assert {axis for _, axis in seen} == {1}


def test_one_copy_differs_in_the_backward_products_only():
    y, _, dw = products(MXFP8_RCEIL, X * 1e3 ** drawn(1, 96, seed=9), WEIGHT, DY)
    y1, _, dw1 = products(ONE_COPY, X * 1e3 ** drawn(1, 96, seed=9), WEIGHT, DY)
    assert torch.equal(y, y1)
    assert not torch.equal(dw, dw1)


def test_a_nan_reaches_the_output():
    x = X.clone()
    x[5, 7] = torch.nan
    for recipe in RECIPES.values():
        assert linear(x, WEIGHT, recipe)[5].isnan().all(), recipe.name


@pytest.mark.peer
@pytest.mark.parametrize("rule", ["rceil", "floor"])
def test_gradients_are_those_of_torchaos_emulated_mxfp8_linear(rule):
    mxfp8 = pytest.importorskip("torchao.prototype.moe_training.mxfp8_linear")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    recipe = {"rceil": MXFP8_RCEIL, "floor": MXFP8_FLOOR}[rule]
    # bfloat16, as torchao expects its inputs; its products are rounded to bfloat16, ours are float32
    x, weight, dy = (t.bfloat16() for t in (X, WEIGHT, DY))
    theirs_x, theirs_w = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = mxfp8._to_mxfp8_then_scaled_mm(
        theirs_x, theirs_w, KernelPreference.EMULATED, getattr(ScaleCalculationMode, rule.upper())
    )
    y.backward(dy)
    ours = products(recipe, x.float(), weight.float(), dy.float())
    for mine, their in zip(ours, (y.detach(), theirs_x.grad, theirs_w.grad)):
        # one rounding to bfloat16 costs half a unit in its eighth bit, 2**-9; theirs may also sum in bfloat16 blocks
        torch.testing.assert_close(their.float(), mine, rtol=2**-7, atol=2**-7 * float(mine.abs().mean()))
        assert sqnr_db(mine, their.float()) > 45


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_is_seeded_and_of_the_languages_words():
    speech = language(24, 3)
    text = speech.text(2000, 5)
    assert torch.equal(text, speech.text(2000, 5))
    assert not torch.equal(text, speech.text(2000, 6))
    spoken = bytes(text.tolist()).decode().split(" ")
    assert set(spoken[:-1]) <= set(speech.words)
    after = {a: {speech.words[f] for f in speech.followers[i]} for i, a in enumerate(speech.words)}
    assert all(b in after[a] for a, b in pairwise(spoken[:-1]))


def test_entropy_is_the_loss_of_who_knows_the_rules():
    """Against the surprise of a long text, counted word by word."""
    speech = language(24, 3)
    spoken = bytes(speech.text(400_000, 1).tolist()).decode().split(" ")[:-1]
    index = {word: i for i, word in enumerate(speech.words)}
    surprise = sum(
        -math.log(speech.probabilities[list(speech.followers[index[a]]).index(index[b])]) for a, b in pairwise(spoken)
    )
    counted = surprise / sum(len(word) + 1 for word in spoken[1:])
    assert counted == pytest.approx(speech.nats_per_byte(), rel=0.01)


def test_a_language_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="got 9 followers and 8 words"):
        language(8, 9)
    with pytest.raises(ValueError, match="a text of 10 bytes has no window of 16"):
        batch(language(8, 2).text(10, 0), 1, 16, torch.Generator())


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_reproducible_and_learns():
    curve, _ = train(MXFP8_RCEIL, TOY, seed=3, steps=25)
    again, _ = train(MXFP8_RCEIL, TOY, seed=3, steps=25)
    assert curve.losses == again.losses
    assert curve.held_out == again.held_out
    assert curve.losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert curve.held_out < 2.3  # letters and spaces at least
    assert curve.stopped is None


def test_a_head_attends_by_queries_to_keys_before_it():
    """softmax(Q K' / sqrt(d)) V, of the positions up to its own, each of two heads by itself."""
    block = GPT(Shape(layers=1, width=32, heads=2, context=5), 0).blocks[0]
    qkv = torch.randn(1, 5, 96, generator=torch.Generator().manual_seed(0))
    got = block._attend(qkv)
    for head in (0, 1):
        q, k, v = (qkv[0, :, start + 16 * head :][:, :16] for start in (0, 32, 64))
        scores = (q @ k.T / 4).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        torch.testing.assert_close(got[0, :, 16 * head :][:, :16], scores.softmax(-1) @ v)


@pytest.mark.parametrize(("width", "heads"), [(48, 2), (32, 3)])
def test_a_width_that_no_block_or_head_divides_is_refused(width, heads):
    with pytest.raises(ValueError, match=f"width {width} is not a multiple of 32 and of {heads} heads"):
        GPT(Shape(layers=1, width=width, heads=heads, context=4), 0)


def test_recipes_start_from_the_same_weights_and_batches():
    first = {recipe: train(recipe, TINY, seed=1, steps=1)[0].losses[0] for recipe in (FP32, BF16, MXFP8_RCEIL)}
    assert first[BF16] == pytest.approx(first[FP32], abs=1e-3)
    assert first[MXFP8_RCEIL] == pytest.approx(first[FP32], abs=1e-2)


def test_unscaled_e4m3_flushes_gradients_and_stays_behind():
    model, tokens, targets = trained()
    gradient = weight_gradients(model, tokens, targets, FP8_UNSCALED)
    assert float((gradient == 0).float().mean()) > 0.5
    assert lost_shares(capture(model, tokens, targets), FP8_UNSCALED)["dY"][1] > 0.9


@pytest.mark.parametrize(
    ("learning_rate", "tensor", "wrong"),
    [
        (300.0, "loss", lambda value: value > run.EXPLODED * math.log(256)),
        (1e20, "gradient of position", math.isnan),
    ],
)
def test_a_divergence_tells_step_tensor_and_value_and_keeps_the_curve(learning_rate, tensor, wrong):
    curve, _ = train(FP32, dataclasses.replace(TINY, learning_rate=learning_rate), seed=0, steps=8)
    assert 1 <= curve.stopped.step == len(curve.losses) < 8
    assert curve.stopped.tensor == tensor
    assert wrong(curve.stopped.value)
    assert curve.held_out is None
    assert str(curve.stopped) == f"step {curve.stopped.step}: {tensor} {curve.stopped.value:g}"
    assert curve.pieces(8)[curve.stopped.step :] == [None] * (8 - curve.stopped.step)


def test_a_held_out_loss_that_is_not_finite_is_a_divergence(monkeypatch):
    """A recording holds finite numbers only: this one would cost all the runs beside it."""
    monkeypatch.setattr(run, "held_out_loss", lambda *_: math.nan)
    curve, _ = train(FP32, TINY, seed=0, steps=2)
    assert (len(curve.losses), curve.held_out, str(curve.stopped)) == (2, None, "step 2: held-out loss nan")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_gradient_that_is_not_finite_is_named(value):
    model = GPT(TINY.shape, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.blocks[0].up.weight.grad[3, 4] = value
    stopped = run._diverged(7, 1.0, torch.tensor(math.nan), model)
    assert (stopped.step, stopped.tensor) == (7, "gradient of blocks.0.up.weight")
    assert str(stopped.value) == str(value)
    assert run._diverged(7, 1.0, torch.tensor(1.0), model) is None


def test_every_finished_run_is_given_out_before_the_next(monkeypatch):
    reports = []
    runs = train_all([(FP32, 0), (BF16, 0)], TINY, steps=2, report=lambda *a: reports.append(a))
    curve, _ = next(runs)
    assert curve.recipe is FP32
    assert {text for _, _, text in reports} == {"FP32, seed 0"}
    next(runs)
    assert reports[-1][:2] == (4, 4)


def test_schedule_warms_up_and_decays_to_a_tenth():
    assert [schedule(step, 100) for step in (0, 4, 5)] == pytest.approx([0.2, 1.0, 1.0])
    assert schedule(99, 100) == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        train(FP32, TINY, seed=0, steps=0)


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dial", [1, 20])
def test_the_dial_changes_nothing_in_fp32(dial):
    model, tokens, targets = trained(2)
    plain = weight_gradients(model, tokens, targets, FP32)
    # multiplying by a power of two is exact; it is the sums over input features that may be taken in another order
    assert sqnr_db(plain, weight_gradients(model, tokens, targets, FP32, dial=dial)) > 100
    assert {layer.dial for layer in model.recipe_layers().values()} == {0}, "left as it was"


def test_outliers_share_a_block():
    assert len({feature // 32 for feature in OUTLIERS}) == 1


def test_the_dial_finds_both_breaking_points():
    """A scale for everything breaks where E4M3's window of 14.8 binades ends, a scale a block later."""
    model, tokens, targets = trained(40)
    exponents = [0, 8, 12, 14, 16, 18, 20]
    found = [gradient_sqnr_db(model, tokens, targets, (FP8_TENSOR, MXFP8_RCEIL), dial=dial) for dial in exponents]
    tensor = breaking_point(exponents, [sqnr[FP8_TENSOR] for sqnr in found])
    block = breaking_point(exponents, [sqnr[MXFP8_RCEIL] for sqnr in found])
    assert 8 < tensor < block <= 20


def test_only_the_forward_product_feels_the_dial():
    """Output features and tokens have blocks of their own; with one copy a third of each block is the outliers'."""
    captured = capture(*trained())
    output, *backward = product_sqnr_db(captured, MXFP8_RCEIL).values()
    output_18, *backward_18 = product_sqnr_db(captured, MXFP8_RCEIL, 18).values()
    assert backward_18 == pytest.approx(backward, abs=0.5)
    assert output_18 < output - 5
    *_, weight_gradient = product_sqnr_db(captured, ONE_COPY, 18).values()
    assert weight_gradient < backward[1] - 5


def test_halves_of_a_batch_agree_where_blocks_lie_within_them():
    model, tokens, targets = trained()
    # float32 sums in another order; a code that flips at a tie would show as 1e-4 or more
    assert split_difference(model, tokens, targets, FP32) < 1e-5
    assert split_difference(model, tokens, targets, MXFP8_RCEIL) < 1e-5
    assert split_difference(model, tokens, targets, FP8_TENSOR) > 1e-3


def test_breaking_point():
    assert breaking_point([0, 4, 8], [25, 24, 21.9]) == 8
    assert breaking_point([0, 4, 8], [25, 21, 24]) is None, "it recovered"
    assert breaking_point([0, 4, 8], [25, 24, math.nan]) == 8, "NaN is no signal"
    assert breaking_point([0, 4, 8], [25, 24, 23]) is None
    with pytest.raises(ValueError, match="2 exponents and 1 SQNRs"):
        breaking_point([0, 4], [25.0])
    with pytest.raises(ValueError, match="0 exponents and 0 SQNRs"):
        breaking_point([], [])


def test_gradients_of_each_recipe_against_fp32():
    model, tokens, targets = trained()
    sqnr = gradient_sqnr_db(model, tokens, targets, SIX)
    assert sqnr[BF16] > 45
    assert sqnr[MXFP8_RCEIL] > sqnr[MXFP8_FLOOR] > sqnr[MXFP4] > 3
    assert sqnr[MXFP8_RCEIL] > 22
    assert abs(sqnr[FP8_UNSCALED]) < 1, "the gradient is all but zero"
    (again,) = gradient_sqnr_db(model, tokens, targets, (MXFP8_RCEIL,), dtype=torch.bfloat16).values()
    assert again == pytest.approx(sqnr[MXFP8_RCEIL], abs=1)
    assert again != sqnr[MXFP8_RCEIL], "what is restored to bfloat16 is rounded again"


def test_captured_tensors_are_those_of_the_products():
    model, tokens, targets = trained(1)
    captured = capture(model, tokens, targets)
    assert list(captured) == [f"blocks.{i}.{name}" for i in (0, 1) for name in ("qkv", "out", "up", "down")]
    layer = captured["blocks.1.up"]
    expected = weight_gradients(model, tokens, targets, FP32)
    got = torch.cat([(each.dy.T @ each.x).reshape(-1) for each in captured.values()])
    torch.testing.assert_close(got, expected)
    assert layer.weight.shape == (384, 96)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lost_shares_by_hand():
    """A row of 32: one 448, one 480, one 2**-11, zeros. Floor clips the 480; the small one is below half of 2**-9."""
    x = torch.zeros(32, 32)
    x[0, :3] = torch.tensor([448.0, 480.0, 2.0**-11])
    assert MXFP8_FLOOR.losses(x, 1) == (1 / 1024, 1 / 1024)
    assert MXFP8_RCEIL.losses(x, 1) == (0.0, 1 / 1024)
    assert FP8_UNSCALED.losses(x, 1) == (1 / 1024, 1 / 1024)
    assert FP8_TENSOR.losses(x, 1) == (0.0, 1 / 1024)
    assert FP32.losses(x, 1) == (0.0, 0.0)
    # Of two layers, the values count, not the layers: two of 1024, and none of 3072.
    other = torch.zeros(96, 32)
    layers = {"a": probes.Captured(x, other, other), "b": probes.Captured(other, other, other)}
    assert lost_shares(layers, MXFP8_FLOOR) == {"X": (1 / 4096, 1 / 4096), "W": (0, 0), "dY": (0, 0)}


# --- several ranks ----------------------------------------------------------------------------------------------------


def run_command(arguments, tmp_path, ranks=0, name="curves"):
    start = [sys.executable, "-m"]
    if ranks:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    out = tmp_path / f"{name}-{ranks}.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "OMP_NUM_THREADS": "1"}
    line = [*start, "chipmath.training", "--device", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    return done, {entry["recipe"]: entry for entry in json.loads(out.read_text())} if out.exists() else {}


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one(tmp_path):
    arguments = ["--recipe", "fp32", "mxfp8_rceil", "fp8_tensor", "--steps", "4"]
    (one, alone), (two, shared) = run_command(arguments, tmp_path), run_command(arguments, tmp_path, ranks=2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    # Float32 sums of a few thousand terms, in another order: some units in the last place of a loss of about 4, which
    # every step carries into the weights. On two kinds of processor the fourth loss differed by 2e-6.
    for recipe in ("fp32", "mxfp8_rceil"):
        assert shared[recipe]["losses"] == pytest.approx(alone[recipe]["losses"], abs=1e-5), recipe
    # Blocks of 32 tokens lie within a rank; a scale a tensor is another one when the tensor is half the batch.
    assert abs(shared["fp8_tensor"]["losses"][0] - alone["fp8_tensor"]["losses"][0]) > 2e-5


def test_ranks_share_a_batch(monkeypatch):
    whole, _ = next(batches(TINY, 0, 1, "cpu"))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(run, "_rank", lambda rank=rank: (rank, 2))
        parts.append(next(batches(TINY, 0, 1, "cpu"))[0])
    assert torch.equal(torch.cat(parts), whole)
    monkeypatch.setattr(run, "_rank", lambda: (0, 3))
    with pytest.raises(ValueError, match="4 sequences a step cannot be shared evenly by 3 ranks"):
        next(batches(TINY, 0, 1, "cpu"))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_keeps_curves(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(run.SETTINGS, "toy", TINY)
    out = tmp_path / "new" / "curves.json"
    assert command.main(["--recipe", "fp32", "mxfp4", "--steps", "2", "--device", "cpu", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[3:]] == [["fp32", "0", "2"], ["mxfp4", "0", "2"]]
    kept = json.loads(out.read_text())
    assert [(entry["recipe"], len(entry["losses"]), entry["stopped"]) for entry in kept] == [
        ("fp32", 2, None),
        ("mxfp4", 2, None),
    ]


def test_an_interrupted_command_keeps_the_finished_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.SETTINGS, "toy", TINY)
    real = run.train

    def interrupted(recipe, *arguments, **options):
        if recipe is BF16:
            raise KeyboardInterrupt
        return real(recipe, *arguments, **options)

    monkeypatch.setattr(run, "train", interrupted)
    out = tmp_path / "curves.json"
    assert command.main(["--recipe", "fp32", "bf16", "--steps", "2", "--device", "cpu", "--out", str(out)]) == 130
    assert "interrupted: 1 of 2 runs are complete" in capsys.readouterr().err
    assert [entry["recipe"] for entry in json.loads(out.read_text())] == ["fp32"]


def test_a_diverged_run_is_told_by_the_exit_status(monkeypatch, capsys):
    monkeypatch.setitem(run.SETTINGS, "toy", dataclasses.replace(TINY, learning_rate=300.0))
    assert command.main(["--recipe", "fp32", "--steps", "6", "--device", "cpu"]) == 3
    assert ": loss " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "fp16"], "invalid choice: 'fp16'"),
        (["--seeds", "0"], "must be a positive whole number, got 0"),
        (["--steps", "-3"], "must be a positive whole number, got -3"),
        (["--steps", "many"], "must be a positive whole number, got many"),
        (["--dial", "127"], "must be a whole number from -126 to 126, got 127"),
        (["--dial", "1.5"], "must be a whole number from -126 to 126, got 1.5"),
        (["--setting", "huge"], "invalid choice: 'huge'"),
        (["--out", "/"], "--out /: is a folder, a file is wanted"),
        (["--out", "/dev/null/curves.json"], "--out /dev/null/curves.json: "),
    ],
)
def test_the_command_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        command.main([*arguments, "--steps", "1"] if "--steps" not in arguments else arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "environment", "arguments", "message"),
    [
        (0, {}, ["--device", "cuda"], "--device cuda: torch sees no GPU here"),
        (1, {"LOCAL_RANK": "1"}, [], "process 2 of this machine finds 1 GPUs: start fewer, or take --device cpu"),
        (0, {"WORLD_SIZE": "3"}, [], "16 sequences a step cannot be shared evenly by 3 ranks"),
    ],
)
def test_the_command_refuses_ranks_that_it_cannot_serve(gpus, environment, arguments, message, monkeypatch, capsys):
    """Before they join each other: a rank that fails later leaves the others waiting."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as status:
        command.main([*arguments, "--steps", "1"])
    assert status.value.code == 2
    assert message in capsys.readouterr().err


# --- recordings -------------------------------------------------------------------------------------------------------


def silent(done, total, text):
    """Progress that nobody sees."""


def test_the_gpu_experiment_rehearses_every_run(monkeypatch):
    monkeypatch.setattr(run, "TOY", TINY)
    method, rows = training.rehearse(silent)
    assert len(EXPERIMENTS["training"].table(rows)) == len(training._plan())
    assert {(row["recipe"], row["seed"]) for row in rows} == {
        *((recipe.name, 0) for recipe in (*SIX, ONE_COPY)),
        ("bf16", 1),
        ("bf16", 2),
    }
    assert method["left_out"] == []
    probed = {row["recipe"]: row for row in rows if row["seed"] == 0}
    assert len({row["gradient_sqnr_db"] for row in probed.values()}) > 4, "each recipe's own"
    assert probed["fp8_unscaled"]["flushed_dY"] > probed["mxfp8_rceil"]["flushed_dY"] >= 0
    assert {row[name] for row in rows if row["seed"] for name in training.PROBE_COLUMNS} == {None}
    assert all(math.isfinite(row["held_out_loss"]) for row in rows)


def rehearsed(rows) -> Recording:
    """A rehearsal's rows in the form of a recording: on a CPU, and in no file."""
    experiment = EXPERIMENTS["training"]
    device = {"name": "a CPU, rehearsed", "arch": "none", "clock_hz_before": None, "clock_hz_after": None}
    columns = [*experiment.keys, *experiment.values]
    return Recording(1, "training", "measured", "0" * 64, "0" * 40, True, "2026-11-24T00:00:00Z", device,
                     {"torch": torch.__version__}, {"form": "quick"}, columns, experiment.table(rows))  # fmt: skip


def test_recorded_curves_are_drawn_without_a_gpu(monkeypatch):
    monkeypatch.setattr(run, "TOY", TINY)
    _, rows = training.rehearse(silent)
    svg = loss_figure(rehearsed(rows)).svg
    for recipe in (BF16, MXFP8_RCEIL, FP8_TENSOR, MXFP4, FP8_UNSCALED, ONE_COPY):
        (first,) = (row for row in rows if row["recipe"] == recipe.name and row["seed"] == 0)
        assert f"{recipe.title} {first['loss_20']:.3f}" in svg, "the last loss is told to who cannot see it"


def test_a_diverged_run_is_drawn_up_to_where_it_stopped(monkeypatch):
    monkeypatch.setattr(run, "TOY", TINY)
    _, rows = training.rehearse(silent)
    lost = {row["recipe"]: row for row in rows if row["recipe"] in ("mxfp4", "fp8_unscaled")}
    for row in lost.values():
        row |= {"stopped": "step 2: loss nan", "loss_20": None}
    lost["mxfp4"] |= {f"loss_{part}": None for part in range(1, 21)}  # at the very first step: nothing to draw
    svg = loss_figure(rehearsed(rows)).svg
    assert svg.count("had diverged at step 2: loss nan") == 2
    with pytest.raises(LookupError, match="no run of bf16 to compare with, only of fp8_unscaled, mxfp4"):
        loss_figure(rehearsed(list(lost.values())))


def test_what_the_time_does_not_admit_is_named(monkeypatch):
    monkeypatch.setattr(run, "TOY", TINY)
    monkeypatch.setattr(training, "DEADLINE_SECONDS", 0)
    method, rows = training.rehearse(silent)
    assert [row["recipe"] for row in rows] == ["bf16"], "the first run starts in any case"
    assert len(method["left_out"]) == len(training._plan()) - 1
    assert method["left_out"][:3] == ["bf16, seed 1", "bf16, seed 2", "mxfp8_rceil, seed 0"], "the band goes first"


def test_probes_fail_before_the_other_runs(monkeypatch):
    """On a GPU the first run takes seconds and all take minutes: what cannot be probed there must show at once."""
    monkeypatch.setattr(run, "TOY", TINY)
    monkeypatch.setattr(Recipe, "losses", lambda *_: 1 / 0)
    seen = []
    with pytest.raises(ZeroDivisionError):
        training.rehearse(lambda done, total, text: seen.append(text))
    assert set(seen) == {"bf16, seed 0"}


def test_a_diverged_recipe_is_a_row_and_a_diverged_baseline_an_error(monkeypatch):
    """Runs after it go on; what its tensors lose is known all the same, from the baseline's weights."""
    monkeypatch.setattr(run, "TOY", TINY)
    real = run.train

    def diverging(lost):
        def train(recipe, setting, **options):
            rate = 300.0 if recipe is lost else setting.learning_rate
            return real(recipe, dataclasses.replace(setting, learning_rate=rate), **options)

        return train

    monkeypatch.setattr(training, "REHEARSAL_STEPS", 8)
    monkeypatch.setattr(run, "train", diverging(MXFP8_FLOOR))
    method, rows = training.rehearse(silent)
    assert len(rows) == len(training._plan())
    (stopped,) = (row for row in rows if row["stopped"])
    assert (stopped["recipe"], stopped["held_out_loss"], method["left_out"]) == ("mxfp8_floor", None, [])
    assert stopped["flushed_dY"] is not None
    rehearsed(rows)  # in the form of a recording: its cells are numbers, strings or null
    monkeypatch.setattr(run, "train", diverging(BF16))
    with pytest.raises(ExperimentError, match=r"baseline diverged, at step [1-7]: loss .*: nothing to compare with"):
        training.rehearse(silent)


def test_a_wrong_operand_is_not_trained(monkeypatch):
    real = recipes.block_values

    def wrong(x, fmt, rule, *, axis):
        values = real(x, fmt, rule, axis=axis)
        values[0, 0] += 1
        return values

    monkeypatch.setattr(recipes, "block_values", wrong)
    with pytest.raises(ExperimentError, match="mxfp8_rceil: 1 operands along axis 0 differ: it is not trained"):
        training.rehearse(silent)


def operands_wrong_for(monkeypatch, wrong):
    """Let the first operand be another where ``wrong(recipe, dtype, axis)``."""
    real = Recipe.operand

    def operand(recipe, x, axis):
        values, *rest = real(recipe, x, axis)
        if wrong(recipe, x.dtype, axis):
            values = values.clone()
            values[0, 0] = 12345.0
        return values, *rest

    monkeypatch.setattr(Recipe, "operand", operand)


@pytest.mark.parametrize("recipe", training._plan()[-1:] + training._plan()[:1], ids=lambda planned: planned[0].name)
def test_operands_of_every_recipe_of_the_plan_are_checked(monkeypatch, recipe):
    monkeypatch.setattr(run, "TOY", TINY)
    operands_wrong_for(monkeypatch, lambda its, dtype, axis: its is recipe[0])
    with pytest.raises(ExperimentError, match=f"^{recipe[0].name}: 1 operands along axis 0 differ: it is not trained"):
        training.rehearse(silent)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operands_of_either_type_along_either_axis_are_checked(monkeypatch, dtype, axis):
    operands_wrong_for(monkeypatch, lambda *its: its[1:] == (dtype, axis))
    with pytest.raises(ExperimentError, match=f"^mxfp8_floor: 1 operands along axis {axis} differ"):
        training._check_operands("cpu", [MXFP8_FLOOR])


def test_prediction_is_of_block_recipes_only():
    predicted = {row["recipe"]: row["expected_product_db"] for row in training.predict()}
    assert list(predicted) == ["mxfp8_rceil", "mxfp8_floor", "mxfp4"]
    assert predicted["mxfp8_rceil"] == pytest.approx(28.48, abs=0.05)  # of the MXFP8 chapter


def test_the_cpu_experiment_has_every_run(monkeypatch):
    threads = []
    monkeypatch.setattr(run, "TOY", TINY)
    monkeypatch.setattr(training_cpu, "QUICK_SEEDS", 2)
    monkeypatch.setattr(training_cpu, "QUICK_STEPS", 3)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    _, rows = training_cpu.compute(True, silent)
    assert threads == [1], "one order of summation"
    table = EXPERIMENTS["training_cpu"].table(rows)
    assert len(table) == len({tuple(row[:3]) for row in table}) == 2 * (len(RECIPES) + 4)
    losses = {(row["recipe"], row["dial"], row["seed"]): row["held_out_loss"] for row in rows}
    assert losses["fp32", 0, 0] != losses["fp32", 0, 1]
    assert losses["fp8_tensor", 0, 0] != losses["fp8_tensor", training_cpu.DIAL, 0]


def test_recorded_seeds_settle_what_four_bits_cost():
    """The chapter says so; with five seeds the interval held zero."""
    recording = newest("training_cpu")
    ends = {(row["recipe"], row["dial"], row["seed"]): row["held_out_loss"] for row in recording.select()}
    assert len(ends) == 12 * training_cpu.SEEDS
    assert None not in ends.values()
    seeds = range(training_cpu.SEEDS)
    assert all(ends["fp32", training_cpu.DIAL, seed] == ends["fp32", 0, seed] for seed in seeds)
    low, _ = pairs.interval([ends["mxfp4", 0, seed] - ends["fp32", 0, seed] for seed in seeds])
    assert low > 0


# --- Amdahl -----------------------------------------------------------------------------------------------------------


def test_amdahl_by_hand_and_back():
    assert step_speedup(0.5, 2) == pytest.approx(4 / 3)
    assert step_speedup(0, 2) == 1
    assert step_speedup(1, 2) == 2
    assert accelerated_share(4 / 3, 2) == pytest.approx(0.5)
    for bad, message in [((1.2, 2), "between 0 and 1, got 1.2"), ((0.5, 0), "positive, got 0")]:
        with pytest.raises(ValueError, match=message):
            step_speedup(*bad)
    for bad in ((2.5, 2), (0.9, 2), (1, 1)):
        with pytest.raises(ValueError, match="1 <= speedup <= factor"):
            accelerated_share(*bad)


# --- progress ---------------------------------------------------------------------------------------------------------


def test_a_terminal_is_told_how_long_it_may_take(monkeypatch, capsys):
    now = iter([0.0, 100.0, 100.0, 200.0, 200.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    lines = TerminalLines("training")
    lines(25, 100, "FP32, seed 0")
    lines(100, 100, "FP32, seed 0")
    assert capsys.readouterr().err.splitlines() == [
        "  training: 25/100 steps, about 300 s left; FP32, seed 0",
        "  training: 100/100 steps; FP32, seed 0",
    ]


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_students_t_is_that_of_the_tables():
    assert [round(pairs.student_t(freedom), 3) for freedom in (1, 4, 15, 100)] == [12.706, 2.776, 2.131, 1.984]


def test_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t of two degrees of freedom 4.303."""
    low, high = pairs.interval([3.0, 1.0, 2.0])
    assert (low, high) == (pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3), pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3))
    with pytest.raises(ValueError, match="two differences or more, got 1"):
        pairs.interval([0.1])


def test_probe_names_are_the_columns():
    assert {f"flushed_{tensor}" for tensor in probes.TENSORS} <= set(training.PROBE_COLUMNS)
