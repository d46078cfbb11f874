"""The loss curves of a recording of `chipmath.experiments.training`, drawn; no GPU is needed to look at one."""

import numpy as np

from chipmath import figures
from chipmath.experiments.experiment import Row
from chipmath.experiments.training_cpu import PARTS
from chipmath.recordings import Recording
from chipmath.training.recipes import BF16, FP8_TENSOR, FP8_UNSCALED, MXFP4, MXFP8_RCEIL, ONE_COPY

DRAWN = (BF16, MXFP8_RCEIL, FP8_TENSOR, MXFP4, FP8_UNSCALED, ONE_COPY)  # a figure holds six; the table has the rest
COLUMNS = [f"loss_{part}" for part in range(1, PARTS + 1)]


def loss_figure(recording: Recording) -> figures.Figure:
    """Training loss over the share of the run: the first seed of each recipe, and a band over all seeds of BF16.

    A run that diverged has a gap from there on. Raises LookupError where the recording has no run of BF16.
    """
    rows = {recipe: recording.select(recipe=recipe.name) for recipe in DRAWN}
    if not rows[BF16]:
        others = ", ".join(sorted({row["recipe"] for row in recording.select()}))
        raise LookupError(f"no run of {BF16.name} to compare with, only of {others}")
    curves = {
        recipe: np.array([[run[name] for name in COLUMNS] for run in runs], float)
        for recipe, runs in rows.items()
        if runs
    }
    series = {recipe.title: runs[0] for recipe, runs in curves.items() if np.isfinite(runs[0]).any()}
    ends = [_end(recipe.title, rows[recipe][0]) for recipe in curves]
    return figures.lines(
        (np.arange(PARTS) + 0.5) * 100 / PARTS,
        series,
        spread={BF16.title: (curves[BF16].min(0), curves[BF16].max(0))},
        gaps=True,
        yscale="log2",
        xlabel="share of the run, %",
        ylabel="training loss, nats a byte",
        height=3.8,
        alt=f"Loss curves over the run. In its last twentieth: {'; '.join(ends)}.",
    )


def _end(title: str, run: Row) -> str:
    return f"{title} had diverged at {run['stopped']}" if run["stopped"] else f"{title} {run[COLUMNS[-1]]:.3f}"
