"""Records, and what templates must make of them, written by hand from the formats' descriptions.

python -m tests.lm.data.template_cases writes the golden files again. Run it only after a
deliberate change of a template, and read the diff. Two tokenizers encode the cases.
"""

import functools
import json
import pathlib

import transformers

from lm.data import templates, tokenizers
from lm.data.encode.encoding import Encoder
from lm.data.records.examples import Demonstration, Record, Turn

GOLDEN = pathlib.Path(__file__).parent / "golden"
CONTROL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
END = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

POEM = Record(instruction="Write a short line about the sea.", output="The sea is wide and blue.")
SUM = Record(instruction="Add the two numbers.", input="2 and 3", output="5")
TALK = Record(
    turns=(
        Turn("system", "Be brief."),
        Turn("user", "Is the sky blue?"),
        Turn("assistant", "Yes."),
        Turn("user", "And the sea?"),
        Turn("assistant", "Often."),
    )
)
TASK = Record(
    instruction="Say whether the number is even",
    input="7",
    output=" odd ",
    references=("odd", "uneven"),
    positive=(
        Demonstration("4", "even", "4 is twice 2"),
        Demonstration(" 9! ", "odd", "9 is 2 times 4 and 1."),
        Demonstration("1", "odd"),
    ),
    negative=(Demonstration("5", "maybe", "That is no answer"),),
    task="parity",
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
    "### Instruction:\nWrite a short line about the sea.\n\n### Response:"
)
TK_ASK = "Now complete the following example -\nInput: 7.\nOutput: "

# name -> (template, options, record, [(text, trained)]) up to the last trained token
CASES = {
    "alpaca_without_input": (
        "alpaca",
        {},
        POEM,
        [(ALPACA, 0), ("The sea is wide and blue.", 1), (END, 1)],
    ),
    "alpaca_with_input": (
        "alpaca",
        {},
        SUM,
        [
            (
                "Below is an instruction that describes a task, paired with an input that "
                "provides further context. Write a response that "
                "appropriately completes the request.\n\n### Instruction:\nAdd the two numbers.\n\n"
                "### Input:\n2 and 3\n\n### Response:",
                0,
            ),
            ("5", 1),
            (END, 1),
        ],
    ),
    "alpaca_nl": (
        "alpaca_nl",
        {},
        POEM,
        [(ALPACA + "\n", 0), ("The sea is wide and blue.", 1), (END, 1)],
    ),
    "chatml": (
        "chatml",
        {},
        TALK,
        [
            (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
                "Is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
                0,
            ),
            ("Yes.<|im_end|>", 1),
            ("\n<|im_start|>user\nAnd the sea?<|im_end|>\n<|im_start|>assistant\n", 0),
            ("Often.<|im_end|>", 1),
        ],
    ),
    "chatml_last": (
        "chatml",
        {"turns": "last"},
        TALK,
        [
            (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
                "Is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
                "Yes.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n<|im_start|>assistant\n",
                0,
            ),
            ("Often.<|im_end|>", 1),
        ],
    ),
    "tulu": (
        "tulu",
        {},
        TALK,
        [
            ("<|system|>\nBe brief.\n<|user|>\nIs the sky blue?\n<|assistant|>\n", 0),
            (f"Yes.{END}", 1),
            ("\n<|user|>\nAnd the sea?\n<|assistant|>\n", 0),
            (f"Often.{END}", 1),
        ],
    ),
    "llama2": (
        "llama2",
        {},
        TALK,
        [
            (f"{END}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nIs the sky blue? [/INST]", 0),
            (f" Yes. {END}", 1),
            (f"{END}[INST] And the sea? [/INST]", 0),
            (f" Often. {END}", 1),
        ],
    ),
    "llama3": (
        "llama3",
        {},
        TALK,
        [
            (
                f"{END}<|start_header_id|>system<|end_header_id|>\n\n"
                "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
                "Is the sky blue?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                0,
            ),
            ("Yes.<|eot_id|>", 1),
            (
                "<|start_header_id|>user<|end_header_id|>\n\n"
                "And the sea?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                0,
            ),
            ("Often.<|eot_id|>", 1),
        ],
    ),
    "tk_instruct": (
        "tk_instruct",
        {},
        TASK,
        [
            (
                "Definition: Say whether the number is even.\n\n Positive Example 1 -\nInput: 4.\n"
                " Output: even.\n\n"
                f" Positive Example 2 -\nInput: 9!\n Output: odd.\n\n{TK_ASK}",
                0,
            ),
            ("odd", 1),
            (END, 1),
        ],
    ),
    "tk_instruct_everything": (
        "tk_instruct",
        {"positive": 1, "negative": 1, "explanations": True},
        TASK,
        [
            (
                "Definition: Say whether the number is even.\n\n"
                " Positive Example 1 -\nInput: 4.\n Output: even.\n Explanation: 4 is twice 2.\n\n"
                " Negative Example 1 -\nInput: 5.\n Output: maybe.\n"
                f" Explanation: That is no answer.\n\n{TK_ASK}",
                0,
            ),
            ("odd", 1),
            (END, 1),
        ],
    ),
    "self_instruct": (
        "self_instruct",
        {"seed": 1},
        SUM,
        [("Add the two numbers.\n\n2 and 3\n\nOutput:", 0), (" 5", 1), (END, 1)],
    ),
    "jinja": (
        "jinja",
        {},
        TALK,
        [
            (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
                "Is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
                0,
            ),
            ("Yes.<|im_end|>", 1),
            ("\n<|im_start|>user\nAnd the sea?<|im_end|>\n<|im_start|>assistant\n", 0),
            ("Often.<|im_end|>", 1),
        ],
    ),
    "plain": ("plain", {}, SUM, [("Add the two numbers.\n\n2 and 3", 0), ("5", 1), (END, 1)]),
}


def with_control(tokenizer, chat_template=CHATML):
    """Add the control tokens of the chat templates to the tokenizer."""
    tokenizer.add_tokens(
        [transformers.AddedToken(token, special=True) for token in CONTROL], special_tokens=True
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@functools.cache
def tokenizer(kind):
    """The "bytes" tokenizer, or "bpe": a small one trained on the cases."""
    if kind == "bytes":
        return with_control(tokenizers.bytes_only())
    texts = ["".join(text for text, _ in pieces) for *_, pieces in CASES.values()]
    return with_control(tokenizers.train(texts, 420))


def encoded(name, kind, decoder_start=None):
    """Render and encode a case."""
    template, options, record, _ = CASES[name]
    template = templates.get(template, tokenizer(kind), **options)
    (found,) = Encoder(tokenizer(kind), decoder_start)([template.render(record)])
    return found


def described(name):
    """Contents of a golden file for a case: tokens, ids and mask for each tokenizer."""
    found = {}
    for kind in ("bytes", "bpe"):
        e = encoded(name, kind)
        ids = e.ids.tolist()
        found[kind] = {"ids": ids, "mask": "".join(map(str, e.trained.astype(int).tolist()))}
    return found


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.json").write_text(json.dumps(described(case)) + "\n")
