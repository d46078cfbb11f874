"""More seeds and steps of the training chapter's own experiment: too long for a page, still without a GPU."""

from chipmath.experiments.experiment import ComputedExperiment, Progress, Row

SEEDS, STEPS = 16, 300  # a difference as large as its spread between seeds then shows, 19 times in 20 or more
QUICK_SEEDS, QUICK_STEPS = 1, 6
DIAL = 17  # the largest published outliers are 2**16.6 times the rest; both FP8 recipes have broken by then
PARTS = 20  # of a curve
SOURCES = tuple(f"training/{name}.py" for name in ("recipes", "model", "run", "text"))
CURVE_COLUMNS = {
    "held_out_loss": "nats a byte on text never seen; null where the run diverged",
    "stopped": "step, tensor and value where the run diverged, else null",
    **{f"loss_{part}": f"mean training loss over part {part} of {PARTS} of the run" for part in range(1, PARTS + 1)},
}


def compute(quick: bool, progress: Progress) -> tuple[dict, list[Row]]:
    """Every recipe over all seeds, and FP32, a scale a tensor and MXFP8 again with the outlier dial."""
    import torch

    from chipmath.training.recipes import FP8_TENSOR, FP32, MXFP8_RCEIL, ONE_COPY, SIX
    from chipmath.training.run import TOY

    torch.set_num_threads(1)  # one order of summation; and two threads that wait for each other are no faster here
    seeds, steps = (QUICK_SEEDS, QUICK_STEPS) if quick else (SEEDS, STEPS)
    plan = [(recipe, 0, seed) for recipe in (FP32, *SIX, ONE_COPY) for seed in range(seeds)]
    plan += [(recipe, DIAL, seed) for recipe in (FP32, FP8_TENSOR, MXFP8_RCEIL, ONE_COPY) for seed in range(seeds)]
    rows = [_run(plan, number, steps, progress) for number in range(len(plan))]
    progress(len(plan) * steps, len(plan) * steps, "done")
    method = {
        "setting": TOY.describe(steps),
        "entropy_nats_per_byte": TOY.language().nats_per_byte(),
        "products": "float32, of quantized and restored operands",
        "dial": f"features times 2**dial, their columns of the weight divided by as much; 0 or {DIAL}",
    }
    return method, rows


def curve_row(curve) -> Row:
    """A `chipmath.training.run.Curve` in the cells of `CURVE_COLUMNS`."""
    pieces = {f"loss_{part}": loss for part, loss in enumerate(curve.pieces(PARTS), 1)}
    return {"held_out_loss": curve.held_out, "stopped": str(curve.stopped) if curve.stopped else None, **pieces}


def _run(plan: list, number: int, steps: int, progress: Progress) -> Row:
    from chipmath.training.run import TOY, train

    recipe, dial, seed = plan[number]
    text = f"{recipe.name}, dial {dial}, seed {seed}"

    def within_all(done: int, total: int) -> None:
        if done < total:  # the last step of all is reported by the caller, once
            progress(number * steps + done, len(plan) * steps, text)

    curve, _ = train(recipe, TOY, seed=seed, steps=steps, dial=dial, progress=within_all)
    return {"recipe": recipe.name, "dial": dial, "seed": seed, **curve_row(curve)}


EXPERIMENT = ComputedExperiment(
    name="training_cpu",
    question="Over several seeds and a longer run, which recipes end where FP32 ends?",
    sources=("experiments/training_cpu.py", *SOURCES),
    keys={"recipe": "as in chipmath.training.recipes", "dial": "exponent of the outlier dial", "seed": "of the run"},
    values=CURVE_COLUMNS,
    compute=compute,
)
