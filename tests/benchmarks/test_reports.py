"""Figures without a peer, and what the compiler reports of a training step."""

import math

import pytest

from tests.benchmarks import reports, starting


def test_memory_of_a_training_step_grows_with_the_length():
    """Loss, gradient and AdamW of a decoder of 4 layers, width 256 and GPT-2's vocabulary."""
    short, long = (reports.step(length=length)[0].memory_analysis() for length in (2048, 16_384))
    temporary = long.temp_size_in_bytes / short.temp_size_in_bytes
    assert math.log(temporary) / math.log(8) <= 1.1
    state_and_batch = long.argument_size_in_bytes
    assert long.alias_size_in_bytes > 0.99 * state_and_batch  # the new state takes its place
    assert long.temp_size_in_bytes + state_and_batch <= 3e9


@pytest.mark.slow
def test_growth_is_reported_along_every_axis():
    found = reports.growth(quick=True)
    assert [row[0] for row in found["rows"]] == [*reports.GROWTH]
    for row in found["rows"]:
        assert len(row[2].split()) == len(row[4].split()) == 2
        assert all(map(math.isfinite, (row[3], row[5])))


@pytest.mark.slow
def test_the_first_token_is_that_of_transformers():
    """`starting` raises if the tokens differ."""
    found = starting.starting(quick=True)
    assert [row[0].partition(",")[0] for row in found["rows"]] == ["Openbook"] * 2 + [
        "transformers"
    ]
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    assert all(float(row[1]) > 0.1 and row[4] > 100 for row in found["rows"])


def test_a_program_that_fails_to_start_is_shown_with_what_it_printed(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)ended \(1\).*ZeroDivisionError"):
        starting.started(["-c", "1 / 0"], tmp_path)
