"""Parity with transformers: random checkpoints on torch are imported, compared and exported."""

import json
import logging

import jax
import numpy as np
import pytest

import lm
from lm import families
from lm.batch import Batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4
TOKENS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
DECODER = dict(
    vocab_size=97,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
)
DECODER |= dict(max_position_embeddings=64, **TOKENS)
GPT2 = dict(vocab_size=101, n_embd=24, n_layer=2, n_head=3, n_positions=32, **TOKENS)
BERT = dict(
    vocab_size=83,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=56,
    max_position_embeddings=40,
)
NEOX = dict(
    vocab_size=89,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    rotary_pct=0.5,
)
NEOX |= dict(max_position_embeddings=64, **TOKENS)
NEO = dict(
    vocab_size=89,
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    max_position_embeddings=64,
    attention_types=[[["global", "local"], 1]],
)
NEO |= dict(window_size=5, **TOKENS)
OPT = dict(
    vocab_size=87,
    hidden_size=24,
    word_embed_proj_dim=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    ffn_dim=40,
)
OPT |= dict(max_position_embeddings=64, **TOKENS)
GEMMA2 = DECODER | dict(
    head_dim=10, num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=10
)
GEMMA2 |= dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
DISTIL = dict(
    vocab_size=83, dim=24, n_layers=2, n_heads=3, hidden_dim=56, max_position_embeddings=40
)
MODERN = dict(
    vocab_size=83,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    local_attention=8,
)
MODERN |= dict(
    max_position_embeddings=40,
    global_rope_theta=700.0,
    local_rope_theta=30.0,
    cls_token_id=0,
    sep_token_id=1,
    **TOKENS,
)
ROPE_3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=2.0,
    original_max_position_embeddings=16,
)
MAMBA = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, state_size=5, **TOKENS)
MAMBA2 = MAMBA | dict(num_heads=6, head_dim=8, n_groups=2)
BAMBA = DECODER | dict(
    hidden_size=32,
    num_hidden_layers=4,
    attn_layer_indices=[1, 3],
    mamba_n_heads=8,
    mamba_n_groups=2,
    mamba_d_state=5,
)

CASES = {  # name: (transformers class, base options, changed options)
    "gpt2": ("GPT2LMHeadModel", GPT2, {}),
    "gpt2-wide": (
        "GPT2LMHeadModel",
        GPT2,
        dict(
            vocab_size=51, n_head=1, n_inner=72, layer_norm_epsilon=1e-3, activation_function="relu"
        ),
    ),
    "gpt2-untied": (
        "GPT2LMHeadModel",
        GPT2,
        dict(vocab_size=77, n_embd=32, n_layer=1, n_head=4, tie_word_embeddings=False),
    ),
    "gpt2-headless": ("GPT2Model", GPT2, dict(n_layer=3)),
    "llama-grouped": (
        "LlamaForCausalLM",
        DECODER,
        dict(tie_word_embeddings=True, rope_theta=5000.0),
    ),
    "llama-untied-llama3-rope": (
        "LlamaForCausalLM",
        DECODER,
        dict(
            num_key_value_heads=4,
            vocab_size=53,
            rms_norm_eps=1e-3,
            rope_parameters=dict(rope_theta=300.0, **ROPE_3),
        ),
    ),
    "llama-biased-linear-rope": (
        "LlamaForCausalLM",
        DECODER,
        dict(
            num_key_value_heads=1,
            attention_bias=True,
            mlp_bias=True,
            head_dim=10,
            rope_parameters=dict(rope_theta=300.0, rope_type="linear", factor=2.5),
        ),
    ),
    "llama-headless": ("LlamaModel", DECODER, {}),
    "mistral": ("MistralForCausalLM", DECODER, dict(sliding_window=5)),
    "mistral-tied": (
        "MistralForCausalLM",
        DECODER,
        dict(num_key_value_heads=4, vocab_size=61, sliding_window=3, tie_word_embeddings=True),
    ),
    "mistral-full": ("MistralForCausalLM", DECODER, dict(sliding_window=None, head_dim=8)),
    "qwen2": ("Qwen2ForCausalLM", DECODER, dict(rope_theta=1e6)),
    "qwen2-tied": (
        "Qwen2ForCausalLM",
        DECODER,
        dict(num_key_value_heads=1, vocab_size=59, tie_word_embeddings=True),
    ),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        DECODER,
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ),
    "qwen2-mixed": (
        "Qwen2ForCausalLM",
        DECODER,
        dict(use_sliding_window=True, sliding_window=3, max_window_layers=1, num_hidden_layers=3),
    ),
    "qwen3": ("Qwen3ForCausalLM", DECODER, dict(head_dim=10, rms_norm_eps=1e-3)),
    "qwen3-biased": (
        "Qwen3ForCausalLM",
        DECODER,
        dict(head_dim=8, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1),
    ),
    "qwen3-window": (
        "Qwen3ForCausalLM",
        DECODER,
        dict(
            head_dim=6,
            use_sliding_window=True,
            sliding_window=3,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "openai-gpt": ("OpenAIGPTLMHeadModel", GPT2, {}),
    "openai-gpt-relu": (
        "OpenAIGPTLMHeadModel",
        GPT2,
        dict(vocab_size=51, n_head=2, afn="relu", layer_norm_epsilon=1e-3, n_layer=3),
    ),
    "openai-gpt-headless": ("OpenAIGPTModel", GPT2, dict(n_head=4)),
    "neo": ("GPTNeoForCausalLM", NEO, {}),
    "neo-mixed": (
        "GPTNeoForCausalLM",
        NEO,
        dict(
            num_layers=5,
            attention_types=[[["global"], 1], [["local"], 2], [["local", "global"], 1]],
            window_size=3,
            vocab_size=57,
        ),
    ),
    "neo-untied": (
        "GPTNeoForCausalLM",
        NEO,
        dict(
            num_heads=2,
            intermediate_size=40,
            activation_function="relu",
            tie_word_embeddings=False,
            layer_norm_epsilon=1e-3,
            attention_types=[[["local"], 2]],
        ),
    ),
    "neo-headless": ("GPTNeoModel", NEO, dict(attention_types=[[["global"], 2]], vocab_size=45)),
    "neox": ("GPTNeoXForCausalLM", NEOX, {}),
    "neox-sequential": (
        "GPTNeoXForCausalLM",
        NEOX,
        dict(
            use_parallel_residual=False,
            rotary_pct=1.0,
            rotary_emb_base=300,
            attention_bias=False,
            num_attention_heads=2,
        ),
    ),
    "neox-tied-linear-rope": (
        "GPTNeoXForCausalLM",
        NEOX,
        dict(
            tie_word_embeddings=True,
            hidden_act="gelu_new",
            rope_parameters=dict(
                rope_type="linear", factor=2.0, rope_theta=500.0, partial_rotary_factor=0.5
            ),
        ),
    ),
    "neox-headless": ("GPTNeoXModel", NEOX, dict(vocab_size=45)),
    "opt": ("OPTForCausalLM", OPT, {}),
    "opt-post-norm": (
        "OPTForCausalLM",
        OPT,
        dict(do_layer_norm_before=False, num_hidden_layers=3, vocab_size=59),
    ),
    "opt-unbiased-untied": (
        "OPTForCausalLM",
        OPT,
        dict(enable_bias=False, tie_word_embeddings=False, activation_function="gelu"),
    ),
    "opt-headless": ("OPTModel", OPT, dict(num_attention_heads=2)),
    "phi3": ("Phi3ForCausalLM", DECODER, dict(rms_norm_eps=1e-3)),
    "phi3-part": (
        "Phi3ForCausalLM",
        DECODER,
        dict(
            hidden_size=32,
            sliding_window=4,
            tie_word_embeddings=True,
            num_key_value_heads=4,
            rope_parameters=dict(rope_type="default", rope_theta=300.0, partial_rotary_factor=0.75),
        ),
    ),
    "phi3-headless": (
        "Phi3Model",
        DECODER,
        dict(vocab_size=47, num_attention_heads=2, num_key_value_heads=1),
    ),
    "gemma": ("GemmaForCausalLM", DECODER, dict(head_dim=10)),
    "gemma-biased": (
        "GemmaForCausalLM",
        DECODER,
        dict(head_dim=8, attention_bias=True, num_key_value_heads=1, rms_norm_eps=1e-3),
    ),
    "gemma-headless": ("GemmaModel", DECODER, dict(head_dim=6, hidden_act="silu", vocab_size=51)),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2, {}),
    "gemma2-pattern": (
        "Gemma2ForCausalLM",
        GEMMA2,
        dict(
            layer_types=["full_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=6,
            attention_bias=True,
        ),
    ),
    "gemma2-uncapped": (
        "Gemma2ForCausalLM",
        GEMMA2,
        dict(
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            num_hidden_layers=2,
            tie_word_embeddings=False,
            rms_norm_eps=1e-3,
        ),
    ),
    "gemma2-headless": ("Gemma2Model", GEMMA2, dict(num_key_value_heads=4, vocab_size=43)),
    "olmo2": ("Olmo2ForCausalLM", DECODER, {}),
    "olmo2-biased": (
        "Olmo2ForCausalLM",
        DECODER,
        dict(attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3),
    ),
    "olmo2-headless": ("Olmo2Model", DECODER, dict(num_key_value_heads=1, rope_theta=300.0)),
    "stablelm": ("StableLmForCausalLM", DECODER, dict(partial_rotary_factor=0.34)),
    "stablelm-biased": (
        "StableLmForCausalLM",
        DECODER,
        dict(use_qkv_bias=True, partial_rotary_factor=1.0, tie_word_embeddings=True),
    ),
    "stablelm-headless": (
        "StableLmModel",
        DECODER,
        dict(hidden_size=32, num_key_value_heads=4, layer_norm_eps=1e-3),
    ),
    "starcoder2": ("Starcoder2ForCausalLM", DECODER, dict(sliding_window=5)),
    "starcoder2-untied": (
        "Starcoder2ForCausalLM",
        DECODER,
        dict(tie_word_embeddings=False, num_key_value_heads=4, norm_epsilon=1e-3),
    ),
    "starcoder2-unbiased": (
        "Starcoder2Model",
        DECODER,
        dict(use_bias=False, num_key_value_heads=1, hidden_act="relu", vocab_size=51),
    ),
    "bert": ("BertModel", BERT, {}),
    "bert-relu": (
        "BertModel",
        BERT,
        dict(num_attention_heads=4, vocab_size=41, hidden_act="relu", type_vocab_size=3),
    ),
    "bert-masked": ("BertForMaskedLM", BERT, {}),
    "bert-masked-deep": (
        "BertForMaskedLM",
        BERT,
        dict(num_hidden_layers=3, vocab_size=67, layer_norm_eps=1e-5, hidden_act="gelu_new"),
    ),
    "bert-masked-untied": ("BertForMaskedLM", BERT, dict(tie_word_embeddings=False)),
    "roberta": ("RobertaModel", BERT, dict(pad_token_id=1)),
    "roberta-masked": (
        "RobertaForMaskedLM",
        BERT,
        dict(pad_token_id=0, hidden_act="relu", type_vocab_size=1),
    ),
    "roberta-masked-deep": (
        "RobertaForMaskedLM",
        BERT,
        dict(num_hidden_layers=3, vocab_size=67, pad_token_id=2, num_attention_heads=4),
    ),
    "distilbert": ("DistilBertModel", DISTIL, {}),
    "distilbert-masked": (
        "DistilBertForMaskedLM",
        DISTIL,
        dict(activation="relu", n_heads=4, sinusoidal_pos_embds=True),
    ),
    "distilbert-masked-untied": (
        "DistilBertForMaskedLM",
        DISTIL,
        dict(tie_word_embeddings=False, n_layers=3, vocab_size=57),
    ),
    "electra": ("ElectraModel", BERT, dict(embedding_size=10)),
    "electra-masked": (
        "ElectraForMaskedLM",
        BERT,
        dict(embedding_size=14, hidden_act="relu", type_vocab_size=3),
    ),
    "electra-masked-untied": (
        "ElectraForMaskedLM",
        BERT,
        dict(embedding_size=16, tie_word_embeddings=False, num_attention_heads=4),
    ),
    "electra-masked-wide": ("ElectraForMaskedLM", BERT, dict(embedding_size=24, vocab_size=61)),
    "albert": ("AlbertModel", BERT, dict(embedding_size=10)),
    "albert-masked": (
        "AlbertForMaskedLM",
        BERT,
        dict(embedding_size=14, num_hidden_layers=3, hidden_act="relu"),
    ),
    "albert-masked-wide": (
        "AlbertForMaskedLM",
        BERT,
        dict(embedding_size=24, vocab_size=61, num_attention_heads=4, layer_norm_eps=1e-5),
    ),
    "modernbert": ("ModernBertModel", MODERN, {}),
    "modernbert-masked": (
        "ModernBertForMaskedLM",
        MODERN,
        dict(num_hidden_layers=5, local_attention=3, classifier_activation="relu"),
    ),
    "modernbert-masked-biased": (
        "ModernBertForMaskedLM",
        MODERN,
        dict(
            attention_bias=True,
            mlp_bias=True,
            classifier_bias=True,
            norm_bias=True,
            hidden_activation="silu",
            tie_word_embeddings=False,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            norm_eps=1e-3,
            num_attention_heads=2,
        ),
    ),
    "mamba": ("MambaForCausalLM", MAMBA, {}),
    "mamba-biased": (
        "MambaForCausalLM",
        MAMBA,
        dict(
            use_bias=True,
            use_conv_bias=False,
            state_size=7,
            conv_kernel=3,
            time_step_rank=5,
            layer_norm_epsilon=1e-3,
            hidden_act="gelu",
            tie_word_embeddings=False,
        ),
    ),
    "mamba-wide": (
        "MambaForCausalLM",
        MAMBA,
        dict(intermediate_size=40, num_hidden_layers=3, vocab_size=61, conv_kernel=2, expand=3),
    ),
    "mamba-headless": ("MambaModel", MAMBA, dict(use_bias=True, expand=1)),
    "mamba2": ("Mamba2ForCausalLM", MAMBA2, {}),
    "mamba2-biased": (
        "Mamba2ForCausalLM",
        MAMBA2,
        dict(
            use_bias=True,
            use_conv_bias=False,
            n_groups=1,
            conv_kernel=3,
            layer_norm_epsilon=1e-3,
            time_step_limit=(0.05, 0.5),
            tie_word_embeddings=True,
            hidden_act="gelu",
        ),
    ),
    "mamba2-many-groups": (
        "Mamba2ForCausalLM",
        MAMBA2,
        dict(n_groups=6, num_hidden_layers=3, vocab_size=61, time_step_limit=(0.4, float("inf"))),
    ),
    "mamba2-headless": (
        "Mamba2Model",
        MAMBA2,
        dict(expand=3, num_heads=4, head_dim=18, n_groups=4, state_size=3),
    ),
    "falcon-mamba": ("FalconMambaForCausalLM", MAMBA, dict(mixer_rms_eps=1e-3)),
    "falcon-mamba-biased": (
        "FalconMambaForCausalLM",
        MAMBA,
        dict(
            use_bias=True,
            use_conv_bias=False,
            conv_kernel=5,
            time_step_rank=1,
            layer_norm_epsilon=1e-3,
            tie_word_embeddings=False,
        ),
    ),
    "falcon-mamba-headless": (
        "FalconMambaModel",
        MAMBA,
        dict(expand=16, intermediate_size=40, num_hidden_layers=3, vocab_size=61),
    ),
    "bamba": ("BambaForCausalLM", BAMBA, {}),
    "bamba-biased": (
        "BambaForCausalLM",
        BAMBA,
        dict(
            num_hidden_layers=3,
            attn_layer_indices=[1],
            num_key_value_heads=1,
            attention_bias=True,
            mlp_bias=True,
            mamba_proj_bias=True,
            mamba_conv_bias=False,
            mamba_n_groups=4,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
            time_step_limit=(0.4, 1.5),
        ),
    ),
    "bamba-no-cycle": (
        "BambaForCausalLM",
        BAMBA,
        dict(
            num_hidden_layers=5,
            attn_layer_indices=[0, 3, 4],
            head_dim=12,
            mamba_d_conv=3,
            mamba_n_heads=4,
            vocab_size=61,
            hidden_act="gelu",
            rope_parameters=dict(
                rope_type="linear", factor=2.0, rope_theta=300.0, partial_rotary_factor=1.0
            ),
        ),
    ),
    "bamba-headless": (
        "BambaModel",
        BAMBA,
        dict(num_hidden_layers=6, attn_layer_indices=[2, 5], num_key_value_heads=4),
    ),
}


def torch_model(name, matrices=0.15, vectors=0.15, cases=CASES, **more):
    """A random model in evaluation mode. Biases and norms are random too, so all of them matter."""
    class_name, options, changes = cases[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(len(name))
    model = cls(cls.config_class(**options | changes | more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter) * (matrices if parameter.ndim > 1 else vectors)
            )
        if name == "bert-masked-untied":
            # transformers has two biases and uses the second.
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    return model


def padded_batch(model):
    """Three rows of 13, 9 and 4 tokens, with token types if the model has them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, model.config.vocab_size, (3, 13))
    valid = np.arange(13)[None] < np.array([13, 9, 4])[:, None]
    tokens = np.where(valid, tokens, 2)
    types = (
        (rng.integers(0, model.config.type_vocab_size, tokens.shape))
        if hasattr(model.config, "type_vocab_size")
        else None
    )
    return tokens, valid, types


def run_torch(model, tokens, valid, types):
    """(hidden after the final norm, logits or None, pooled or None), float32 numpy arrays."""
    inputs = dict(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long())
    if types is not None:
        inputs["token_type_ids"] = torch.tensor(types)
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    pooled = getattr(out, "pooler_output", None)
    logits = getattr(out, "logits", None)
    return out.hidden_states[-1].numpy(), *(
        None if x is None else x.numpy() for x in (logits, pooled)
    )


def arrays(params):
    return {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def export_and_load(reference, model, params, directory, caplog):
    """Export, check that it reads back bit for bit, and load it with transformers.

    Returns (transformers' model, its warnings, its loading report).
    """
    lm.to_hf(model, params, directory)
    again, params_again = lm.from_hf(directory)
    assert again.config.replace(dropout=0.0) == model.config.replace(dropout=0.0)
    first, second = arrays(params), arrays(params_again)
    assert first.keys() == second.keys()
    assert all(first[path].tobytes() == second[path].tobytes() for path in first), (
        "import -> export -> import changed a weight"
    )

    caplog.clear()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            exported, report = type(reference).from_pretrained(directory, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    # With CI=true transformers' logger also propagates, and every record appears twice.
    return (
        exported.eval(),
        list(dict.fromkeys(record.getMessage() for record in caplog.records)),
        report,
    )


@pytest.mark.parametrize("name", CASES)
def test_imported_model_computes_what_torch_computes_and_exports_without_loss(
    name, tmp_path, caplog
):
    reference = torch_model(name)
    reference.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")

    tokens, valid, types = padded_batch(reference)
    hidden, logits, pooled = run_torch(reference, tokens, valid, types)
    out = lm.forward(model, params, Batch.of(tokens, segments=valid.astype(np.int32), types=types))
    np.testing.assert_allclose(np.asarray(out.hidden)[valid], hidden[valid], atol=TOLERANCE, rtol=0)
    assert (logits is None) == (out.logits is None)
    if logits is not None:
        np.testing.assert_allclose(
            np.asarray(out.logits)[valid], logits[valid], atol=TOLERANCE, rtol=0
        )
    if pooled is not None:
        np.testing.assert_allclose(out.pooled, pooled, atol=TOLERANCE, rtol=0)

    exported, warnings, report = export_and_load(
        reference, model, params, tmp_path / "ours", caplog
    )
    assert not warnings
    assert not any(report.values()), report
    hidden_again, logits_again, _ = run_torch(exported, tokens, valid, types)
    # The memory layout differs, so kernels of torch may round differently.
    np.testing.assert_allclose(hidden_again[valid], hidden[valid], atol=2e-6, rtol=1e-6)
    if logits is not None:
        np.testing.assert_allclose(logits_again[valid], logits[valid], atol=2e-6, rtol=1e-6)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [type(reference).__name__]
    assert written["torch_dtype"] == "float32"


def test_older_modernbert_configurations_mean_what_they_meant():
    """Published configurations give the period of global layers and both rotary bases.

    transformers reads them in the same way.
    """
    old = dict(
        num_hidden_layers=4,
        global_attn_every_n_layers=2,
        global_rope_theta=700.0,
        local_rope_theta=30.0,
        local_attention=6,
    )
    written = transformers.ModernBertConfig(**(MODERN | old)).to_dict()
    ours = [
        families.config_from_hf({**hf, "architectures": None, "model_type": "modernbert"})
        for hf in (MODERN | old, written)
    ]
    assert ours[0] == ours[1]
    assert (ours[0].layer_pattern, ours[0].sliding_window) == (("global", "local"), 4)
    assert (ours[0].rope_theta, ours[0].local_rope_theta) == (700.0, 30.0)
