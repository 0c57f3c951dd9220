"""Filters of generated instructions and instances. Each returns the reason to drop, or ""."""

import string
from collections.abc import Sequence

# tasks on what is no text (Wang et al. 2023, appendix A; Alpaca adds the second set)
NO_TEXT = {
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot"),
}
ALPACA_NO_TEXT = NO_TEXT | {
    *("video", "audio", "music", "flowchart", "diagram"),
}
PHRASES = ("go to",)
PROGRAM = "Write a program"


def instruction(text: str, shortest: int, longest: int, alpaca: bool = False) -> str:
    """Why an instruction is dropped. shortest, longest: words that it may have."""
    words = text.split()
    if not words:
        return "empty"
    if not shortest <= len(words) <= longest:
        return "too short" if len(words) < shortest else "too long"
    bare = [word.strip(string.punctuation).lower() for word in words]
    unwanted = ALPACA_NO_TEXT if alpaca else NO_TEXT
    if unwanted & set(bare) or any(f" {phrase} " in f" {' '.join(bare)} " for phrase in PHRASES):
        return "no text task"
    if text.startswith(PROGRAM):
        return "a program"
    if text[0] in string.punctuation:
        return "starts with punctuation"
    return "" if text[0].isascii() else "starts with a character that is not ASCII"


def instance(given: str, output: str) -> str:
    """Why an instance is dropped."""
    if not output.strip():
        return "empty output"
    if given.strip() == output.strip():
        return "output equals input"
    if given.strip().endswith(":") or output.strip().endswith(":"):
        return "ends with a colon"
    return ""


def consistent(instances: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
    """Instances without repetitions, and why all are dropped, or "".

    All are dropped where one input that is not empty has several outputs.
    """
    kept = list({(one["input"], one["output"]): one for one in instances}.values())
    given = [one["input"] for one in kept if one["input"]]
    if len(set(given)) < len(given):
        return [], "one input with several outputs"
    return kept, ""
