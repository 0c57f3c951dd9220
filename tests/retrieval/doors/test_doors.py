"""Doors at the input equal plain loops: stride, ensembles, and mixtures of whole answers."""

import numpy as np
import pytest

from retrieval.doors import running
from retrieval.doors.door import Asked, named
from retrieval.doors.in_context import build_prompt
from retrieval.errors import RetrievalError
from tests.retrieval.doors.readers import hits, next_log_probs, reader

pytestmark = pytest.mark.usefixtures("compiled_once")

SLOW = [pytest.param(f, marks=pytest.mark.slow) for f in ("mamba", "bart", "t5")]
FAMILIES = ["gpt2", *SLOW]
QUESTION = "Where is X?"
FOUND = hits("X is in Y.", "X was in Z, they say.", "Nothing is known of X.")


def asked(door, made, question=QUESTION, found=FOUND, budget=5, find=None):
    return running.answers(door, made, [Asked(question, tuple(found))], find, budget)[0]


def greedy(made, given, budget, log_probs):
    tokens = []
    for _ in range(budget):
        tokens.append(int(np.argmax(log_probs(given, tokens))))
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stride_searches_again_with_the_latest_tokens(family):
    made, door, queries = reader(family), named("in_context,stride=3,query=14"), []
    found = [hits("X is in Y."), hits("Otherwise.", "Elsewhere.")]

    def find(texts):
        queries.extend(texts)
        return [found[len(queries) % 2] for _ in texts]

    encoder = bool(made.start)
    given = asked(door, made, found=FOUND[:1], budget=8, find=find)
    tokens, shown, expected_queries = [], FOUND[:1], []
    for start in (0, 3, 6):
        if start:
            written = made.tokenizer(QUESTION, add_special_tokens=False)["input_ids"] + tokens
            expected_queries.append(made.tokenizer.decode(written[-14:]))
            shown = found[len(expected_queries) % 2]
        row = build_prompt(made.tokenizer, QUESTION, shown, 500, encoder=encoder).tokens
        for _ in range(min(3, 8 - start)):
            tokens.append(int(np.argmax(next_log_probs(made, row, tokens))))
    assert given.text == made.text(tokens) and queries == expected_queries
    assert given.shown == tuple(shown)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("door", ["replug", "rag_token,temperature=0.05"])
def test_an_ensemble_mixes_the_probabilities_of_every_token(door, family):
    made, door = reader(family), named(door)
    rows = [
        build_prompt(made.tokenizer, QUESTION, [h], 500, encoder=bool(made.start)).tokens
        for h in FOUND
    ]
    scores = np.array([h.score for h in FOUND]) / door.temperature
    weights = np.exp(scores) / np.exp(scores).sum()
    tokens, total = [], 0.0
    for _ in range(5):
        each = np.array([next_log_probs(made, row, tokens) for row in rows])
        mixed = np.log(weights @ np.exp(each))
        tokens.append(int(np.argmax(mixed)))
        total += mixed.max()
    assert asked(door, made).text == made.text(tokens)
    given = door.question(made, Asked(QUESTION, tuple(FOUND)), 500)
    (found,) = running.log_probs(door, made, [given], [tokens])
    np.testing.assert_allclose(found.sum(), total, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rag_sequence_takes_the_most_probable_candidate_of_an_enumeration(family):
    made, door = reader(family), named("rag_sequence,temperature=0.2")
    given = door.question(made, Asked(QUESTION, tuple(FOUND)), 500)
    of = lambda row, tokens: sum(
        next_log_probs(made, row, tokens[:i])[token] for i, token in enumerate(tokens)
    )
    drawn = [
        greedy(made, row, 5, lambda row, tokens: next_log_probs(made, row, tokens))
        for row in given.rows
    ]
    candidates = [list(each) for each in dict.fromkeys(map(tuple, drawn))]
    assert len(candidates) > 1
    scores = np.array([h.score for h in FOUND]) / 0.2
    weights = np.exp(scores) / np.exp(scores).sum()
    each = np.array([[np.exp(of(row, y)) for row in given.rows] for y in candidates])
    thorough = each @ weights
    own = np.array([[y == z for z in drawn] for y in candidates])
    fast = (each * own) @ weights
    assert asked(door, made).text == made.text(candidates[int(thorough.argmax())])
    quick = named("rag_sequence,temperature=0.2,fast=True")
    assert asked(quick, made).text == made.text(candidates[int(fast.argmax())])
    found = running.log_probs(door, made, [given] * len(candidates), candidates)
    np.testing.assert_allclose(np.concatenate(found), np.log(thorough), atol=1e-4)


def test_rag_sequence_scores_again_what_is_known_or_what_fast_decoding_leaves_out(monkeypatch):
    made, scored = reader("gpt2"), []
    plain = running.token_log_likelihoods

    def counted(model, params, pairs, **options):
        scored.extend(pairs)
        return plain(model, params, pairs, **options)

    monkeypatch.setattr(running, "token_log_likelihoods", counted)
    asked(named("rag_sequence,fast=True"), made)
    assert not scored
    asked(named("rag_sequence"), made)
    rows = named("rag_sequence").question(made, Asked(QUESTION, tuple(FOUND)), 500).rows
    drawn = [
        tuple(greedy(made, row, 5, lambda row, tokens: next_log_probs(made, row, tokens)))
        for row in rows
    ]
    others = [(row, y) for y in {*drawn} for row, own in zip(rows, drawn, strict=True) if y != own]
    assert others and len(scored) == len(others)
    assert all((row, tuple(tokens)) in others for row, tokens in scored)


@pytest.mark.parametrize("name", ["in_context,stride=2", "replug", "rag_token", "rag_sequence"])
def test_without_passages_every_door_gives_the_answer_of_the_weights(name):
    made = reader("gpt2")
    row = build_prompt(made.tokenizer, QUESTION, (), 500).tokens
    expected = greedy(made, row, 5, lambda row, tokens: next_log_probs(made, row, tokens))
    assert asked(named(name), made, found=()).text == made.text(expected)


@pytest.mark.parametrize(
    "text, message",
    [
        ("replugg", r"--door='replugg' is unknown \(did you mean 'replug'\?\)"),
        ("replug,temperatur=1", "is no option of replug .did you mean 'temperature'"),
        ("replug,temperature=0", "temperature=0: expected a number above 0"),
        ("in_context,stride=-1", "stride=-1: expected a whole number of tokens, at least 0"),
        ("in_context,query=0", "query=0: expected a whole number of tokens, at least 1"),
        ("rag_sequence,stride=4", "mixes the probabilities of whole answers"),
        ("rag_sequence,fast=2", "expected True or False"),
        ("fid,tokens=0", "expected a whole number above 0"),
        ("no.such:Door", "cannot be used"),
    ],
)
def test_a_door_that_cannot_be_made_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        named(text)


def test_a_huge_question_is_refused_before_the_reader_runs():
    made = reader("gpt2")
    for name in ("in_context", "replug", "rag_token,stride=2", "rag_sequence"):
        with pytest.raises(RetrievalError, match="ask a shorter one"):
            asked(named(name), made, question="why " * 200)


def test_tokens_that_do_not_fit_are_counted():
    made, long = reader("gpt2"), "X is in Y. " * 30
    for name in ("in_context", "replug"):
        given = named(name).question(made, Asked(QUESTION, tuple(hits(long, "Z."))), 500)
        # A passage has 192 tokens, of which its number and the end of its line take four.
        assert given.cut == len(" " + long.strip()) - (192 - 4)
