"""UL2's mixture of denoisers: seven kinds of span corruption (Tay et al. 2022, section 3.1).

R, regular: T5's. S, sequential: one span that ends the text, so a prefix is continued. X, extreme:
long spans, or many.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from lm.models.config import ConfigError, ModelConfig
from lm.tasks import pieces
from lm.tasks.span_corruption import Noise, corruption, most
from lm.tasks.task import Transform
from lm.tasks.text import TextTask

DENOISERS = {  # (share of missing tokens, mean span), table 1 of the paper
    "r": ((0.15, 3.0), (0.15, 8.0)),
    "s": ((0.25, math.inf),),
    "x": ((0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)),
}
# mode tokens of the released models (section 3.1.2)
MODES = {"r": "[NLU]", "s": "[S2S]", "x": "[NLG]"}


def noises(r: float, s: float, x: float, modes: dict[str, int] | None = None) -> list[Noise]:
    """Noises that can be drawn; `r`, `s`, `x` are the relative probabilities of the kinds.

    Raises ConfigError for invalid probabilities.
    """
    chances = {"r": r, "s": s, "x": x}
    for kind, chance in chances.items():
        if not 0 <= chance < math.inf:
            raise ConfigError(f"task.{kind}={chance}: expected a finite number, 0 or more")
    if not any(chances.values()):
        raise ConfigError("task.r=0, task.s=0 and task.x=0: no denoiser is left; raise one")
    return [
        Noise(rate, mean_span, modes[kind] if modes else None, chances[kind] / len(settings))
        for kind, settings in DENOISERS.items()
        for rate, mean_span in settings
        if chances[kind]
    ]


@dataclasses.dataclass(frozen=True)
class UL2(TextTask):
    """Undo a kind of corruption that is drawn for each text.

    r, s, x: relative frequencies of the kinds R (short spans), S (the end of the text) and X (long
    spans, or half of the text). With the defaults all seven denoisers are equally likely.
    """

    r: float = 2.0
    s: float = 1.0
    x: float = 4.0
    # Start the input with [NLU], [S2S] or [NLG] for the kind of denoiser; the tokenizer needs them.
    modes: bool = False

    heads: ClassVar[tuple[str, ...]] = ("seq2seq_lm",)
    special: ClassVar[Mapping] = {"sentinels": 100}
    whole: ClassVar[bool] = True

    def longest(self, length: int) -> int:
        """Tokens of the longer side of a text that fills a row.

        Raises ConfigError for invalid probabilities.
        """
        modes = dict.fromkeys(MODES, 0) if self.modes else None
        return int(max(most(length, noises(self.r, self.s, self.x, modes))))

    def transform(self, tokenizer, model: ModelConfig) -> Transform:
        """Transform that draws a denoiser for each text. See `span_corruption.corruption`.

        Raises ConfigError, with `modes`, for a tokenizer without their tokens.
        """
        modes = modes_of(tokenizer) if self.modes else None
        return corruption("ul2", tokenizer, model, noises(self.r, self.s, self.x, modes))


def modes_of(tokenizer) -> dict[str, int]:
    """Ids of the mode tokens. Raises ConfigError for a tokenizer without them."""
    pieces.needed(tokenizer, "ul2", "eos_token")
    vocabulary = tokenizer.get_vocab()
    missing = [mode for mode in MODES.values() if mode not in vocabulary]
    if missing:
        raise ConfigError(
            f"task.modes=True needs a tokenizer with {', '.join(MODES.values())}, "
            f"and this one has no {', '.join(missing)}: "
            "add them to it as special tokens, or set it to False"
        )
    return {kind: vocabulary[mode] for kind, mode in MODES.items()}
