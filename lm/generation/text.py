"""Text generation with a tokenizer and stop strings, which may cross token borders."""

from collections.abc import Iterator, Sequence

from lm.data.encode.encoding import prompt_ids
from lm.generation.answers import generate, stream
from lm.generation.beams import Beams
from lm.generation.requests import GenerationError
from lm.generation.samplers import Greedy
from lm.models import LanguageModel, inputs

UNFINISHED = "\ufffd"  # decoding of an incomplete multi-byte character


def generate_text(
    model: LanguageModel,
    params: dict,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampler=Greedy(),
    *,
    stop_strings: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    **options,
) -> list[str]:
    """Answer each prompt with `generate`, and cut the answer before its first stop string.

    prompts: texts, encoded with the tokenizer's start token (a run's: as in its documents), or
    token ids. Answers have no special tokens. A stop string that is a special or added token of the
    tokenizer stops at that token. Other options are those of `generate`.

    Raises GenerationError as `generate` does, and ValueError for an empty stop string.
    """
    stop_strings = _checked(stop_strings)

    def finished(_, tokens: list[int]) -> bool:
        return ending(decoded(tokenizer, tokens), stop_strings) is not None

    watch = finished if stop_strings and not isinstance(sampler, Beams) else None
    encoder = bool(model.config.encoder_layers)
    ids = [
        prompt_ids(tokenizer, prompt, encoder) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    inputs.check_ids(model.config, ids, tokenizer, error=GenerationError)
    answers = generate(
        model,
        params,
        ids,
        max_new_tokens,
        sampler,
        stop_tokens=_stop_tokens(model, tokenizer, stop_tokens, stop_strings),
        finished=watch,
        **options,
    )
    texts = [decoded(tokenizer, tokens) for tokens in answers]
    return [text[: ending(text, stop_strings)] for text in texts]


def stream_text(
    model: LanguageModel,
    params: dict,
    tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler=Greedy(),
    *,
    stop_strings: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    **options,
) -> Iterator[str]:
    """Yield the answer to one prompt (token ids) in pieces, which join to that of `generate_text`.

    Incomplete characters, and text that may begin a stop string, are held back until settled.
    """
    stop_strings = _checked(stop_strings)
    stop_tokens = _stop_tokens(model, tokenizer, stop_tokens, stop_strings)
    inputs.check_ids(model.config, [prompt], tokenizer, error=GenerationError)
    tokens, shown, text = [], 0, ""
    for token in stream(
        model, params, prompt, max_new_tokens, sampler, stop_tokens=stop_tokens, **options
    ):
        tokens.append(token)
        text = decoded(tokenizer, tokens)
        end = ending(text, stop_strings)
        settled = _settled(text, stop_strings) if end is None else end
        if settled > shown:
            yield text[shown:settled]
            shown = settled
        if end is not None:
            return
    if len(text) > shown:
        yield text[shown:]


def decoded(tokenizer, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ending(text: str, stop_strings: Sequence[str]) -> int | None:
    """Start of the stop string that is complete first, from the left; None if there is none."""
    found = [
        (text.find(stop) + len(stop), text.find(stop)) for stop in stop_strings if stop in text
    ]
    return min(found)[1] if found else None


def _settled(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the part of `text` that further tokens cannot change.

    It excludes an incomplete character, and the longest suffix that begins a stop string.
    """
    text = text.rstrip(UNFINISHED)
    begun = (n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return len(text) - max(begun, default=0)


def _checked(stop_strings: Sequence[str]) -> list[str]:
    stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
    if not all(stop_strings):
        raise ValueError("a stop string is empty: it would end every answer before it begins")
    return stop_strings


def _stop_tokens(model, tokenizer, stop_tokens, stop_strings) -> list[int]:
    """Stop tokens, including the special tokens among the stop strings.

    Decoding drops special tokens, so their text would never match.
    """
    ids = {
        **tokenizer.get_added_vocab(),
        **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
    }
    return [
        *(model.config.eos_token_ids if stop_tokens is None else stop_tokens),
        *(ids[stop] for stop in stop_strings if stop in ids),
    ]
