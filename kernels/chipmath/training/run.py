"""Training in a recipe: a curve, the loss on text never seen, and where the run diverged, if it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from chipmath.training.model import GPT, Shape
from chipmath.training.recipes import Recipe
from chipmath.training.text import Language, batch, language

HELD_OUT_SEED = 1 << 20  # of a text that no training seed makes
EXPLODED = 3.0  # a loss of three times ln 256, that of guessing, is no training any more
CLIP = 1.0  # largest norm of the gradient

Progress = Callable[[int, int], None]  # steps done, of how many
Report = Callable[[int, int, str], None]  # the same over several runs, and what is under way


@dataclass(frozen=True)
class Setting:
    """Everything that a run does not vary: model, text, optimizer."""

    shape: Shape
    sequences: int  # a step, over all ranks
    steps: int
    learning_rate: float
    words: int
    followers: int
    held_out: int = 8  # batches

    def language(self) -> Language:
        """The language of its text."""
        return language(self.words, self.followers)

    @property
    def tokens(self) -> int:
        """A step, over all ranks."""
        return self.sequences * self.shape.context

    def describe(self, steps: int) -> str:
        """A run of so many steps in words, for a recording's method."""
        s = self.shape
        return (
            f"byte-level GPT, {s.layers} layers, width {s.width}, {s.heads} heads, context {s.context}; "
            f"{self.tokens} bytes a step, {steps} steps; "
            f"AdamW, learning rate {self.learning_rate}, warm-up and cosine; "
            f"synthetic text of {self.words} words with {self.followers} followers each"
        )


TOY = Setting(Shape(layers=2, width=96, heads=3, context=32), 16, 120, 5e-3, words=24, followers=3)
BASE = Setting(Shape(layers=8, width=512, heads=8, context=256), 64, 600, 1e-3, words=2048, followers=32)
SETTINGS = {"toy": TOY, "base": BASE}


@dataclass(frozen=True)
class Stop:
    """Where a run diverged: the first tensor that was wrong, and what it held."""

    step: int
    tensor: str
    value: float

    def __str__(self) -> str:
        """One line for tables and terminals."""
        return f"step {self.step}: {self.tensor} {self.value:g}"


@dataclass
class Curve:
    """One run. A run that diverges keeps the steps before, and says where it ended."""

    recipe: Recipe
    seed: int
    dial: int = 0
    planned: int = 0  # steps
    losses: list[float] = field(default_factory=list)  # of the training batches, nats a byte, one a step
    held_out: float | None = None  # mean loss on text never seen, after the last step; None after a divergence
    stopped: Stop | None = None

    def pieces(self, count: int) -> list[float | None]:
        """Mean loss over each of ``count`` equal parts of the planned run; None where the run had ended."""
        edges = [self.planned * part // count for part in range(count + 1)]
        parts = [self.losses[start:stop] for start, stop in pairwise(edges)]
        return [sum(part) / len(part) if part else None for part in parts]


def train(
    recipe: Recipe,
    setting: Setting,
    *,
    seed: int,
    steps: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    dial: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Curve, GPT]:
    """Train from a seed, which draws weights and batches; the same for every recipe, so that runs compare in pairs.

    steps   other than the setting's; the schedule of the learning rate then fits them
    dtype   of the recipe's matrix products
    dial    exponent of the outlier dial, see `model.RecipeLinear`
    returns the curve and the model as it was left

    Where torch.distributed is initialized every rank takes its part of each batch, gradients are averaged (DDP), and
    each rank has the same curve. A run that diverges raises nothing: it keeps its losses and says why in ``stopped``.
    """
    steps = setting.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    model = GPT(setting.shape, seed).to(device).use(recipe, dtype, dial)
    trained = _data_parallel(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), setting.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    curve = Curve(recipe, seed, dial, steps)
    for step, (tokens, targets) in enumerate(batches(setting, seed, steps, device)):
        progress(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = setting.learning_rate * schedule(step, steps)
        loss = trained(tokens, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        value = float(_mean_over_ranks(loss.detach()))
        curve.stopped = _diverged(step, value, norm, model)
        if curve.stopped:
            break
        curve.losses.append(value)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    else:
        held_out = held_out_loss(model, setting, device)
        if math.isfinite(held_out):
            curve.held_out = held_out
        else:  # after the last step, or only on this text
            curve.stopped = Stop(steps, "held-out loss", held_out)
    progress(steps, steps)
    return curve, model


def train_all(
    jobs: Sequence[tuple[Recipe, int]],
    setting: Setting,
    *,
    steps: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    dial: int = 0,
    report: Report = lambda done, total, text: None,
) -> Iterator[tuple[Curve, GPT]]:
    """`train` for each (recipe, seed), one after the other; each is given out when it is done, so that none is lost.

    report   called with the steps done in all, their total, and the run under way
    """
    a_run = setting.steps if steps is None else steps
    for number, (recipe, seed) in enumerate(jobs):

        def progress(done: int, total: int, number=number, text=f"{recipe.title}, seed {seed}") -> None:
            report(number * a_run + done, len(jobs) * a_run, text)

        yield train(recipe, setting, seed=seed, steps=steps, device=device, dtype=dtype, dial=dial, progress=progress)


def batches(setting: Setting, seed: int, steps: int, device: str | torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of every batch of a seed; all ranks draw the same batches."""
    rank, ranks = _rank()
    if setting.sequences % ranks:
        raise ValueError(f"{setting.sequences} sequences a step cannot be shared evenly by {ranks} ranks")
    share = setting.sequences // ranks
    text = setting.language().text(max(steps, 16) * setting.tokens, seed)  # as long as what is read
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = batch(text, setting.sequences, setting.shape.context, generator)
        tokens, targets = (part[rank * share : (rank + 1) * share].to(device) for part in drawn)
        yield tokens, targets


@torch.no_grad()
def held_out_loss(model: GPT, setting: Setting, device: str | torch.device) -> float:
    """Mean loss on the same text for every run, in the model's own recipe."""
    size = setting.held_out * setting.sequences * (setting.shape.context + 1)
    text = setting.language().text(size, HELD_OUT_SEED).view(setting.held_out, setting.sequences, -1).long().to(device)
    return sum(float(model.loss(part[:, :-1], part[:, 1:])) for part in text) / setting.held_out


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a twentieth of the run to warm up, then a cosine down to a tenth."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))


def _diverged(step: int, loss: float, norm: Tensor, model: GPT) -> Stop | None:
    """The first wrong tensor of a step: the loss, or else the gradient that is not finite."""
    if not loss < EXPLODED * math.log(256):  # NaN is not below anything
        return Stop(step, "loss", loss)
    if norm.isfinite():
        return None
    for name, parameter in model.named_parameters():
        wrong = parameter.grad[~parameter.grad.isfinite()]
        if len(wrong):
            return Stop(step, f"gradient of {name}", float(wrong[0]))
    return Stop(step, "norm of the gradient", float(norm))


class _LossModule(torch.nn.Module):
    """What DDP wraps: its forward must be the call that is differentiated."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets)


def _data_parallel(model: GPT, device: str | torch.device) -> torch.nn.Module:
    module = _LossModule(model)
    if not distributed.is_initialized():
        return module
    on_gpu = torch.device(device).type == "cuda"
    return DistributedDataParallel(module, device_ids=[torch.device(device)] if on_gpu else None)


def _mean_over_ranks(value: Tensor) -> Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def _rank() -> tuple[int, int]:
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
