"""Amdahl's law: what a faster matrix product does for a whole training step, and what a whole step tells of it.

A share f of the step takes 1/s of its time, the rest what it took: S = 1 / (1 - f + f / s).
"""


def step_speedup(share: float, factor: float) -> float:
    """Speedup of the step when ``share`` of its time (0 to 1) runs ``factor`` times as fast."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")
    return 1 / (1 - share + share / factor)


def accelerated_share(speedup: float, factor: float) -> float:
    """The share of the step that must have run ``factor`` times as fast for the step to gain ``speedup``."""
    if not 1 <= speedup <= factor or factor == 1:
        raise ValueError(f"1 <= speedup <= factor, and factor above 1, got speedup {speedup}, factor {factor}")
    return (1 - 1 / speedup) / (1 - 1 / factor)
