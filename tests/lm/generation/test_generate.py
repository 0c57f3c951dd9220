"""Generation against a loop without a cache, and each prompt of a batch against itself alone."""

import jax
import numpy as np
import pytest

import lm
from lm.generation import GenerationError, decode, stream
from tests.lm.models.test_model import make

PROMPTS = [[5, 9, 2], [7, 7, 30, 11, 60, 3, 3], [8], [40] * 20]


def without_cache(model, params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = lm.forward(model, params, lm.Batch.of(padded, padded * 0 + (np.arange(40) < len(tokens)))).logits
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "llama-window", "gpt2"])
def test_greedy_with_a_cache_equals_greedy_without(name):
    model, params = make(name)
    answers = lm.generate(model, params, PROMPTS, 12, stop_tokens=[])
    assert answers == [without_cache(model, params, p, 12) for p in PROMPTS]
    assert len({tuple(a) for a in answers}) > 1


@pytest.mark.parametrize("name", ["llama", "llama-window", "gpt2"])
def test_unequal_prompts_get_what_each_gets_alone(name):
    model, params = make(name)
    together = lm.generate(model, params, PROMPTS, 12, stop_tokens=[])
    assert together == [lm.generate(model, params, [p], 12, stop_tokens=[])[0] for p in PROMPTS]
    assert together == lm.generate(model, params, PROMPTS, 12, stop_tokens=[], batch_size=3)


def test_a_stop_token_ends_its_row_only_and_is_not_returned():
    model, params = make("llama")
    free = lm.generate(model, params, PROMPTS, 12, stop_tokens=[])
    stop = free[0][4]
    stopped = lm.generate(model, params, PROMPTS, 12, stop_tokens=[stop])
    for before, after in zip(free, stopped, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)


def test_the_models_own_end_token_stops_by_default():
    model, params = make("llama")
    free = lm.generate(model, params, PROMPTS[:1], 12, stop_tokens=[])[0]
    ending = lm.build(model.config.replace(eos_token_ids=(free[3],)))
    assert lm.generate(ending, params, PROMPTS[:1], 12)[0] == free[: free.index(free[3])]


def test_streaming_yields_what_generate_returns():
    model, params = make("gpt2")
    for sampler in (lm.Greedy(), lm.Sample(0.9, top_k=20)):
        whole = lm.generate(model, params, [PROMPTS[1]], 10, sampler, stop_tokens=[], seed=3)[0]
        assert list(stream(model, params, PROMPTS[1], 10, sampler, stop_tokens=[], seed=3)) == whole


def test_prompt_lengths_within_a_bucket_compile_once():
    model, params = make("llama", d_ff=40)  # a config of its own: nothing compiled before counts
    lm.generate(model, params, [[1, 2, 3]], 5, stop_tokens=[])
    before = decode.start._cache_size(), decode.advance._cache_size()
    for length in (1, 7, 30, 32):
        lm.generate(model, params, [[4] * length], 9, stop_tokens=[])
    assert (decode.start._cache_size(), decode.advance._cache_size()) == before


def test_prefill_and_decode_step_are_pure_and_continue_a_prompt():
    model, params = make("llama")
    tokens = np.asarray([PROMPTS[1]], np.int32)
    logits, cache = lm.prefill(model, params, tokens[:, :-1], np.ones_like(tokens[:, :-1]), 16)
    for _ in range(2):  # twice the same: nothing was changed in place
        step, longer = lm.decode_step(model, params, tokens[:, -1], np.asarray([tokens.shape[1] - 1]), cache)
        np.testing.assert_allclose(step, lm.forward(model, params, lm.Batch.of(tokens)).logits[:, -1], atol=2e-5)
    assert int(cache["length"]) == tokens.shape[1] - 1 and int(longer["length"]) == tokens.shape[1]
    assert logits.shape == (1, model.config.vocab_size)


def test_sampling_follows_the_softmax_and_respects_top_k_and_top_p():
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05], np.float32)
    logits = np.broadcast_to(np.log(probabilities), (20_000, 4))
    draw = lambda sampler: np.bincount(sampler(logits, jax.random.key(0)), minlength=4) / len(logits)
    np.testing.assert_allclose(draw(lm.Sample()), probabilities, atol=0.015)
    np.testing.assert_allclose(draw(lm.Sample(top_k=2)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(draw(lm.Sample(top_p=0.79)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(draw(lm.Sample(top_p=0.81)), np.asarray([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.015)
    hot = probabilities**0.5
    np.testing.assert_allclose(draw(lm.Sample(temperature=2.0)), hot / hot.sum(), atol=0.015)


def test_sampling_depends_on_the_seed_alone():
    model, params = make("llama")
    one, same, other = (lm.generate(model, params, PROMPTS, 10, lm.Sample(), seed=s, stop_tokens=[]) for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1] * 62], 4, "context is 64 tokens"),
        ([[1, 99]], 4, "outside the vocabulary of 97"),
        ([[1]], 0, "max_new_tokens=0"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused_before_anything_runs(prompts, count, message):
    model, params = make("llama")
    with pytest.raises(GenerationError, match=message):
        lm.generate(model, params, prompts, count)


def test_no_prompts_give_no_answers():
    model, params = make("llama")
    assert lm.generate(model, params, [], 4) == []


def test_an_encoder_does_not_generate():
    model, params = make("bert")
    with pytest.raises(GenerationError, match="does not generate"):
        lm.generate(model, params, [[1]], 4)


@pytest.mark.parametrize("options", [dict(temperature=0.0), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0)])
def test_samplers_refuse_senseless_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lm.Sample(**options)
