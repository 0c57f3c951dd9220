"""Heads that give labels, spans, values and sentence vectors: the same numbers as transformers, in and out, and with other heads."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import families
from lm.batch import Batch
from lm.models.config import ConfigError
from tests.lm.families import test_parity as parity
from tests.lm.small_models import identical, tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4
SEQUENCE, TOKEN, SPAN = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
TOKENS = parity.TOKENS
NEO = dict(vocab_size=91, hidden_size=24, num_layers=2, num_heads=3, attention_types=[[["global", "local"], 1]], window_size=4)
NEO |= dict(max_position_embeddings=64, **TOKENS)
ALBERT = parity.BERT | dict(embedding_size=10)
BART = dict(vocab_size=71, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3)
BART |= dict(encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=40, decoder_start_token_id=1, **TOKENS)
T5 = dict(vocab_size=71, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=3, relative_attention_num_buckets=8, **TOKENS)
T5 |= dict(relative_attention_max_distance=20, decoder_start_token_id=2)
FAMILIES = {  # their stem: (options, what there is besides sequences)
    "OpenAIGPT": (parity.GPT2, ()), "GPT2": (parity.GPT2, (TOKEN, SPAN)), "GPTNeo": (NEO, (TOKEN, SPAN)),
    "GPTNeoX": (parity.NEOX, (TOKEN, SPAN)), "OPT": (parity.OPT, (SPAN,)),
    "Llama": (parity.DECODER, (TOKEN, SPAN)), "Mistral": (parity.DECODER | dict(sliding_window=5), (TOKEN, SPAN)),
    "Qwen2": (parity.DECODER, (TOKEN, SPAN)), "Qwen3": (parity.DECODER | dict(head_dim=10), (TOKEN, SPAN)),
    "Phi3": (parity.DECODER, (TOKEN,)), "Gemma": (parity.DECODER | dict(head_dim=10), (TOKEN,)), "Gemma2": (parity.GEMMA2, (TOKEN,)),
    "Olmo2": (parity.DECODER, ()), "StableLm": (parity.DECODER | dict(partial_rotary_factor=0.34), (TOKEN,)),
    "Bert": (parity.BERT, (TOKEN, SPAN)), "Roberta": (parity.BERT | dict(pad_token_id=2), (TOKEN, SPAN)),
    "DistilBert": (parity.DISTIL, (TOKEN, SPAN)), "Electra": (ALBERT, (TOKEN, SPAN)), "Albert": (ALBERT, (TOKEN, SPAN)),
    "ModernBert": (parity.MODERN, (TOKEN, SPAN)),
    "Bart": (BART, (SPAN,)), "MBart": (BART, (SPAN,)), "T5": (T5, (TOKEN, SPAN)), "MT5": (T5, (TOKEN, SPAN)), "UMT5": (T5, (TOKEN, SPAN)),
}  # fmt: skip
LABELS = {SEQUENCE: 3, TOKEN: 5, SPAN: 2}
CASES = {f"{stem}{kind}": (f"{stem}{kind}", options, dict(num_labels=LABELS[kind]))
         for stem, (options, more) in FAMILIES.items() for kind in (SEQUENCE, *more)}  # fmt: skip
CASES |= {
    "Llama-regression": ("LlamaForSequenceClassification", parity.DECODER, dict(num_labels=1, tie_word_embeddings=True)),
    "Bert-regression": ("BertForSequenceClassification", parity.BERT, dict(num_labels=1, tie_word_embeddings=False, hidden_act="relu")),
    "ModernBert-mean": ("ModernBertForSequenceClassification", parity.MODERN, dict(
        num_labels=7, classifier_pooling="mean", classifier_activation="silu", norm_bias=True)),
    "Bart-untied": ("BartForSequenceClassification", BART, dict(num_labels=2, encoder_attention_heads=2)),
}  # fmt: skip
LEFT = ("GPTNeoX", "Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma", "Gemma2", "Olmo2", "StableLm")  # where rows may be padded so


def inputs(reference, left=False):
    """Three rows of 13, 9 and 4 tokens: (Batch, the same for transformers, which tokens are real). An encoder's end with its eos."""
    tokens, valid, types = parity.padded_batch(reference)
    if reference.config.is_encoder_decoder:
        tokens[np.arange(3), valid.sum(1) - 1] = reference.config.eos_token_id
    if left:
        tokens, valid = tokens[:, ::-1].copy(), valid[:, ::-1].copy()
    theirs = dict(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long())
    if types is not None:
        theirs["token_type_ids"] = torch.tensor(types)
    segments = valid.astype(np.int32)
    if not reference.config.is_encoder_decoder or type(reference).__name__.endswith(TOKEN):  # T5's reads with the encoder alone
        return Batch.of(tokens, segments, types=types), theirs, valid
    shifted = np.concatenate([np.full((3, 1), reference.config.decoder_start_token_id), tokens[:, :-1]], axis=1)
    theirs["decoder_input_ids"] = torch.tensor(shifted)
    return Batch.of(shifted, segments, encoder_tokens=tokens, encoder_segments=segments), theirs, valid


def labels_of(model, given):
    """transformers' logits: [B, N], [B, T, N], or [B, T, 2] of starts and ends."""
    with torch.no_grad():
        out = model(**given)
    return (torch.stack([out.start_logits, out.end_logits], -1) if "start_logits" in out else out.logits).numpy()


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_transformers_and_the_class_is_exported_without_loss(name, tmp_path, caplog):
    reference = parity.torch_model(name, cases=CASES)
    reference.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")
    number = CASES[name][2]["num_labels"]
    assert model.config.n_labels == (0 if model.config.head == "question_answering" else number)

    for left in (False, True)[: 1 + (name.removesuffix(SEQUENCE) in LEFT)]:
        batch, given, valid = inputs(reference, left)
        ours, theirs = np.asarray(lm.forward(model, params, batch).logits), labels_of(reference, given)
        assert ours.shape == theirs.shape
        real = slice(None) if ours.ndim == 2 else valid
        np.testing.assert_allclose(ours[real], theirs[real], atol=TOLERANCE, rtol=0)

    exported, warnings, report = parity.export_and_load(reference, model, params, tmp_path / "ours", caplog)
    assert not warnings
    assert not any(report.values()), report
    assert exported.config.num_labels == number
    np.testing.assert_allclose(labels_of(exported, given)[real], theirs[real], atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [type(reference).__name__]


def test_every_class_with_labels_has_a_case():
    declared = {x.architecture for family in families.FAMILIES.values() for x in family.labels}
    assert declared == {cls for cls, *_ in CASES.values()}
    transformers_has = {f"{stem}{kind}" for stem in FAMILIES for kind in (SEQUENCE, TOKEN, SPAN) if hasattr(transformers, stem + kind)}
    assert declared == transformers_has
