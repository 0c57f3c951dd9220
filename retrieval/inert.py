"""Text from outside is data: nothing that a tokenizer, a chat template or a terminal takes for an instruction gets through from it."""

import json
import re
import unicodedata
from collections.abc import Iterable

# Controls (of the terminal, too: ESC, CSI), marks of direction and invisible characters, but not the joiners that scripts need.
UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
ROUNDS = 8  # of reading a text as its tokens spell it


def one_line(text: str) -> str:
    """`text` with every run of white space, line ends included, turned into one space."""
    return " ".join(text.split())


def shown(text) -> str:
    """`text` for a terminal: on one line, and what would move the cursor, colour or turn the writing spelled out, as \\x1b."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), one_line(str(text)))


def as_json(value) -> str:
    """JSON on one line, with the same characters escaped and no others."""
    return UNSEEN.sub(
        lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False)
    )


def control_tokens(tokenizer) -> dict[int, str]:
    """id -> spelling of the tokens that stand for no text, but for white space."""
    return {
        id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if str(token).strip()
    }


def encode_plain(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, in which the spelling of a special token is only text; other control tokens are left out."""
    control = control_tokens(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [token for token in tokens if token not in control]


def encode_foreign(tokenizer, text: str, markers: re.Pattern, most: int) -> list[int]:
    """The first `most` tokens of `encode_plain`, of one line, with no marker in what they spell: of those only the words are left.

    What is left out, normalised or spelled as a byte (<0x0A>) may make a marker or a line end of what was none: so it is looked at what
    the tokens read as. A text that hides one in another eight times is left out.
    """
    for _ in range(ROUNDS):
        tokens = encode_plain(tokenizer, text)[:most]
        read = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        if not markers.search(read) and len(read.splitlines()) < 2:
            return tokens
        text = " " * text.startswith(" ") + one_line(markers.sub(_words, read))
    return []


def without_control(tokenizer, text: str) -> str:
    """`text` with the words only of what spells a control token, for models that read text and such tokens in one go."""
    spelled, normal = (
        one_of(control_tokens(tokenizer).values()),
        unicodedata.normalize("NFKC", text),
    )  # as some tokenizers do
    return spelled.sub(_words, normal) if spelled.search(normal) else text


def one_of(spellings: Iterable[str]) -> re.Pattern:
    """Finds any of the spellings, the longest first; where there are none, nothing."""
    return re.compile(
        "|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)) or r"(?!)"
    )


def _words(found: re.Match) -> str:
    words = " ".join(re.findall(r"\w+", found[0]))
    return f" {words} "
