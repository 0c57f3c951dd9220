"""UL2's mixture of denoisers: seven kinds of span corruption (Tay et al. 2022, section 3.1).

R, regular: T5's. S, sequential: one span that ends the text, so a prefix is continued. X, extreme:
long spans, or many.
"""

import math

from lm.models.config import ConfigError, ModelConfig
from lm.objectives import pieces
from lm.objectives.objective import Transform
from lm.objectives.span_corruption import Noise, corruption, most

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
            raise ConfigError(f"objective.ul2.{kind}={chance}: expected a finite number, 0 or more")
    if not any(chances.values()):
        raise ConfigError(
            "objective.ul2.r=0, objective.ul2.s=0 and objective.ul2.x=0: no denoiser is left; "
            "raise one"
        )
    return [
        Noise(rate, mean_span, modes[kind] if modes else None, chances[kind] / len(settings))
        for kind, settings in DENOISERS.items()
        for rate, mean_span in settings
        if chances[kind]
    ]


def longest(
    length: int, *, r: float = 2.0, s: float = 1.0, x: float = 4.0, modes: bool = False
) -> int:
    """Tokens of the longer side of a text that fills a row.

    Raises ConfigError for invalid probabilities.
    """
    return int(max(most(length, noises(r, s, x, dict.fromkeys(MODES, 0) if modes else None))))


def ul2(
    tokenizer,
    config: ModelConfig,
    *,
    r: float = 2.0,
    s: float = 1.0,
    x: float = 4.0,
    modes: bool = False,
) -> Transform:
    """Transform that draws a denoiser for each text; by default all seven are equally likely.

    See `span_corruption.corruption`, also for errors. modes: the encoder input begins with its
    kind's token, [NLU], [S2S] or [NLG]; ConfigError for a tokenizer without these tokens.
    """
    ids = None
    if modes:
        pieces.needed(tokenizer, "ul2", "eos_token")
        vocabulary = tokenizer.get_vocab()
        missing = [mode for mode in MODES.values() if mode not in vocabulary]
        if missing:
            raise ConfigError(
                f"objective.ul2.modes=True needs a tokenizer with {', '.join(MODES.values())}, "
                f"and this one has no {', '.join(missing)}: "
                "add them to it as special tokens, or set it to False"
            )
        ids = {kind: vocabulary[mode] for kind, mode in MODES.items()}
    return corruption("ul2", tokenizer, config, noises(r, s, x, ids))
