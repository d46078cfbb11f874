"""Room for every recipe in torch.compile, which counts recompilations by code object.

All formats, rules, axes and dtypes share one rounder's source, so together they need more variants of it than torch
admits, and with fullgraph the next one is an error.
"""

import contextlib

import torch

VARIANTS = 256  # 5 formats and rules, 2 axes, 2 dtypes, each for a few families of shapes


def room_for_all_recipes() -> contextlib.AbstractContextManager:
    """A context in which all recipes may be compiled, one after another."""
    return torch._dynamo.config.patch(recompile_limit=VARIANTS)
