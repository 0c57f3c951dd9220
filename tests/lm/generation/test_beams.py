"""Beam search equals transformers' token for token, and a search without a cache."""

import itertools

import numpy as np
import pytest

import lm
from lm.generation import GenerationError, beams, stream
from tests.lm.generation.references import ENDS, PROMPTS, load, their_answers
from tests.lm.models.test_model import make

OPTIONS = [(3, 1.0, False), (4, 2.0, True), (2, -1.0, False), (3, 1.5, "never")]


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
def test_beams_are_transformers_beams(name):
    _, model, params = load(name)
    found = set()
    for n, penalty, early in OPTIONS:
        ours = lm.generate(
            model, params, PROMPTS, 14, lm.Beams(n, penalty, early), stop_tokens=ENDS
        )
        expected = their_answers(
            name, num_beams=n, length_penalty=penalty, early_stopping=early, max_new_tokens=14
        )
        assert ours == expected, (n, penalty, early)
        found |= {tuple(answer) for answer in ours}
    assert len(found) > 2 * len(PROMPTS), "the options make no difference here"
    assert min(map(len, found)) < 13 <= max(map(len, found)), "no answer ends early, or all do"
    assert not found >= {tuple(answer) for answer in their_answers(name, max_new_tokens=14)}, (
        "greedy finds the same"
    )


def test_beams_run_on_although_most_tokens_end_an_answer():
    _, model, params = load("gpt2")
    ends = [token for token in range(41) if token % 3]
    ours = lm.generate(model, params, PROMPTS, 14, lm.Beams(3, 3.0), stop_tokens=ends)
    assert ours == their_answers(
        "gpt2", ends=ends, num_beams=3, length_penalty=3.0, max_new_tokens=14
    )


def test_every_prompt_has_its_own_budget():
    _, model, params = load("bart")
    budgets = [4, 12, 7]
    ours = lm.generate(model, params, PROMPTS, budgets, lm.Beams(*OPTIONS[0]), stop_tokens=ENDS)
    assert ours == [
        their_answers("bart", [p], max_new_tokens=b, num_beams=3)[0]
        for p, b in zip(PROMPTS, budgets, strict=True)
    ]


def without_cache(model, params, prompt, count, n):
    """Best of `n` beams, none of which ends."""
    running = [(0.0, [])]
    for _ in range(count):
        longer = []
        for score, answer in running:
            tokens = (
                [model.config.decoder_start_token_id, *answer]
                if model.config.encoder_layers
                else [*prompt, *answer]
            )
            padded = np.zeros((1, 40), np.int32)
            padded[0, : len(tokens)] = tokens
            read = dict(encoder_tokens=[prompt]) if model.config.encoder_layers else {}
            batch = lm.Batch.of(padded, (np.arange(40) < len(tokens))[None] * 1, **read)
            logits = np.asarray(lm.forward(model, params, batch).logits)[0, len(tokens) - 1]
            scores = logits - np.logaddexp.reduce(logits)
            longer += [
                (score + float(scores[token]), [*answer, token])
                for token in np.argsort(-scores)[:n].tolist()
            ]
        running = sorted(longer, reverse=True)[:n]
    return running[0][1]


@pytest.mark.parametrize("name", ["gemma2", "mamba", "bamba", "bart"])
def test_beams_take_every_kind_of_cache_along(name):
    model, params = make(
        name,
        **(
            dict(decoder_start_token_id=1, tie_embeddings=False, initializer_range=0.1)
            if name == "bart"
            else {}
        ),
    )
    prompts = [[5, 9, 2], [7, 7, 30, 11, 60, 3, 3]]
    ours = lm.generate(model, params, prompts, 9, lm.Beams(3), stop_tokens=[])
    assert ours == [without_cache(model, params, prompt, 9, 3) for prompt in prompts]
    assert ours != lm.generate(model, params, prompts, 9, stop_tokens=[]), (
        "greedy finds the same: nothing was reordered"
    )


def test_shared_layers_whose_caches_are_stacked_are_reordered_too():
    model, params = make("llama", shared_layers=True)
    assert lm.generate(model, params, [[5, 9, 2]], 9, lm.Beams(3), stop_tokens=[]) == [
        without_cache(model, params, [5, 9, 2], 9, 3)
    ]


def test_prompts_and_budgets_within_a_bucket_compile_once():
    for name in ("gpt2", "bart"):
        _, model, params = load(name)
        sampler = lm.Beams(2, 1.25)  # a new sampler, so nothing is compiled yet
        lm.generate(model, params, [[4, 5, 6]], 5, sampler)
        before = beams.search._cache_size()
        for length, budget in itertools.product((1, 7, 30), (1, 9, [3])):
            lm.generate(model, params, [[4] * length], budget, sampler)
        assert beams.search._cache_size() == before


def test_streaming_beams_yields_the_answer_in_the_end():
    _, model, params = load("bart")
    sampler = lm.Beams(3)
    assert (
        list(stream(model, params, PROMPTS[0], 8, sampler))
        == lm.generate(model, params, PROMPTS[:1], 8, sampler)[0]
    )


def test_an_answer_of_beams_cannot_be_ended_from_outside():
    _, model, params = load("gpt2")
    with pytest.raises(GenerationError, match="beam search"):
        lm.generate(model, params, PROMPTS, 8, lm.Beams(), finished=lambda i, tokens: True)


@pytest.mark.parametrize(
    "options",
    [dict(n=1), dict(n=2.5), dict(length_penalty=float("nan")), dict(early_stopping="often")],
)
def test_beams_refuse_senseless_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lm.Beams(**options)
