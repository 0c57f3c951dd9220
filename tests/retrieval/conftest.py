"""A toy encoder, the same in every process, and memories made with it."""

import numpy as np
import pytest

from retrieval import Memory, Passage
from tests.retrieval.toy import encode


@pytest.fixture
def memory(tmp_path):
    """Ten passages p0 ... p9; version 2."""
    made = Memory.create(tmp_path / "memory", encode)
    made.add([Passage(f"p{i}", f"town{i} lies in land{i}", title=f"town{i}", metadata={"n": str(i)}) for i in range(10)])
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(0)
