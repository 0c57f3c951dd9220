"""Windows of long documents: each token is predicted once, with context if there is a stride."""

import numpy as np
import pytest

from lm.data.encode import plain_text


def windows(n, length, stride):
    packed = plain_text.pack([(np.arange(10, 10 + n), n)], length, stride=stride)
    weights = (
        packed.extra["weights"]
        if "weights" in packed.extra
        else np.asarray(packed.segments > 0, np.uint8)
    )
    found = []
    for row, segment in zip(packed.piece_row, packed.piece_segment, strict=True):
        own = packed.segments[row] == segment
        found.append((packed.tokens[row][own], packed.targets[row][own], weights[row][own]))
    return found, packed


@pytest.mark.parametrize("stride", [1, 3, 4, 7, 8, 0])
@pytest.mark.parametrize("n", [2, 8, 9, 10, 17, 30])
def test_a_token_of_a_long_document_is_predicted_never_or_twice_or_without_context(n, stride):
    length = 8
    found, packed = windows(n, length, stride)
    predicted = np.concatenate([targets[weights > 0] for _, targets, weights in found])
    assert sorted(predicted) == list(range(11, 10 + n))
    for tokens, targets, weights in found:
        assert list(targets) == list(tokens + 1), "a window is no text"
        if tokens[0] > 10 and stride:
            assert weights.argmax() >= length - stride, (
                "a prediction lacks the context that the stride leaves it"
            )
    assert packed.counts.get("read_again", 0) == sum(
        int((weights == 0).sum()) for _, _, weights in found
    )


def test_a_stride_of_a_whole_row_packs_other_rows_than_none():
    for stride in (0, 8):
        found, packed = windows(30, 8, stride)
        assert not packed.extra and len(found) == 4
