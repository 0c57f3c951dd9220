"""Every task with its families: it learns, resumes bit for bit, and previews correctly.

One family of each kind runs here; `python -m pytest -m slow tests/lm/test_smoke.py` runs all.
"""

import itertools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from lm.data.preview import preview
from lm.families import FAMILIES
from lm.tasks import TASKS
from lm.tasks.policy import Policy
from lm.tasks.preference import Pairs
from lm.training import checkpoints, loop, setup, trackers
from lm.weights.runs import weights as run_weights

QUICK = [
    "next_token,gpt2",
    "instruct,llama",
    "prefix_lm,mamba",
    "masked,bert",
    "span_corruption,t5",
    "ul2,t5",
    "denoising,bart",
]
QUICK += [
    "classification,bert",
    "token_classification,roberta",
    "question_answering,llama",
    "contrastive,bert",
]
SHORTER = {  # a quick run; its loss is below the same limit after fewer and smaller updates
    "batch_size": 8,
    "steps": 20,
    "optimizer.warmup": 5,
    "log.every": 10,
    "checkpoint.every": 15,
}
SHORT = {variant: SHORTER for variant in QUICK}
SHORT |= {v: SHORTER | {"optimizer.learning_rate": 3e-2} for v in ("span_corruption,t5", "ul2,t5")}
SHORT["classification,bert"] = SHORTER | {"steps": 30, "optimizer.learning_rate": 1e-2}
SHORT["contrastive,bert"] = SHORTER | {"batch_size": 16}
EXAMPLES = pathlib.Path(smoke.__file__).parent / "examples"
ALL = [
    f"{name},{family}" for name in smoke.BELOW for family in FAMILIES if smoke.suits(name, family)
]


def kinds(row):
    return [piece.kind for piece in row.tokens if piece.kind != "padding"]


def right_next_token(row):
    starts = [
        i
        for i, p in enumerate(row.tokens)
        if p.segment and (not i or row.tokens[i - 1].segment != p.segment)
    ]
    return all(
        (piece.kind == "trained") == (i not in starts)
        for i, piece in enumerate(row.tokens)
        if piece.kind != "padding"
    )


right_distillation = right_next_token


def right_instruct(row):
    """Each document's answer and its end carry the loss, its prompt none."""
    documents = itertools.groupby(
        (p for p in row.tokens if p.segment), key=lambda piece: piece.segment
    )
    shown = [list(document) for _, document in documents]
    return all(
        re.fullmatch("c+t+", "".join(p.kind[0] for p in document)) and document[-1].special
        for document in shown
    )


def right_prefix_lm(row):
    """Each document is a context of at least its start and one token, then a trained part."""
    documents = itertools.groupby(
        (p for p in row.tokens if p.segment), key=lambda piece: piece.segment
    )
    return all(
        re.fullmatch("c{2,}t+|ct", "".join(piece.kind[0] for piece in document))
        for _, document in documents
    )


def right_masked(row):
    hidden = [piece for piece in row.tokens if piece.kind == "trained"]
    return 0 < len(hidden) < 30 and any(piece.text == "<mask>" and piece.target for piece in hidden)


right_replaced_token_detection = right_masked


def right_span_corruption(row):
    read, written = ([piece.text for piece in side] for side in (row.encoder, row.tokens))
    return "<extra_id_0>" in read and "<extra_id_0>" in written and "context" not in kinds(row)[1:2]


def right_ul2(row):
    """In each document input and output complete each other, with each sentinel as one token."""
    for segment in {piece.segment for piece in row.tokens if piece.segment}:
        read, written = (
            [piece.text for piece in side if piece.segment == segment]
            for side in (row.encoder, row.tokens)
        )
        marks = [
            [text for text in side if text.startswith("<extra_id_")] for side in (read, written)
        ]
        if (
            marks[0] != marks[1]
            or not written[1].startswith("<extra_id_0>")
            or not read[-1] == written[-1] == written[0]
        ):
            return False
    return "context" not in kinds(row)[1:2]


def right_denoising(row):
    return "<mask>" in [piece.text for piece in row.encoder] and "<mask>" not in [
        piece.text for piece in row.tokens
    ]


def right_classification(row):
    """Only the label is trained, is shown by name, and is that of the text."""
    text = "".join(piece.text for piece in row.tokens if not piece.special).replace("·", " ")
    return row.said in [
        f"label {line['label']}" for line in _lines("topics.jsonl") if line["text"] == text
    ]


def right_token_classification(row):
    """Only the first piece of each word has the word's tag, shown by name."""
    tagged = {
        (word, tag)
        for line in _lines("names.jsonl")
        for word, tag in zip(line["tokens"], line["tags"], strict=True)
    }
    spelled, tags = [], []
    for piece in row.tokens:
        if piece.kind == "trained":
            spelled.append(piece.text)
            tags.append(piece.target)
        elif piece.kind == "context" and not piece.special:
            spelled[-1] += piece.text
    return set(zip(spelled, tags, strict=True)) <= tagged and {"B-PER", "B-LOC", "O"} <= set(tags)


def right_question_answering(row):
    """The answer's tokens are marked, and follow the question."""
    marked = "".join(piece.text for piece in row.tokens if piece.kind == "trained").replace(
        "·", " "
    )
    text = "".join(piece.text for piece in row.tokens).replace("·", " ")
    articles = json.loads((EXAMPLES / "questions.json").read_text())["data"]
    asked = [
        (q["question"], q["answers"][0]["text"])
        for a in articles
        for p in a["paragraphs"]
        for q in p["qas"]
    ]
    found = [answer for question, answer in asked if f">{question}<" in text]
    return row.said == f"answer {marked}" and marked in found


def right_contrastive(row):
    """A question, its own passage as the target, and another passage."""
    texts = [
        "".join(p.text for p in row.tokens if p.segment == number).replace("·", " ")
        for number in (1, 2, 3)
    ]
    trained = {p.segment for p in row.tokens if p.kind == "trained"}
    return texts in [
        [line["question"], line["passage"], *line["others"]] for line in _lines("pairs.jsonl")
    ] and trained == {2}


def _lines(name):
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[] if v in QUICK else [pytest.mark.slow]) for v in ALL]
)
def test_a_task_learns_resumes_and_shows_what_it_asks(
    variant, tmp_path, compiled_once, monkeypatch
):
    prepared, prepare = [], setup.prepare
    monkeypatch.setattr(setup, "prepare", lambda *a: prepared.append(prepare(*a)) or prepared[-1])
    config = smoke.get_config(variant)
    config.update_from_flattened_dict(SHORT.get(variant, {}))
    config.data.cache = str(tmp_path / "cache")
    config.log.tensorboard = False
    assert loop.train(config, tmp_path / "whole") == 0
    rows = trackers.read(tmp_path / "whole")
    name = config.task.name
    assert (
        rows[0]["loss"] > (smoke.BELOW[name] if name in smoke.LABELLED else 5)
        and rows[-1]["loss"] < smoke.BELOW[name]
    ), f"{rows[0]['loss']} -> {rows[-1]['loss']}"

    half, end = checkpoints.steps(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(next((tmp_path / "half" / "checkpoints").glob(f"*{end}")))
    assert checkpoints.steps(tmp_path / "half") == [half]
    assert loop.train(config, tmp_path / "half") == 0
    whole, again = (
        jax.tree.leaves(run_weights.load_params(tmp_path / run)[1]) for run in ("whole", "half")
    )
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))

    run = prepared[-1]  # of the resumed run
    batch = jax.device_get(next(setup.train_source(config, run, setup.training_data(config, run))))
    shifted = run.model.config.causal or bool(run.model.config.encoder_layers)
    shown = preview.rows(
        batch, run.tokenizer, shifted=shifted, task=run.task, names=run.model.config.label_names
    )
    right = globals()[f"right_{name}"]
    assert len(shown) == config.batch_size and sum(map(right, shown)) >= 0.9 * len(shown)


def test_smoke_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="did you mean 'masked'"):
        smoke.get_config("maskd,bert")
    with pytest.raises(ValueError, match="masked_lm, and gpt2 has causal_lm"):
        smoke.get_config("masked,gpt2")


def test_every_task_has_a_smoke_run():
    apart = (Pairs, Policy)  # test_preference and test_policy train and resume them
    learned = {name for name, kind in TASKS.items() if not issubclass(kind, apart)}
    assert set(smoke.BELOW) == learned, learned ^ set(smoke.BELOW)
