"""Special tokens around texts and pairs of texts, with their token types."""

import copy
from collections.abc import Sequence

from tokenizers import processors

from lm.models.config import ConfigError


class Frame:
    """Special tokens around a text or a pair of texts, and the token type of each part."""

    def __init__(self, tokenizer, pair: bool, framed: bool):
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                "labels need a tokenizer that says where its tokens lie in the text (a "
                "tokenizer.json); this one does not"
            )
        if framed and not tokenizer.num_special_tokens_to_add(pair=pair):
            tokenizer = _with_ends(tokenizer)
        given = ("a", "a") if pair else ("a",)
        example = tokenizer(*given, return_token_type_ids=True)
        whose, self.specials = example.sequence_ids(0), []
        ids, types = example["input_ids"], example["token_type_ids"]
        self.types = [
            next(kind for kind, side in zip(types, whose, strict=True) if side == part)
            for part in range(len(given))
        ]
        part, at = 0, []
        for token, kind, side in zip(ids, types, whose, strict=True):
            if side is None:
                at.append((token, kind))
            elif side == part:
                self.specials.append(at)
                part, at = part + 1, []
        self.specials.append(at)

    def __len__(self) -> int:
        return sum(map(len, self.specials))

    def around(self, *parts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """(ids, types, start index of each part)."""
        ids, types, starts = [], [], []
        for i, specials in enumerate(self.specials):
            ids += [token for token, _ in specials]
            types += [kind for _, kind in specials]
            if i < len(parts):
                starts.append(len(ids))
                ids += parts[i]
                types += [self.types[i]] * len(parts[i])
        return ids, types, starts


def _with_ends(tokenizer):
    """Copy of the tokenizer that puts its end-of-text token around and between texts.

    Raises ConfigError if it has none.
    """
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            "the tokenizer adds no special tokens and has no end-of-text token (eos_token) to "
            "divide texts by; set one"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$E $A $E".replace("$E", end),
        pair="$E $A $E $B:1 $E:1".replace("$E", end),
        special_tokens=[(end, number)],
    )
    return tokenizer
