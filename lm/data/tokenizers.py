"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) of one's own: trained on text, or plain bytes, unmerged."""

from collections.abc import Iterable

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
MASK = "<mask>"
SMALLEST = 257  # all bytes and the end-of-text token


def train(texts: Iterable[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens learned from the texts; any string comes back unchanged.

    Raises ValueError when vocab_size cannot hold all 256 bytes and <|endoftext|>.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size={vocab_size} is too small: all 256 bytes and {END} need {SMALLEST}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=_alphabet(), show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def bytes_only(*, mask: bool = False, sentinels: int = 0) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and <|endoftext|>: 257 tokens, nothing to train. For smoke runs and byte-level models.

    mask: <mask> too, as its mask token.   sentinels: so many of <extra_id_0>, <extra_id_1>, ... too, from the top down as in T5.
    """
    extra = [MASK] * mask + [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    vocabulary = {token: i for i, token in enumerate([END, *_alphabet(), *extra])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, *extra])
    return _wrapped(tokenizer, **({"mask_token": MASK} if mask else {}))


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _wrapped(tokenizer: tokenizers.Tokenizer, **special: str) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=None, clean_up_tokenization_spaces=False, **special
    )
