"""Base classes of tasks that predict tokens, and of those on plain text."""

import dataclasses
import math
from typing import ClassVar

import jax

from lm.batch import Batch
from lm.data.encode import plain_text
from lm.data.packed import Packed
from lm.losses import Loss
from lm.losses.tokens import token_loss
from lm.models.config import ConfigError
from lm.tasks.task import Start, Task, Tools


@dataclasses.dataclass(frozen=True)
class TokenTask(Task):
    """Task with the cross-entropy of `batch.targets` as its loss."""

    chunk: int = 0  # positions whose logits are in memory at once; 0 = as many as fit 256 MB
    label_smoothing: float = 0.0  # share of a target spread over the vocabulary; training only
    # Weight of log(Z)^2 per prediction, Z = sum of exp(logits): keeps Z near 1; training only.
    z_loss: float = 0.0

    evaluator: ClassVar[str] = "perplexity"
    by_row: ClassVar[bool] = True
    sparse: ClassVar[bool] = False  # most positions of a row have no loss

    def check(self, config) -> None:
        if self.chunk < 0:
            raise ConfigError(f"task.chunk={self.chunk}: expected 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"task.label_smoothing={self.label_smoothing}: expected a share from 0 to less "
                "than 1, such as 0.1"
            )
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(
                f"task.z_loss={self.z_loss}: expected a finite number, 0 or more, such as 1e-4"
            )

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        return token_loss(
            model,
            params,
            batch,
            rng,
            chunk=self.chunk,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            sparse=self.sparse,
        )

    def likelihood(self) -> "TokenTask":
        return dataclasses.replace(self, label_smoothing=0.0, z_loss=0.0)


@dataclasses.dataclass(frozen=True)
class TextTask(TokenTask):
    """Task on plain text, packed into rows.

    whole: the targets of a packed row are all tokens of each document (`plain_text.encode`), for
    tasks that do not predict from left to right.
    """

    field: str = "text"  # field of a JSONL or Parquet record that holds the text
    separator: str = ""  # separates documents in a text file; "" = a file is one document

    synthetic: ClassVar[bool] = True
    whole: ClassVar[bool] = False

    def prepare(self, start: Start, config, sources, kept) -> Start:
        """Make the tokenizer add the special tokens around documents; they are saved with it."""
        if start.tokenizer is None:
            return start
        tokenizer = plain_text.as_documents(start.tokenizer, self.whole)
        return dataclasses.replace(start, tokenizer=tokenizer)

    def rows(self, files: str, part: str, tools: Tools, stride: int = 0) -> Packed:
        return plain_text.pack_files(
            files,
            tools.tokenizer,
            tools.length,
            tools.cache,
            field=self.field,
            separator=self.separator,
            whole=self.whole,
            stride=stride,
            max_bad_share=tools.max_bad_share,
            tally=tools.tally,
            share=0.0 if part == "all" else tools.holdout_share,
            held_out=part == "holdout",
        )
