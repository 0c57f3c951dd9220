"""Encoder-decoders: the encoder reads the prompt once, answers follow the decoder's prompt."""

import numpy as np
import pytest

import lm
from lm.generation import GenerationError, slots, stream
from tests.lm.generation.references import ENDS, load, their_answers
from tests.lm.generation.references import PROMPTS as REFERENCE_PROMPTS
from tests.lm.models.test_model import make

PROMPTS = [[5, 9, 2], [7, 7, 30, 11, 60, 3, 3], [8], [40] * 20]
START = dict(decoder_start_token_id=1, tie_embeddings=False, initializer_range=0.1)


def without_cache(model, params, prompt, count, begun):
    tokens, read = list(begun), np.asarray([prompt + [0] * (24 - len(prompt))])
    for _ in range(count):
        padded = np.zeros((1, 20), np.int32)
        padded[0, : len(tokens)] = tokens
        batch = lm.Batch.of(
            padded,
            (np.arange(20) < len(tokens))[None] * 1,
            encoder_tokens=read,
            encoder_segments=(read > 0) * 1,
        )
        tokens.append(int(lm.forward(model, params, batch).logits[0, len(tokens) - 1].argmax()))
    return tokens[len(begun) :]


@pytest.mark.parametrize("name", ["bart", "umt5"])
def test_each_prompt_gets_what_a_model_without_a_cache_answers_to_it_alone(name):
    model, params = make(name, **START)
    together = lm.generate(model, params, PROMPTS, 10, stop_tokens=[])
    assert together == [without_cache(model, params, prompt, 10, [1]) for prompt in PROMPTS]
    assert together == lm.generate(model, params, PROMPTS, 10, stop_tokens=[], batch_size=2)
    assert len({tuple(answer) for answer in together}) > 1


def test_answers_continue_decoder_prompts_of_any_lengths():
    model, params = make("bart", **START)
    begun = [[1], [1, 20, 21], [3, 4], [1, 9]]
    answers = lm.generate(model, params, PROMPTS, 8, decoder_prompts=begun, stop_tokens=[])
    assert answers == [
        without_cache(model, params, prompt, 8, start)
        for prompt, start in zip(PROMPTS, begun, strict=True)
    ]
    assert (
        list(stream(model, params, PROMPTS[1], 8, decoder_prompt=begun[1], stop_tokens=[]))
        == answers[1]
    )


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_greedy_and_the_repetition_penalty_are_those_of_transformers(name):
    """The penalty counts the decoder's tokens with its start token, not the encoder's."""
    _, model, params = load(name)
    answers = []
    for penalty in (1.0, 1.4):
        answers.append(
            lm.generate(model, params, REFERENCE_PROMPTS, 14, lm.Greedy(penalty), stop_tokens=ENDS)
        )
        assert answers[-1] == their_answers(name, max_new_tokens=14, repetition_penalty=penalty)
    assert answers[0] != answers[1], "the penalty makes no difference here"


@pytest.mark.parametrize("sampler", [lm.Sample(0.8, top_p=0.9), lm.Beams(2)])
def test_forced_tokens_come_first_and_last(sampler):
    model, params = make("bart", **START, forced_bos_token_id=50, forced_eos_token_id=60)
    answers = lm.generate(model, params, PROMPTS, [6, 9, 2, 5], sampler, stop_tokens=[])
    assert [(answer[0], answer[-1], len(answer)) for answer in answers] == [
        (50, 60, n) for n in (6, 9, 2, 5)
    ]
    ended = lm.generate(model, params, PROMPTS, [6, 9, 2, 5], sampler, stop_tokens=[60])
    assert not any(60 in answer for answer in ended), "the stop token is no part of an answer"
    begun = lm.generate(
        model, params, PROMPTS, 4, sampler, decoder_prompts=[[1, 7]] * 4, stop_tokens=[]
    )
    assert begun[0][0] != 50, "it is forced after a lone start token only"


def test_forced_tokens_are_those_of_transformers():
    _, model, params = load("bart")
    forced = dict(forced_bos_token_id=11, forced_eos_token_id=2)
    ours = lm.build(model.config.replace(**forced))
    for n in (1, 3):
        answers = lm.generate(
            ours,
            params,
            REFERENCE_PROMPTS,
            9,
            lm.Beams(n) if n > 1 else lm.Greedy(),
            stop_tokens=ENDS,
        )
        assert answers == their_answers("bart", max_new_tokens=9, num_beams=n, **forced)


def test_lengths_of_either_side_within_a_bucket_compile_once():
    # A new config, so nothing is compiled yet.
    model, params = make("bart", **START, d_ff=40)
    lm.generate(model, params, [[1, 2, 3]], 5)
    before = slots.insert._cache_size(), slots.advance._cache_size()
    for length, budget in ((1, 9), (7, 32), (30, [2]), (32, 1)):
        lm.generate(model, params, [[4] * length], budget)
    assert (slots.insert._cache_size(), slots.advance._cache_size()) == before


def test_the_encoder_runs_in_prefill_alone():
    """Later steps read only the cache: they are pure and need no encoder_tokens."""
    model, params = make("t5", **START)
    padded = np.asarray([[7, 30, 11, 0, 0]], np.int32)
    logits, cache = lm.prefill(
        model,
        params,
        np.asarray([[1, 8]]),
        np.ones((1, 2), np.int32),
        12,
        encoder_tokens=padded,
        encoder_segments=(padded > 0) * 1,
    )
    whole = lm.forward(model, params, lm.Batch.of([[1, 8, 9]], encoder_tokens=[[7, 30, 11]])).logits
    np.testing.assert_allclose(logits, whole[:, 1], atol=2e-5)
    without_encoder = {name: value for name, value in params.items() if name != "encoder"}
    for _ in range(2):  # two equal results: nothing is changed in place
        step, longer = lm.decode_step(
            model, without_encoder, np.asarray([9]), np.asarray([2]), cache
        )
        np.testing.assert_allclose(step, whole[:, 2], atol=2e-5)
    assert int(cache["length"]) == 2 and int(longer["length"]) == 3


@pytest.mark.parametrize(
    ("changes", "prompts", "options", "message"),
    [
        (dict(), [[1]], {}, "no decoder_start_token_id"),
        (START, [[1], []], {}, "prompt 1 is empty"),
        (START, [[4] * 65], {}, "encoder reads at most 64"),
        (START, [[4]], dict(max_new_tokens=64), "decoder prompt 0 has 1 tokens and 64 more"),
        (START, [[4]], dict(decoder_prompts=[[1], [1]]), "2 decoder_prompts for 1 prompts"),
        (START, [[4]], dict(decoder_prompts=[[99]]), "decoder prompt 0 holds token 99"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_before_anything_runs(
    changes, prompts, options, message
):
    model, params = make("t5", **changes)
    with pytest.raises(GenerationError, match=message):
        lm.generate(model, params, prompts, **dict(max_new_tokens=4) | options)
