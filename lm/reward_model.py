"""Reward of an answer by a reward model: a run of the task `reward`, or a classifier of one label.

In `task.rewards`: {"score": {"type": "lm.reward_model:score", "path": "runs/reward"}}.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm.errors import ConfigError
from lm.rewards import Answer, batched


@batched
def score(answers: Sequence[Answer], *, path: str, batch: int = 16) -> list[float]:
    """Scores of answers to their prompts; NaN for one that is too long for the model.

    path: run folder, model folder or hub id with a head of one label. batch: answers at a time.
    """
    from lm.batch import Batch
    from lm.data.records.examples import Record
    from lm.generation.engine import at_once
    from lm.generation.requests import bucket
    from lm.models import forward

    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ConfigError(f"task.rewards: batch={batch!r} of a reward model: expected at least 1")
    network, params, template, encoder = _loaded(path)
    rendered = [
        template.render(Record(one.prompt, output=one.text), i) for i, one in enumerate(answers)
    ]
    ids = [one.ids for one in encoder(rendered)]
    most, share = network.config.max_length or max(map(len, ids)), at_once()
    rows, found = -(-batch // share) * share, np.full(len(ids), np.nan)
    order = sorted((i for i in range(len(ids)) if len(ids[i]) <= most), key=lambda i: len(ids[i]))
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        length = min(bucket(max(len(ids[i]) for i in part)), most)
        tokens, segments = (np.zeros((rows, length), np.int32) for _ in range(2))
        segments[:, 0] = 1
        for row, i in enumerate(part):
            tokens[row, : len(ids[i])], segments[row, : len(ids[i])] = ids[i], 1
        out: Any = forward(network, params, Batch.of(tokens, segments))
        found[part] = np.asarray(jax.device_get(out.logits))[: len(part), 0]
    return found.tolist()


@functools.lru_cache(maxsize=2)
def _loaded(path: str) -> tuple[Any, dict, Any, Any]:
    """(model, params, template, encoder). Raises ConfigError for a model that gives no score."""
    from lm.data import templates
    from lm.data.encode.encoding import Encoder
    from lm.weights.loading import load, load_template

    network, params, tokenizer = load(path)
    c = network.config
    if (c.head, c.n_labels) != ("sequence_classification", 1) or c.encoder_layers:
        raise ConfigError(
            f"task.rewards: path={path!r} has head={c.head!r} with {c.n_labels} labels: expected a "
            "reward model, which is a decoder or state-space model with one label"
        )
    template = load_template(path, tokenizer)
    if template is None:
        template = templates.get("jinja" if tokenizer.chat_template else "plain", tokenizer)
    return network, params, template, Encoder(tokenizer)
