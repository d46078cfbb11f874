"""What is a loop in machine code, AMD's or NVIDIA's: from a label to the branch behind it that returns there."""

import re

from chipmath.experiments.experiment import ExperimentError

LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
BRANCH = re.compile(r"^.*\b(?:s_c?branch\w*|BRA\S*)\s.*?(\.L\w+)", re.MULTILINE)


def innermost_loop(isa: str, pattern: str) -> str:
    """The innermost loop in which ``pattern`` is found, label to branch; ExperimentError where there is none."""
    labels = {found[1]: found.start() for found in LABEL.finditer(isa)}
    bodies = [isa[labels[b[1]] : b.end()] for b in BRANCH.finditer(isa) if labels.get(b[1], len(isa)) < b.start()]
    found = [body for body in bodies if re.search(pattern, body)]
    if not found:
        raise ExperimentError(f"the machine code has no loop with {pattern}")
    return min(found, key=len)
