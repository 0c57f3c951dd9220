"""Tiny generative models of transformers, and ours with the same weights, scaled to vary beams."""

import functools
import tempfile

import pytest

import lm

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

PROMPTS = [[5, 9, 20, 7, 7, 30, 11], [3, 8], [40, 4, 5, 17] * 3]
ENDS = [2, 7, 33]  # three end tokens, so that answers end
COMMON = dict(vocab_size=41, d_model=32)
BART = dict(
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=64,
    **COMMON,
)
T5 = dict(
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    **COMMON,
)
CASES = {  # class, options, seed, scale of weights
    "bart": ("BartForConditionalGeneration", BART, 1, 0.2),
    "t5": (
        "T5ForConditionalGeneration",
        dict(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, **T5),
        0,
        0.4,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        dict(
            vocab_size=41,
            n_embd=32,
            n_layer=1,
            n_head=4,
            n_positions=64,
            eos_token_id=2,
            bos_token_id=0,
        ),
        0,
        0.4,
    ),
}


@functools.cache
def load(name):
    """Return (transformers' model, our model, params)."""
    cls, options, seed, scale = CASES[name]
    cls = getattr(transformers, cls)
    torch.manual_seed(seed)
    theirs = cls(cls.config_class(**options)).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape)
            # With tied tables alone the model would repeat itself.
            own = 1.0 if "embed_positions" in key else scale
            parameter.copy_(own * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, *lm.from_hf(folder)


def their_answers(name, prompts=PROMPTS, ends=ENDS, **options):
    """Answers of transformers' generate to each prompt alone.

    Start tokens are removed, and everything from the end token on.
    """
    theirs, model, _ = load(name)
    options = dict(eos_token_id=ends or None, pad_token_id=1, do_sample=False) | options
    answers = []
    for prompt in prompts:
        with torch.no_grad():
            tokens = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), **options
            )[0].tolist()
        tokens = tokens[1 if model.config.encoder_layers else len(prompt) :]
        answers.append(
            tokens[: min((tokens.index(end) for end in ends if end in tokens), default=len(tokens))]
        )
    return answers
