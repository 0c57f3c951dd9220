"""Fixtures: a deterministic toy encoder and memories made with it."""

import threading

import numpy as np
import pytest

from retrieval import Memory, Passage
from tests.retrieval.toy import encode


@pytest.fixture(autouse=True)
def no_index_of_another_test_looks_at_itself():
    """Stop background index checks leaking between tests."""
    for thread in threading.enumerate():
        if thread.name == "index watch":
            thread.join()


@pytest.fixture
def memory(tmp_path):
    """Ten passages p0 ... p9; version 2."""
    made = Memory.create(tmp_path / "memory", encode)
    made.add(
        [
            Passage(f"p{i}", f"town{i} lies in land{i}", title=f"town{i}", metadata={"n": str(i)})
            for i in range(10)
        ]
    )
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(0)
