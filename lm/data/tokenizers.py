"""Train tokenizers: byte-level BPE (GPT-2), WordPiece (BERT), Unigram (T5); or use raw bytes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
MASK = "<mask>"
SMALLEST = 257  # all bytes and the end-of-text token
SPACE = "▁"
PIECES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}  # BERT's special tokens
MARKS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # T5's special tokens
ROLES = {
    MASK: "mask_token",
    "<pad>": "pad_token",
}  # further special tokens with a role in transformers


def train(
    texts: Iterable[str],
    vocab_size: int,
    model: str = "bpe",
    *,
    special: Sequence[str] = (),
    sentinels: int = 0,
    lowercase: bool = False,
    progress: bool = False,
) -> transformers.PreTrainedTokenizerFast:
    """Train a tokenizer with at most `vocab_size` tokens, including special tokens.

    model: one of MODELS. special: further special tokens; <mask> and <pad> get these roles.
    sentinels: number of tokens <extra_id_0>, ..., with descending ids as in T5.
    lowercase: lower-case the text; WordPiece also removes accents. progress: progress bars.
    Raises ValueError when the vocabulary is too small for these tokens and the characters of the
    texts, when the texts are empty, and for options that the model does not support.
    """
    if model not in MODELS:
        raise ValueError(f"model={model!r} is unknown; one of {', '.join(MODELS)}")
    if model == "bpe" and lowercase:
        raise ValueError(
            "lowercase is not for model=bpe, from which any text comes back unchanged: use "
            "wordpiece or unigram"
        )
    if model == "wordpiece" and sentinels:
        raise ValueError(
            "sentinels are not for model=wordpiece: BERT hides with [MASK], which it has; use "
            "bpe or unigram"
        )
    own = {"bpe": [END], "wordpiece": [*PIECES.values()], "unigram": [*MARKS.values()]}[model]
    first = [*own, *special]
    if twice := sorted({token for token in first if first.count(token) > 1}):
        raise ValueError(
            f"special tokens are there twice: {', '.join(twice)}; {model} has {', '.join(own)} "
            "by itself"
        )
    least = {"bpe": 256}.get(model, 1) + len(first) + sentinels
    if vocab_size < least:
        what = (
            f"all 256 bytes and {END} need {SMALLEST}"
            if model == "bpe"
            else f"{', '.join(own)} and a character need {len(own) + 1}"
        )
        more = (
            f", the other special tokens {least - len(own) - (256 if model == 'bpe' else 1)}"
            if special or sentinels
            else ""
        )
        raise ValueError(f"vocab_size={vocab_size} is too small: {what}{more}")
    tokenizer, trainer, roles = MODELS[model](vocab_size - sentinels, first, lowercase, progress)
    inputs = ["input_ids", *(["token_type_ids"] if model == "wordpiece" else []), "attention_mask"]
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except ValueError:
        raise
    except Exception as error:  # the Rust trainer raises plain Exception
        raise ValueError(
            f"vocab_size={vocab_size} is too small for the characters of these texts ({error}): "
            "raise it"
        ) from error
    marks = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    tokenizer.add_special_tokens(marks)
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for the characters of these texts, which come "
            f"to {size}: raise it"
        )
    if model != "bpe" and size <= len(first) + sentinels:
        raise ValueError("the texts are empty: there is nothing to learn a vocabulary from")
    if model != "bpe":
        tokenizer.post_processor = _ending(tokenizer, model)
    roles = roles | {ROLES[token]: token for token in special if token in ROLES}
    others = [token for token in [*special, *marks] if token not in roles.values()]
    return _wrapped(
        tokenizer,
        **roles,
        model_input_names=inputs,
        **({"additional_special_tokens": others} if others else {}),
    )


def bytes_only(*, mask: bool = False, sentinels: int = 0) -> transformers.PreTrainedTokenizerFast:
    """Tokenizer with one token per byte and <|endoftext|>: 257 tokens, no training.

    For smoke runs and byte-level models. mask: add <mask> as the mask token. sentinels: number of
    tokens <extra_id_0>, <extra_id_1>, ..., with descending ids as in T5.
    """
    extra = [MASK] * mask + [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    vocabulary = {token: i for i, token in enumerate([END, *_alphabet(), *extra])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, *extra])
    return _wrapped(
        tokenizer, bos_token=END, eos_token=END, **({"mask_token": MASK} if mask else {})
    )


def _bpe(size: int, special: list[str], lowercase: bool, progress: bool):
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2). It is lossless."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=_alphabet(),
        show_progress=progress,
    )
    return tokenizer, trainer, {"bos_token": END, "eos_token": END}


def _wordpiece(size: int, special: list[str], lowercase: bool, progress: bool):
    """WordPiece with BERT's pre-tokenisation (Devlin et al. 2019, section 3; tokenization.py).

    A word that it cannot spell is [UNK].
    """
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(unk_token=PIECES["unk_token"], max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return (
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=progress),
        PIECES,
    )


def _unigram(size: int, special: list[str], lowercase: bool, progress: bool):
    """Unigram (Kudo 2018) with SentencePiece's normalisation.

    NFKC, single spaces, and a space before the first word.
    """
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    spaces = [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.NFKC(),
            *([normalizers.Lowercase()] if lowercase else []),
            *spaces,
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=special,
        unk_token=MARKS["unk_token"],
        show_progress=progress,
    )
    return tokenizer, trainer, MARKS


MODELS: dict[str, Callable[..., tuple[tokenizers.Tokenizer, Any, dict[str, str]]]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}


def _ending(tokenizer: tokenizers.Tokenizer, model: str) -> processors.TemplateProcessing:
    """BERT's "[CLS] A [SEP] B [SEP]" with token types 0 and 1, or T5's "A </s> B </s>"."""
    if model == "unigram":
        end = MARKS["eos_token"]
        return processors.TemplateProcessing(
            f"$A {end}", f"$A {end} $B {end}", [(end, tokenizer.token_to_id(end))]
        )
    first, last = PIECES["cls_token"], PIECES["sep_token"]
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    return processors.TemplateProcessing(
        f"{first}:0 $A:0 {last}:0", f"{first}:0 $A:0 {last}:0 $B:1 {last}:1", ids
    )


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _wrapped(tokenizer: tokenizers.Tokenizer, **roles: Any) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{"unk_token": None} | roles,
    )
