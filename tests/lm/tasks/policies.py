"""A small run of a policy, and rewards and faults of a user's own."""

import json
import math

from configs.defaults import defaults
from lm import tasks
from lm.families import preset
from lm.training import settings

REWARD = "tests.lm.tasks.policies:vowels"


def vowels(answer, *, fault=""):
    """Share of an answer's letters that are vowels; `fault` makes the function fail."""
    if fault == "raises":
        return {}["no such key"]
    if fault:
        return {"nan": math.nan, "shape": [1.0, 2.0], "text": "good", "constant": 1.0}[fault]
    return sum(letter in "aeiou" for letter in answer.text) / max(len(answer.text), 1)


def prompts(folder):
    path = folder / "prompts.jsonl"
    rows = [{"prompt": f"Say {n * 7 % 11}", "answer": str(n)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder, task="grpo", family="llama", fields=None, **changes):
    """A run with a model of a few thousand parameters; `changes` are dotted fields."""
    c = defaults()
    model = dict(n_layers=1, d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32)
    shape = preset(family, "tiny")
    if shape.layer_pattern:
        model["n_layers"] = len(shape.layer_pattern)
    own = {name: value for name, value in model.items() if getattr(shape, name, None)}
    c.model.update(settings.model_section(shape.replace(**own, dropout=0.0)).to_dict())
    c.model.vocab_size = 0
    usual = {"new_tokens": 6, "group": 4, "rewards": {"vowels": {"type": REWARD}}}
    c.update_from_flattened_dict(
        {
            "task": tasks.defaults(task, **(usual | (fields or {}))),
            "tokenizer": "bytes",
            "data.files": prompts(folder),
            "data.cache": str(folder / "cache"),
            "steps": 4,
            "batch_size": 8,
            "length": 24,
            "optimizer.learning_rate": 1e-2,
            "log.every": 1,
            "log.tensorboard": False,
            "checkpoint.every": 100,
            **changes,
        }
    )
    return c
