"""Synthetic text whose rules are known, so that the loss below which no model can go is computed and not guessed.

A language is a set of invented words, each with a fixed list of words that may follow it; the j-th of the list follows
with a probability proportional to 1 / j. A text is a walk through the language, its words set apart by spaces. Whoever
knows the rules and the current word is left with the choice of the next word, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CONSONANTS, VOWELS = "bdfgklmnprstv", "aeiou"


@dataclass(frozen=True)
class Language:
    """Words and what follows them."""

    words: list[str]
    followers: np.ndarray  # (words, followers) indices of words
    probabilities: np.ndarray  # (followers,), the same for every word

    def text(self, size: int, seed: int) -> Tensor:
        """``size`` bytes of text as uint8."""
        generator = np.random.default_rng(seed)
        shortest = min(map(len, self.words)) + 1
        choices = generator.choice(len(self.probabilities), size // shortest + 1, p=self.probabilities)
        word, spoken = int(generator.integers(len(self.words))), []
        for choice in choices:
            word = int(self.followers[word, choice])
            spoken.append(self.words[word])
        return torch.frombuffer(bytearray(" ".join(spoken).encode()[:size]), dtype=torch.uint8)

    def nats_per_byte(self) -> float:
        """Entropy of the language: the mean loss of a reader who knows its rules."""
        visits = self._visits()
        length = float(visits @ np.array([len(word) + 1 for word in self.words]))
        return float(-(self.probabilities * np.log(self.probabilities)).sum()) / length

    def _visits(self) -> np.ndarray:
        """How often each word is spoken: the fixed point of the walk, by iterating it."""
        visits = np.full(len(self.words), 1 / len(self.words))
        for _ in range(200):
            visits = np.bincount(
                self.followers.ravel(), (visits[:, None] * self.probabilities).ravel(), len(self.words)
            )
        return visits


def language(words: int, followers: int, seed: int = 0) -> Language:
    """A language of so many words, each with so many different followers."""
    syllables = len(CONSONANTS) * len(VOWELS)
    if not 1 < followers <= words <= syllables**2:
        raise ValueError(f"1 < followers <= words <= {syllables**2}, got {followers} followers and {words} words")
    generator = np.random.default_rng(seed)
    spoken: dict[str, None] = {}  # in the order of invention, which a set would not keep
    while len(spoken) < words:
        lengths = generator.integers(1, 4)
        spoken["".join(generator.choice(list(CONSONANTS)) + generator.choice(list(VOWELS)) for _ in range(lengths))] = (
            None
        )
    after = np.stack([generator.permutation(words)[:followers] for _ in range(words)])
    weights = 1 / np.arange(1, followers + 1)
    return Language(list(spoken), after, weights / weights.sum())


def batch(text: Tensor, sequences: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows of a text: inputs and what follows each of their bytes, both (sequences, context) int64."""
    if len(text) <= context:
        raise ValueError(f"a text of {len(text)} bytes has no window of {context} and one byte more")
    starts = torch.randint(len(text) - context, (sequences, 1), generator=generator)
    windows = text[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
