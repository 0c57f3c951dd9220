"""Tiny random readers over bytes, and their next-token probabilities without a cache."""

import functools

import numpy as np

import lm
from lm.families import preset
from retrieval.passages import Hit
from retrieval.reading.extracting import Extractor
from retrieval.reading.reader import Reader
from tests.lm.small_models import drawn
from tests.retrieval.models import byte_tokenizer, word_tokenizer

LENGTH = 320  # of every row of `next_log_probs`
SHAPE = dict(vocab_size=320, d_model=32, n_layers=1, max_length=512, initializer_range=0.3)
START = dict(decoder_start_token_id=257, tie_embeddings=False, forced_eos_token_id=None)


@functools.cache
def reader(family):
    """A reader whose text is the numbers of its tokens, none of which ends an answer."""
    shape = dict(SHAPE)
    if family in ("bart", "t5"):
        shape |= START | dict(encoder_layers=1, initializer_range=0.6)
    if family == "mamba":
        shape |= dict(ssm_inner=64, initializer_range=1.0)
    else:
        shape |= dict(n_heads=4, n_kv_heads=4, head_dim=8, d_ff=64)
    if family == "t5":
        shape |= dict(logit_scale=1.0)
    model = lm.build(preset(family, "tiny").replace(**shape))
    params = drawn(model)
    if family == "mamba":  # a state that decays slowly, so that early tokens matter
        params["layers"]["ssm"]["a_log"] -= 7
    made = Reader(model, params, byte_tokenizer(None))
    made.stop_tokens = []
    made.text = lambda tokens: " ".join(map(str, tokens))
    return made


@functools.cache
def extractor(head):
    """An encoder over letters, with a head for spans or classes."""
    tokenizer = word_tokenizer()
    shape = dict(vocab_size=len(tokenizer), d_model=32, n_layers=1, max_length=128, head=head)
    shape |= dict(n_heads=4, n_kv_heads=4, head_dim=8, d_ff=64, initializer_range=1.0)
    if head == "question_answering":
        shape |= dict(pooler=False)
    else:
        shape |= dict(n_labels=16, pooler=True)
    model = lm.build(preset("bert", "tiny").replace(**shape))
    return Extractor(model, drawn(model, seed=1), tokenizer)


def next_log_probs(reader, row, so_far, segments=()):
    """log p of the token after `so_far`, float64 [V], from a forward pass over everything."""
    tokens = np.zeros((1, LENGTH), np.int32)
    written = [*([reader.start] if reader.start else row), *so_far]
    tokens[0, : len(written)] = written
    given = {}
    if reader.start:
        assert not segments, "for passages encoded apart, see test_fid.py"
        read = np.zeros((1, LENGTH), np.int32)
        read[0, : len(row)] = row
        given = dict(
            encoder_tokens=read, encoder_segments=(np.arange(LENGTH) < len(row))[None].astype(int)
        )
    batch = lm.Batch.of(tokens, (np.arange(LENGTH) < len(written))[None].astype(int), **given)
    logits = np.asarray(lm.forward(reader.model, reader.params, batch).logits, np.float64)
    at = logits[0, len(written) - 1]
    return at - np.logaddexp.reduce(at)


def hits(*texts, scores=(0.9, 0.85, 0.8, 0.7)):
    return [Hit(f"p{i}", text, "", "", scores[i], 2) for i, text in enumerate(texts)]
