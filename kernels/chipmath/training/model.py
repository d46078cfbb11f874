"""A byte-level GPT whose linear layers run their three products in a recipe.

As in the published MXFP8 recipes, these stay out of it: embeddings, norms, the softmax and the two products of
attention, and the output head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipmath.training.recipes import FP32, Recipe, linear

BYTES = 256
OUTLIERS = (3, 17)  # input features that the dial makes large: two in one block of 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; width is a multiple of 32 and of heads."""

    layers: int
    width: int
    heads: int
    context: int


class RecipeLinear(nn.Module):
    """A linear layer without bias; ``recipe``, ``dtype`` and ``dial`` are set for the whole model by `GPT.use`.

    The dial multiplies the features `OUTLIERS` of x by 2**dial and divides their columns of the weight by as much, just
    before quantization. In real arithmetic this changes nothing, parameters and optimizer do not see it, and powers of
    two are exact: what changes is what quantization makes of it.
    """

    def __init__(self, inputs: int, outputs: int):
        """Weight (outputs, inputs), not yet initialized; FP32 until told otherwise."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.recipe, self.dtype, self.dial = FP32, torch.float32, 0

    def forward(self, x: Tensor) -> Tensor:
        """X W' in the recipe."""
        weight = self.weight
        if self.dial:
            factors = torch.ones(x.shape[-1], device=x.device)
            factors[list(OUTLIERS)] = 2.0**self.dial
            x, weight = x * factors, weight / factors
        return linear(x, weight, self.recipe, self.dtype)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, shape: Shape):
        """Four recipe layers: qkv, out, up, down."""
        super().__init__()
        self.heads = shape.heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.qkv = RecipeLinear(shape.width, 3 * shape.width)
        self.out = RecipeLinear(shape.width, shape.width)
        self.up = RecipeLinear(shape.width, 4 * shape.width)
        self.down = RecipeLinear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """(sequences, context, width) to the same."""
        x = x + self.out(self._attend(self.qkv(self.attention_norm(x))))
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))

    def _attend(self, qkv: Tensor) -> Tensor:
        sequences, context, _ = qkv.shape
        q, k, v = qkv.view(sequences, context, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(sequences, context, -1)


class GPT(nn.Module):
    """Logits (sequences, context, 256) of the next byte, in float32."""

    def __init__(self, shape: Shape, seed: int):
        """Weights drawn from ``seed`` on the CPU, so that they are the same on every device."""
        super().__init__()
        if shape.width % 32 or shape.width % shape.heads:
            raise ValueError(f"width {shape.width} is not a multiple of 32 and of {shape.heads} heads")
        self.embedding = nn.Embedding(BYTES, shape.width)
        self.position = nn.Parameter(torch.empty(shape.context, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, BYTES, bias=False)
        self._initialize(seed, shape.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """(sequences, context) int64 to logits."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def use(self, recipe: Recipe, dtype: torch.dtype = torch.float32, dial: int = 0) -> GPT:
        """Set recipe, dtype of the products and outlier dial of every layer."""
        for module in self.recipe_layers().values():
            module.recipe, module.dtype, module.dial = recipe, dtype, dial
        return self

    def recipe_layers(self) -> dict[str, RecipeLinear]:
        """Name -> layer, of those that run in the recipe."""
        return {name: module for name, module in self.named_modules() if isinstance(module, RecipeLinear)}

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte."""
        return F.cross_entropy(self(tokens).view(-1, BYTES), targets.reshape(-1))

    def _initialize(self, seed: int, layers: int) -> None:
        """GPT-2's: normal, 0.02, and less where a layer writes into the residual stream. The same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into_residual = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / (2 * layers) ** 0.5 if into_residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
