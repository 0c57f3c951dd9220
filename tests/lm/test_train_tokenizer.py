"""python -m lm.train_tokenizer: transformers, tokenizers and training read its output."""

import json
import pathlib
import re
import shlex
from typing import Any

import pytest
import tokenizers as library
import transformers

from lm import preview, train_tokenizer
from lm.data import tokenizers
from lm.tasks import span_corruption

ROOT = pathlib.Path(__file__).parents[2]
PARAGRAPHS = [
    " ".join(p.split()) for p in (ROOT / "LICENSE").read_text().split("\n\n") if p.strip()
]
OPTIONS = {
    "bpe": ["--special_tokens=<mask>,<x>", "--sentinels=4"],
    "wordpiece": ["--lowercase"],
    "unigram": ["--sentinels=16"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with x.jsonl, and a tokenizer of 400 tokens for each model in its own folder."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in PARAGRAPHS))
    for model, more in OPTIONS.items():
        assert train(folder / "x.jsonl", folder / model, f"--model={model}", *more) == 0
    return folder


def train(source, output, *more) -> int:
    return train_tokenizer.main(
        [f"--input={source}", f"--output={output}", "--vocab_size=400", *more]
    )


def loaded(path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(path))


@pytest.mark.parametrize("model", tokenizers.MODELS)
def test_text_is_lost_or_the_libraries_disagree(made, model):
    ours, theirs = (
        loaded(made / model),
        library.Tokenizer.from_file(str(made / model / "tokenizer.json")),
    )
    for text in PARAGRAPHS:
        wanted = text.lower() if model == "wordpiece" else text
        ids = ours(text)["input_ids"]
        assert ids == theirs.encode(text).ids and ours.unk_token_id not in ids
        back = ours.decode(ids, skip_special_tokens=True)
        assert (
            "".join(back.split()) == "".join(wanted.split())
            if model == "wordpiece"
            else back == wanted
        )
    assert len(ours) == theirs.get_vocab_size() == 400


@pytest.mark.parametrize(
    ("model", "ids"),
    [
        (
            "bpe",
            {"<|endoftext|>": 0, "<mask>": 1, "<x>": 2, "<extra_id_3>": 396, "<extra_id_0>": 399},
        ),
        ("wordpiece", {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}),
        ("unigram", {"<pad>": 0, "</s>": 1, "<unk>": 2, "<extra_id_15>": 384, "<extra_id_0>": 399}),
    ],
)
def test_a_special_token_is_elsewhere_or_is_cut_up(made, model, ids):
    tokenizer = loaded(made / model)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert set(ids) <= set(tokenizer.all_special_tokens)
    for token, number in ids.items():
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [number]
    if model != "wordpiece":
        first = ids["<extra_id_0>"]
        assert span_corruption.sentinels(tokenizer).tolist() == [
            first - i for i in range(16 if model == "unigram" else 4)
        ]


def test_byte_pairs_depend_on_how_the_text_is_stored(made, tmp_path):
    """Byte-level BPE only: the library trains WordPiece and Unigram non-deterministically."""
    (tmp_path / "whole.txt").write_text("\n\n".join(PARAGRAPHS))
    for number in range(3):
        (tmp_path / f"part{number}.txt").write_text("\n\n".join(PARAGRAPHS[number::3]))
    for source, more in (("whole.txt", ["--separator=\n\n"]), ("part*.txt", ["--separator=\n\n"])):
        assert train(tmp_path / source, tmp_path / "out", *OPTIONS["bpe"], *more) == 0
        assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
            made / "bpe" / "tokenizer.json"
        ).read_bytes()
    streamed = tokenizers.train(
        (p for p in PARAGRAPHS), 400, special=["<mask>", "<x>"], sentinels=4
    )
    assert streamed.get_vocab() == loaded(made / "bpe").get_vocab()


@pytest.mark.parametrize(
    ("variant", "model", "marks"),
    [("masked,bert", "wordpiece", {"[MASK]"}), ("span_corruption,t5", "unigram", {"<extra_id_0>"})],
)
def test_a_run_cannot_use_it(made, capsys, variant, model, marks):
    config = f"--config={ROOT / 'configs/smoke.py'}:{variant}"
    args = [
        config,
        f"--config.tokenizer={made / model}",
        f"--config.data.files={made / 'x.jsonl'}",
        "--json",
        "--rows=8",
    ]
    assert (
        preview.main([*args, f"--workdir={made / 'run'}", f"--config.data.cache={made / 'cache'}"])
        < 2
    )
    shown = json.loads(capsys.readouterr().out)
    assert marks <= {
        piece["text"]
        for row in shown["rows"]
        for piece in [*row["tokens"], *(row["encoder"] or [])]
    }
    failed = {check["name"] for check in shown["checks"] if check["ok"] is False}
    # Cut documents leave windows of one or two tokens.
    assert failed <= {"training: duplicates"}


def test_an_unknown_model_is_not_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train("x.txt", tmp_path / "out", "--model=sentencepiece")
    assert stop.value.code == 2 and "invalid choice: 'sentencepiece'" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="model='sentencepiece' is unknown; one of bpe, wordpiece, unigram"
    ):
        tokenizers.train(PARAGRAPHS, 400, "sentencepiece")


def test_the_commands_of_the_page_do_not_run(made, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "data.md").read_text()
    commands = re.findall(r"^    openbook train-tokenizer (.*)", page, re.MULTILINE)
    assert len(commands) == 3
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "x.jsonl").write_text((made / "x.jsonl").read_text())
    monkeypatch.chdir(tmp_path)
    for command in commands:  # as on the page, except downloads and sizes
        words = shlex.split(
            re.sub(
                r"vocab_size=\d+", "vocab_size=400", command.replace("tfds:wiki", "wiki/*.jsonl")
            )
        )
        assert train_tokenizer.main(words) == 0
        assert f"400 tokens from {len(PARAGRAPHS)} documents" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted(tokenizers.MODELS)
    assert len(span_corruption.sentinels(loaded(tmp_path / "runs" / "unigram"))) == 100
