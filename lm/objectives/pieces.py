"""What a tokenizer's pieces say of the text they come from: special or not, where words begin, where sentences end."""

import numpy as np

from lm.models import inputs
from lm.models.config import ConfigError

SPACES = ("\u0120", "\u2581")  # how byte-level BPE and SentencePiece write the space before a word
SUFFIX = "##"  # how WordPiece writes that a piece continues a word


def needed(tokenizer, objective: str, role: str) -> int:
    """The id of a special token, such as "mask_token"; ConfigError when there is no tokenizer or it has none."""
    if tokenizer is None:
        raise ConfigError(
            f"objective {objective!r} needs a tokenizer, for its {role}; set tokenizer (also with data.synthetic_rows)"
        )
    found = getattr(tokenizer, f"{role}_id")
    if found is None:
        raise ConfigError(
            f"objective {objective!r} needs a tokenizer with a {role}, and this one has none: "
            "use a model's that was pretrained so, or 'bytes'"
        )
    return found


def ends(tokenizer) -> tuple[int | None, int | None]:
    """The tokens that a whole document begins and ends with, if any: bos or [CLS], eos or [SEP]."""
    first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return (
        first,
        tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    )


def special(tokenizer, vocab_size: int) -> np.ndarray:
    """Which ids are special tokens, bool [max(vocab_size, the tokenizer's)]."""
    table = np.zeros(max(vocab_size, inputs.id_count(tokenizer)), bool)
    table[[*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]] = True
    return table


def continues(tokenizer, vocab_size: int) -> np.ndarray:
    """Which ids continue the word of the token before them, bool [V]: WordPiece's ##, or no sign of a space in front.

    Raises ConfigError when the vocabulary marks neither.
    """
    texts = tokenizer.convert_ids_to_tokens(range(inputs.id_count(tokenizer)))
    ordinary = ~special(tokenizer, vocab_size)
    marked = [text.startswith(SUFFIX) and len(text) > len(SUFFIX) for text in texts]
    if not any(marked):
        marked = [not text.startswith(SPACES) for text in texts]
        if all(marked):
            raise ConfigError(
                "objective.masked.whole_words=True: the tokenizer's pieces do not show where words begin; set it to False"
            )
    table = np.zeros(len(ordinary), bool)
    table[: len(texts)] = marked
    return table & ordinary


def full_stops(tokenizer, vocab_size: int) -> np.ndarray:
    """Which ids end in a full stop, bool [V]. Raises ConfigError when none does."""
    table = np.zeros(max(vocab_size, inputs.id_count(tokenizer)), bool)
    texts = tokenizer.convert_ids_to_tokens(range(inputs.id_count(tokenizer)))
    table[: len(texts)] = [text.endswith(".") for text in texts]
    table &= ~special(tokenizer, vocab_size)
    if not table.any():
        raise ConfigError(
            "objective.denoising.permute_sentences=True: no token of the tokenizer ends in a full stop; set it to False"
        )
    return table
