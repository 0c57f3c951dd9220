"""Properties of a tokenizer's tokens: special, word-initial, ending a sentence."""

import numpy as np

from lm.models import inputs
from lm.models.config import ConfigError

SPACES = ("\u0120", "\u2581")  # the space before a word in byte-level BPE and SentencePiece
SUFFIX = "##"  # a token that continues a word in WordPiece


def needed(tokenizer, task: str, role: str) -> int:
    """Id of a special token, such as "mask_token".

    Raises ConfigError if there is no tokenizer, or it has no such token.
    """
    if tokenizer is None:
        raise ConfigError(
            f"task {task!r} needs a tokenizer, for its {role}; set tokenizer (also with "
            "data.synthetic_rows)"
        )
    found = getattr(tokenizer, f"{role}_id")
    if found is None:
        raise ConfigError(
            f"task {task!r} needs a tokenizer with a {role}, and this one has none: "
            "use a model's that was pretrained so, or 'bytes'"
        )
    return found


def ends(tokenizer) -> tuple[int | None, int | None]:
    """Tokens that begin and end a whole document, if any: bos or [CLS], eos or [SEP]."""
    first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return (
        first,
        tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    )


def special(tokenizer, vocab_size: int) -> np.ndarray:
    """Mark the ids of special tokens, bool [max(vocab_size, the tokenizer's)]."""
    table = np.zeros(max(vocab_size, inputs.id_count(tokenizer)), bool)
    table[[*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]] = True
    return table


def continues(tokenizer, vocab_size: int) -> np.ndarray:
    """Mark the ids that continue the word of the token before them, bool [V].

    In WordPiece they begin with ##; elsewhere they lack a leading space. Raises ConfigError when
    the vocabulary marks neither.
    """
    texts = tokenizer.convert_ids_to_tokens(range(inputs.id_count(tokenizer)))
    ordinary = ~special(tokenizer, vocab_size)
    marked = [text.startswith(SUFFIX) and len(text) > len(SUFFIX) for text in texts]
    if not any(marked):
        marked = [not text.startswith(SPACES) for text in texts]
        if all(marked):
            raise ConfigError(
                "task.whole_words=True: the tokenizer's pieces do not show where words "
                "begin; set it to False"
            )
    table = np.zeros(len(ordinary), bool)
    table[: len(texts)] = marked
    return table & ordinary


def full_stops(tokenizer, vocab_size: int) -> np.ndarray:
    """Mark the ids that end in a full stop, bool [V]. Raises ConfigError if there are none."""
    table = np.zeros(max(vocab_size, inputs.id_count(tokenizer)), bool)
    texts = tokenizer.convert_ids_to_tokens(range(inputs.id_count(tokenizer)))
    table[: len(texts)] = [text.endswith(".") for text in texts]
    table &= ~special(tokenizer, vocab_size)
    if not table.any():
        raise ConfigError(
            "task.permute_sentences=True: no token of the tokenizer ends in a full "
            "stop; set it to False"
        )
    return table
