"""Prompt and completion without a template."""

from lm.data.records.examples import Record, Segment
from lm.data.templates.template import Asked, Template, answered, as_task, whole_prompt


def plain(tokenizer) -> Template:
    """Prompt and completion with nothing between them; an empty line before the input."""
    respond = answered(tokenizer.eos_token)

    def ask(question: Record, _: int) -> Asked:
        return Asked((Segment(whole_prompt(as_task(question)), False),), respond)

    return Template("plain", {}, tokenizer.eos_token, ask)
