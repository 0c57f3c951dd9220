"""Labelled records: equal in every format, encoded as by transformers; errors name the record."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from lm.data.encode import labels as label_rows
from lm.data.encode.labels import Shape
from lm.data.read.sources import DataError, Tally
from lm.data.records import labels as labelled
from lm.data.tokenizers import bytes_only
from lm.tasks import TASKS

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{x}" for x in "abcdefghijklmnopqrstuvwxyz"),
]


def word_piece():
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_format_reads_other_records_than_jsonl(tmp_path):
    rows = [{"text": "ab, cd", "label": "x"}, {"text": 'a "quoted"\ttext', "label": "y"}]
    wanted = [
        (r.text, r.label)
        for r in labelled.read(write(tmp_path / "a.jsonl", rows), TASKS["classification"]().record)
    ]
    (tmp_path / "a.csv").write_text('text,label\n"ab, cd",x\n"a ""quoted""\ttext",y\n')
    (tmp_path / "a.tsv").write_text('label\ttext\nx\tab, cd\ny\t"a ""quoted""\ttext"\n')
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.csv", "a.tsv", "a.json"):
        found = labelled.read(str(tmp_path / name), TASKS["classification"]().record)
        assert [(r.text, r.label) for r in found] == wanted, name


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("classification", {"text": "a"}, r"line 2: no field 'label'; it has 'text'"),
        ("classification", {"text": "a", "label": None}, r"line 2: field 'label' is null"),
        ("classification", {"text": " ", "label": "x"}, r"line 2: field 'text' is empty"),
        (
            "classification",
            {"text": "a", "label": "z"},
            r"line 2: the label 'z' is unknown; known are x, y",
        ),
        ("classification", {"text": "a", "label": 1.5}, r"line 2: the label 1\.5 is float"),
        (
            "token_classification",
            {"text": ["a"], "tags": ["x", "y"]},
            r"1 words in 'text' and 2 tags",
        ),
        ("token_classification", {"text": ["a", " "], "tags": ["x", "y"]}, r"an empty word"),
        (
            "question_answering",
            {"question": "q", "context": "abc", "answers": [{"text": "b", "answer_start": 2}]},
            r"'b' is not at character 2",
        ),
        (
            "question_answering",
            {"question": "q", "context": "abc", "answers": []},
            r"has no answer",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_learned_from(tmp_path, task, row, message):
    good: dict = (
        {"text": ["a"], "tags": ["x"]}
        if task == "token_classification"
        else {"text": "a", "label": "x"}
    )
    good |= {"question": "q", "context": "abc", "answers": [{"text": "b", "answer_start": 1}]}
    file, make = write(tmp_path / "a.jsonl", [good, row, good, good]), TASKS[task]().record
    with pytest.raises(DataError, match=message):
        labelled.read(file, make, names=("x", "y"))
    tally = Tally()
    assert (
        len(labelled.read(file, make, names=("x", "y"), max_bad_share=0.25, tally=tally)) == 3
        and tally.bad == 1
    )
    with pytest.raises(DataError, match=r"more than data\.max_bad_share"):
        labelled.read(file, make, names=("x", "y"), max_bad_share=0.2)


def test_names_depend_on_the_order_of_records_or_sort_numbers_as_texts():
    texts = lambda *labels: [labelled.Text("a", "", label, "") for label in labels]
    assert labelled.names_of(texts("b", "a", "b")) == ("a", "b")
    assert labelled.names_of(texts(10, 2, 0)) == ("0", "2", "10")
    with pytest.raises(DataError, match="nothing to tell apart"):
        labelled.names_of(texts("a", "a"))


@pytest.mark.parametrize("length", [64, 9])
def test_a_pair_is_framed_or_cut_otherwise_than_by_transformers(length):
    tokenizer = word_piece()
    records = [
        labelled.Text("ab cd e", "f gh", "x", ""),
        labelled.Text("a", "bcdefghijkl", "x", ""),
        labelled.Text("abcdefghij", "k", "x", ""),
    ]
    rows = list(
        label_rows.encode(
            records, tokenizer, label_rows.texts, Shape(length, types=True, pairs=True), ("x", "y")
        )
    )
    for record, row in zip(records, rows, strict=True):
        theirs = tokenizer(
            record.text,
            record.pair,
            truncation="longest_first",
            max_length=length,
            return_token_type_ids=True,
        )
        assert (row.ids, row.types) == (theirs["input_ids"], theirs["token_type_ids"])


def test_a_tag_is_on_another_piece_than_its_words_first_or_a_word_is_lost():
    record = labelled.Words(("ab", "c", "def", "g"), ("x", "y", "x", "y"), "")
    rows = list(label_rows.encode([record], word_piece(), label_rows.words, Shape(7), ("x", "y")))
    said = [
        (WORDS[i], "xy"[t])
        for row in rows
        for i, t, w in zip(row.ids, row.targets or (), row.weights or (), strict=True)
        if w
    ]
    assert said == [("a", "x"), ("c", "y"), ("d", "x"), ("g", "y")] and len(rows) == 2
    packed = label_rows.pack(rows * 3, [4] * 3, Shape(14))
    assert len(packed) == 3 and packed.segments.max() == 2 and packed.extra["weights"].sum() == 12


def test_a_window_misses_a_part_of_the_context_or_points_beside_the_answer():
    context = "".join(chr(97 + i % 26) + " " * (i % 3 == 0) for i in range(100))
    text = context[70:76]
    record = labelled.Question("1", "what is it", context, ((70, text),), "")
    rows = list(
        label_rows.encode(
            [record], bytes_only(), label_rows.windows, Shape(40, types=True, pairs=True, stride=9)
        )
    )
    seen = {span for row in rows for span in row.spans}
    assert seen == {(i, i + 1) for i in range(len(context))}
    starts = [row.spans[0][0] for row in rows]
    assert set(np.diff(starts)) == {9}
    whole = 0
    for row in rows:
        inside = row.spans[0][0] <= 70 and row.spans[-1][1] >= 76
        first, last = map(int, row.labels)
        assert len(row.ids) <= 40 and row.types[row.offset] == 1 and row.types[1] == 0
        if inside:
            assert (
                context[row.spans[first - row.offset][0] : row.spans[last - row.offset][1]] == text
            )
            whole += 1
        else:
            assert (first, last) == (0, 0)
    assert whole > 1
    assert (
        len(
            list(
                label_rows.encode(
                    [record], bytes_only(), label_rows.windows, Shape(200, pairs=True, stride=9)
                )
            )
        )
        == 1
    )


def test_every_answer_of_xquad_is_where_its_rows_point():
    file = pathlib.Path(__file__).parents[4] / "shared" / "data" / "xquad" / "xquad.en.dev.json"
    if not file.exists():
        pytest.skip("xquad is not on this machine")
    records = labelled.read(str(file), TASKS["question_answering"]().record)[:40]
    for row in label_rows.encode(
        records, bytes_only(), label_rows.windows, Shape(384, pairs=True, stride=128)
    ):
        first, last = (int(x) - row.offset for x in row.labels)
        if row.labels != (0.0, 0.0):
            _, text = records[row.document].answers[0]
            assert records[row.document].context[row.spans[first][0] : row.spans[last][1]] == text
