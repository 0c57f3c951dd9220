"""The diagonal of the Fisher information, which elastic weight consolidation weighs each parameter with; kept in a safetensors file."""

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
from lm.models.config import ConfigError
from lm.objectives import cross_entropy
from lm.objectives.next_token import head_of
from lm.training.rules import by_path


def diagonal(nll: Callable[[Any, Any], jax.Array], params, examples, chunk: int = 1):
    """Sum over examples of the squared gradient of nll(params, example), a float32 tree like params.

    examples: a tree of arrays with examples along axis 0; `chunk` of them at a time, each with a gradient of its own.
    """

    def squared(example):
        return jax.tree.map(
            lambda g: jnp.square(g.astype(jnp.float32)), jax.grad(nll)(params, example)
        )

    def body(total, some):
        return jax.tree.map(
            lambda t, s: t + jnp.sum(s, axis=0), total, jax.vmap(squared)(some)
        ), None

    # Examples i, i + n / chunk, ...: where they are split over devices, each device works on its own.
    chunks = jax.tree.map(lambda x: x.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1), examples)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(body, zeros, chunks)[0]


def fisher(
    model,
    objective,
    params: dict,
    batches: Iterable[Batch],
    *,
    sampled: bool = False,
    seed: int = 0,
    chunk: int = 1,
) -> tuple[dict, int]:
    """(diagonal Fisher information, float32 tree like params; rows it is the mean over).

    A row of a batch is one example, and its log-likelihood the sum over the tokens that `objective` asks for; rows without any do not
    count. `sampled`: targets are drawn from the model, which is the Fisher information proper; else they are the data's, the empirical
    one (Kunstner et al. 2019 on the difference). `chunk` divides the batch: rows whose gradients exist at one time.
    """

    def nll(p, row):
        batch = jax.tree.map(lambda x: x[None], row)
        return objective(model, p, batch, None).sum

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
    """A token for every position from the model's own predictions there, int32 [B, T]; logits of a chunk of positions exist at a time."""
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
    """Writes it as one safetensors file, a tensor for each parameter's path."""
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
    """What `save` wrote, for these parameters. Raises ConfigError when it is not of a model like theirs."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"adaptation.ewc.fisher={str(path)!r} cannot be read ({error}); python -m lm.fisher writes one"
        ) from error
    shapes = {name: x.shape for name, x in by_path(params).items()}
    wrong = sorted(
        name
        for name in shapes.keys() | tensors.keys()
        if name not in tensors or tensors[name].shape != shapes.get(name)
    )
    if wrong:
        raise ConfigError(
            f"adaptation.ewc.fisher={str(path)!r} is of another model: it differs in {', '.join(wrong[:5])}"
        )
    return flax.traverse_util.unflatten_dict(tensors, sep="/")
