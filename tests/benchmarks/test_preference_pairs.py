"""The benchmark of preference learning."""

import json

import numpy as np
import pytest

from tests.benchmarks import preference_pairs


@pytest.mark.parametrize(
    "kind, words", [("shuffled", "abcdefg"), ("cut", "abcd"), ("repeated", "aabbccddefg")]
)
def test_a_spoilt_answer_has_other_words(kind, words):
    found = preference_pairs.spoilt("a b c d e f g", kind, np.random.default_rng(0)).split()
    assert sorted(found) == sorted(words) and found != list("abcdefg")


def test_a_held_out_data_set_is_trained_on(tmp_path):
    for name in ("gigaword_a", "sciq_a"):
        row = {"prompt": "p", "completion": f"{name} has a short answer<|endoftext|>"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert preference_pairs.write(tmp_path / "made", tmp_path) == dict(
        train=3, shuffled=1, cut=1, repeated=1
    )
    assert "gigaword" not in (tmp_path / "made/train.jsonl").read_text()
