"""Start and end tokens: the tokenizer saved with a run frames a text as training did."""

import json

import pytest
import transformers

import lm
from lm.data import packing, tokenizers
from lm.data.encoding import affixes, prompt_ids
from lm.objectives import OBJECTIVES
from lm.training import documents


@pytest.mark.parametrize(
    "objective", ["next_token", "prefix_lm", "masked", "span_corruption", "ul2", "denoising"]
)
@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "unigram", "gpt2", "llama"])
def test_a_text_is_framed_unlike_a_packed_document(tmp_path, objective, kind):
    tokenizer = make(kind)
    if kind == "wordpiece" and objective in ("next_token", "prefix_lm"):
        return  # without an end-of-text token its documents are refused
    whole = OBJECTIVES[objective].whole
    document = next(packing.encode(["hello"], tokenizer, whole))[0].tolist()
    framed = documents.as_trained(tokenizer, objective)
    framed.save_pretrained(tmp_path)
    for again in (framed, lm.load_tokenizer(tmp_path)):
        assert again.encode("hello") == (document[1:] if whole else document[:-1])
        assert prompt_ids(again, "hello", encoder=whole) == again.encode("hello")
        assert affixes(again)[1] == (document[-1:] if whole else [])


def make(kind):
    if kind == "bytes":
        return tokenizers.bytes_only()
    if kind == "llama":
        pieces = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", "▁", *"hello a"])}
        return transformers.LlamaTokenizer(vocab=pieces, merges=[], add_bos_token=False)
    trained = tokenizers.train(
        ["hello world a b c"] * 9, 300 if kind == "gpt2" else 40, "bpe" if kind == "gpt2" else kind
    )
    if kind != "gpt2":
        return trained
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return transformers.GPT2Tokenizer(vocab=model["vocab"], merges=merges)
