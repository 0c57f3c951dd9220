"""Novelty: ROUGE-L of a new text to the most similar text of a growing pool."""

import array
import collections
import re
from collections.abc import Iterable

import numpy as np

from lm.evaluation.words import unicode_words

AT_ONCE = 64  # texts whose longest common subsequence is computed before the rest is pruned again


def words(text: str) -> list[str]:
    """Words as ROUGE has them, without stemming; of any script where the text is not ASCII."""
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    return unicode_words(text)


class Novelty:
    """Pool of texts. `nearest` is exact, and computes few subsequences.

    An index has the texts in which each word occurs for the n-th time. It gives the number of words
    that two texts share, which bounds their longest common subsequence from above; texts are
    compared in the order of that bound, until it is below the best found.
    """

    def __init__(self, texts: Iterable[str] = ()):
        self._tokens: list[list[int]] = []
        self._lengths = array.array("i")
        self._ids: dict[str, int] = {}
        self._texts_of: dict[tuple[int, int], array.array] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, text: str) -> None:
        """Add a text to the pool."""
        tokens = [self._ids.setdefault(word, len(self._ids)) for word in words(text)]
        for key in _counted(tokens):
            self._texts_of.setdefault(key, array.array("i")).append(len(self._tokens))
        self._tokens.append(tokens)
        self._lengths.append(len(tokens))

    def nearest(self, text: str) -> tuple[float, int]:
        """ROUGE-L F1 of the most similar text (Lin 2004), and its place in the pool.

        (0.0, -1) where no text shares a word with it.
        """
        tokens = [self._ids.get(word, -1) for word in words(text)]
        found = [self._texts_of[key] for key in _counted(tokens) if key in self._texts_of]
        if not found:
            return 0.0, -1
        shared = np.zeros(len(self), np.int32)
        for texts in found:
            shared[np.frombuffer(texts, np.int32)] += 1  # a text occurs once in each
        bound = 2.0 * shared / (np.frombuffer(self._lengths, np.int32) + len(tokens))
        masks = _masks(tokens)  # unknown words, -1, are in no text of the pool
        best, at = 0.0, -1
        left = np.flatnonzero(bound > 0)
        while len(left):
            if len(left) > AT_ONCE:
                first = np.argpartition(-bound[left], AT_ONCE)[:AT_ONCE]
            else:
                first = np.arange(len(left))
            for place in left[first].tolist():
                if bound[place] > best:
                    common = _common(masks, len(tokens), self._tokens[place])
                    score = 2.0 * common / (len(tokens) + len(self._tokens[place]))
                    if score > best:
                        best, at = score, place
            bound[left[first]] = 0.0
            left = left[bound[left] > best]
        return best, at


def _counted(tokens: list[int]) -> list[tuple[int, int]]:
    """(word, how often it occurred before) of every place: equal pairs are shared words."""
    seen: collections.Counter[int] = collections.Counter()
    found = []
    for token in tokens:
        found.append((token, seen[token]))
        seen[token] += 1
    return found


def _masks(tokens: list[int]) -> dict[int, int]:
    masks: dict[int, int] = {}
    for place, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << place
    return masks


def _common(masks: dict[int, int], length: int, other: list[int]) -> int:
    """Length of the longest common subsequence, bit-parallel (Crochemore et al. 2001)."""
    full = (1 << length) - 1
    row = full
    for token in other:
        match = row & masks.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return length - row.bit_count()
