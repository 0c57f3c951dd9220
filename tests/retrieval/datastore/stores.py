"""Small models with tokenizers and memories of a few passages, for tests of token datastores."""

import numpy as np

import lm
from lm import families
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.observer import Observer
from retrieval.datastore.snapshot import BITS, Snapshot
from retrieval.memory import Memory
from retrieval.passages import Passage
from tests.lm.small_models import drawn
from tests.retrieval.models import byte_tokenizer, word_tokenizer
from tests.retrieval.toy import encode

TEXTS = {
    "a": "the cat sat on the mat",
    "b": "the cat ran to the door",
    "c": "a dog sat on a log",
    "d": "rain fell on the old town all day",
}


def observer(family="gpt2", tap="", seed=0, **changes):
    """An Observer of a model with random parameters that differ enough to tell contexts apart."""
    tokenizer = word_tokenizer() if family == "bert" else byte_tokenizer(None)
    small = dict(vocab_size=len(tokenizer), d_model=16, n_layers=2, max_length=64)
    config = families.preset(family, "tiny")
    if config.n_heads:
        small |= dict(n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32)
    if config.ssm_inner:
        small |= dict(ssm_inner=32)
    if config.encoder_layers:
        small |= dict(encoder_layers=1, decoder_start_token_id=0, forced_eos_token_id=None)
    model = lm.build(config.replace(**small | dict(eos_token_ids=()) | changes))
    return Observer(model, drawn(model, 0.3, seed), tokenizer, tap, batch_size=4, length=48)


def memory(path, texts=TEXTS, **fields):
    made = Memory.create(path, encode)
    made.add([Passage(id, text, **fields) for id, text in texts.items()])
    return made


def everything(snapshot: Snapshot):
    """(keys float64 [N, K], values, [(passage, offset)]) of what is there."""
    keys, values, places = [], [], []
    for number, (part, alive) in enumerate(snapshot.parts):
        for row in range(len(part)):
            if alive is None or alive[part.passages[row]]:
                keys.append(np.float64(part.keys[row]))
                values.append(int(part.values[row]))
                [place] = snapshot.sources(np.array([number << BITS | row]))
                places.append(place)
    return np.array(keys), np.array(values), places


def tokens_of(snapshot: Snapshot):
    """passage -> its tokens, in order."""
    _, values, places = everything(snapshot)
    found: dict[str, dict[int, int]] = {}
    for value, (passage, offset) in zip(values, places, strict=True):
        assert offset not in found.setdefault(passage, {})
        found[passage][offset] = value
    return {id: [by[at] for at in sorted(by)] for id, by in found.items()}


def brute(snapshot: Snapshot, vectors, k, temperature, size):
    """p_knn float64 [Q, V], by all distances."""
    keys, values, _ = everything(snapshot)
    queries = np.float64(snapshot.projection(vectors))
    p = np.zeros((len(queries), size))
    for row, query in enumerate(queries):
        d = np.square(keys - query).sum(axis=1)
        near = np.argsort(d, kind="stable")[:k]
        weights = np.exp(-(d[near] - d[near].min()) / temperature)
        np.add.at(p[row], values[near], weights / weights.sum())
    return p


def built(path, source, observed, **settings):
    from retrieval.datastore.building import Settings

    return Datastore.build(path, source, observed, Settings(**settings))[0]
