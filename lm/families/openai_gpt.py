"""GPT (Radford et al. 2018): GPT-2 with post-norm and no final norm."""

from lm.families import gpt2, heads
from lm.families.family import Family, expect, head, special_tokens, special_tokens_to_hf, value
from lm.families.table import Row, table
from lm.models.config import ConfigError, ModelConfig

ARCHITECTURES = {"OpenAIGPTLMHeadModel": "causal_lm", "OpenAIGPTModel": "none"}
# "gelu" is the tanh approximation here
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
NAMES = {
    "transformer.wte.": "transformer.tokens_embed.",
    "transformer.wpe.": "transformer.positions_embed.",
}


def renamed(row: Row) -> Row:
    """Rename a row of GPT-2's table to GPT's tensor names."""
    name = row.theirs
    for theirs, older in NAMES.items():
        name = name.replace(theirs, older)
    return Row(row.ours, name, row.rule, row.axis)


WEIGHTS = table(
    *(renamed(row) for row in gpt2.WEIGHTS if not row.theirs.startswith("transformer.ln_f"))
)


def gpt(
    *, d_model: int, n_layers: int, n_heads: int, vocab_size: int, max_length: int = 512, **changes
) -> ModelConfig:
    """Config of a GPT of any size; `changes` are further fields of ModelConfig."""
    shape = dict(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=vocab_size,
        max_length=max_length,
    )
    return gpt2.gpt2(
        **shape, **dict(family="openai-gpt", norm_placement="post", final_norm=False) | changes
    )


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    name = hf.get("afn") or "gelu"
    if name not in ACTIVATIONS:
        raise ConfigError(f"afn={name!r} is not supported; one of {', '.join(ACTIVATIONS)}")
    expect(hf, add_cross_attention=False)
    return gpt(
        d_model=value(hf, "n_embd"),
        n_layers=value(hf, "n_layer"),
        n_heads=value(hf, "n_head"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "n_positions"),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[name],
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("resid_pdrop", 0.1),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=head(hf, ARCHITECTURES),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        vocab_size=c.vocab_size,
        n_positions=c.max_length,
        layer_norm_epsilon=c.norm_eps,
        afn=next(
            (name for name, ours in ACTIVATIONS.items() if ours == c.activation), c.activation
        ),
        initializer_range=c.initializer_range,
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special_tokens_to_hf(c),
    )


FAMILIES = (
    Family(
        "openai-gpt",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="transformer.",
        ignored=(r".*\.attn\.bias", r".*position_ids"),
        duplicates={"lm_head.weight": "transformer.tokens_embed.weight"},
        labels=heads.of_decoder("OpenAIGPT", tokens="", spans=False),
        presets={
            "117m": gpt(d_model=768, n_layers=12, n_heads=12, vocab_size=40478),
            "tiny": gpt(d_model=64, n_layers=2, n_heads=4, vocab_size=259, max_length=128),
        },
    ),
)
