"""Greedy continuation of a left-padded batch equals transformers' continuation of each prompt."""

import pytest

import lm
from lm import families
from tests.lm.families.test_parity import CASES, torch, torch_model

NEW_TOKENS = 64
NAMES = (
    "gpt2",
    "llama-grouped",
    "mistral",
    "qwen2-mixed",
    "qwen3-window",
    "openai-gpt",
    "neo-mixed",
    "neox",
    "opt",
    "phi3-part",
    "gemma",
    "gemma2",
    "olmo2",
    "stablelm",
    "starcoder2",
    "mamba-wide",
    "mamba2",
    "falcon-mamba",
    "bamba-no-cycle",
)
PROMPTS = [[5, 9, 20, 7, 7, 30, 11], [3], [40, 41, 5, 17] * 3]


def test_every_generative_family_is_among_them():
    generative = {
        f.model_type for f in families.FAMILIES.values() if "causal_lm" in f.architectures.values()
    }
    assert {torch_class(name).config_class.model_type for name in NAMES} == generative


def torch_class(name):
    import transformers

    return getattr(transformers, CASES[name][0])


def likeliest(reference, start, answer, **inputs):
    """Most likely token after `start` and every prefix of `answer`, in one call of the reference.

    It is `answer` only if that is the reference's greedy continuation.
    """
    name = "decoder_input_ids" if inputs else "input_ids"
    with torch.no_grad():
        logits = reference(**inputs, **{name: torch.tensor([[*start, *answer[:-1]]])}).logits
    return logits[0, len(start) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_transformers_greedy(name, tmp_path):
    longer = (
        {"n_positions": 96} if "n_positions" in CASES[name][1] else {"max_position_embeddings": 96}
    )
    reference = torch_model(name, matrices=0.4, vectors=0.02, tie_word_embeddings=False, **longer)
    reference.save_pretrained(tmp_path)
    model, params = lm.from_hf(tmp_path)
    ours = lm.generate(model, params, PROMPTS, NEW_TOKENS, stop_tokens=[])
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        assert len(answer) == NEW_TOKENS
        assert answer == likeliest(reference, prompt, answer)
    assert min(len(set(answer)) for answer in ours) > 3, (
        "a model that repeats itself would hide a wrong position"
    )
