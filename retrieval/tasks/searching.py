"""Search the memory during training, with the encoder of questions as it is at each step."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lm import families
from lm.batch import Batch
from lm.data.packed import Packed
from lm.data.source import Source, SourceTools
from lm.models import build
from lm.models.config import ConfigError
from lm.weights import loading
from retrieval.encoders.encoder import Encoder
from retrieval.memory import Memory
from retrieval.tasks.records import Asking, query_rows

RETRIEVER = "retriever"
COMPUTE = ("dtype", "param_dtype", "remat", "layers")  # fields that are those of the run's model


def unit_queries(model, params: dict, tokens: jax.Array, dim: int, pooling: str = "") -> jax.Array:
    """Unit vectors of questions, float32 [B, dim]. tokens: int32 [B, Q] from 1, 0 = padding."""
    if model.config.head != "embedding" or pooling:  # this head has no parameters
        fields = {"pooling": pooling} if pooling else {}
        model = build(families.other_head(model.config, "embedding", **fields))
        params = {name: x for name, x in params.items() if name != "head"}
    batch = Batch(
        tokens=jnp.maximum(tokens - 1, 0),
        targets=tokens,
        weights=jnp.zeros(tokens.shape),
        segments=(tokens > 0).astype(jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    )
    found: Any = model.apply({"params": params}, batch)
    vectors = found.pooled[:, :dim]
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class Questions(Packed):
    """Packed rows with the questions that they are of."""

    records: tuple[Asking, ...] = ()


class Trained:
    """The encoder of a memory, with vectors of a trained one for questions.

    Set `known`, question -> unit vector, before a search.
    """

    def __init__(self, encoder: Encoder):
        self.encoder, self.known = encoder, {}
        self.fingerprint, self.source = encoder.fingerprint, encoder.source
        self.passages, self.query_tokens = encoder.passages, encoder.query_tokens

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.encoder(texts)

    def queries(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.known[text] for text in texts])


class Searched(Source):
    """Rows of questions, in an order of the seed, whose passages are searched at each step.

    The search is exact and in the memory's version at the start of the run, so that a run that was
    interrupted goes on as it would have. Each process searches for the questions of its own rows.
    """

    def __init__(
        self, task: Any, rows: Any, tools: SourceTools, encoder: Any, path: str, pooling: str
    ):
        if not isinstance(rows, Questions):
            raise ConfigError(
                "task.search=True: one source of data, not a mixture, can be searched"
            )
        self.task, self.tools, self.records, self.read = task, tools, rows.records, 0
        # The encoder's model, computed as the run's, as in the loss.
        computed = {name: getattr(tools.model.config, name) for name in COMPUTE}
        model = build(loading.model_config(path).replace(**computed, dropout=0.0))
        self.embed = jax.jit(partial(unit_queries, model, dim=encoder.dim, pooling=pooling))
        self.encoder = Trained(encoder)
        memory = Memory.open(task.memory, encoder)
        self.version = memory.version
        self.memory: Any = memory.as_of(self.version, self.encoder)

    def next(self, state: Any) -> Batch:
        size = self.tools.batch_size
        asked = [self._record(self.read + i) for i in range(size)]
        self.encoder.known = self._vectors(state, [record.question for record in asked])
        mine = list(self.tools.rows)
        local = [asked[row] for row in mine]
        hits = self.memory.search([record.question for record in local], self.task.k)
        made = self.task.packed(local, hits, self.memory, self.encoder, self.tools)
        self.read += size

        def whole(values: np.ndarray) -> np.ndarray:
            every = np.zeros((size, *values.shape[1:]), values.dtype)
            every[mine] = values
            return every

        fields = {name: whole(values) for name, values in made.extra.items()}
        own = {
            name: fields.pop(name)
            for name in ("encoder_tokens", "encoder_segments")
            if name in fields
        }
        return Batch.of(
            whole(made.tokens),
            whole(made.segments),
            targets=whole(made.targets),
            weights=fields.pop("weights"),
            more=fields,
            **own,
        )

    def _vectors(self, state: Any, questions: list[str]) -> dict[str, np.ndarray]:
        """Unit vectors of questions; computed by all processes, which share the parameters."""
        tokens = query_rows(self.encoder.encoder, questions)
        vectors = self.embed(state.params["models"][RETRIEVER], tokens)
        host = multihost_utils.process_allgather(vectors, tiled=True)
        return dict(zip(questions, np.asarray(host), strict=True))

    def _record(self, number: int) -> Asking:
        """The `number`-th question to be asked."""
        epoch, at = divmod(number, len(self.records))
        order = np.random.default_rng([self.tools.seed, epoch]).permutation(len(self.records))
        return self.records[order[at]]

    def position(self) -> dict:
        return {"rows": self.read, "memory": self.version}

    def restore(self, position: dict, carry: Any) -> None:
        if position["memory"] != self.version:
            raise ConfigError(
                f"the run was at version {position['memory']} of {self.task.memory}, which is at "
                f"{self.version} now: undo the changes, or start another run"
            )
        self.read = position["rows"]
