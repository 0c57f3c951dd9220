"""Smoke run on a mixture of sources, with a replay objective: mixture.py:instruct,llama

A mixture cannot be set by a flag, so tests.same_run needs a config file for it.
"""

from configs import smoke


def get_config(variant="instruct,llama"):
    c = smoke.get_config(variant)
    c.data.files = ""
    c.data.mixture = {
        "answers": {"files": "configs/examples/instruct.jsonl", "weight": 2.0},
        "chat": {"files": "configs/examples/chat.jsonl", "format": "messages", "weight": 1.0},
        "replay": {"files": "LICENSE", "objective": "next_token", "weight": 1.0},
    }
    c.data.temperature = 2.0
    return c
