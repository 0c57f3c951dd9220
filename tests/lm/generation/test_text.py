"""Stop strings: text ends before them, at any token boundary, and no part of one is printed."""

import functools
import itertools
import random

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

import lm
from lm.generation import engine, slots, stream_text, text
from lm.generation.text import ending
from tests.lm.models.test_model import make
from tests.lm.small_models import drawn

PROMPTS = ["abca", "c", "bbcaabac"]


@pytest.fixture(scope="module")
def tokenizer():
    """97 tokens of one to four letters a, b, c, so stop strings cross token boundaries.

    The last token is special.
    """
    pieces = [
        "".join(letters) for n in (1, 2, 3, 4) for letters in itertools.product("abc", repeat=n)
    ][:96]
    core = tokenizers.Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate([*pieces, "<end>"])}, unk_token="a")
    )
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False
    )


@functools.cache
def load():
    model, _ = make("llama")
    return model, drawn(model, seed=4)  # the answers to the prompts differ and repeat little


@pytest.fixture(scope="module")
def free(tokenizer):
    model, params = load()
    return lm.generate_text(model, params, tokenizer, PROMPTS, 24, stop_tokens=[])


def test_without_stop_strings_the_text_is_that_of_the_tokens(tokenizer, free):
    model, params = load()
    tokens = lm.generate(
        model, params, [tokenizer.encode(prompt) for prompt in PROMPTS], 24, stop_tokens=[]
    )
    assert (
        free == [tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens]
        and min(map(len, free)) > 24
    )


@pytest.mark.parametrize("sampler", [lm.Greedy(), lm.Beams(2)])
def test_answers_are_cut_before_the_stop_string_that_is_complete_first(tokenizer, sampler):
    model, params = load()
    free = lm.generate_text(model, params, tokenizer, PROMPTS, 24, sampler, stop_tokens=[])
    for at in (0, 5, 17):
        stops = [free[0][at : at + 5], free[1][at : at + 3], "no such text"]
        cut = lm.generate_text(
            model,
            params,
            tokenizer,
            PROMPTS,
            24,
            sampler,
            stop_tokens=[],
            stop_strings=stops,
            batch_size=4,
        )
        assert cut == [answer[: ending(answer, stops)] for answer in free]
        assert len(cut[0]) <= at and len(cut[1]) <= at


def test_which_stop_string_comes_first():
    assert ending("xabcy", ["abc", "b"]) == 2, "b is complete before abc is"
    assert ending("xabcy", ["bc", "abc"]) == 1, "of two that end together, the longer"
    assert ending("xabcy", ["ac", "cx"]) is None and ending("", ["a"]) is None


def test_rows_end_soon_after_their_stop_string_and_nobody_looks_when_there_is_none(
    tokenizer, free, monkeypatch
):
    model, params = load()
    counts = []
    advance = slots.advance
    monkeypatch.setattr(
        slots, "advance", lambda *a: counts.append(int((state := advance(*a))["steps"])) or state
    )
    lm.generate_text(
        model,
        params,
        tokenizer,
        PROMPTS,
        24,
        stop_tokens=[],
        stop_strings=[answer[:3] for answer in free],
    )
    assert max(counts, default=0) <= 3 + engine.CHECK_EVERY
    counts.clear()
    lm.generate_text(model, params, tokenizer, PROMPTS, 24, stop_tokens=[])
    assert counts == [23]


def test_streamed_pieces_are_the_answer_whatever_the_tokens_and_stop_strings(
    tokenizer, monkeypatch
):
    """Pieces are never withdrawn, so no start of a stop string was shown."""
    model, _ = load()
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(96) for _ in range(rng.randrange(1, 10))]
        stops = [
            "".join(rng.choices("abc", k=rng.randrange(1, 6))) for _ in range(rng.randrange(4))
        ]
        monkeypatch.setattr(text, "stream", lambda *args, tokens=tokens, **options: iter(tokens))
        whole = tokenizer.decode(tokens)
        assert (
            "".join(stream_text(model, {}, tokenizer, [1], 10, stop_strings=stops))
            == whole[: ending(whole, stops)]
        ), (whole, stops)


def test_streaming_holds_back_only_what_may_be_a_stop_string(tokenizer, monkeypatch):
    model, _ = load()
    monkeypatch.setattr(text, "stream", lambda *args, **options: iter(tokenizer.encode("aabcab")))
    assert list(stream_text(model, {}, tokenizer, [1], 10, stop_strings=["abb"])) == [
        "a",
        "abc",
        "ab",
    ]


def test_streaming_gives_what_generate_text_gives(tokenizer, free):
    model, params = load()
    stop = free[2][10:14]
    options = dict(stop_tokens=[], stop_strings=[stop])
    pieces = stream_text(model, params, tokenizer, tokenizer.encode(PROMPTS[2]), 24, **options)
    assert ["".join(pieces)] == lm.generate_text(
        model, params, tokenizer, PROMPTS[2:], 24, **options
    )


def test_a_stop_string_that_is_a_special_token_stops_there_although_it_is_not_decoded(tokenizer):
    model, params = load()
    asked = lm.Sample(100.0)  # nearly uniform: <end> occurs within 60 tokens for some prompt
    tokens = lm.generate(
        model,
        params,
        [tokenizer.encode(prompt) for prompt in PROMPTS],
        50,
        asked,
        stop_tokens=[],
        seed=3,
    )
    assert any(96 in answer for answer in tokens)
    stopped = lm.generate_text(
        model, params, tokenizer, PROMPTS, 50, asked, stop_tokens=[], stop_strings=["<end>"], seed=3
    )
    assert stopped == [
        tokenizer.decode(answer[: answer.index(96)] if 96 in answer else answer)
        for answer in tokens
    ]


def test_an_empty_stop_string_is_refused(tokenizer):
    model, params = load()
    with pytest.raises(ValueError, match="stop string is empty"):
        lm.generate_text(model, params, tokenizer, PROMPTS, 4, stop_strings=[""])
