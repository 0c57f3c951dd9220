"""Start and end tokens: the tokenizer saved with a run frames a text as training did."""

import json

import pytest
import transformers

import lm
from lm.data import tokenizers
from lm.data.encode import plain_text
from lm.data.encode.encoding import affixes, prompt_ids
from lm.families import preset
from lm.models import build
from lm.tasks import TASKS, Kept, Start


@pytest.mark.parametrize(
    "task", ["next_token", "prefix_lm", "masked", "span_corruption", "ul2", "denoising"]
)
@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "unigram", "gpt2", "llama"])
def test_a_text_is_framed_unlike_a_packed_document(tmp_path, task, kind):
    tokenizer = make(kind)
    if kind == "wordpiece" and task in ("next_token", "prefix_lm"):
        return  # without an end-of-text token its documents are refused
    whole = TASKS[task].whole
    document = next(plain_text.encode(["hello"], tokenizer, whole))[0].tolist()
    start = Start(build(preset("llama", "tiny")), None, tokenizer)
    framed = TASKS[task]().prepare(start, None, [], Kept()).tokenizer
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
