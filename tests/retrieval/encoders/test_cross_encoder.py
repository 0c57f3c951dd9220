"""CrossEncoder scores equal transformers' on torch, and reorder a memory's hits."""

import numpy as np
import pytest
import transformers

from retrieval import CrossEncoder, Memory, Passage, RetrievalError
from tests.retrieval.models import save_reader, word_tokenizer
from tests.retrieval.toy import encode

TEXTS = ["a", "towns by the sea", "the sea " * 30, "b c d", "ports", "hills and ports", "x y z"]


def saved(path, labels):
    import torch

    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.3,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


@pytest.mark.parametrize("labels", [1, 2])
def test_a_score_is_not_that_of_transformers_on_torch(tmp_path, labels):
    import torch

    model, tokenizer = saved(tmp_path, labels)
    given = CrossEncoder.from_hf(tmp_path)("where is the port", TEXTS)
    for text, score in zip(TEXTS, given, strict=True):
        pair = tokenizer(
            "where is the port", text, truncation="only_second", max_length=64, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**pair).logits[0]
        assert score == pytest.approx(
            float(logits[-1] - logits[0] if labels == 2 else logits[0]), abs=2e-4
        )
    assert len(set(np.round(given, 3))) > 3 and len(CrossEncoder.from_hf(tmp_path)("a", [])) == 0


def test_a_separator_in_a_passage_counts_as_one(tmp_path):
    saved(tmp_path, 1)
    spelled, words = CrossEncoder.from_hf(tmp_path)(
        "the port", ["a [SEP] town [CLS]", "a SEP town CLS"]
    )
    assert spelled == words


def test_a_memory_does_not_order_by_the_reranker_or_ranks_what_was_not_found(tmp_path):
    saved(tmp_path / "model", 1)
    rerank = CrossEncoder.from_hf(tmp_path / "model")
    memory = Memory.create(tmp_path / "memory", encode)
    memory.add([Passage(f"p{i}", text.strip(), title="towns") for i, text in enumerate(TEXTS)])
    hits = memory.search(["the port"], 3, rerank=rerank)[0]
    expected = rerank("the port", [f"towns. {text.strip()}" for text in TEXTS])
    assert [hit.id for hit in hits] == [f"p{i}" for i in np.argsort(-expected)[:3]]
    assert [hit.score for hit in hits] == pytest.approx(
        sorted(expected, reverse=True)[:3], abs=1e-4
    )


def test_what_scores_no_pairs_is_taken(tmp_path):
    save_reader(tmp_path / "reader")
    with pytest.raises(RetrievalError, match="head='causal_lm' scores no pairs"):
        CrossEncoder.from_hf(tmp_path / "reader")
    saved(tmp_path / "three", 3)
    with pytest.raises(RetrievalError, match="with 3 labels"):
        CrossEncoder.from_hf(tmp_path / "three")
    saved(tmp_path / "one", 1)
    with pytest.raises(RetrievalError, match="of the reranker's 64 tokens"):
        CrossEncoder.from_hf(tmp_path / "one")("long " * 40, ["a"])
