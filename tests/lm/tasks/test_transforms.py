"""Tasks on packed rows, against the papers' formulas and transformers' collator."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import batches
from lm.data.encode import plain_text
from lm.data.tokenizers import bytes_only
from lm.distributed import sharding
from lm.families import preset
from lm.models.config import ConfigError
from lm.tasks import (
    UL2,
    Denoising,
    Masked,
    PrefixLM,
    SpanCorruption,
    denoising,
    span_corruption,
    ul2,
)
from tests.lm.training import small

TOKENIZER = bytes_only(mask=True, sentinels=100)
END, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id
BERT, LLAMA = preset("bert", "tiny"), preset("llama", "tiny")
T5 = preset("t5", "tiny").replace(decoder_start_token_id=END)
BART = preset("bart", "tiny").replace(decoder_start_token_id=END)
TEXTS = [
    f"The {n}th of {n * 7 % 31}. It lies {n * n} miles. Away." * (1 + n % 3) for n in range(40)
]
MODAL = bytes_only(sentinels=100)
MODAL.add_tokens(list(ul2.MODES.values()), special_tokens=True)
MODES = {kind: MODAL.convert_tokens_to_ids(mode) for kind, mode in ul2.MODES.items()}
MARKS = [MODAL.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)]
SENTINELS = [TOKENIZER.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)]


def pack(texts=TEXTS, length=160, whole=True):
    return plain_text.pack(plain_text.encode(texts, TOKENIZER, whole), length)


def made(transform, packed, seed=0):
    """Fields of every row."""
    lengths, rows = transform.lengths(packed), batches.Rows(packed)
    return [
        transform.fields(rows[i], np.random.default_rng((seed, i)), lengths)
        for i in range(len(rows))
    ]


def pieces(fields, prefix=""):
    """{segment: positions} of one side of a row."""
    segments = fields[f"{prefix}segments"]
    return {int(s): np.flatnonzero(segments == s) for s in np.unique(segments) if s}


def documents(packed, i):
    """{segment: tokens of the document} of a packed row."""
    return {
        s: np.asarray(packed.targets[i])[at].tolist()
        for s, at in pieces({"segments": np.asarray(packed.segments[i])}).items()
    }


def within(count, total, chance):
    """Whether a count is within five standard deviations of the binomial mean."""
    return abs(count - total * chance) < 5 * math.sqrt(total * chance * (1 - chance))


def test_masked_rates_are_those_of_the_paper_and_of_transformers_collator():
    packed = pack(
        ["".join(map(chr, np.random.default_rng(n).integers(97, 123, 400))) for n in range(120)],
        500,
    )
    rows = made(Masked().transform(TOKENIZER, BERT), packed)
    ours = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    real = ours["segments"] > 0
    special = real & (ours["targets"] == END)
    chosen = ours["weights"] > 0
    total = int((real & ~special).sum())
    assert special.any() and not (chosen & special).any() and not (chosen & ~real).any()
    assert np.array_equal(ours["tokens"][~chosen], ours["targets"][~chosen])
    assert np.array_equal(ours["targets"], packed.targets)
    assert within(chosen.sum(), total, 0.15)
    hidden = chosen & (ours["tokens"] == MASK)
    other = chosen & ~hidden & (ours["tokens"] != ours["targets"])
    assert within(hidden.sum(), chosen.sum(), 0.8) and within(
        other.sum(), chosen.sum(), 0.1 * 255 / 256
    )
    assert not np.isin(ours["tokens"][other], [END, *SENTINELS]).any()

    collator = transformers.DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.15, seed=0)
    import torch

    torch.manual_seed(0)
    inputs, labels = (
        x.numpy()
        for x in collator.torch_mask_tokens(
            torch.tensor(ours["targets"][real].astype(np.int64))[None]
        )
    )
    assert abs((labels != -100).sum() / chosen.sum() - 1) < 0.06
    assert abs(((inputs == MASK) & (labels != -100)).sum() / hidden.sum() - 1) < 0.06


def wordpiece():
    words = [
        "wood",
        "##en",
        "##ness",
        "cat",
        "##s",
        "run",
        "##ning",
        "a",
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def test_whole_words_are_hidden_whole_and_a_document_is_what_an_encoder_reads():
    tokenizer = wordpiece()
    packed = plain_text.pack(
        plain_text.encode(
            ["woodenness cats running a cat", "cats woodenness"] * 40, tokenizer, whole=True
        ),
        40,
    )
    first = documents(packed, 0)[1]
    assert tokenizer.convert_ids_to_tokens(first) == [
        "[CLS]",
        "wood",
        "##en",
        "##ness",
        "cat",
        "##s",
        "run",
        "##ning",
        "a",
        "cat",
        "[SEP]",
    ]
    begins = np.array(
        [
            not token.startswith("##")
            for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        ]
    )
    split = 0
    masked = Masked(rate=0.4, whole_words=True)
    for row in made(masked.transform(tokenizer, BERT), packed):
        word = np.cumsum(begins[row["targets"]])
        for w in np.unique(word[row["segments"] > 0]):
            assert len(set(row["weights"][word == w].tolist())) == 1
            split += (word == w).sum() > 1
    assert split > 50


def paper_counts(length, rate, mean):
    """Span and token counts of random_spans_noise_mask of the paper's code, in plain Python."""
    tokens = min(max(round(length * rate), 1), length - 1)
    spans = max(round(tokens / mean), 1)
    return tokens, min(spans, length - tokens)


@given(
    st.integers(2, 700),
    st.sampled_from([0.15, 0.5, 0.07]),
    st.sampled_from([3.0, 1.0, 8.0]),
    st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_span_corruption_has_as_many_spans_and_tokens_as_the_papers_code_says(
    length, rate, mean, seed
):
    mask = span_corruption.noise_mask(length, rate, mean, np.random.default_rng(seed))
    tokens, spans = paper_counts(length, rate, mean)
    runs = int((np.diff(mask.astype(int), prepend=0) == 1).sum())
    assert (int(mask.sum()), runs) == (tokens, spans) and not mask[0] and mask[-1]
    read, written = span_corruption.sizes(length, rate, mean)
    assert (int(read), int(written)) == (length - tokens + spans + 1, tokens + spans + 1)


def test_every_way_to_cut_spans_is_as_likely_as_another():
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(4000):
        # 4 masked tokens in 2 spans, 4 kept in 2: 3 x 3 ways.
        mask = span_corruption.noise_mask(8, 0.5, 2.0, rng)
        seen[mask.tobytes()] = seen.get(mask.tobytes(), 0) + 1
    assert len(seen) == 9 and all(within(count, 4000, 1 / 9) for count in seen.values())


CORRUPTIONS = {
    "span_corruption": SpanCorruption(),
    "ul2": UL2(),
    "modes": UL2(modes=True),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_both_sides_of_span_corruption_together_are_the_document(name):
    packed = pack()
    for i, row in enumerate(made(CORRUPTIONS[name].transform(MODAL, T5), packed)):
        given, wanted, whole = pieces(row, "encoder_"), pieces(row), documents(packed, i)
        assert given.keys() == wanted.keys() == whole.keys()
        for segment, text in whole.items():
            read, written = (
                row["encoder_tokens"][given[segment]].tolist(),
                row["targets"][wanted[segment]].tolist(),
            )
            assert (
                row["tokens"][wanted[segment]].tolist() == [END, *written[:-1]]
                and read[-1] == written[-1] == END
            )
            if name == "modes":
                assert read[0] in MODES.values()
                read = read[1:]
            spans = {}
            for token in written[:-1]:
                if token in MARKS:
                    current = spans.setdefault(token, [])
                else:
                    current.append(token)
            assert list(spans) == MARKS[: len(spans)]
            restored = list(
                itertools.chain.from_iterable(spans.get(token, [token]) for token in read[:-1])
            )
            # The document's start and end tokens are not part of the text.
            assert restored == [token for token in text if token != END]
        assert (row["weights"] == (row["segments"] > 0)).all()


def test_ul2_draws_the_seven_denoisers_of_the_paper_evenly_and_says_which():
    text, n, rng = np.arange(1000, 1240), 240, np.random.default_rng(0)
    packed = plain_text.pack([(np.array([END, *text, END]), 240)] * 2, n + 1)
    kinds = {  # masked tokens and spans of 240: rates and mean spans of table 1
        (36, 12): "r",
        (36, 4): "r",
        (60, 1): "s",
        (120, 40): "x",
        (120, 15): "x",
        (36, 1): "x",
        (120, 2): "x",
    }
    seen = dict.fromkeys(kinds, 0)
    transform = UL2(modes=True).transform(MODAL, T5)
    lengths, row = transform.lengths(packed), batches.Rows(packed)[0]
    assert lengths == (168, 224)  # decoder 120 + 40 + 1, encoder 1 + 204 + 12 + 1, rounded up to 8
    for _ in range(1400):
        fields = transform.fields(row, rng, lengths)
        read, written = (
            fields[name][fields[name] > 0].tolist() for name in ("encoder_tokens", "targets")
        )
        spans = sum(token in MARKS for token in read)
        kind = (len(written) - spans, spans)
        seen[kind] += 1
        assert read[0] == MODES[kinds[kind]]
        if kinds[kind] == "s":
            assert read[1:] == [*text[:180], MARKS[0]] and written == [MARKS[0], *text[180:]]
    assert all(within(count, 1400, 1 / 7) for count in seen.values()), seen
    only = {noise.mean_span for noise in ul2.noises(0.0, 3.0, 0.0)}
    assert only == {math.inf}
    share = ul2.noises(1.0, 2.0, 1.0)
    assert (
        sum(noise.chance for noise in share if noise.mean_span == math.inf)
        == sum(noise.chance for noise in share) / 2
    )


@given(st.integers(1, 300), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_text_of_any_length_fits_where_ul2_says_it_does(length, seed):
    packed = plain_text.pack([(np.array([END, *range(1, length + 1), END]), length)], 301)
    for modes in (True, False):
        task = UL2(r=2.0, s=1.0, x=4.0, modes=modes)
        transform = task.transform(MODAL, T5)
        lengths = transform.lengths(packed)
        fields = transform.fields(batches.Rows(packed)[0], np.random.default_rng(seed), lengths)
        assert max(lengths) <= -(-task.longest(301) // 8) * 8
        assert len(fields["targets"]) == lengths[0] and len(fields["encoder_tokens"]) == lengths[1]


@given(st.integers(1, 200), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_infilling_hides_its_budget_and_keeps_the_rest_in_order(length, seed):
    text = np.arange(1000, 1000 + length)
    seen = denoising.infilled(text, MASK, 0.3, 3.0, np.random.default_rng(seed))
    kept = seen[seen != MASK]
    assert (
        len(kept) == length - math.ceil(0.3 * length)
        and (np.diff(kept) > 0).all()
        and len(seen) <= length
    )


def test_spans_of_infilling_are_poisson_and_some_hide_nothing():
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(300):
        seen = denoising.infilled(np.arange(1000, 2000), MASK, 0.3, 3.0, rng)
        known = np.concatenate([[999], seen, [2000]])
        gaps = [b - a - 1 for a, b in itertools.pairwise(known[known != MASK])]
        masks = np.diff(np.flatnonzero(known != MASK)) - 1
        # Adjacent spans cannot be told apart.
        lengths += [gap for gap, n in zip(gaps, masks, strict=True) if n == 1]
    counts = np.bincount(lengths, minlength=12)[:12] / len(lengths)
    poisson = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(12)])
    assert np.abs(counts - poisson).max() < 0.012


def test_tokens_are_masked_or_deleted_at_their_rates_and_the_rest_keep_their_order():
    rng, text = np.random.default_rng(0), np.arange(1000, 21000)
    seen = denoising.masked(text, MASK, 0.3, rng)
    assert within((seen == MASK).sum(), len(text), 0.3) and np.array_equal(
        seen[seen != MASK], text[seen != MASK]
    )
    kept = denoising.deleted(text, 0.3, rng)
    assert (
        within(len(text) - len(kept), len(text), 0.3)
        and (np.diff(kept) > 0).all()
        and set(kept) <= set(text)
    )
    assert {len(denoising.deleted(text[:3], 1.0, rng)) for _ in range(20)} == {1}, (
        "a text is not deleted whole"
    )


def test_a_rotation_starts_at_every_token_as_often_and_turns_the_text_around():
    rng, text = np.random.default_rng(0), np.arange(1000, 1008)
    starts = np.zeros(8, int)
    for _ in range(4000):
        seen = denoising.rotated(text, rng)
        starts[seen[0] - 1000] += 1
        assert np.array_equal(np.roll(seen, int(seen[0]) - 1000), text)
    assert all(within(count, 4000, 1 / 8) for count in starts)


def test_the_share_of_texts_that_is_rotated_is_another():
    packed = plain_text.pack([(np.array([END, *range(1, 40), END]), 39)] * 2000, 40)
    rows = made(Denoising(rate=0.0, rotate=0.4).transform(TOKENIZER, BART), packed)
    read = np.stack([row["encoder_tokens"][:39] for row in rows])
    assert (np.sort(read) == np.arange(1, 40)).all() and {
        int(row["encoder_tokens"][39]) for row in rows
    } == {END}
    assert within((read[:, 0] != 1).sum(), len(rows), 0.4 * 38 / 39)


def test_noises_are_combined_in_another_order_than_the_papers():
    order = []
    with pytest.MonkeyPatch.context() as m:
        for name in ("permuted", "masked", "deleted", "infilled", "rotated"):
            m.setattr(denoising, name, lambda text, *_, name=name: order.append(name) or text)
        everything: dict[str, Any] = dict(
            permute_sentences=True, token_mask=0.1, delete=0.1, rotate=1.0
        )
        made(Denoising(**everything).transform(TOKENIZER, BART), pack(["A text. Two."]))
    assert order == ["permuted", "masked", "deleted", "infilled", "rotated"]


NOISES: dict[str, dict[str, Any]] = {
    "permuted": {"permute_sentences": True},
    "masked": {"rate": 0.0, "token_mask": 0.5},
    "all": {"permute_sentences": True, "token_mask": 0.2, "delete": 0.2, "rotate": 1.0},
}


@pytest.mark.parametrize("name", NOISES)
def test_denoising_asks_for_the_document_and_permutes_whole_sentences(name):
    packed = pack()
    transform = Denoising(**NOISES[name]).transform(TOKENIZER, BART)
    for i, row in enumerate(made(transform, packed)):
        given, wanted, whole = pieces(row, "encoder_"), pieces(row), documents(packed, i)
        assert given.keys() == wanted.keys() == whole.keys()
        for segment, text in whole.items():
            assert row["targets"][wanted[segment]].tolist() == text
            assert row["tokens"][wanted[segment]].tolist() == [END, *text[:-1]]
            read = row["encoder_tokens"][given[segment]].tolist()
            assert MASK in read and (text[-1] != END or read[-1] == END)
    text = np.array(TOKENIZER.encode("One. Two.. Three. Four", add_special_tokens=False))
    stops = np.zeros(len(TOKENIZER), bool)
    stops[TOKENIZER.encode(".")[0]] = True
    seen = {
        TOKENIZER.decode(denoising.permuted(text, stops, np.random.default_rng(s)))
        for s in range(200)
    }
    assert seen == {
        "".join(p) for p in itertools.permutations(["One.", " Two..", " Three.", " Four"])
    }


def test_a_prefix_of_any_length_carries_no_loss():
    packed = pack(["abcde"] * 600, 24, whole=False)  # six predictions a document
    seen = np.zeros(6, int)
    for i, row in enumerate(made(PrefixLM().transform(TOKENIZER, LLAMA), packed)):
        assert np.array_equal(row["tokens"], packed.tokens[i]) and np.array_equal(
            row["targets"], packed.targets[i]
        )
        for at in pieces(row).values():
            weights = row["weights"][at]
            assert weights[-1] == 1 and (np.diff(weights) >= 0).all(), (
                "the end is trained, and nothing before the prefix ends"
            )
            seen[int((weights == 0).sum())] += 1
    assert seen[0] == 0 and all(within(count, seen.sum(), 1 / 5) for count in seen[1:])


TRANSFORMS = {
    "masked": (Masked(), BERT),
    "span_corruption": (SpanCorruption(), T5),
    "ul2": (UL2(), T5),
    "denoising": (Denoising(**NOISES["all"]), BART),
    "prefix_lm": (PrefixLM(), LLAMA),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_follow_seed_and_place_change_with_the_epoch_and_survive_a_resume(name):
    task, config = TRANSFORMS[name]
    packed = pack()
    n = len(packed)
    size = 8

    def stream(seed=0):
        rows = sharding.batch_sharding(small.mesh_of(1, 1, 1), (size, packed.length))
        return batches.TrainBatches(
            packed, size, seed, rows, transform=task.transform(TOKENIZER, config)
        )

    def take(iterator, steps):
        found = [next(iterator) for _ in range(steps)]
        names = [
            f
            for f in ("tokens", "targets", "weights", "encoder_tokens")
            if getattr(found[0], f) is not None
        ]
        return np.concatenate(
            [np.concatenate([np.asarray(getattr(b, f)) for b in found]) for f in names], axis=1
        )

    steps = -(-2 * n // size)
    whole = take(stream(), steps)
    assert np.array_equal(whole, take(stream(), steps)) and not np.array_equal(
        whole, take(stream(1), steps)
    )
    first, second = ({row.tobytes() for row in part} for part in (whole[:n], whole[n : 2 * n]))
    assert len(first & second) < n / 4, "an epoch repeats the corruption of the one before"
    iterator, fresh = stream(), stream()
    take(iterator, 3)
    fresh.restore(iterator.position())
    assert np.array_equal(take(fresh, 2), whole[3 * size : 5 * size])


@pytest.mark.parametrize(
    ("task", "config", "options", "words"),
    [
        (Masked, BERT, {"rate": 0.0}, "task.rate=0.0"),
        (Masked, BERT, {"mask": 0.9, "random": 0.2}, "sum to at most 1"),
        (Masked, LLAMA, {}, "model.causal=False"),
        (
            SpanCorruption,
            T5.replace(decoder_start_token_id=None),
            {},
            "decoder_start_token_id",
        ),
        (Denoising, BART, {"rate": 1.5}, "task.rate=1.5"),
        (Denoising, BART, {"delete": -0.1}, "task.delete=-0.1"),
        (Denoising, BART, {"rate": 0.0}, "task.rate=0 and nothing else"),
        (UL2, T5, {"modes": True}, "task.modes=True needs a tokenizer with"),
        (UL2, T5, {"s": -1.0}, "task.s=-1.0"),
        (UL2, T5, {"r": 0.0, "s": 0.0, "x": 0.0}, "no denoiser is left"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(task, config, options, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        task(**options).transform(TOKENIZER, config)


@pytest.mark.parametrize(
    ("task", "config", "words"),
    [
        (Masked, BERT, "mask_token"),
        (Denoising, BART, "mask_token"),
        (SpanCorruption, T5, "sentinels"),
        (UL2, T5, "task 'ul2'.*sentinels"),
    ],
)
def test_a_tokenizer_without_the_special_tokens_is_refused(task, config, words):
    with pytest.raises(ConfigError, match=words):
        task().transform(bytes_only(), config)
    with pytest.raises(ConfigError, match="tokenizer"):
        task().transform(None, config)


def test_a_row_with_more_spans_than_sentinels_is_refused_before_it_is_read():
    transform = SpanCorruption().transform(bytes_only(sentinels=3), T5)
    with pytest.raises(ConfigError, match="3 sentinels"):
        transform.lengths(pack())
