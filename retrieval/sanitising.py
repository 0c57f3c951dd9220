"""Sanitising of untrusted text for tokenizers, chat templates and terminals.

Retrieved text is data: nothing in it may act as an instruction.
"""

import json
import re
import unicodedata
from collections.abc import Iterable

# Control characters (also ESC and CSI of terminals), direction marks and invisible characters,
# but not the joiners that some scripts need.
UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\U000e0000-\U000e007f]"
)
ROUNDS = 8  # of encoding, decoding and checking


def one_line(text: str) -> str:
    """Collapse every run of white space in `text`, line ends included, into one space."""
    return " ".join(text.split())


def shown(text) -> str:
    """Return `text` on one line for a terminal, control characters escaped as \\x1b.

    Those are characters that move the cursor, set colours or change the writing direction.
    """
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), one_line(str(text)))


def as_json(value) -> str:
    """Return JSON on one line, with the same characters escaped and no others."""
    return UNSEEN.sub(
        lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False)
    )


def control_tokens(tokenizer) -> dict[int, str]:
    """Return id -> spelling of the tokenizer's added tokens, without white space ones."""
    return {
        id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if str(token).strip()
    }


def encode_plain(tokenizer, text: str) -> list[int]:
    """Tokenise `text` with special tokens in it read as ordinary text.

    Other control tokens are dropped.
    """
    control = control_tokens(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [token for token in tokens if token not in control]


def encode_foreign(tokenizer, text: str, markers: re.Pattern, most: int) -> list[int]:
    """Return at most `most` tokens of `text` on one line, with no marker in what they decode to.

    A marker keeps only its words. Dropped tokens, normalisation or byte tokens (<0x0A>) can create
    a marker or a line end, so the decoded text is checked, up to ROUNDS times. If a marker remains,
    the result is empty.
    """
    for _ in range(ROUNDS):
        tokens = encode_plain(tokenizer, text)[:most]
        read = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        if not markers.search(read) and len(read.splitlines()) < 2:
            return tokens
        text = " " * text.startswith(" ") + one_line(markers.sub(_words, read))
    return []


def without_control(tokenizer, text: str) -> str:
    """Reduce each control token spelled in `text` to its words.

    For models that tokenise text and control tokens together.
    """
    spelled, normal = (
        one_of(control_tokens(tokenizer).values()),
        unicodedata.normalize("NFKC", text),  # as some tokenizers do
    )
    return spelled.sub(_words, normal) if spelled.search(normal) else text


def one_of(spellings: Iterable[str]) -> re.Pattern:
    """Compile a pattern of any of the spellings, longest first; no spellings match nothing."""
    return re.compile(
        "|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)) or r"(?!)"
    )


def _words(found: re.Match) -> str:
    words = " ".join(re.findall(r"\w+", found[0]))
    return f" {words} "
