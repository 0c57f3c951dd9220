"""Stanford Alpaca's template (Taori et al. 2023, PROMPT_DICT of train.py), and a variant of it."""

from lm.data.records.examples import Record, Segment
from lm.data.templates.template import Asked, Template, answered, as_task

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n"
    "{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def alpaca(tokenizer, name: str = "alpaca", end: str = "") -> Template:
    """Template whose prompt ends in "### Response:" and `end`; the answer follows directly."""
    respond = answered(tokenizer.eos_token)

    def ask(question: Record, _: int) -> Asked:
        task = as_task(question)
        template = WITH_INPUT if task.input else WITHOUT_INPUT
        # Not str.format: the user's text may contain braces.
        before, rest = template.split("{instruction}")
        texts = [before, task.instruction, rest]
        if task.input:
            between, after = rest.split("{input}")
            texts[2:] = [between, task.input, after]
        return Asked(
            (*(Segment(text, False) for text in texts), *([Segment(end, False)] if end else [])),
            respond,
        )

    return Template(name, {}, tokenizer.eos_token, ask)


def alpaca_nl(tokenizer) -> Template:
    """Variant whose prompt ends in a newline, as in litgpt, torchtune and axolotl."""
    return alpaca(tokenizer, "alpaca_nl", "\n")
