"""Slots: a request gets the same beside any others, and no slot waits while work is left."""

import dataclasses

import jax
import numpy as np
import pytest

import lm
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import activate
from lm.evaluation.likelihood import log_likelihoods
from lm.generation import GenerationError, slots
from lm.generation.engine import Engine
from lm.generation.hooks import Hook
from lm.generation.requests import Request, bucket
from lm.generation.samplers import Sample
from tests.lm.models.test_model import make

START = dict(decoder_start_token_id=1, tie_embeddings=False, initializer_range=0.1)
SEQ2SEQ = ("bart", "marian", "t5", "umt5")
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 90, n).tolist() for n in (3, 7, 1, 20, 5, 9, 2)]
BUDGETS = (17, 30, 4, 25, 1, 30, 12)


def load(name, **changes):
    shape = {} if name in ("bamba", "hybrid-window") else dict(n_layers=2)
    return make(name, **(shape | (START if name in SEQ2SEQ else {}) | changes))


def asked(model, prompts=PROMPTS, budgets=BUDGETS):
    if model.config.encoder_layers:
        return [Request([1], n, p) for p, n in zip(prompts, budgets, strict=True)]
    return [Request(p, n) for p, n in zip(prompts, budgets, strict=True)]


def served(model, params, requests, rows=2, hooks=(), length=64, **options):
    """What each request got, in the order of the requests, and the engine."""
    longest = max(len(encoder) for r in requests for _, encoder in r.rows)
    engine = Engine(model, rows=rows, length=length, encoder_length=bucket(longest), **options)
    found = sorted(engine.run(params, requests, hooks), key=lambda one: one.number)
    assert [one.number for one in found] == list(range(len(requests)))
    return found, engine


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "gpt2",
        "llama-window",
        "mamba2",
        "bamba",
        "hybrid-window",
        "mamba",
        "bart",
        "t5",
        "umt5",
    )
]


@pytest.mark.parametrize("name", ["gemma2", *SLOW])
def test_tokens_and_log_probabilities_are_those_of_the_whole_sequence(name):
    """Two slots serve seven requests, so that their ring of 64 goes round and slots change hands.

    `log_likelihoods` reads each sequence alone and without a cache.
    """
    model, params = load(name)
    found, engine = served(model, params, asked(model), stop_tokens=[])
    assert engine.steps > 50 and [len(one.tokens) for one in found] == list(BUDGETS)
    pairs = [(p, one.tokens) for p, one in zip(PROMPTS, found, strict=True)]
    expected = log_likelihoods(model, params, pairs, batch_size=len(pairs))
    assert all(greedy for _, greedy in expected), "these are the most probable tokens"
    for one, (total, _) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probs.sum(dtype=np.float64), total, atol=1e-5 * 30)
        assert one.finish == "length" and (one.log_probs == one.behaviour_log_probs).all()
    assert len({tuple(one.tokens) for one in found}) > 4


def test_draws_depend_on_the_seed_the_key_and_the_place_alone():
    model, params = load("gpt2")
    sampler = lm.Sample(1.3, top_k=20, repetition_penalty=1.2)
    options = dict(sampler=sampler, seed=3, stop_tokens=[])
    one, _ = served(model, params, asked(model), **options)
    order = [4, 0, 6, 2, 5, 1, 3]
    keyed = [Request(r.tokens, r.budget, key=i) for i, r in enumerate(asked(model))]
    other, _ = served(model, params, [keyed[i] for i in order], **options)
    for place, i in enumerate(order):
        assert other[place].tokens == one[i].tokens
    same_prompt = [Request(PROMPTS[0], 9, key=k) for k in (0, 1, 1)]
    found, _ = served(model, params, same_prompt, **options)
    assert found[0].tokens == one[0].tokens[:9]
    assert found[1].tokens == found[2].tokens != found[0].tokens
    again = lm.generate(
        model, params, PROMPTS, list(BUDGETS), sampler, seed=3, batch_size=2, stop_tokens=[]
    )
    assert again == [each.tokens for each in one]
    for each, prompt in zip(one[:3], PROMPTS, strict=False):
        whole = [*prompt, *each.tokens]
        logits = np.asarray(lm.forward(model, params, lm.Batch.of([whole])).logits)[0]
        for i, token in enumerate(each.tokens):
            at = len(prompt) + i
            row = logits[at - 1]
            seen = np.isin(np.arange(len(row)), whole[:at])
            expected = row[token] - np.logaddexp.reduce(row)
            np.testing.assert_allclose(each.log_probs[i], expected, atol=1e-5)
            kept, tokens = map(np.asarray, sampler.candidates(row[None], seen[None]))
            expected = kept[tokens == token][0] - np.logaddexp.reduce(kept[0])
            np.testing.assert_allclose(each.behaviour_log_probs[i], expected, atol=1e-4)


def test_why_an_answer_ended():
    model, params = load("gpt2")
    free = served(model, params, asked(model), stop_tokens=[])[0][1].tokens
    stop = free[2]
    engine = Engine(model, rows=2, length=64, stop_tokens=[stop])
    found = sorted(
        engine.run(params, asked(model), finished=lambda i, tokens: i == 3),
        key=lambda one: one.number,
    )
    ended = found[1]
    assert ended.finish == "stop" and ended.tokens == free[: free.index(stop) + 1]
    assert ended.answer == free[: free.index(stop)] and len(ended.log_probs) == len(ended.tokens)
    assert found[3].finish == "callback" and 1 <= len(found[3].tokens) < 25
    assert found[4].finish == "length" and engine.tokens == sum(len(one.tokens) for one in found)


def test_requests_that_do_not_fit_are_refused_by_their_number_and_the_others_are_served():
    model, params = load("gpt2")
    requests = [Request([5] * 40, 10), Request([5], 4), Request([], 3), Request([5], 4, key=9)]
    requests += [Request([5], 4, members=[[1]] * 3, log_weights=[0.0] * 3)]
    found, _ = served(model, params, requests, length=32, stop_tokens=[])
    assert [one.finish for one in found] == ["refused", "length", "refused", "length", "refused"]
    assert "request 0 has 40 tokens and 10 more are asked for" in found[0].error
    assert "prompt 2 is empty" in found[2].error and "3 members" in found[4].error
    assert found[1].tokens == found[3].tokens == lm.generate(model, params, [[5]], 4)[0]
    with pytest.raises(GenerationError, match="request 0 has 40 tokens"):
        list(Engine(model, length=32, rows=1).stream(params, requests[0]))


LONG_TAILED = np.minimum(np.ceil(np.random.default_rng(0).lognormal(2.0, 1.0, 64)), 60).astype(int)


def test_long_tailed_answers_need_few_more_steps_than_tokens_over_slots_and_compile_nothing_new():
    """Lengths are log-normal: half are below e^2 = 7, the longest is 60, eight times as long."""
    model, params = load("gpt2", d_ff=40)  # a new config, so nothing is compiled yet
    prompts = [[5 + i % 80] * (1 + i % 4) for i in range(64)]
    requests = [Request(p, int(n)) for p, n in zip(prompts, LONG_TAILED, strict=True)]
    found, engine = served(model, params, requests, rows=8, stop_tokens=[])
    ideal = -(-sum(len(one.tokens) for one in found) // 8)
    assert engine.tokens == LONG_TAILED.sum() and engine.steps <= 1.15 * ideal
    before = slots.insert._cache_size(), slots.advance._cache_size()
    requests = [Request(r.tokens[::-1] + [3] * 9, r.budget // 2 + 2) for r in requests[::-1]]
    served(model, params, requests, rows=8, stop_tokens=[])
    assert (slots.insert._cache_size(), slots.advance._cache_size()) == before


@pytest.mark.parametrize("name", ["gemma2", pytest.param("bart", marks=pytest.mark.slow)])
def test_rows_are_sharded_over_the_mesh_and_get_the_same_tokens(name, monkeypatch):
    model, params = load(name)
    sampler, requests = lm.Sample(0.9), asked(model, PROMPTS * 2, BUDGETS * 2)
    expected, _ = served(model, params, requests, rows=8, sampler=sampler, stop_tokens=[])
    states, advance = [], slots.advance
    monkeypatch.setattr(slots, "advance", lambda *a: states.append(advance(*a)) or states[-1])
    with activate(make_mesh(data=2, fsdp=4)):
        with pytest.raises(GenerationError, match="rows=12: expected a multiple of 8"):
            Engine(model, rows=12, length=64)
        found, _ = served(model, params, requests, rows=8, sampler=sampler, stop_tokens=[])
        before = slots.insert._cache_size(), advance._cache_size()
        assert lm.generate(
            model, params, PROMPTS * 2, list(BUDGETS) * 2, sampler, batch_size=8, stop_tokens=[]
        ) == [one.tokens for one in found]
        assert (slots.insert._cache_size(), advance._cache_size()) == before
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for leaf in jax.tree.leaves(states[-1]["cache"]["layers"]):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.addressable_shards[0].data.shape == (1, *leaf.shape[1:])


@pytest.mark.parametrize("name", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_request_that_makes_room_for_others_gets_something_else(name):
    """Sampled, with a repetition penalty and with members that leave together."""
    model, params = load(name)
    prompts, budgets = [[5, 9, 2], [7, 7, 30, 11], [8], [60, 3]], (14, 3, 9, 11)
    requests = asked(model, prompts, budgets)
    group = dict(members=[[40, 41], [50]], log_weights=(-0.5, -1.0))
    requests[2] = dataclasses.replace(requests[2], **group)
    sampler = Sample(temperature=0.7, repetition_penalty=1.3)
    options = dict(sampler=sampler, stop_tokens=[], rows=2)
    plain, before = served(model, params, requests, **options)
    moved, engine = served(model, params, requests, patience=4, **options)
    assert engine.reads > before.reads
    for one, same in zip(plain, moved, strict=True):
        assert (one.tokens, one.finish) == (same.tokens, same.finish)
        np.testing.assert_allclose(one.log_probs, same.log_probs, atol=2e-5)
        np.testing.assert_allclose(one.behaviour_log_probs, same.behaviour_log_probs, atol=2e-5)
    with pytest.raises(GenerationError, match="patience=-1: expected 0 or more"):
        Engine(model, length=64, patience=-1)
    looks = type("Looks", (Hook,), {"find": lambda self, taps, slots: None})()
    with pytest.raises(GenerationError, match="would lose what a hook's `find` found for it"):
        served(model, params, requests, patience=4, hooks=[looks])
