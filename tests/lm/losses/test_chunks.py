"""Chunks of positions are as few as their logits allow, and equal."""

import pytest

from lm.losses.chunks import LOGITS_AT_ONCE, chunk_length

VOCAB = 50_257


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("length", [2, 3, 128, 1000, 4096, 32_768])
def test_padding_of_the_last_chunk_costs_more_than_a_position_per_chunk(rows, length):
    chunk = chunk_length(rows, length, VOCAB)
    count = -(-length // chunk)
    fits = max(1, LOGITS_AT_ONCE // (4 * VOCAB * rows))
    assert chunk <= fits and count == max(2, -(-length // fits))
    assert chunk * count - length < count


def test_one_position_is_a_chunk():
    assert chunk_length(1, 1, VOCAB) == 1
