"""Weight mixes of `python -m lm.interpolate`, and their losses on text."""

from typing import Any

import jax

from lm.adaptation import interpolation
from lm.data.encode import plain_text
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import replicated
from lm.evaluation import perplexity
from lm.weights.loading import load


def mixes(
    base: str, tuned: str, alphas: str, soup: str, greedy: str, loss
) -> tuple[Any, Any, list[Any]]:
    """Return model, tokenizer and the requested mixes: (name, description, function giving params).

    greedy: files on which `loss` selects the models of a soup; "" = all models. Raises ConfigError
    and the errors of `load`.
    """
    names = soup.split(",") if soup else [base, tuned]
    models, params, tokenizers = zip(*(load(name) for name in names), strict=True)
    interpolation.check_same(params, names)
    if soup and greedy:
        mixed, kept = interpolation.greedy_soup(
            params, lambda p: loss(models[0], p, tokenizers[0], greedy)
        )
        return (
            models[0],
            tokenizers[0],
            [("soup", {"soup": [names[i] for i in kept]}, lambda: mixed)],
        )
    if soup:
        return (
            models[0],
            tokenizers[0],
            [("soup", {"soup": names}, lambda: interpolation.soup(params))],
        )
    numbers = [float(alpha) for alpha in alphas.split(",")]
    mixed = lambda alpha: interpolation.interpolate(*params, alpha)
    return (
        models[0],
        tokenizers[1],
        [(f"alpha-{a:g}", {"alpha": a}, lambda a=a: mixed(a)) for a in numbers],
    )


def measurer(cache: str, length: int, max_rows: int, path: str):
    """Return a function (model, params, tokenizer, files) -> loss in nats per token.

    Each text is packed once, in rows of `length`, or else as long as those of run `path`.
    """
    mesh, packed, run = make_mesh(), {}, {}

    def loss(model, params, tokenizer, files: str) -> float:
        size = length or perplexity.row_length(path, model.config.max_length)
        perplexity.check_length(size, model.config.max_length)
        if files not in packed:
            packed[files] = plain_text.pack_files(files, tokenizer, size, cache)
        if not run:
            run[0] = perplexity.make_evaluator(model, mesh, 8 * mesh.size)
        return run[0](jax.device_put(params, replicated(mesh)), packed[files], max_rows).loss

    return loss
