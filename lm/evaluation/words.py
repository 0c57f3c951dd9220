"""The words that scores of answers count, in any script: by Unicode, or by a tokenizer of choice in place of ROUGE's own."""

import functools
import unicodedata
from collections.abc import Callable, Sequence

from tokenizers import Regex, pre_tokenizers

Tokenize = Callable[[str], list[str]]

ROUGE, UNICODE = "rouge", "unicode"  # ROUGE's own, which keeps a-z and 0-9 alone; `unicode_words`
UNSPACED = (
    "Han",
    "Hiragana",
    "Katakana",
    "Thai",
    "Lao",
    "Khmer",
    "Myanmar",
    "Tibetan",
)  # scripts without spaces between words
_CHARACTERS = "".join(rf"\p{{{script}}}" for script in UNSPACED)
_WORDS = pre_tokenizers.Split(
    Regex(rf"[{_CHARACTERS}]\p{{M}}*|(?:(?![{_CHARACTERS}])[\p{{L}}\p{{M}}\p{{N}}])+"),
    "removed",
    invert=True,
)


def unicode_words(text: str) -> list[str]:
    """Runs of letters, marks and digits, NFKC and case folded; of scripts without spaces between words each letter is a word.

    "Кот сидит." -> ["кот", "сидит"], "狗在跑。" -> ["狗", "在", "跑"], "１２ km²" -> ["12", "km2"].
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(
        c for c in plain if unicodedata.category(c) != "Cf"
    )  # joiners, soft hyphens, marks of direction
    return [word for word, _ in _WORDS.pre_tokenize_str(visible)] if visible else []


def without_punctuation(text: str) -> list[str]:
    """`unicode_words` of the text without punctuation, as the script of MLQA (Lewis et al. 2020) compares answers: "1,000" -> ["1000"]."""
    return unicode_words("".join(c for c in text if unicodedata.category(c)[0] != "P"))


def byte_pairs(tokenizer) -> Tokenize:
    """The pieces of a tokenizer without leading spaces; GPT-2's makes the words of Super-NaturalInstructions' xlingual track."""
    return lambda text: [token.lstrip("Ġ▁") for token in tokenizer.tokenize(text)]


@functools.cache
def tokenize_of(name: str) -> Tokenize | None:
    """What makes ROUGE's words: "rouge" -> None (its own, stemmed), "unicode", or the folder, hub id or .gguf file of a tokenizer.

    Raises WeightsError (a ValueError) when that cannot be read.
    """
    from lm.tokenizer import load_tokenizer

    return (
        None
        if name == ROUGE
        else unicode_words
        if name == UNICODE
        else byte_pairs(load_tokenizer(name))
    )


def dropped(text: str) -> bool:
    """Whether ROUGE's own tokenizer drops most letters and digits of a text."""
    letters = [c for c in text.lower() if unicodedata.category(c)[0] in "LN"]
    return 2 * sum(c.isascii() for c in letters) < len(letters)


def doubt(references: Sequence[Sequence[str]], metrics: Sequence[str], name: str) -> str:
    """What to say where the metrics that are chosen do not see most of the answers wanted; '' where they do."""
    blind = [metric for metric in metrics if metric.startswith("rouge") and name == ROUGE]
    unseen = [texts[0] for texts in references if all(map(dropped, texts))]
    if not blind or not unseen:
        return ""
    return (
        f"of {len(unseen):,} of {len(references):,} reference answers, such as {unseen[0][:40]!r}, ROUGE's own tokenizer drops most "
        f"letters (it keeps a-z and 0-9): {' and '.join(blind)} say nothing of them. Choose the rouge tokenizer 'unicode', or one by its "
        "folder or hub id; unicode_exact_match and unicode_f1 compare words of any script"
    )
