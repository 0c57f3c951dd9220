"""Distillation: learn a teacher's predictions (Hinton, Vinyals & Dean 2015, section 2).

The loss is (1 - soft) * cross-entropy of the next token + soft * T^2 * KL(teacher || model), where
both distributions of the divergence have the temperature T. The divergence has the gradient of the
cross-entropy with soft targets; T^2 keeps its size when T changes.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.losses import Loss, chunks, cross_entropy, divergence
from lm.losses.tokens import head_of
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Aux, Models
from lm.tasks.next_token import NextToken
from lm.tasks.text import TokenTask


@dataclasses.dataclass(frozen=True)
class Distillation(NextToken):
    """Predict the next token as a frozen teacher does, whatever its size and architecture."""

    # Run folder, model folder or hub id of the teacher, which has the same tokenizer; "same" = the
    # model that the run starts from.
    teacher: str = ""
    temperature: float = 2.0  # the logits of both models are divided by it for the divergence
    soft: float = 0.9  # share of the teacher's predictions in the loss; the rest is the text's

    def check(self, config) -> None:
        super().check(config)
        if not self.teacher:
            raise ConfigError("task.teacher is not set: give a run folder, model folder or hub id")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"task.temperature={self.temperature}: expected a finite number above 0"
            )
        if not 0 < self.soft <= 1:
            raise ConfigError(f"task.soft={self.soft}: expected a share above 0, at most 1")

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        return {"teacher": Aux(self.teacher, heads=self.heads)}

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        teacher = models["teacher"]
        rngs = None if rng is None else {"dropout": rng}
        hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
        theirs: Any = teacher.model.apply({"params": teacher.params}, batch, method="hidden")
        logits, head = head_of(model, params)
        its_logits, its_head = head_of(teacher.model, teacher.params)
        vocab, (rows, length) = model.config.vocab_size, batch.tokens.shape
        divergent = divergence.summed(
            logits,
            head,
            hidden,
            its_logits,
            its_head,
            theirs.hidden,
            batch.weights,
            self.chunk or chunks.chunk_length(2 * rows, length, vocab),
            temperature=self.temperature,
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
