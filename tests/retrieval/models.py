"""Tiny random models with tokenizers, saved as transformers saves them."""

import string

import tokenizers
import transformers

TURN = (
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|start|>assistant\n{% endif %}"
)
CHAT = "{% for m in messages %}" + TURN
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% "
    "endif %}" + TURN
)


def byte_tokenizer(chat_template=CHAT):
    """A tokenizer with one token per byte.

    <|start|>, <|end|> and <|think|> (added, but not marked special) are single tokens.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(alphabet)}, [])
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<|start|>", "<|end|>"])
    core.add_tokens(["<|think|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", chat_template=chat_template
    )


def word_tokenizer():
    """A BERT tokenizer with letters as word pieces."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *string.ascii_lowercase,
        *("##" + c for c in string.ascii_lowercase),
        *string.digits,
    ]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def save_encoder(path, max_positions=64):
    """Save a random BERT of two layers; return it in torch, with its tokenizer."""
    import torch

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max_positions,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


def save_reader(path, chat_template=CHAT, context=1024):
    """Save a random one-layer Llama over bytes."""
    import torch

    torch.manual_seed(0)
    tokenizer = byte_tokenizer(chat_template)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
