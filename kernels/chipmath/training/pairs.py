"""Runs that share a seed, compared in pairs: how far from zero their mean difference may lie, by their own spread."""

from __future__ import annotations

from collections.abc import Sequence
from math import gamma, pi
from statistics import mean, stdev

import numpy as np

CONFIDENCE = 0.95


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Confidence interval of the mean of independent normal differences: mean ± t s / sqrt(n) (Student's t)."""
    if len(differences) < 2:
        raise ValueError(f"an interval needs two differences or more, got {len(differences)}")
    half = student_t(len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return mean(differences) - half, mean(differences) + half


def student_t(freedom: int) -> float:
    """The t within which ``CONFIDENCE`` of Student's distribution lies, by integrating its density; to 4 digits."""
    t = np.linspace(0, 20, 200_001)
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    density *= gamma((freedom + 1) / 2) / (gamma(freedom / 2) * (freedom * pi) ** 0.5)
    within = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])]) * (t[1] - t[0])  # both sides: twice the half
    return float(np.interp(CONFIDENCE, within, t))
