"""Smoke run on a mixture of sources, with a replay task: mixture.py:instruct,llama

A mixture cannot be set by a flag, so tests.same_run needs a config file for it.
"""

from configs import smoke


def replay(c):
    """Fields of a source of text. An old checkout has `objective` in place of `task`."""
    if hasattr(c, "objective"):
        return {"objective": "next_token"}
    from lm import tasks

    return {"task": tasks.defaults("next_token")}


def get_config(variant="instruct,llama"):
    c = smoke.get_config(variant)
    c.data.files = ""
    chat = {"format": "messages"}
    c.data.mixture = {
        "answers": {"files": "configs/examples/instruct.jsonl", "weight": 2.0},
        "chat": {"files": "configs/examples/chat.jsonl", "weight": 1.0}
        | (chat if hasattr(c, "objective") else {"task": chat}),
        "replay": {"files": "LICENSE", "weight": 1.0} | replay(c),
    }
    c.data.temperature = 2.0
    return c
