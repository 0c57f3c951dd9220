"""Tk-Instruct's encoding of a task, exactly as in ni_collator.py.

Wang et al. 2022, arXiv 2204.07705, section 4.
"""

import string

import numpy as np

from lm.data.records.examples import Demonstration, Record, Segment
from lm.data.templates.template import Asked, Template, answered, as_task
from lm.models.config import ConfigError

# Encodings of the original's option tk_instruct: definition, positive, negative, explanations.
MIXED = (
    (True, 0, 0, False),
    (False, 2, 0, False),
    (True, 2, 0, False),
    (True, 2, 2, False),
    (True, 2, 0, True),
)


def tk_instruct(
    tokenizer,
    definition: bool = True,
    positive: int = 2,
    negative: int = 0,
    explanations: bool = False,
    mixed: bool = False,
    max_prompt: int = 1024,
    seed: int = 0,
) -> Template:
    """Prompt of the definition, examples and, with `explanations`, their explanations.

    positive, negative: number of examples. mixed: draw one of five encodings per record.
    Examples are added while the prompt has at most `max_prompt` tokens, with special tokens. A
    longer prompt is cut at its end (the input's), as in the original; `Asked.cut` has the number of
    tokens.
    """
    for name, value, least in (
        ("positive", positive, 0),
        ("negative", negative, 0),
        ("max_prompt", max_prompt, 1),
    ):
        if value < least:
            raise ConfigError(f"task.tk_instruct.{name}={value}: expected at least {least}")
    fixed = (definition, positive, negative, explanations)

    def count(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"])

    def ask(question: Record, index: int) -> Asked:
        task = as_task(question)
        chosen = (
            MIXED[np.random.default_rng((seed, index)).integers(len(MIXED))] if mixed else fixed
        )
        text = spelled(task, *chosen, max_prompt=max_prompt, count=count)
        ids = tokenizer(text, verbose=False)["input_ids"]
        cut = max(0, len(ids) - max_prompt)
        if cut:
            text = tokenizer.decode(
                ids[:max_prompt], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return Asked((Segment(text, False),), lambda answer: respond(answer.strip()), cut)

    respond = answered(tokenizer.eos_token)
    options = dict(
        definition=definition, positive=positive, negative=negative, explanations=explanations
    )
    return Template(
        "tk_instruct",
        {**options, "mixed": mixed, "max_prompt": max_prompt, "seed": seed},
        tokenizer.eos_token,
        ask,
    )


def spelled(
    task: Record,
    definition: bool,
    positive: int,
    negative: int,
    explanations: bool,
    *,
    max_prompt: int,
    count,
) -> str:
    """Prompt of a task. count: function that counts the tokens of a text."""
    asked = (
        f"Now complete the following example -\n{_ended(f'Input: {task.input.strip()}')}\nOutput: "
    )
    begin = _ended(f"Definition: {task.instruction.strip()}") + "\n\n" if definition else ""
    shown: dict[str, list[str]] = {"Positive": [], "Negative": []}
    for kind, examples in (
        ("Positive", task.positive[:positive]),
        ("Negative", task.negative[:negative]),
    ):
        for i, example in enumerate(examples, 1):
            more = _demonstration(f" {kind} Example {i} -\n", example, explanations)
            # The original counts with a space between examples, and writes them without one.
            before = (
                begin
                + " ".join(shown["Positive"])
                + (" ".join(shown["Negative"]) if kind == "Negative" else "")
            )
            if count(before + more + asked) > max_prompt:
                break
            shown[kind].append(more)
    return begin + "".join(shown["Positive"] + shown["Negative"]) + asked


def _demonstration(title: str, example: Demonstration, explanations: bool) -> str:
    text = _ended(f"{title}Input: {example.input.strip()}") + "\n"
    text = _ended(f"{text} Output: {example.output.strip()}") + "\n"
    if explanations and example.explanation is not None:
        text = _ended(f"{text} Explanation: {example.explanation.strip()}") + "\n"
    return text + "\n"


def _ended(text: str) -> str:
    return text if text[-1] in string.punctuation else text + "."
