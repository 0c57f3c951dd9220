"""Pseudo-perplexity of a masked language model (Salazar et al. 2020, arXiv 1910.14659).

Equations 1 and 3 of the paper.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm.batch import Batch
from lm.data.packed import Packed
from lm.distributed import sharding
from lm.evaluation.perplexity import Perplexity, summarise
from lm.losses.tokens import token_losses
from lm.models import inputs
from lm.tasks import pieces

NAME = "pseudo_perplexity"


def evaluate(
    model,
    params: dict,
    packed: Packed,
    tokenizer,
    mesh: Mesh,
    batch_size: int,
    max_rows: int = 0,
    on_row: Callable[[int], None] | None = None,
) -> Perplexity:
    """Mask every ordinary token in turn and predict it from the rest of its document.

    The loss is the mean of -log p. packed: rows of whole documents (`packing.encode(whole=True)`).
    Documents of a row do not see each other, so one token of each is masked at a time. Raises
    ConfigError for a tokenizer without a mask token, or with ids that the model has no embedding
    for.
    """
    mask = pieces.needed(tokenizer, "masked", "mask_token")
    special = pieces.special(tokenizer, model.config.vocab_size)
    inputs.check(model.config, {"tokens": packed.targets, "segments": packed.segments}, tokenizer)
    place = sharding.batch_sharding(mesh, (batch_size, packed.length))
    run: Any = jax.jit(
        lambda params, batch: token_losses(model, params, batch),
        out_shardings=sharding.replicated(mesh),
    )
    losses, weights = np.zeros((2, len(packed), packed.length), np.float32)
    segments, seen = np.zeros((len(packed), packed.length), np.int32), np.zeros(len(packed), bool)
    queue: list[tuple[int, np.ndarray]] = []  # (row, places to mask together)

    def flush() -> None:
        tokens, of = np.zeros((2, batch_size, packed.length), np.int32)
        for at, (row, places) in enumerate(queue):
            tokens[at], of[at] = packed.targets[row], packed.segments[row]
            tokens[at, places] = mask
        targets = np.zeros_like(tokens)
        targets[: len(queue)] = packed.targets[[row for row, _ in queue]]
        batch = Batch.of(tokens, of, targets=targets)
        inputs.check(model.config, batch)
        batch = jax.tree.map(lambda x: jax.device_put(x, place), batch)
        with sharding.activate(mesh):
            found = np.asarray(run(params, batch))
        for at, (row, places) in enumerate(queue):
            losses[row, places] = found[at, places]
        queue.clear()

    for row in range(min(max_rows or len(packed), len(packed))):
        of, seen[row] = np.asarray(packed.segments[row]).astype(np.int32), True
        asked = (of > 0) & ~special[np.asarray(packed.targets[row])]
        weights[row], segments[row] = asked, of
        places = [np.flatnonzero(asked & (of == number)) for number in np.unique(of[of > 0])]
        for turn in range(max(map(len, places), default=0)):
            queue.append((row, np.array([each[turn] for each in places if turn < len(each)])))
            if len(queue) == batch_size:
                flush()
        if on_row is not None:
            on_row(1)
    if queue:
        flush()
    return summarise(packed, losses, seen, weights, segments)
