"""Diagonal Fisher information, the weights of elastic weight consolidation (EWC).

It is stored as a safetensors file.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from lm.batch import Batch
from lm.distributed.rules import by_path
from lm.losses import cross_entropy
from lm.losses.tokens import head_of
from lm.models.config import ConfigError


def diagonal(nll: Callable[[Any, Any], jax.Array], params, examples, chunk: int = 1):
    """Sum over examples of the squared gradient of nll(params, example).

    Returns a float32 tree like params. examples: a tree of arrays with examples along axis 0.
    `chunk` examples are processed at a time, each with its own gradient.
    """

    def squared(example):
        return jax.tree.map(
            lambda g: jnp.square(g.astype(jnp.float32)), jax.grad(nll)(params, example)
        )

    def body(total, some):
        return jax.tree.map(
            lambda t, s: t + jnp.sum(s, axis=0), total, jax.vmap(squared)(some)
        ), None

    # Examples i, i + n / chunk, ...: where they are split over devices, each device keeps its own.
    chunks = jax.tree.map(lambda x: x.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1), examples)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(body, zeros, chunks)[0]


def fisher(
    model,
    loss_function,
    params: dict,
    batches: Iterable[Batch],
    *,
    sampled: bool = False,
    seed: int = 0,
    chunk: int = 1,
) -> tuple[dict, int]:
    """Return the diagonal Fisher information and the number of rows it is averaged over.

    The information is a float32 tree like params. Each row of a batch is one example, whose
    log-likelihood is the sum over the tokens that `loss_function` weights; rows without any are
    skipped.

    sampled: draw targets from the model, which gives the true Fisher information. Otherwise the
    data's targets give the empirical one (Kunstner et al. 2019 discuss the difference). chunk: rows
    whose gradients exist at one time; divides the batch.
    """

    def nll(p, row):
        batch = jax.tree.map(lambda x: x[None], row)
        return loss_function(model, p, batch, None).first.sum

    def one(p, batch, key):
        if sampled:
            batch = batch.replace(targets=draw(model, p, batch, key))
        rows = jnp.sum(jnp.any(batch.weights > 0, axis=1))
        return diagonal(nll, p, batch, chunk), rows

    run, total, rows = jax.jit(one), None, 0
    for number, batch in enumerate(batches):
        squares, counted = run(params, batch, jax.random.fold_in(jax.random.key(seed), number))
        total = squares if total is None else jax.tree.map(jnp.add, total, squares)
        rows += int(counted)
    if not rows or total is None:
        raise ConfigError(
            "there is no row to take Fisher information from: every token's weight is 0"
        )
    return jax.tree.map(lambda x: x / rows, total), rows


def draw(model, params: dict, batch: Batch, key: jax.Array) -> jax.Array:
    """Sample a token for every position from the model's predictions, int32 [B, T].

    Logits exist for one chunk of positions at a time.
    """
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)
    b, t, _ = hidden.shape
    chunk = cross_entropy.chunk_length(b, t, model.config.vocab_size)
    padded = jnp.pad(hidden, ((0, 0), (0, -t % chunk), (0, 0)))
    pieces = jnp.moveaxis(padded.reshape(b, -1, chunk, hidden.shape[-1]), 1, 0)
    keys = jax.random.split(key, pieces.shape[0])
    drawn = jax.lax.map(
        lambda xs: jax.random.categorical(xs[0], logits(head, xs[1])), (keys, pieces)
    )
    return jnp.moveaxis(drawn, 0, 1).reshape(b, -1)[:, :t].astype(jnp.int32)


def save(path: str | Path, information: dict, rows: int, sampled: bool) -> None:
    """Write the information as one safetensors file, with a tensor for each parameter path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(np.asarray(x, np.float32))
        for name, x in by_path(information).items()
    }
    safetensors.numpy.save_file(
        tensors, path, metadata={"rows": str(rows), "kind": "sampled" if sampled else "empirical"}
    )


def load(path: str | Path, params: dict) -> dict:
    """Read what `save` wrote, for these parameters.

    Raises ConfigError if the file is of a model with other parameters.
    """
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"adaptation.ewc.fisher={str(path)!r} cannot be read ({error}); "
            "python -m lm.fisher writes one"
        ) from error
    shapes = {name: x.shape for name, x in by_path(params).items()}
    wrong = sorted(
        name
        for name in shapes.keys() | tensors.keys()
        if name not in tensors or tensors[name].shape != shapes.get(name)
    )
    if wrong:
        raise ConfigError(
            f"adaptation.ewc.fisher={str(path)!r} is of another model: "
            f"it differs in {', '.join(wrong[:5])}"
        )
    return flax.traverse_util.unflatten_dict(tensors, sep="/")
