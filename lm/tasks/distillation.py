"""Distillation: learn a teacher's predictions (Hinton, Vinyals & Dean 2015, section 2).

The loss is (1 - soft) * cross-entropy of the next token + soft * T^2 * KL(teacher || model), where
both distributions of the divergence have the temperature T. The divergence has the gradient of the
cross-entropy with soft targets; T^2 keeps its size when T changes. The teacher runs beside the
model, or its most probable tokens were stored (lm.teacher_outputs).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lm.batch import Batch, Field
from lm.data import outputs as stored
from lm.data.cache import fingerprint
from lm.data.packed import Packed, digest
from lm.losses import Loss, chunks, cross_entropy, divergence
from lm.losses.tokens import head_of
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Aux, Models
from lm.tasks.next_token import NextToken
from lm.tasks.task import Tools
from lm.tasks.text import TokenTask


@dataclasses.dataclass(frozen=True)
class Distillation(NextToken):
    """Predict the next token as a frozen teacher does, whatever its size and architecture."""

    # Run folder, model folder or hub id of the teacher, which has the same tokenizer; "same" = the
    # model that the run starts from.
    teacher: str = ""
    temperature: float = 2.0  # the logits of both models are divided by it for the divergence
    soft: float = 0.9  # share of the teacher's predictions in the loss; the rest is the text's
    # Tokens of the teacher that count each on its own, its most probable ones; all others count as
    # one. 0 = every token, or as many as were stored.
    top_k: int = 0
    # Folder of `python -m lm.teacher_outputs`: the teacher's predictions on the same rows, which
    # are read instead of running it. "" = the teacher runs in every step.
    outputs: str = ""

    by_row: ClassVar[bool] = True
    new_fields: ClassVar[Mapping[str, Field]] = stored.FIELDS

    def check(self, config) -> None:
        super().check(config)
        if not (self.teacher or self.outputs):
            raise ConfigError("task.teacher is not set: give a run folder, model folder or hub id")
        if self.top_k < 0:
            raise ConfigError(f"task.top_k={self.top_k}: expected 0 or more")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"task.temperature={self.temperature}: expected a finite number above 0"
            )
        if not 0 < self.soft <= 1:
            raise ConfigError(f"task.soft={self.soft}: expected a share above 0, at most 1")
        if not self.outputs:
            return
        if config.data.synthetic_rows:
            raise ConfigError(
                f"task.outputs={self.outputs} are of texts, and data.synthetic_rows="
                f"{config.data.synthetic_rows} asks for random tokens: set data.files"
            )
        of = stored.about(self.outputs)
        for name, there, same in (
            ("teacher", of.teacher, self.teacher in ("", of.teacher)),
            ("temperature", of.temperature, self.temperature == of.temperature),
            ("top_k", of.k, self.top_k in (0, of.k)),
        ):
            if not same:
                raise ConfigError(
                    f"task.{name}={getattr(self, name)!r}: the outputs in {self.outputs} were "
                    f"made with {there!r}; set that, or make others with "
                    "python -m lm.teacher_outputs"
                )

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        if self.outputs:
            return {}
        if self.top_k >= model.vocab_size:
            raise ConfigError(
                f"task.top_k={self.top_k}: expected fewer than the model's {model.vocab_size} "
                "tokens; 0 = all of them"
            )
        return {"teacher": Aux(self.teacher, heads=self.heads)}

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        if not self.outputs:
            return {}
        of = stored.about(self.outputs)
        if of.vocab_size != model.vocab_size:
            raise ConfigError(
                f"model.vocab_size={model.vocab_size}, and the outputs in {self.outputs} are of a "
                f"teacher with a vocabulary of {of.vocab_size} tokens: set it to that"
            )
        return {name: (length, *shape[2:]) for name, (shape, _) in of.arrays(1).items()}

    def rows(self, files: str, part: str, tools: Tools, stride: int = 0) -> Packed:
        rows = super().rows(files, part, tools, stride)
        if not self.outputs or part != "train":
            return rows
        identity = fingerprint(tools.tokenizer), digest(rows), tools.length
        return dataclasses.replace(
            rows, extra={**rows.extra, **stored.load(self.outputs, *identity)}
        )

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        rngs = None if rng is None else {"dropout": rng}
        hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
        logits, head = head_of(model, params)
        vocab, (rows, length) = model.config.vocab_size, batch.tokens.shape
        chunk = self.chunk or chunks.chunk_length(2 * rows, length, vocab)
        if self.outputs:
            more: Any = batch.more
            theirs = [more[name] for name in stored.FIELDS]
            divergent = divergence.summed_top_k(
                logits, head, hidden, *theirs, batch.weights, chunk, self.temperature
            )
        else:
            teacher = models["teacher"]
            out: Any = teacher.model.apply({"params": teacher.params}, batch, method="hidden")
            its_logits, its_head = head_of(teacher.model, teacher.params)
            divergent = divergence.summed(
                logits,
                head,
                hidden,
                its_logits,
                its_head,
                out.hidden,
                batch.weights,
                chunk,
                temperature=self.temperature,
                top_k=self.top_k,
            )
        extra = cross_entropy.Extra(self.label_smoothing, self.z_loss)
        chunk = self.chunk or chunks.chunk_length(rows, length, vocab)
        hard, plain = cross_entropy.summed(
            logits, head, hidden, batch.targets, batch.weights, chunk, extra
        )
        total = (1 - self.soft) * hard + self.soft * self.temperature**2 * divergent
        return Loss.of(total, jnp.sum(batch.weights), cross_entropy=plain, divergence=divergent)

    def likelihood(self) -> TokenTask:
        of_text: Any = {f.name: getattr(self, f.name) for f in dataclasses.fields(NextToken)}
        return NextToken(**of_text).likelihood()
