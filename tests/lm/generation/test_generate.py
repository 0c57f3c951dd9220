"""Generation equals a loop without a cache, and each prompt of a batch equals that prompt alone."""

import numpy as np
import pytest

import lm
from lm.generation import GenerationError, engine, running, slots, stream
from lm.generation.answers import sizes
from lm.generation.requests import Request
from tests.lm.generation.references import ENDS, load, their_answers
from tests.lm.generation.references import PROMPTS as REFERENCE_PROMPTS
from tests.lm.models.test_model import make

PROMPTS = [[5, 9, 2], [7, 7, 30, 11, 60, 3, 3], [8], [40] * 20]


def without_cache(model, params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = lm.forward(
            model, params, lm.Batch.of(padded, padded * 0 + (np.arange(40) < len(tokens)))
        ).logits
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


def test_several_rows_fail_or_choose_an_unlikely_token_in_bfloat16():
    model, params = make("llama")
    assert model.config.n_heads > model.config.n_kv_heads > 1
    narrow = lm.build(model.config.replace(dtype="bfloat16"))
    answers = lm.generate(narrow, params, PROMPTS, 3, stop_tokens=[])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        logits = lm.forward(model, params, lm.Batch.of([prompt + answer])).logits[0]
        for token, scores in zip(answer, logits[len(prompt) - 1 :], strict=False):
            assert scores[token] > scores.max() - 0.05 * scores.std()


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
    model, params = make("llama", d_ff=40)  # a new config, so nothing is compiled yet
    lm.generate(model, params, [[1, 2, 3]], 5, stop_tokens=[])
    before = slots.insert._cache_size(), slots.advance._cache_size()
    for length, budget in ((1, 9), (7, 32), (30, [2]), (32, 1)):
        lm.generate(model, params, [[4] * length], budget, stop_tokens=[])
    assert (slots.insert._cache_size(), slots.advance._cache_size()) == before


def test_prefill_and_decode_step_are_pure_and_continue_a_prompt():
    model, params = make("llama")
    tokens = np.asarray([PROMPTS[1]], np.int32)
    logits, cache = lm.prefill(model, params, tokens[:, :-1], np.ones_like(tokens[:, :-1]), 16)
    for _ in range(2):  # two equal results: nothing is changed in place
        step, longer = lm.decode_step(
            model, params, tokens[:, -1], np.asarray([tokens.shape[1] - 1]), cache
        )
        np.testing.assert_allclose(
            step, lm.forward(model, params, lm.Batch.of(tokens)).logits[:, -1], atol=2e-5
        )
    assert int(cache["length"]) == tokens.shape[1] - 1 and int(longer["length"]) == tokens.shape[1]
    assert logits.shape == (1, model.config.vocab_size)


def test_sampling_depends_on_the_seed_alone():
    model, params = make("llama")
    one, same, other = (
        lm.generate(model, params, PROMPTS, 10, lm.Sample(), seed=s, stop_tokens=[])
        for s in (1, 1, 2)
    )
    assert one == same != other


def test_every_prompt_has_its_own_budget():
    model, params = make("llama")
    free = lm.generate(model, params, PROMPTS, 12, stop_tokens=[])
    budgets = [3, 12, 1, 7]
    assert lm.generate(model, params, PROMPTS, budgets, stop_tokens=[]) == [
        a[:n] for a, n in zip(free, budgets, strict=True)
    ]
    assert lm.generate(
        model, params, PROMPTS, np.asarray(budgets), stop_tokens=[], batch_size=2
    ) == [a[:n] for a, n in zip(free, budgets, strict=True)]


def test_a_batch_ends_with_its_largest_budget_not_with_the_bucket(monkeypatch):
    model, params = make("llama")
    states = []
    advance = slots.advance
    monkeypatch.setattr(slots, "advance", lambda *a: states.append(advance(*a)) or states[-1])
    lm.generate(model, params, PROMPTS, [3, 9, 1, 7], stop_tokens=[])
    assert [int(state["steps"]) for state in states] == [8], (
        "one compiled loop, whose steps give all tokens but the first"
    )


def test_an_answer_that_is_finished_from_outside_ends_soon_and_alone():
    model, params = make("llama")
    free = lm.generate(model, params, PROMPTS, 30, stop_tokens=[])
    asked = []

    def finished(i, tokens):
        asked.append((i, len(tokens)))
        assert tokens == free[i][: len(tokens)]
        return i == 1 and len(tokens) > 4

    ended = lm.generate(model, params, PROMPTS, 30, stop_tokens=[], finished=finished)
    assert ended[:1] + ended[2:] == free[:1] + free[2:] and ended[1] == free[1][: len(ended[1])]
    assert 4 < len(ended[1]) <= 5 + engine.CHECK_EVERY
    assert len(asked) < 4 * (2 + 30 / engine.CHECK_EVERY), "the host looks at every token"


def test_a_repetition_penalty_counts_the_prompt_but_no_padding():
    _, model, params = load("gpt2")
    expected = their_answers("gpt2", max_new_tokens=12, repetition_penalty=1.4)
    assert (
        lm.generate(model, params, REFERENCE_PROMPTS, 12, lm.Greedy(1.4), stop_tokens=ENDS)
        == expected
    )
    assert expected != their_answers("gpt2", max_new_tokens=12), (
        "the penalty makes no difference here"
    )


def test_what_was_seen_is_remembered_only_for_a_sampler_that_asks():
    model, params = make("llama")

    def seen(sampler):
        setup = engine.Engine(model, length=64, rows=4, sampler=sampler).setup
        run = running.Run(setup, params, [Request(p, 4) for p in PROMPTS], ())
        run.fill()
        return run.state.get("seen")

    assert seen(lm.Greedy()) is None and seen(lm.Sample(0.5)) is None
    found = [set(np.flatnonzero(row)) for row in np.asarray(seen(lm.Greedy(1.1)))]
    in_turn = sorted(PROMPTS, key=len)  # of equal budgets, the shortest prompts start first
    assert found == [set(prompt) for prompt in in_turn], "the prompts, but no padding"


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1] * 62], 4, "context is 64 tokens"),
        ([[1, 99]], 4, "outside the vocabulary of 97"),
        ([[1, -3]], 4, "token -3"),
        ([[1]], 0, "max_new_tokens=0"),
        ([[1]], 2.5, "max_new_tokens=2.5"),
        ([[1], [2]], [4, 0], "max_new_tokens=0"),
        ([[1], [2]], [4, 5, 6], "3 entries for 2 prompts"),
        ([[1], [1] * 40], [40, 40], "prompt 1 has 40 tokens and 40 more"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused_before_anything_runs(prompts, count, message):
    model, params = make("llama")
    with pytest.raises(GenerationError, match=message):
        lm.generate(model, params, prompts, count)


def test_no_prompts_give_no_answers():
    model, params = make("llama")
    assert lm.generate(model, params, [], 4) == []


@pytest.mark.parametrize(
    "changes",
    [dict(name="bert"), dict(name="llama", head="value"), dict(name="llama", head="none")],
)
def test_a_model_without_a_head_for_it_does_not_generate(changes):
    model, params = make(**changes)
    for sampler in (lm.Greedy(), lm.Beams()):
        with pytest.raises(GenerationError, match="does not generate"):
            lm.generate(model, params, [[1]], 4, sampler)


def test_decoder_prompts_are_refused_where_there_is_no_encoder():
    model, params = make("llama")
    with pytest.raises(GenerationError, match="put them into prompts"):
        lm.generate(model, params, [[1]], 4, decoder_prompts=[[2]])


@pytest.mark.parametrize("counts", [(4, 1), (4, 4, 1), (4, 4, 4), (1, 1, 1), (9, 2, 5, 3)])
def test_a_request_is_lost_among_others_of_other_lengths(counts):
    asked = [
        Request([1] * length, 8)
        for length, count in zip((8, 200, 900, 4000), counts, strict=False)
        for _ in range(count)
    ]
    runs = sizes(asked, rows=4)
    assert sorted(number for run in runs for number in run) == list(range(len(asked)))
    assert all(len(run) >= 4 for run in runs) or len(runs) == 1
