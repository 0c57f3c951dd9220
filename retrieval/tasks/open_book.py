"""Learn to answer with a memory: the reader, and by option the retriever's side of questions.

The rows are what a door makes of a question and its passages, so that a run is trained as
`retrieval.ask` later asks it. Doors with one prompt (in_context, fid) have the cross-entropy of the
answer. Ensembles (rag_token, rag_sequence, replug) have the negative logarithm of the mixture over
passages (Lewis et al. 2020, section 2.1). With `retriever`, the encoder of questions is trained
too, while the vectors of passages stay (section 2.4), by the gradient of the mixture or by
perplexity distillation (Izacard et al. 2022, Atlas, section 2.2).
"""

import dataclasses
import types
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch, Field
from lm.data.cache import cached
from lm.data.packed import Packed
from lm.data.packing import token_dtype
from lm.data.read import sources
from lm.data.records import labels as labelled
from lm.data.source import Source, SourceTools
from lm.losses import Loss, Term, chunks
from lm.losses.log_probs import log_probs
from lm.losses.tokens import head_of
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Aux, Beside, Models
from lm.tasks.task import Tools
from lm.tasks.text import TokenTask
from retrieval.doors import door as doors
from retrieval.doors.door import Asked, Door
from retrieval.encoders import sentence_transformers
from retrieval.encoders.encoding import encoder_like
from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.store.store import Store
from retrieval.tasks import searchable
from retrieval.tasks.records import (
    LONGEST_QUERY,
    Asking,
    answer_tokens,
    asking,
    code,
    for_retriever,
)
from retrieval.tasks.searching import RETRIEVER, Questions, Searched, unit_queries

OBJECTIVES = ("", "marginal", "perplexity_distillation")
ABSENT = -1e30  # log-share of a place without a passage


@dataclasses.dataclass(frozen=True)
class OpenBook(TokenTask):
    """Answer questions from the passages that a memory finds."""

    memory: str = ""  # folder of the memory
    k: int = 4  # passages of a question
    # How passages reach the model: in_context, fid, rag_token, rag_sequence, replug, with options
    # as in "fid,tokens=128"
    door: str = "in_context"
    question_field: str = "question"
    answer_field: str = "answer"  # a text, a list of texts, or SQuAD's answers
    target_length: int = 32  # tokens of an answer, its end included; longer ones are cut
    # How the memory's encoder of questions is trained with the reader: "" (not), marginal,
    # perplexity_distillation. The last two need an ensemble as the door.
    retriever: str = ""
    sharpness: float = 0.1  # of the retriever's targets: log-likelihoods are divided by it
    search: bool = False  # search again at every step, with the retriever as it is then

    heads: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq_lm")
    by_row: ClassVar[bool] = True
    evaluator: ClassVar[str] = "means"
    new_fields: ClassVar[Mapping[str, Field]] = {
        "log_shares": Field(("batch", "passages"), np.float32),
        "query_tokens": Field(("batch", "query_length")),
        "passage_vectors": Field(("batch", "passages", "passage_width"), np.float32),
    }

    @property
    def made_door(self) -> Door:
        """The door. Raises ConfigError for an unknown one."""
        try:
            found = doors.named(self.door)
        except RetrievalError as error:
            raise ConfigError(f"task.door: {error}") from None
        if found.stride:
            raise ConfigError(
                f"task.door={self.door!r}: stride searches again while an answer is written, and "
                "answers are given here; leave it out"
            )
        return found

    @property
    def mixes(self) -> bool:
        """Whether every passage has a prompt of its own, and their predictions are mixed."""
        return hasattr(self.made_door, "temperature")

    @property
    def prompts(self) -> int:
        """Prompts of a row."""
        return self.k if self.mixes else 1

    @property
    def terms(self) -> tuple[str, ...]:  # ty: ignore[incompatible-property-override]
        distils = self.retriever == "perplexity_distillation"
        return ("loss", RETRIEVER) if distils else ("loss",)

    def check(self, config) -> None:
        super().check(config)
        if not self.memory:
            raise ConfigError("task.memory is not set: give the folder of a memory")
        if self.k < 1 or self.target_length < 2:
            raise ConfigError(
                f"task.k={self.k}, task.target_length={self.target_length}: expected at least 1 "
                "passage and 2 tokens"
            )
        if self.retriever not in OBJECTIVES:
            raise ConfigError(
                f"task.retriever={self.retriever!r}: expected one of "
                f"{', '.join(map(repr, OBJECTIVES))}"
            )
        if self.retriever and not self.mixes:
            raise ConfigError(
                f"task.retriever={self.retriever!r} needs a prompt for each passage, and "
                f"task.door={self.door!r} has one for all: take rag_token, rag_sequence or replug"
            )
        if self.search and not self.retriever:
            raise ConfigError(
                "task.search=True searches with a retriever that is trained: set task.retriever"
            )
        if not self.sharpness > 0:
            raise ConfigError(f"task.sharpness={self.sharpness}: expected a number above 0")
        if config.length % self.prompts:
            raise ConfigError(
                f"length={config.length} does not divide by the {self.prompts} prompts of a row; "
                f"make it a multiple of {self.prompts}"
            )
        self._store()

    def longest(self, length: int) -> int:
        """Most tokens of a prompt with its answer, or of either side."""
        return max(length // self.prompts, self.target_length)

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        if not self.retriever:
            return {}
        return {RETRIEVER: Aux(self._encoder_path()[0], trained=True, own_rows=True)}

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        if model.encoder_layers and not self.mixes:
            found["encoder_owners"] = (length,)
        if self.mixes:
            found["log_shares"] = (self.k,)
        if self.retriever:
            found["query_tokens"] = (LONGEST_QUERY,)
            found["passage_vectors"] = (self.k, self._store().dim)
        return found

    def _store(self) -> Store:
        return searchable.store(self.memory)

    def _encoder_path(self) -> tuple[str, str]:
        """(path of the memory's encoder, its pooling or "" for the model's)."""
        path, options = sentence_transformers.recalled(self._store().encoder_source)
        return path, options.get("pooling") or ""

    # ------------------------------------------------------------------------------------ the rows

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        """Search for every question and make its row; kept by the memory's version."""
        try:
            doors.check(self.made_door, tools.model)
        except RetrievalError as error:
            raise ConfigError(str(error).replace("--door", "task.door")) from None
        store = self._store()
        encoder = encoder_like(store)
        memory = Memory.open(self.memory, encoder)
        share = 0.0 if part == "all" else tools.holdout_share
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        key = [
            "open_book",
            code("doors", "tasks", "search"),
            [memory.version, memory.log()[-1].time, store.fingerprint],
            options,
            [tools.length, tools.model.encoder_layers, tools.model.decoder_start_token_id],
            [tools.max_bad_share, share, part == "holdout"],
            sources.content_hash(sources.find_files(files)),
        ]

        def read() -> list[Asking]:
            return labelled.read(
                files,
                partial(asking, question=self.question_field, answer=self.answer_field),
                max_bad_share=tools.max_bad_share,
                tally=tools.tally,
                share=share,
                held_out=part == "holdout",
            )

        def make() -> Packed:
            records = read()
            hits = memory.search([record.question for record in records], self.k)
            return self.packed(records, hits, memory, encoder, tools)

        made = cached(tools.cache, key, tools.tokenizer, make)
        return Questions(**vars(made), records=tuple(read())) if self.search else made

    def source(self, rows: Any, tools: SourceTools) -> Source | None:
        if not self.search:
            return None
        return Searched(self, rows, tools, encoder_like(self._store()), *self._encoder_path())

    def packed(
        self,
        records: list[Asking],
        hits: list[list[Hit]],
        memory: Memory,
        encoder: Any,
        tools: Tools | SourceTools,
    ) -> Packed:
        """Rows of questions and the passages found for them."""
        rows: list[dict[str, np.ndarray]] = []
        counts = {"cut_answers": 0, "cut_passages": 0, "questions_without_passages": 0}
        for record, found in zip(records, hits, strict=True):
            row, cut = self._row(record, tuple(found), counts, tools)
            counts["cut_passages"] += cut > 0
            counts["questions_without_passages"] += not found
            rows.append(row)
        extra = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if self.retriever:
            extra |= for_retriever(records, hits, self.k, memory, encoder)
        tokens, targets, segments = (extra.pop(n) for n in ("tokens", "targets", "segments"))
        dtype = token_dtype(int(max(tokens.max(), targets.max())))
        number = np.arange(len(rows), dtype=np.int32)
        sizes = [len(f"{record.question}{record.answer}".encode()) for record in records]
        return Packed(
            tokens.astype(dtype),
            targets.astype(dtype),
            segments.astype(np.uint16),
            number,
            np.ones_like(number),
            number,
            np.array(sizes, np.int64),
            extra,
            {name: count for name, count in counts.items() if count},
        )

    def _row(
        self,
        record: Asking,
        hits: tuple[Hit, ...],
        counts: dict[str, int],
        tools: Tools | SourceTools,
    ) -> tuple[dict[str, np.ndarray], int]:
        """Fields of a row, [T] each, and the number of tokens cut from its passages."""
        model: ModelConfig = getattr(tools.model, "config", tools.model)
        tokenizer = tools.tokenizer
        writes, prompts = self.target_length, self.prompts
        kind = doors.kind_of(model)
        apart = kind == "encoder-decoder"
        width = tools.length // prompts
        answer = answer_tokens(tokenizer, model, record.answer, apart)
        if len(answer) > writes:
            counts["cut_answers"] += 1
            answer = [*answer[: writes - 1], answer[-1]]
        room = width if apart else width - len(answer) + 1
        reader = types.SimpleNamespace(tokenizer=tokenizer, kind=kind)
        try:
            read = self.made_door.question(reader, Asked(record.question, hits), room)
        except RetrievalError as error:
            raise sources.DataError(f"{record.where}: {error}; raise length") from None
        long = next((row for row in read.rows if len(row) > room), None)
        if long is not None:
            raise sources.DataError(
                f"{record.where}: the question with its {len(read.shown)} passages takes "
                f"{len(long):,} tokens, and a row has {room:,}: lower task.k, or raise length"
            )
        # A source's rows have as many tokens on both sides.
        side = writes if apart and not self.search else width
        row: dict[str, Any] = {
            name: np.zeros((prompts, side), np.int32) for name in ("tokens", "targets")
        }
        row["segments"] = np.zeros((prompts, side), np.int32)
        row["weights"] = np.zeros((prompts, side), np.uint8)
        if apart:
            row["encoder_tokens"] = np.zeros((prompts, width), np.int32)
            row["encoder_segments"] = np.zeros((prompts, width), np.int32)
        for i, prompt in enumerate(read.rows):
            first = [model.decoder_start_token_id] if apart else prompt
            ids = np.array([*first, *answer], np.int32)
            size = len(ids) - 1
            # At the end of its place, so that answers to all passages are at the same positions.
            row["tokens"][i, side - size :] = ids[:-1]
            row["targets"][i, side - size :] = ids[1:]
            row["segments"][i, side - size :] = i + 1
            row["weights"][i, side - len(answer) :] = 1
            if apart:
                row["encoder_tokens"][i, : len(prompt)] = prompt
                row["encoder_segments"][i, : len(prompt)] = i + 1
        if apart and not self.mixes:
            prompt, numbers = read.rows[0], read.segments or (1,) * len(read.rows[0])
            row["encoder_segments"][0, : len(prompt)] = numbers
            row["encoder_owners"] = (row["encoder_segments"] > 0).astype(np.int32)
        flat: dict[str, Any] = {name: values.reshape(-1) for name, values in row.items()}
        if self.mixes:
            shares = np.full(self.k, ABSENT, np.float32)
            shares[: len(read.rows)] = read.log_weights
            flat["log_shares"] = shares
        return flat, read.cut

    # ------------------------------------------------------------------------------------ the loss

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        answered = self._of_prompts(batch.weights).max(1)
        rows = (batch.segments > 0).any(1).astype(jnp.float32)
        found = {"loss": jnp.sum(answered), RETRIEVER: jnp.sum(rows)}
        return {name: found[name] for name in self.terms}

    def _of_prompts(self, x: jax.Array) -> jax.Array:
        return x.reshape(len(x), self.prompts, -1)

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        """Negative log-probability of the answers, by the token of an answer."""
        if not self.mixes:
            return super().loss(model, params, batch, rng)
        rngs = None if rng is None else {"dropout": rng}
        hidden: Any = model.apply({"params": params}, batch, method="hidden", rngs=rngs)
        logits, head = head_of(model, params)
        chunk = self.chunk or chunks.chunk_length(*batch.tokens.shape, model.config.vocab_size)
        found = log_probs(logits, head, hidden.hidden, batch.targets, chunk)[0]
        weights = self._of_prompts(batch.weights)  # [B, K, T / K]
        each = self._of_prompts(found) * weights
        more: dict[str, jax.Array] = batch.more or {}
        shares, there = more["log_shares"], weights.any(2)  # [B, K]
        if self.retriever:
            scores = self._scores(models[RETRIEVER], more)
            shares = jax.nn.log_softmax(jnp.where(there, scores, ABSENT))
        mixed = shares
        if self.retriever == "perplexity_distillation":
            mixed = jax.lax.stop_gradient(shares)
        answered = weights.max(1)  # [B, T / K]
        if self.made_door.whole:
            whole = jnp.where(there, mixed + each.sum(2), ABSENT)
            total = -jnp.sum(jax.nn.logsumexp(whole, axis=1) * there.any(1))
        else:
            tokens = jnp.where(weights > 0, mixed[:, :, None] + each, ABSENT)
            total = -jnp.sum(jax.nn.logsumexp(tokens, axis=1) * answered)
        terms = {"loss": Term(total, jnp.sum(answered))}
        if RETRIEVER in self.terms:
            likelihoods = jnp.where(there, each.sum(2) / self.sharpness, ABSENT)
            wanted = jax.nn.log_softmax(jax.lax.stop_gradient(likelihoods))
            distance = jnp.sum(jnp.exp(wanted) * jnp.where(there, wanted - shares, 0.0), axis=1)
            rows = there.any(1).astype(jnp.float32)
            terms[RETRIEVER] = Term(jnp.sum(distance * rows), jnp.sum(rows))
        return Loss(terms, {})

    def _scores(self, retriever: Beside, fields: Mapping[str, jax.Array]) -> jax.Array:
        """Cosines of the questions with the passages over the temperature, float32 [B, K]."""
        _, pooling = self._encoder_path()
        passages = fields["passage_vectors"]
        vectors = unit_queries(
            retriever.model, retriever.params, fields["query_tokens"], passages.shape[2], pooling
        )
        highest = jax.lax.Precision.HIGHEST
        cosines = jnp.einsum("bd,bkd->bk", vectors, passages, precision=highest)
        return cosines / getattr(self.made_door, "temperature", 1.0)
