"""Fusion in decoder equals passages encoded apart by transformers, and concatenated."""

import numpy as np
import pytest

import lm
from lm.generation.engine import Engine
from lm.generation.requests import Request
from retrieval.doors import running
from retrieval.doors.door import Asked, named
from retrieval.errors import RetrievalError
from retrieval.passages import Hit
from tests.retrieval.doors.readers import hits, reader

pytestmark = pytest.mark.usefixtures("compiled_once")

FAMILIES = ["t5", pytest.param("bart", marks=pytest.mark.slow)]
QUESTION = "Where is X?"
FOUND = [Hit("a", "X is in Y.", "Xanadu", "", 0.9, 2), *hits("X was in Z, they say.")]
PASSAGES = [
    "question: Where is X? title: Xanadu context: X is in Y.",
    "question: Where is X? context: X was in Z, they say.",
]


def theirs(made, folder, rows, tokens):
    """log p of each token, from transformers: passages encoded one by one and concatenated."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    lm.to_hf(made.model, made.params, folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        encoder = model.get_encoder()
        each = [encoder(torch.tensor([row])).last_hidden_state for row in rows]
        out = model(
            encoder_outputs=(torch.cat(each, dim=1),),
            decoder_input_ids=torch.tensor([[made.start, *tokens[:-1]]]),
        )
    logits = out.logits[0].double().numpy()
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[
        np.arange(len(tokens)), tokens
    ], logits.argmax(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_reads_passages_that_were_encoded_apart(family, tmp_path):
    made, door = reader(family), named("fid")
    asked = [Asked(QUESTION, tuple(FOUND[:n])) for n in (0, 2, 1)]
    alone, answer, one = running.answers(door, made, asked, None, 6)
    assert len({alone.text, answer.text, one.text}) == 3 and answer.shown == tuple(FOUND)
    tokens = [int(token) for token in answer.text.split()]
    rows = [made.tokenizer(text)["input_ids"] for text in PASSAGES]
    expected, best = theirs(made, tmp_path, rows, tokens)
    assert tokens == best.tolist()
    given = door.question(made, asked[1], 500)
    (found,) = running.log_probs(door, made, [given], [tokens])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # Written in two strides, with the same passages found again.
    find = lambda texts: [FOUND] * len(texts)
    again = running.answers(named("fid,stride=4"), made, asked[1:2], find, 6)
    assert again[0].text == answer.text


def test_a_passage_longer_than_its_share_is_cut_with_a_count():
    made, door = reader("t5"), named("fid,tokens=60")
    given = door.question(made, Asked(QUESTION, tuple(hits("long " * 30, "X."))), 500)
    head = len("question: Where is X?")
    assert np.bincount(given.segments).tolist() == [0, 60, head + len(" context: X.")]
    assert given.cut == len(" context: " + ("long " * 30).strip()) - (60 - head)
    with pytest.raises(RetrievalError, match=r"takes 21 tokens, and a passage and its question 20"):
        named("fid,tokens=20").question(made, Asked(QUESTION, tuple(FOUND)), 500)


@pytest.mark.parametrize(
    "segments, members, message",
    [
        ([1, 1], (), "3 encoder_tokens and 2 encoder_segments"),
        ([1, 3, 3], (), "do not count passages 1, 2, ... in their order"),
        ([0, 1, 1], (), "do not count passages 1, 2, ... in their order"),
        ([1, 1, 2], ([5],), "both members and encoder_segments"),
    ],
)
def test_passages_without_order_are_refused(segments, members, message):
    made = reader("t5")
    request = Request([1], 4, [5, 6, 7], encoder_segments=segments, members=members)
    if members:
        request = Request(
            [1], 4, [5, 6, 7], encoder_segments=segments, members=members, log_weights=[0.0]
        )
    found = list(Engine(made.model, length=32, encoder_length=32).run(made.params, [request]))
    assert found[0].finish == "refused" and message in found[0].error
