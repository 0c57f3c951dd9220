"""Self-Instruct's templates (Wang et al. 2023, arXiv 2212.10560, section 2.3).

As in prepare_for_finetuning.py.
"""

import numpy as np

from lm.data.records.examples import Record, Segment
from lm.data.templates.template import Asked, Template, answered, as_task

WITH_INPUT = (  # text before, between and after instruction and input; start of the answer
    ("", "\nInput: ", "\nOutput:", " "),
    ("", "\n\nInput: ", "\n\nOutput:", " "),
    ("Task: ", "\nInput: ", "\nOutput:", " "),
    ("", "\n\n", "\n\nOutput:", " "),
    ("", "\n\n", "\n\n", ""),
    ("", "\n", "\n\n", ""),
    ("Task: ", "\n\n", "\n\n", ""),
)
WITHOUT_INPUT = (  # text before and after the instruction; start of the answer
    ("", " Output:", " "),
    ("", "\nOutput:", " "),
    ("", "\n\nOutput:", " "),
    ("", "\n\n", ""),
    ("", "\n", ""),
    ("Task: ", "\n\n", ""),
)


def self_instruct(tokenizer, seed: int = 0) -> Template:
    """One template of the pool, drawn for each record from (seed, index)."""

    def ask(question: Record, index: int) -> Asked:
        task = as_task(question)
        draw = np.random.default_rng((seed, index))
        instruction, given = task.instruction.strip(), task.input.strip()
        if given:
            before, between, after, lead = WITH_INPUT[draw.integers(len(WITH_INPUT))]
            text = f"{before}{instruction}{between}{given}{after}"
        else:
            before, after, lead = WITHOUT_INPUT[draw.integers(len(WITHOUT_INPUT))]
            text = f"{before}{instruction}{after}"
        spell = answered(tokenizer.eos_token, before=lead)
        return Asked((Segment(text, False),), lambda answer: spell(answer.strip()))

    return Template("self_instruct", {"seed": seed}, tokenizer.eos_token, ask)
