"""Prompt and completion as they stand."""

from lm.data.examples import Record, Segment
from lm.data.templates.template import Asked, Template, answered, as_task, whole_prompt


def plain(tokenizer) -> Template:
    """The prompt, then the completion, and nothing between them; an input follows its instruction after an empty line."""
    respond = answered(tokenizer.eos_token)

    def ask(question: Record, _: int) -> Asked:
        return Asked((Segment(whole_prompt(as_task(question)), False),), respond)

    return Template("plain", {}, tokenizer.eos_token, ask)
