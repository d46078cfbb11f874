"""A byte-level GPT of 25 million parameters on one GPU: a band of seeds, six recipes, and MXFP8 without second copies.

The formats are emulated, so that every GPU gives the answer, those without block scales too: operands are quantized,
restored to bfloat16, where they are exact, and multiplied by its tensor cores. What is measured is the loss and what
the tensors lose, never a speed-up: an emulated product is slower than the plain one.

No recipe is trained before its operands on this GPU are those of the reference on the CPU, value by value.

What it should take, estimated and not timed: a step of 16,384 bytes is 6 x 25 million x 16,384 = 2.5 TFLOP, and in 8
layers some 25 GB of memory traffic. On an H100 that is about 20 ms in BF16 and 30 to 40 ms with six quantizations,
which read and write 134 million values a layer twice. So 3 + 6 runs of 600 steps take 3 to 4 minutes, and compiling 35
variants of the rounders another. Memory: 42 bytes x 512 a token and layer are saved for the backward pass, 2.8 GB, and
weights and optimizer take 0.4 GB; the probes, in float32, hold twice the former and 4.3 GB of captured tensors.
"""

import math
import time

from chipmath.devices import GIB
from chipmath.experiments.experiment import ExperimentError, MeasuredExperiment, Progress, Row, Shown
from chipmath.experiments.training_cpu import CURVE_COLUMNS, SOURCES, curve_row
from chipmath.gpu import Gpu

BAND_SEEDS = 3  # of the baseline
DEADLINE_SECONDS = 360  # from the first check on; a run that would end later is left out, and the recording names it
MEMORY_BYTES = 16 * GIB  # the estimate above, and half as much again
QUICK_STEPS, REHEARSAL_STEPS = 60, 3
CHECKED = (512, 256)  # rows and columns of the matrix on which operands are compared
SEED, UNSEEN_SEED = 0, 99  # of the runs; of a batch that none of them trains on


def measure(gpu: Gpu, quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Method and rows on torch's current GPU."""
    import torch

    from chipmath.training.recipes import BF16, FP8_UNSCALED, MXFP8_RCEIL
    from chipmath.training.run import BASE, TOY

    if not quick:
        if gpu.memory_bytes < MEMORY_BYTES:
            needed, has = MEMORY_BYTES / GIB, gpu.memory_bytes / GIB
            raise ExperimentError(f"training wants {needed:.0f} GiB of memory, this GPU has {has:.0f}")
        return _train("cuda", _plan(), BASE, BASE.steps, progress)
    quick_plan = [(recipe, SEED) for recipe in (BF16, MXFP8_RCEIL, FP8_UNSCALED)]
    with torch.compiler.set_stance("force_eager"):  # compiling would take longer than the training
        return _train("cuda", quick_plan, TOY, QUICK_STEPS, progress)


def rehearse(progress: Progress) -> tuple[dict, list[Row]]:
    """The same on a CPU: the small model, a few steps, products in bfloat16 as on a GPU."""
    from chipmath.training.run import TOY

    return _train("cpu", _plan(), TOY, REHEARSAL_STEPS, progress)


def predict() -> list[Row]:
    """The noise that the law of a Gaussian implies for one product of each block-scaled recipe."""
    import torch

    from chipmath.noise import expected_product_db
    from chipmath.training.recipes import BLOCK, SIX

    def gaussian(t):
        return torch.erf(t / 2**0.5)

    return [
        {
            "recipe": recipe.name,
            "expected_product_db": expected_product_db(gaussian, recipe.fmt, recipe.scale_rule, BLOCK),
        }
        for recipe in SIX
        if recipe.scaling == "block"
    ]


def _plan() -> list:
    """(recipe, seed): the baseline and its band first, without which no other run says anything, then the recipes."""
    from chipmath.training.recipes import BF16, ONE_COPY, SIX

    recipes = [recipe for recipe in (*SIX, ONE_COPY) if recipe is not BF16]
    return [(BF16, SEED + number) for number in range(BAND_SEEDS)] + [(recipe, SEED) for recipe in recipes]


def _train(device: str, plan: list, setting, steps: int, progress: Progress) -> tuple[dict, list[Row]]:
    """The runs of a plan, the first of which is the baseline's: its weights are what all recipes are probed with."""
    import torch

    from chipmath.training.run import train
    from chipmath.training.torch_settings import torch_settings

    began = time.monotonic()
    rows, probed, left_out, longest = [], {}, [], 0.0
    with torch_settings():
        _check_operands(device, dict.fromkeys(recipe for recipe, _ in plan))
        for number, (recipe, seed) in enumerate(plan):
            if rows and time.monotonic() - began + longest > DEADLINE_SECONDS:
                left_out.append(f"{recipe.name}, seed {seed}")
                continue

            def within_all(done: int, total: int, number=number, text=f"{recipe.name}, seed {seed}") -> None:
                if done < total:
                    progress(number * steps + done, len(plan) * steps, text)

            start = time.monotonic()
            curve, model = train(
                recipe, setting, seed=seed, steps=steps, device=device, dtype=torch.bfloat16, progress=within_all
            )
            seconds = time.monotonic() - start
            longest = max(longest, seconds)
            if not rows:
                if curve.stopped:
                    raise ExperimentError(f"the baseline diverged, at {curve.stopped}: nothing to compare with")
                # now, and not after all runs: what fails here fails before minutes of training
                probed = _probe(model, setting, device, [recipe for recipe, _ in plan])
            probe = probed[recipe] if seed == SEED else dict.fromkeys(PROBE_COLUMNS)
            rows.append({"recipe": recipe.name, "seed": seed, "seconds": seconds, **curve_row(curve), **probe})
    progress(len(plan) * steps, len(plan) * steps, "done")
    return _method(setting, steps, left_out), rows


def _probe(model, setting, device: str, recipes: list) -> dict:
    """Recipe -> cells of `PROBE_COLUMNS`: one set of weights for all, and one batch that they have not seen."""
    import torch

    from chipmath.training.probes import capture, gradient_sqnr_db, lost_shares
    from chipmath.training.run import batches

    tokens, targets = next(batches(setting, UNSEEN_SEED, 1, device))
    captured = capture(model, tokens, targets)
    sqnr = gradient_sqnr_db(model, tokens, targets, dict.fromkeys(recipes), dtype=torch.bfloat16)
    probed = {}
    for recipe, decibels in sqnr.items():
        probed[recipe] = {"gradient_sqnr_db": decibels if math.isfinite(decibels) else None}
        for tensor, (clipped, flushed) in lost_shares(captured, recipe).items():
            probed[recipe] |= {f"clipped_{tensor}": clipped, f"flushed_{tensor}": flushed}
    return probed


def _method(setting, steps: int, left_out: list[str]) -> dict:
    return {
        "setting": setting.describe(steps),
        "entropy_nats_per_byte": setting.language().nats_per_byte(),
        "products": "bfloat16 tensor cores with float32 sums, of restored operands; weights and optimizer in float32",
        "checked": "operands of every recipe, in rows and in columns, against the reference on the CPU",
        "gradient": "of all quantized weights, against FP32, for the weights that BF16 trained and an unseen batch",
        "left_out": left_out,
    }


def _check_operands(device: str, recipes) -> None:
    """Values here against codes of the reference on the CPU: wide-ranging data, both axes, both input types."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    wide = torch.exp2(40 * torch.rand(CHECKED, generator=generator) - 30)
    x = torch.randn(CHECKED, generator=generator) * wide
    for recipe in recipes:
        for dtype in (torch.float32, torch.bfloat16):
            for axis in (0, 1):
                here, _ = recipe.operand(x.to(dtype).to(device), axis)
                wrong = int((here.float().cpu() != recipe.reference_operand(x.to(dtype), axis)).sum())
                if wrong:
                    raise ExperimentError(
                        f"{recipe.name}: {wrong} operands along axis {axis} differ: it is not trained"
                    )


PROBE_COLUMNS = {
    "gradient_sqnr_db": "of the weight gradients against FP32; null for further seeds, and where it is not finite",
    **{f"clipped_{tensor}": f"share of {tensor} beyond the largest number" for tensor in ("X", "W", "dY")},
    **{f"flushed_{tensor}": f"share of {tensor} that became zero" for tensor in ("X", "W", "dY")},
}

EXPERIMENT = MeasuredExperiment(
    name="training",
    question="Which recipes train a 25-million-parameter GPT to BF16's loss?",
    sources=(
        "experiments/training.py",
        "experiments/training_cpu.py",
        "training/probes.py",
        "training/torch_settings.py",
        *SOURCES,
    ),
    keys={"recipe": "as in chipmath.training.recipes", "seed": "of the run"},
    values={**CURVE_COLUMNS, **PROBE_COLUMNS, "seconds": "of the run, emulation included: no speed of the format"},
    measure=measure,
    rehearse=rehearse,
    predict=predict,
    live_seconds=18,
    longest_seconds=560,  # DEADLINE_SECONDS, the run under way at its end, and the compilers
    prediction="the noise of one product of Gaussian operands, by the law alone; it does not say what the loss does",
    shown={
        "recipe": Shown("recipe"),
        "seed": Shown("seed", "d"),
        "held_out_loss": Shown("held-out loss, nats a byte", ".4f"),
        "gradient_sqnr_db": Shown("gradient SQNR, dB", ".1f"),
        "flushed_dY": Shown("of dY flushed", ".1%"),
        "stopped": Shown("diverged"),
        "expected_product_db": Shown("expected SQNR of a product, dB", ".2f"),
    },
)
