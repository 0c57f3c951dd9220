"""Public names of `import lm`."""

import importlib

import lm
import lm.generation


def test_the_entry_point_of_the_same_name_takes_the_place_of_a_function():
    entry = importlib.import_module("lm.generate")
    assert callable(entry.main) and lm.generate is lm.generation.generate
