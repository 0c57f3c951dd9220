"""A user's task whose source samples from the model, and carries half of its draws to a later step.

Run as a script, it trains the config of `test_source` and kills itself as a batch is asked for.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm.data.source import Source
from lm.losses import Loss
from lm.losses.tokens import token_losses
from lm.tasks.next_token import NextToken

BEST = 1  # the remainder by 4 of the bytes that are rewarded
KILL_AT = "BANDIT_KILL_AT"  # environment variable: rows read when the process kills itself, ...
SAVED = "BANDIT_SAVED"  # ... as soon as this file is there


class Draws(Source):
    """Two batches a draw. A row is the text, the drawn byte, and its advantage over the mean."""

    def __init__(self, rows, tools, fault):
        self.rows, self.tools, self.fault = rows.tokens, tools, fault
        self.read, self.unused, self.seen = 0, {}, []

    def next(self, state):
        size = self.tools.batch_size
        if str(self.read) == os.environ.get(KILL_AT):
            while not os.path.exists(os.environ[SAVED]):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.unused:
            tokens = np.array(self.rows[(self.read + np.arange(2 * size)) % len(self.rows)])
            out = lm.forward(self.tools.model, self.tools.params(state), lm.Batch.of(tokens))
            key = jax.random.fold_in(jax.random.key(self.tools.seed), self.read)
            tokens[:, -1] = jax.random.categorical(key, out.logits[:, -2])
            self.unused = {"tokens": tokens, "rewards": (tokens[:, -1] % 4 == BEST) * 1.0}
            self.unused["none"] = np.zeros((2 * size, 0), bool)
        now = {name: values[:size] for name, values in self.unused.items()}
        left = {name: values[size:] for name, values in self.unused.items()}
        self.unused = left if len(left["tokens"]) else {}
        self.read += size
        rewards = now["rewards"]
        labels = np.stack([rewards - rewards.mean(), rewards], axis=1)
        batch = dataclasses.replace(lm.Batch.of(now["tokens"]), labels=labels)
        faults = {
            "next raises": lambda: {}["tokens"],
            "no batch": lambda: now,
            "short": lambda: dataclasses.replace(batch, labels=labels[:1]),
            "undeclared": lambda: dataclasses.replace(batch, more={"prizes": rewards}),
            "lossy": lambda: dataclasses.replace(batch, tokens=now["tokens"] + 0.5),
            "outside": lambda: dataclasses.replace(batch, tokens=now["tokens"] + 9999),
        }
        return faults[self.fault]() if self.fault in faults else batch

    def position(self):
        return {"rows": np.int64(self.read) if self.fault == "position" else self.read}

    def carry(self):
        return {"texts": np.array(["a"])} if self.fault == "carry" else self.unused

    def restore(self, position, carry):
        self.read, self.unused = position["rows"], dict(carry)


@dataclasses.dataclass(frozen=True)
class Bandit(NextToken):
    """REINFORCE with the batch's mean reward as baseline (Williams 1992)."""

    fault: str = ""

    def source(self, rows, tools):
        return Draws(rows, tools, self.fault)

    def fields(self, length, model):
        return {"labels": (2,)}  # advantage, reward

    def loss(self, model, params, batch, rng=None):
        losses = token_losses(model, params, batch)[:, -2] * batch.labels[:, 0]
        return Loss.of(jnp.sum(losses), jnp.float32(len(losses)), reward=batch.labels[:, 1].sum())


if __name__ == "__main__":
    from lm.training import loop
    from tests.lm.training import test_source

    folder = pathlib.Path(sys.argv[1])
    loop.train(test_source.config(folder), folder / "killed")
