"""Evaluator of kNN-LM: the perplexity of held-out text without and with a datastore.

    c.evals = {"knn": {"type": "retrieval.doors.knn_evaluator:KnnPerplexity", "store": "train.txt",
               "dev": "dev.txt", "files": "test.txt"}}

The datastore is built from `store` with the parameters that are measured, and removed afterwards.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from lm.evaluation.evaluators import Evaluator, Result, Tools
from lm.evaluation.evaluators.evaluator import Prepared
from lm.models.config import ConfigError
from retrieval.datastore.building import Settings
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.observer import Observer
from retrieval.datastore.segment import INDEXES
from retrieval.doors.knn import checked
from retrieval.doors.knn_mixture import Mixture, tune
from retrieval.doors.knn_perplexity import score


@dataclasses.dataclass(frozen=True)
class KnnPerplexity(Evaluator):
    """Perplexity of `files` with neighbours from `store`; share and temperature suit `dev`."""

    files: str = ""  # measured
    store: str = ""  # what the datastore holds
    dev: str = ""  # what share and temperature are tuned on; "" = use the two below
    share: float = 0.25  # the memory's part
    temperature: float = 1.0  # of the squared distances
    adaptive: bool = False  # also fit the network that predicts the share of a token
    k: int = 64  # neighbours
    tap: str = ""  # hidden states that are the keys; "" = ffn_input, or hidden
    pca: int = 0  # numbers of a key; 0 = as many as the hidden state
    index: str = ""  # exact, scann, or "" to choose
    max_rows: int = 0  # rows of `files` and of `dev` that are read; 0 = all

    def check(self, config) -> None:
        for name in ("files", "store"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is not set: give paths or globs")
        if self.adaptive and not self.dev:
            raise ConfigError("dev is not set: a predicted share is fitted on it")
        if self.index and self.index not in INDEXES:
            raise ConfigError(f"index={self.index!r}: expected {' or '.join(INDEXES)}, or ''")
        for name in ("pca", "max_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        try:
            checked(self.k, self.share, self.temperature)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def prepare(self, tools: Tools) -> Prepared:
        c = tools.model.config
        if tools.task.evaluator != "perplexity" or (c.causal and tools.transform is not None):
            raise ConfigError(
                "kNN-LM measures text that a model predicts token by token: expected a task such "
                "as next_token, instruct or masked"
            )
        store, files = tools.rows(self.store), tools.rows(self.files)
        dev = tools.rows(self.dev) if self.dev else None
        if self.k > (entries := int(np.count_nonzero(store.segments))):
            raise ConfigError(f"k={self.k}: store has {entries:,} tokens; ask for at most as many")

        def evaluate(params: dict, step: int) -> Result:
            observer = Observer(tools.model, params, tools.tokenizer, self.tap, tools.batch_size)
            with tempfile.TemporaryDirectory() as folder:
                settings = Settings(self.pca, self.index)
                made, _ = Datastore.build(Path(folder) / "store", store, observer, settings)
                snapshot = made.snapshot()
                mixture = Mixture(self.k, self.share, self.temperature)
                if dev is not None:
                    seen = score(observer, dev, snapshot, self.k, self.max_rows, self.adaptive)
                    mixture = tune(seen, self.adaptive)
                found = score(observer, files, snapshot, self.k, self.max_rows, self.adaptive)
            own = found.perplexity()
            mixed = found.perplexity(mixture.shares(found), mixture.temperature)
            values: dict[str, float | None] = {
                "loss": mixed.loss,
                "perplexity": mixed.perplexity,
                "model_perplexity": own.perplexity,
                "share": float(mixture.shares(found).mean()),
                "temperature": mixture.temperature,
                "entries": float(len(snapshot)),
            }
            said = (
                f"perplexity {own.perplexity:.2f}, with {len(snapshot):,} entries "
                f"{mixed.perplexity:.2f} (share {values['share']:.2f})"
            )
            return Result(values, said)

        return evaluate
