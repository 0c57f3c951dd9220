"""Trained tokenizers: every string round-trips, and transformers reads the saved files."""

import json
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lm import train_tokenizer
from lm.data import batches, tokenizers
from lm.data.encode import labels as label_rows
from lm.data.encode import plain_text
from lm.data.records import labels as labelled
from lm.families import preset
from lm.tasks import Masked, SpanCorruption, span_corruption

TEXTS = ["the cat sat on the mat", "the cats sat on the mats", "naïve café"] * 4
TRAINED = tokenizers.train(TEXTS, 280)
WORDPIECE = tokenizers.train(TEXTS, 48, "wordpiece")
UNIGRAM = tokenizers.train(TEXTS, 40, "unigram", sentinels=8)


@given(st.text())
def test_a_string_does_not_come_back(text):
    for tokenizer in (TRAINED, tokenizers.bytes_only()):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode("utf-8")


def test_training_merges_nothing():
    ids = TRAINED("the cat sat on the mat")["input_ids"]
    assert len(ids) < 22 and len(TRAINED) == 280
    assert len(tokenizers.bytes_only()("the cat")["input_ids"]) == 7


def test_the_entry_point_saves_what_transformers_cannot_read(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXTS))
    args = [
        f"--input={tmp_path}/*.jsonl",
        "--field=body",
        "--vocab_size=280",
        f"--output={tmp_path}/out",
    ]
    assert train_tokenizer.main(args) == 0
    assert "280 tokens from 12 documents" in capsys.readouterr().out
    loaded: Any = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert loaded("the cats")["input_ids"] == TRAINED("the cats")["input_ids"]
    assert loaded.eos_token == loaded.bos_token == tokenizers.END
    assert loaded("a" + tokenizers.END)["input_ids"][-1] == loaded.eos_token_id


@given(st.lists(st.text("thecasonmïfé", min_size=1), min_size=1))
def test_words_of_known_characters_do_not_come_back_from_unigram(words):
    ids = UNIGRAM("  " + " \n ".join(words) + " ", add_special_tokens=False)["input_ids"]
    assert UNIGRAM.unk_token_id not in ids and UNIGRAM.decode(ids) == " ".join(words)


def test_wordpiece_does_not_spell_words_as_bert_does():
    text = "the cats sat on the café"
    assert WORDPIECE.decode(WORDPIECE(text)["input_ids"], skip_special_tokens=True) == text
    tokens = WORDPIECE.convert_ids_to_tokens(WORDPIECE("the mats, zebra")["input_ids"])
    assert (
        tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and tokens[-2] == "[UNK]" and "the" in tokens
    )
    pair = WORDPIECE("the", "cat")
    assert WORDPIECE.convert_ids_to_tokens(pair["input_ids"]) == [
        "[CLS]",
        "the",
        "[SEP]",
        "cat",
        "[SEP]",
    ]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    lower = tokenizers.train(TEXTS, 60, "wordpiece", lowercase=True)
    assert (
        lower("THE Café")["input_ids"] == lower("the cafe")["input_ids"]
        and WORDPIECE.unk_token_id in WORDPIECE("THE")["input_ids"]
    )


def test_unigram_does_not_end_a_text_as_t5_does_or_its_sentinels_are_elsewhere():
    assert (
        UNIGRAM("the cat")["input_ids"][-1] == UNIGRAM.eos_token_id == 1
        and UNIGRAM.pad_token_id == 0
    )
    assert UNIGRAM.convert_tokens_to_ids("<extra_id_0>") == len(UNIGRAM) - 1 and len(UNIGRAM) <= 40
    assert len(span_corruption.sentinels(UNIGRAM)) == 8
    assert UNIGRAM.tokenize("<extra_id_3>the") == ["<extra_id_3>", *UNIGRAM.tokenize("the")]


@pytest.mark.parametrize("model", tokenizers.MODELS)
def test_what_is_saved_is_another_tokenizer(tmp_path, model):
    more: Any = (
        {} if model == "wordpiece" else {"special": ["<mask>", "<|im_start|>"], "sentinels": 3}
    )
    made = tokenizers.train(TEXTS, 300, model, **more)
    made.save_pretrained(str(tmp_path))
    loaded: Any = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (
        loaded.is_fast
        and loaded.get_vocab() == made.get_vocab()
        and loaded.special_tokens_map == made.special_tokens_map
    )
    assert sorted(loaded.all_special_ids) == sorted(made.all_special_ids)
    text = "the <mask> cats<|im_start|>  sat [SEP] naïve\n<extra_id_1>"
    for split in (True, False):
        assert (
            loaded(text, split_special_tokens=split)["input_ids"]
            == made(text, split_special_tokens=split)["input_ids"]
        )
    assert loaded.decode(loaded(text)["input_ids"]) == made.decode(made(text)["input_ids"])
    assert loaded("the", "cat").data == made("the", "cat").data
    assert loaded.mask_token == ("[MASK]" if model == "wordpiece" else "<mask>")


def made(transform, packed):
    """Fields of every row."""
    rows, lengths = (
        batches.Rows(packed),
        transform.lengths(packed) if transform.lengths else (packed.length, 0),
    )
    return [
        transform.fields(rows[i], np.random.default_rng((0, i)), lengths) for i in range(len(rows))
    ]


def test_whole_words_of_wordpiece_are_not_hidden_whole_or_special_tokens_are():
    packed = plain_text.pack(
        plain_text.encode(["caton thesat maths the", "onto mates"] * 20, WORDPIECE, whole=True), 40
    )
    tokens = np.array(WORDPIECE.convert_ids_to_tokens(list(range(len(WORDPIECE)))))
    hidden = split = 0
    masked = Masked(rate=0.5, whole_words=True)
    for row in made(masked.transform(WORDPIECE, preset("bert", "tiny")), packed):
        chosen = row["weights"] > 0
        assert not np.isin(tokens[row["targets"][chosen]], ["[CLS]", "[SEP]"]).any()
        continues = np.char.startswith(tokens[row["targets"]], "##")
        assert np.array_equal(chosen[1:][continues[1:]], chosen[:-1][continues[1:]])
        hidden += (row["tokens"] == WORDPIECE.mask_token_id).sum()
        split += continues.sum()
    assert hidden > 20 and split > 20


def test_unigram_loses_text_in_span_corruption():
    packed = plain_text.pack(plain_text.encode(TEXTS, UNIGRAM, whole=True), 40)
    marks = span_corruption.sentinels(UNIGRAM).tolist()
    config = preset("t5", "tiny").replace(decoder_start_token_id=0)
    rows = made(SpanCorruption().transform(UNIGRAM, config), packed)
    count = 0
    for row in rows:
        for segment in range(1, int(row["segments"].max()) + 1):
            written = row["targets"][row["segments"] == segment].tolist()
            read = row["encoder_tokens"][row["encoder_segments"] == segment].tolist()
            assert read[-1] == written[-1] == UNIGRAM.eos_token_id
            spans = {mark: written[written.index(mark) + 1 :] for mark in marks if mark in written}
            text = [
                i
                for t in read[:-1]
                for i in ([t] if t not in marks else spans[t][: _until(spans[t], marks)])
            ]
            assert UNIGRAM.decode(text) in TEXTS
            count += 1
    assert count == len(TEXTS)


def _until(ids, marks):
    """Number of ids before the next sentinel or the end token."""
    return next(i for i, x in enumerate(ids) if x in marks or x == UNIGRAM.eos_token_id)


def test_a_pair_for_a_classifier_is_not_what_the_tokenizer_itself_makes():
    record = labelled.Text("the cat sat", "on the mats", "x", "")
    shape = label_rows.Shape(32, types=True, pairs=True)
    (row,) = label_rows.encode([record], WORDPIECE, label_rows.texts, shape, ("x", "y"))
    theirs = WORDPIECE(record.text, record.pair)
    assert (row.ids, row.types) == (theirs["input_ids"], theirs["token_type_ids"])


def test_the_entry_point_ignores_an_option(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("\n".join(TEXTS))
    args = [
        f"--input={tmp_path}/x.txt",
        "--separator=\n",
        "--vocab_size=60",
        f"--output={tmp_path}/out",
    ]
    assert (
        train_tokenizer.main(
            [
                *args,
                "--model=unigram",
                "--sentinels=4",
                "--special_tokens=<mask>,<x>",
                "--lowercase",
            ]
        )
        == 0
    )
    assert "from 12 documents" in capsys.readouterr().out
    loaded: Any = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert loaded.mask_token == "<mask>" and len(span_corruption.sentinels(loaded)) == 4
    assert "<x>" in loaded.all_special_tokens and loaded.tokenize("THE CAT") == loaded.tokenize(
        "the cat"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input={}/y.txt", "--model=wordpiece", "--vocab_size=5"], "too small"),
        (["--input={}/y.txt", "--model=wordpiece", "--vocab_size=8"], "which come to"),
        (["--input={}/y.txt", "--model=unigram", "--vocab_size=5"], "too small"),
        (
            ["--input={}/y.txt", "--model=unigram", "--sentinels=100", "--vocab_size=100"],
            "the other special tokens 100",
        ),
        (["--input={}/x.txt", "--model=unigram"], "no document"),
        (["--input={}/bad.jsonl", "--model=unigram"], "bad.jsonl, line 2"),
        (["--input={}/y.txt", "--lowercase"], "lowercase is not for model=bpe"),
        (
            ["--input={}/y.txt", "--model=wordpiece", "--sentinels=2"],
            "sentinels are not for model=wordpiece",
        ),
        (["--input={}/y.txt", "--model=unigram", "--special_tokens=<pad>"], "there twice: <pad>"),
        (["--input=nowhere*"], "no file matches"),
        (["--input={}/x.txt"], "no document"),
        (["--input={}/y.txt", "--vocab_size=256"], "too small"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(tmp_path, capsys, args, said):
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "y.txt").write_text("text")
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"text": 3}\n')
    assert (
        train_tokenizer.main([a.format(tmp_path) for a in args] + [f"--output={tmp_path}/out"]) == 2
    )
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
