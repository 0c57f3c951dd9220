"""Conditions of probes: kNN-LM is its formula, passages come before the prompt."""

import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lm.distributed.mesh import make_mesh
from lm.evaluation.evaluators import condition
from lm.evaluation.evaluators.condition import Book, Question
from lm.models.config import ConfigError
from retrieval.doors.conditions import Neighbours, Passages
from tests.retrieval.datastore.stores import brute, memory, observer

ASKED = [
    (Question("the cat sat on"), "the mat"),
    (Question("a dog"), "ran"),
    (Question(""), "rain"),
]
STORE = [
    {"prompt": "the cat sat on", "completion": "the mat"},
    {"prompt": "", "completion": "rain fell on the log"},
    {"prompt": "a dog", "completion": "sat on the cat"},
]
K, SHARE, TEMPERATURE = 6, 0.4, 3.0

pytestmark = pytest.mark.usefixtures("compiled_once")


def tools_of(one):
    return types.SimpleNamespace(model=one.model, tokenizer=one.tokenizer, mesh=make_mesh())


@pytest.fixture
def store(tmp_path):
    file = tmp_path / "store.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in STORE))
    return str(file)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_log_probability_is_not_that_of_the_mixture(family, store, tmp_path):
    one = observer(family)
    tools, folder = tools_of(one), str(tmp_path / "stores")
    fixed = dict(store=store, k=K, share=SHARE, temperature=TEMPERATURE, index="exact")
    book = Neighbours(**fixed, folder=folder).prepare(tools)(one.params)
    closed = Book(tools, one.params)
    found, own = book.log_probs(ASKED), closed.log_probs(ASKED)
    size = one.model.config.vocab_size
    # Each continuation alone, with the neighbours of its context vectors by brute force.
    for at, (pair, mine) in enumerate(zip(closed.pairs(ASKED), own, strict=True)):
        seen = _vectors(one, pair)
        knn = brute(book.snapshot, seen, K, TEMPERATURE, size)[np.arange(len(mine)), pair[1]]
        expected = np.log((1 - SHARE) * np.exp(np.float64(mine)) + SHARE * knn)
        np.testing.assert_allclose(found[at], expected, atol=2e-4)
    assert any(not np.allclose(a, b, atol=1e-3) for a, b in zip(found, own, strict=True))
    assert book.bytes > 0 and closed.bytes == 0
    # Another probe opens the same datastore; the model of other parameters makes its own.
    again = Neighbours(**fixed, folder=folder).prepare(tools)(one.params)
    assert again.folder == book.folder
    other = jax.tree.map(lambda x: x + 0.1, one.params)
    assert Neighbours(**fixed, folder=folder).prepare(tools)(other).folder != book.folder
    if family == "gpt2":
        sure = Neighbours(**{**fixed, "share": 1.0, "k": 1}).prepare(tools)(one.params)
        [text] = sure.write([Question("")], 4)
        assert text and text != Book(tools, one.params).write([Question("")], 4)[0]
        np.testing.assert_allclose(sure.log_probs([(Question(""), text)])[0], 0, atol=1e-6)


def _vectors(one, pair):
    from lm.evaluation.likelihood import token_log_likelihoods
    from retrieval.doors.conditions import _losses

    observe = lambda *given: _losses(*given, tap=one.tap)
    [(_, found)] = token_log_likelihoods(one.model, one.params, [pair], observe=observe)
    return found


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_passage_does_not_come_before_the_prompt(family, tmp_path):
    one, made = observer(family), memory(tmp_path / "memory")
    tools = tools_of(one)
    asked = [Question("a dog", "dog log"), Question("the", "nowhere")]
    book = Passages(memory=str(made.path), tokens=24).prepare(tools)(one.params)
    closed = Book(tools, one.params).contexts(asked)
    told, nothing = book.contexts(asked)
    assert nothing == closed[1]  # no passage shares a word with it
    text = one.tokenizer.decode(told)
    assert "a dog sat on a log" in text and told[-len(closed[0]) :] == closed[0]
    assert len(book.log_probs([(asked[0], "sat")])[0]) == len("sat") + (family == "gpt2")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "Passages"}, "condition.memory is not set"),
        ({"type": "Passages", "memory": "x", "mode": "near"}, "condition.mode='near'"),
        ({"type": "Passages", "memory": "x", "k": 0}, "condition.k=0"),
        ({"type": "Passages", "memory": "x", "tokens": 0}, "condition.tokens=0"),
        ({"type": "Neighbours"}, "condition.store is not set"),
        ({"type": "Neighbours", "store": "x", "adaptive": True}, "condition.dev is not set"),
        ({"type": "Neighbours", "store": "x", "index": "tree"}, "condition.index='tree'"),
        ({"type": "Neighbours", "store": "x", "pca": -1}, "condition.pca=-1"),
        ({"type": "Neighbours", "store": "x", "share": 2.0}, "condition.share=2.0"),
        ({"type": "Neighbours", "store": "x", "k": 0}, "condition.k"),
    ],
)
def test_a_wrong_condition_is_not_refused(fields, said):
    fields = {**fields, "type": f"retrieval.doors.conditions:{fields['type']}"}
    with pytest.raises(ConfigError) as refused:
        condition.of(ConfigDict(fields))
    assert said in str(refused.value)
