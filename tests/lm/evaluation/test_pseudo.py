"""Pseudo-perplexity against transformers on torch, one masked token and one sentence at a time."""

import json
import math

import numpy as np
import pytest

import lm
from lm import evaluate
from lm.data import tokenizers
from tests.lm.small_models import tiny

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "a",
    "dog",
    "ran",
    "##s",
    ".",
]
TEXTS = [
    "the cat sat on the mat.",
    "a dog ran",
    "cats",
    "the dogs sat on a cat on a mat on the dog",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder, model, tokenizer


def test_a_token_is_seen_while_it_is_predicted_or_not_counted(bert, capsys):
    folder, theirs, tokenizer = bert
    losses = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        for at in range(1, len(ids) - 1):
            masked = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]])
            with torch.no_grad():
                losses.append(-theirs(masked).logits[0, at].log_softmax(-1)[ids[at]].item())
    args = [f"--model={folder}", f"--data={folder}/x.jsonl", "--length=20", "--json"]
    assert evaluate.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["objective"], found["tokens"]) == ("pseudo_perplexity", len(losses))
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-3)
    assert found["bits_per_byte"] is None  # their product is no probability of the text
    assert evaluate.main([*args, "--max-rows=1"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["tokens"] < len(losses)


def test_another_task_is_asked_by_name_and_a_wrong_one_refused(bert, capsys):
    folder, *_ = bert
    args = [f"--model={folder}", f"--data={folder}/x.jsonl", "--length=20"]
    assert evaluate.main([*args, "--objective=masked"]) == 0
    assert capsys.readouterr().out.startswith("masked: loss ")
    assert evaluate.main([*args, "--objective=next_token"]) == 2
    assert "it is one of masked, pseudo_perplexity" in capsys.readouterr().err


@pytest.mark.parametrize("name, tokens", [("t5", {"sentinels": 100}), ("bart", {"mask": True})])
def test_an_encoder_decoder_is_not_asked_its_own_task(name, tokens, tmp_path, capsys):
    tokenizer = tokenizers.bytes_only(**tokens)
    model, params = tiny(name, vocab_size=384)
    lm.to_hf(model, params, str(tmp_path / "model"), tokenizer=tokenizer)
    (tmp_path / "x.txt").write_text("one text of some length, to be read in windows. " * 3)
    args = [f"--model={tmp_path}/model", f"--data={tmp_path}/x.txt", "--length=32", "--json"]
    assert evaluate.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objective"] == {"t5": "span_corruption", "bart": "denoising"}[name]
    assert math.isfinite(found["loss"]) and found["bits_per_byte"] is None
