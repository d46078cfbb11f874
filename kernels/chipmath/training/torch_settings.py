"""What training in many recipes on a GPU needs of torch: four settings, for as long as it lasts.

- torch.compile counts variants by code object. All formats, rules, axes and dtypes share one rounder's source, and
  together they need more variants of it than torch admits; with fullgraph the next one is an error.
- The constants of formats and rules stay constants: after the second, torch.compile would make them arguments.
- On a GPU the backward pass runs in a thread of its own, and from torch 2.12 on a setting of torch.compile holds in
  its own thread only (pytorch/pytorch #186537). So the backward pass runs in the caller's: one GPU a process, nothing
  is lost.
- A long sum of bfloat16 products is split, and cuBLAS may add the parts in bfloat16. They are added in float32.
"""

import contextlib
from collections.abc import Iterator

import torch

VARIANTS = 256  # 5 formats and rules, 2 axes, 2 dtypes, each for a few families of shapes


@contextlib.contextmanager
def torch_settings() -> Iterator[None]:
    """A context in which all recipes may be compiled and trained, one after another; on a CPU it does no harm."""
    matmul = torch.backends.cuda.matmul
    in_bfloat16 = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        # Since torch 2.7 (pytorch/pytorch #143709) this is another name of recompile_limit, which 2.6 does not know.
        dynamo = torch._dynamo.config.patch(cache_size_limit=VARIANTS, specialize_int=True)
        with dynamo, torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = in_bfloat16
