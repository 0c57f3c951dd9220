"""Tokenizers of one's own: any string comes back, and transformers reads what was saved."""

import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lm import train_tokenizer
from lm.data import tokenizers

TEXTS = ["the cat sat on the mat", "the cats sat on the mats", "naïve café"] * 4
TRAINED = tokenizers.train(TEXTS, 280)


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
    args = [f"--input={tmp_path}/*.jsonl", "--field=body", "--vocab_size=280", f"--output={tmp_path}/out"]
    assert train_tokenizer.main(args) == 0
    assert "280 tokens from 12 documents" in capsys.readouterr().out
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert loaded("the cats")["input_ids"] == TRAINED("the cats")["input_ids"]
    assert loaded.eos_token == loaded.bos_token == tokenizers.END
    assert loaded("a" + tokenizers.END)["input_ids"][-1] == loaded.eos_token_id


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input=nowhere*"], "no file matches"),
        (["--input={}/x.txt"], "no document"),
        (["--input={}/y.txt", "--vocab_size=256"], "too small"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(tmp_path, capsys, args, said):
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "y.txt").write_text("text")
    assert train_tokenizer.main([a.format(tmp_path) for a in args] + [f"--output={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
