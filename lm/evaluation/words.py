"""Tokenizers for answer scores: Unicode words of any script, or a given tokenizer for ROUGE."""

import functools
import unicodedata
from collections.abc import Callable, Sequence

from tokenizers import Regex, pre_tokenizers

Tokenize = Callable[[str], list[str]]

# ROUGE's own tokenizer, which keeps only a-z and 0-9; `unicode_words`
ROUGE, UNICODE = "rouge", "unicode"
# scripts without spaces between words
UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
_CHARACTERS = "".join(rf"\p{{{script}}}" for script in UNSPACED)
_WORDS = pre_tokenizers.Split(
    Regex(rf"[{_CHARACTERS}]\p{{M}}*|(?:(?![{_CHARACTERS}])[\p{{L}}\p{{M}}\p{{N}}])+"),
    "removed",
    invert=True,
)


def unicode_words(text: str) -> list[str]:
    """Split a text into runs of letters, marks and digits, after NFKC and case folding.

    In scripts without spaces between words each letter is a word:

        "Кот сидит." -> ["кот", "сидит"]
        "狗在跑。" -> ["狗", "在", "跑"]
        "１２ km²" -> ["12", "km2"]
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # drop joiners, soft hyphens and direction marks
    visible = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    return [word for word, _ in _WORDS.pre_tokenize_str(visible)] if visible else []


def without_punctuation(text: str) -> list[str]:
    """Apply `unicode_words` to the text without punctuation: "1,000" -> ["1000"].

    This is how the script of MLQA (Lewis et al. 2020) compares answers.
    """
    return unicode_words("".join(c for c in text if unicodedata.category(c)[0] != "P"))


def byte_pairs(tokenizer) -> Tokenize:
    """Tokenize function with a tokenizer's pieces, without leading spaces.

    GPT-2's gives the words of Super-NaturalInstructions' xlingual track.
    """
    return lambda text: [token.lstrip("Ġ▁") for token in tokenizer.tokenize(text)]


@functools.cache
def tokenize_of(name: str) -> Tokenize | None:
    """Return the tokenizer for ROUGE of this name.

    "rouge" -> None (its own, stemmed), "unicode" -> `unicode_words`, else the folder, hub id or
    .gguf file of a tokenizer. Raises WeightsError (a ValueError) when that cannot be read.
    """
    from lm.weights.tokenizer import load_tokenizer

    return (
        None
        if name == ROUGE
        else unicode_words
        if name == UNICODE
        else byte_pairs(load_tokenizer(name))
    )


def dropped(text: str) -> bool:
    """Tell whether ROUGE's own tokenizer drops most letters and digits of a text."""
    letters = [c for c in text.lower() if unicodedata.category(c)[0] in "LN"]
    return 2 * sum(c.isascii() for c in letters) < len(letters)


def doubt(references: Sequence[Sequence[str]], metrics: Sequence[str], name: str) -> str:
    """Warn if the chosen metrics ignore most of some references; '' if they do not."""
    blind = [metric for metric in metrics if metric.startswith("rouge") and name == ROUGE]
    unseen = [texts[0] for texts in references if all(map(dropped, texts))]
    if not blind or not unseen:
        return ""
    return (
        f"of {len(unseen):,} of {len(references):,} reference answers, such as {unseen[0][:40]!r}, "
        f"ROUGE's own tokenizer drops most letters (it keeps a-z and 0-9): {' and '.join(blind)} "
        "say nothing of them. Choose the rouge tokenizer 'unicode', or one by its "
        "folder or hub id; unicode_exact_match and unicode_f1 compare words of any script"
    )
