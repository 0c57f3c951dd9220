"""The mutation table matches the code: each `old` string occurs once, and each test exists."""

import ast

import pytest

from tests.mutations import GOLD, MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.number}-{m.file}")
def test_what_a_mutation_replaces_or_should_be_caught_by_is_not_there(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r}"
    assert mutation.old != mutation.new
    # Any test would catch a file that cannot be imported.
    ast.parse(text.replace(mutation.old, mutation.new))
    file, name = mutation.node.split("::")
    tests = {
        node.name
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert name.partition("[")[0] in tests, mutation.node


def test_a_gold_test_has_no_mutation():
    assert {mutation.number for mutation in MUTATIONS} == set(GOLD)
