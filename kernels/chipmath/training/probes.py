"""One step under the microscope: gradients against FP32, what each tensor loses, and the outlier dial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from chipmath.quantize import sqnr_db
from chipmath.training.model import GPT, OUTLIERS
from chipmath.training.recipes import FP32, Recipe, linear

TENSORS = {"X": "activations", "W": "weights", "dY": "gradients of outputs"}
PRODUCTS = ("output", "input gradient", "weight gradient")
BROKEN_DB = 3.0  # the dial has broken a recipe where the noise of the gradient has doubled


@dataclass(frozen=True)
class Captured:
    """What one linear layer's products met in a step: X (M, K), W (N, K), dY (M, N)."""

    x: Tensor
    weight: Tensor
    dy: Tensor

    def named(self) -> dict[str, Tensor]:
        """By the names of `TENSORS`."""
        return {"X": self.x, "W": self.weight, "dY": self.dy}

    def dialled(self, dial: int) -> Captured:
        """The same with the outlier dial of `model.RecipeLinear` turned."""
        factors = self._factors(dial)
        return Captured(self.x * factors, self.weight / factors, self.dy)

    def products(self, recipe: Recipe, dial: int = 0) -> dict[str, Tensor]:
        """The three products of the layer, by the names of `PRODUCTS`; gradients are of X and W before the dial."""
        x, weight, factors = self.x.clone().requires_grad_(), self.weight.clone().requires_grad_(), self._factors(dial)
        y = linear(x * factors, weight / factors, recipe)
        dx, dw = torch.autograd.grad(y, (x, weight), self.dy)
        return dict(zip(PRODUCTS, (y.detach(), dx, dw)))

    def _factors(self, dial: int) -> Tensor:
        factors = torch.ones(self.x.shape[1])
        factors[list(OUTLIERS)] = 2.0**dial
        return factors


def weight_gradients(
    model: GPT, tokens: Tensor, targets: Tensor, recipe: Recipe, *, dtype: torch.dtype = torch.float32, dial: int = 0
) -> Tensor:
    """Gradients of all weights that run in the recipe, end to end in one vector; the model is left as it was."""
    layers = model.recipe_layers()
    before = {name: (layer.recipe, layer.dtype, layer.dial) for name, layer in layers.items()}
    model.use(recipe, dtype, dial)
    gradients = torch.autograd.grad(model.loss(tokens, targets), [layer.weight for layer in layers.values()])
    for name, layer in layers.items():
        layer.recipe, layer.dtype, layer.dial = before[name]
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def gradient_sqnr_db(
    model: GPT,
    tokens: Tensor,
    targets: Tensor,
    recipes: Iterable[Recipe],
    *,
    dtype: torch.dtype = torch.float32,
    dial: int = 0,
) -> dict[Recipe, float]:
    """Signal over noise of the weight gradients, against FP32 without a dial, for the same weights and batch."""
    exact = weight_gradients(model, tokens, targets, FP32)
    return {
        recipe: sqnr_db(exact, weight_gradients(model, tokens, targets, recipe, dtype=dtype, dial=dial))
        for recipe in recipes
    }


def split_difference(model: GPT, tokens: Tensor, targets: Tensor, recipe: Recipe) -> float:
    """How far the mean gradient of a batch's two halves is from the whole batch's: norm of the difference, relative.

    What two ranks of data-parallel training make of a batch, without the ranks.
    """
    whole = weight_gradients(model, tokens, targets, recipe)
    pairs = zip(tokens.chunk(2), targets.chunk(2))
    halves = [weight_gradients(model, *pair, recipe) for pair in pairs]
    return float(((halves[0] + halves[1]) / 2 - whole).norm() / whole.norm())


def breaking_point(exponents: list[int], sqnr: list[float]) -> int | None:
    """The first dial setting from which on the gradient stays ``BROKEN_DB`` below the first; None if it never does.

    exponents  of the dial, rising
    sqnr       in decibels, one for each; NaN counts as broken
    """
    if not sqnr or len(exponents) != len(sqnr):
        raise ValueError(f"{len(exponents)} exponents and {len(sqnr)} SQNRs: as many of each, and one at least")
    broken = [not value >= sqnr[0] - BROKEN_DB for value in sqnr]  # NaN is not at least anything
    whole = max((i for i, is_broken in enumerate(broken) if not is_broken), default=-1)
    return exponents[whole + 1] if whole + 1 < len(exponents) else None


def capture(model: GPT, tokens: Tensor, targets: Tensor) -> dict[str, Captured]:
    """Layer -> the tensors that its products meet in a step, in FP32. Leaves no gradients behind."""
    seen: dict[str, dict[str, Tensor]] = {}
    handles = []
    for name, layer in model.recipe_layers().items():

        def after(layer, inputs, output, name=name):
            seen[name] = {"x": inputs[0].detach().flatten(0, -2)}
            output.register_hook(lambda gradient: seen[name].update(dy=gradient.detach().flatten(0, -2)))

        handles.append(layer.register_forward_hook(after))
    weight_gradients(model, tokens, targets, FP32)
    for handle in handles:
        handle.remove()
    layers = model.recipe_layers()
    return {name: Captured(weight=layers[name].weight.detach(), **tensors) for name, tensors in seen.items()}


def product_sqnr_db(captured: dict[str, Captured], recipe: Recipe, dial: int = 0) -> dict[str, float]:
    """Product -> signal over noise against FP32, all layers together, each fed with FP32's own X, W and dY.

    Unlike `gradient_sqnr_db` no error travels from one layer to the next: what one product adds by itself.
    """
    exact = [layer.products(FP32) for layer in captured.values()]
    rounded = [layer.products(recipe, dial) for layer in captured.values()]
    return {
        name: sqnr_db(*(torch.cat([each[name].reshape(-1) for each in layers]) for layers in (exact, rounded)))
        for name in PRODUCTS
    }


def lost_shares(captured: dict[str, Captured], recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Tensor (X, W, dY) -> shares of its values that the recipe clips and flushes, over all layers, in rows."""
    shares = {}
    for tensor in TENSORS:
        parts = [layer.named()[tensor] for layer in captured.values()]
        lost = [recipe.losses(part, 1) for part in parts]
        total = sum(part.numel() for part in parts)
        shares[tensor] = tuple(
            sum(share[which] * part.numel() for share, part in zip(lost, parts)) / total for which in (0, 1)
        )
    return shares
