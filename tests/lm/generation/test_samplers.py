"""Samplers against transformers' logits processors, and against exact probabilities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.generation import samplers

torch = pytest.importorskip("torch")
from transformers.generation import logits_process as theirs  # noqa: E402

LOGITS = 3.0 * np.random.default_rng(0).standard_normal((5, 83)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 83, (5, 12))  # earlier tokens
SEEN = np.zeros(LOGITS.shape, bool)
np.put_along_axis(SEEN, TOKENS, True, axis=1)


def kept(sampler, seen=SEEN):
    """Probability of every token, [B, V]."""
    logits, tokens = sampler.candidates(jnp.asarray(LOGITS), jnp.asarray(seen))
    probabilities = np.zeros(LOGITS.shape, np.float32)
    np.put_along_axis(probabilities, np.asarray(tokens), np.asarray(jax.nn.softmax(logits)), axis=1)
    return probabilities


def processed(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """The same probabilities from transformers' processors.

    The processors run in the order of `GenerationMixin._get_logits_processor`.
    """
    steps = theirs.LogitsProcessorList(
        [theirs.RepetitionPenaltyLogitsProcessor(repetition_penalty)]
        if repetition_penalty != 1
        else []
    )
    steps += [theirs.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    steps += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    steps += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [theirs.MinPLogitsWarper(min_p)] if min_p else []
    return torch.softmax(steps(torch.tensor(TOKENS), torch.tensor(LOGITS)), dim=-1).numpy()


GRID = itertools.product((1.0, 0.7, 1.6), (0, 1, 9), (1.0, 0.3, 0.9), (0.0, 0.2, 0.6), (1.0, 1.3))


def test_the_tokens_kept_and_their_probabilities_are_those_of_transformers():
    for options in (
        dict(
            zip(
                ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
                values,
                strict=True,
            )
        )
        for values in GRID
    ):
        ours, expected = kept(lm.Sample(**options)), processed(**options)
        np.testing.assert_array_equal(ours > 0, expected > 0, err_msg=str(options))
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=str(options))


def test_every_option_removes_tokens_that_the_others_leave():
    """So the comparison with transformers covers each option."""
    all_of_them = dict(temperature=1.6, top_k=9, top_p=0.9, min_p=0.2)
    for option, off in (("temperature", 0.7), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        assert (
            (processed(**all_of_them) > 0) != (processed(**all_of_them | {option: off}) > 0)
        ).any(), option


def test_greedy_takes_the_best_token_after_the_repetition_penalty():
    for penalty in (0.5, 1.0, 1.5, 4.0):
        expected = processed(repetition_penalty=penalty).argmax(-1)
        np.testing.assert_array_equal(
            lm.Greedy(penalty)(jnp.asarray(LOGITS), jax.random.key(0), jnp.asarray(SEEN)), expected
        )
    assert (processed(repetition_penalty=4.0).argmax(-1) != LOGITS.argmax(-1)).any(), (
        "the penalty changes nothing here"
    )


def test_a_repetition_penalty_without_the_tokens_so_far_is_refused_not_ignored():
    for sampler in (lm.Greedy(1.2), lm.Sample(repetition_penalty=1.2)):
        with pytest.raises(ValueError, match="tokens so far"):
            sampler(jnp.asarray(LOGITS), jax.random.key(0))


def test_sampling_follows_the_softmax_and_respects_top_k_top_p_and_min_p():
    probabilities = np.asarray([0.5, 0.3, 0.15, 0.05], np.float32)
    logits = np.broadcast_to(np.log(probabilities), (20_000, 4))
    draw = lambda sampler: (
        np.bincount(sampler(logits, jax.random.key(0)), minlength=4) / len(logits)
    )
    np.testing.assert_allclose(draw(lm.Sample()), probabilities, atol=0.015)
    np.testing.assert_allclose(draw(lm.Sample(top_k=2)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(draw(lm.Sample(top_p=0.79)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(
        draw(lm.Sample(top_p=0.81)), np.asarray([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.015
    )
    np.testing.assert_allclose(
        draw(lm.Sample(min_p=0.29)), np.asarray([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.015
    )
    np.testing.assert_allclose(draw(lm.Sample(min_p=0.31)), [0.625, 0.375, 0, 0], atol=0.015)
    hot = probabilities**0.5
    np.testing.assert_allclose(draw(lm.Sample(temperature=2.0)), hot / hot.sum(), atol=0.015)


def test_top_p_of_a_large_vocabulary_looks_at_its_best_candidates_only():
    logits = jnp.asarray(np.random.default_rng(2).standard_normal((2, 5000)).astype(np.float32))
    assert lm.Sample(top_p=0.5).candidates(logits)[0].shape == (2, samplers.CANDIDATES)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.0),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(min_p=1.1),
        dict(min_p=float("nan")),
        dict(repetition_penalty=0.0),
        dict(repetition_penalty=float("nan")),
    ],
)
def test_samplers_refuse_senseless_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lm.Sample(**options)
