"""`chipmath.training.command`, where torch is installed: python -m chipmath.training --help."""

import importlib.util
import sys

from chipmath.processes import leave

if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None:
        sys.exit("chipmath.training needs torch, which is not installed: https://pytorch.org/get-started")
    from chipmath.training.command import main

    leave(main)
