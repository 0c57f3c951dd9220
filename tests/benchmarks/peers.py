"""Decoding by CTranslate2 and llama.cpp, where they are installed, on the weights of `models`."""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.models import Sizes, our_model, torch_model


class Missing(RuntimeError):
    """A peer that is not installed here. The message says which."""


def _need(module: str) -> None:
    if not importlib.util.find_spec(module):
        raise Missing(f"{module} is not installed")


def ctranslate2_decoding(sizes: Sizes) -> Callable[[], Any]:
    """CTranslate2 of a decoder, on one thread."""
    _need("ctranslate2")
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        save(sizes, f"{folder}/model")
        converter = ctranslate2.converters.TransformersConverter(f"{folder}/model")
        converter.convert(f"{folder}/converted")
        generator = ctranslate2.Generator(
            f"{folder}/converted",
            compute_type=sizes.dtype,
            inter_threads=1,
            intra_threads=1,
        )
    vocabulary = _words(sizes.config().vocab_size)
    prompts = [[vocabulary[i] for i in row] for row in sizes.arrays()["tokens"]]

    def run():
        found = generator.generate_batch(
            prompts,
            max_length=sizes.new,
            min_length=sizes.new,
            include_prompt_in_result=False,
            end_token=[],
        )
        assert all(len(x.sequences_ids[0]) == sizes.new for x in found)

    return run


def _words(size: int) -> list[str]:
    return [f"w{i}" for i in range(size)]


def save(sizes: Sizes, folder: str) -> None:
    """Write the model of transformers with a tokenizer of one word for every id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(_words(sizes.config().vocab_size))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "w0")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch_model(sizes).save_pretrained(folder)


def llama_cpp_decoding(sizes: Sizes) -> Callable[[], Any]:
    """llama.cpp of a Llama in one row, on one thread. int8 is its Q8_0."""
    _need("llama_cpp")
    import gguf
    import llama_cpp

    from tests.lm.test_weights_gguf import TOKENS, write_gguf

    kinds = {"float32": None, "bfloat16": "BF16", "int8": "Q8_0"}
    kind = kinds[sizes.dtype] and gguf.GGMLQuantizationType[kinds[sizes.dtype]]
    size = sizes.config().vocab_size
    tokens = (TOKENS + _words(size)[len(TOKENS) :])[:size]
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "m.gguf", *our_model(sizes), quantise=kind, tokens=tokens)
        model = llama_cpp.Llama(
            str(path), n_ctx=sizes.length + sizes.new, n_threads=1, n_threads_batch=1, verbose=False
        )
    prompt = sizes.arrays()["tokens"][0].tolist()

    def run():
        model.reset()
        found = [*itertools.islice(model.generate(prompt, temp=0.0), sizes.new)]
        assert len(found) == sizes.new

    return run
