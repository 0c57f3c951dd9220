"""Replace the head of a loaded model, or take its encoder alone, and keep its other weights."""

import flax.traverse_util
import jax

from lm import families
from lm.batch import Batch
from lm.models import LanguageModel, build


def encoder_of(model: LanguageModel, params: dict | None) -> tuple[LanguageModel, dict | None]:
    """Make a model of an encoder-decoder's encoder, with the token table that both use.

    The model has no head, and its arrays are shared with `params`. Other models are returned as
    they are. params None: of a model without parameters.
    """
    c = model.config
    if not c.encoder_layers:
        return model, params
    alone = build(c.encoder)
    if params is None:
        return alone, None
    encoder = params["encoder"]
    table = {"token": params["embeddings"]["token"]}
    return alone, encoder | {"embeddings": table | encoder.get("embeddings", {})}


def with_head(
    model: LanguageModel, params: dict, head: str, key: jax.Array | None = None, **fields
) -> tuple[LanguageModel, dict]:
    """Replace the head of a model (see `ModelConfig`), to fine-tune it or to read hidden states.

    The new head has the layers, biases and pooling of the family's Hugging Face class, so that it
    can be exported. fields: of ModelConfig, such as n_labels=3, label_names=(...), pooling="mean",
    normalize_embedding=False.

    key: for the new parameters, default jax.random.key(0). Weights are normal with
    `initializer_range`, and biases are 0. The weights of a value head are 0, so that a new critic
    predicts 0. An embedding is the mean over the tokens of a bidirectional model, or the last token
    of a causal one. From the old head only the number and names of labels are kept, if both have
    labels. All other arrays are shared with `params`.

    Raises ConfigError when the model cannot have that head, or its labels are not given.
    """
    new = build(families.other_head(model.config, head, **fields))
    example = Batch.of([[0, 0]])
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    shapes = flax.traverse_util.flatten_dict(new.shapes(), sep="/")
    kept = {path: flat[path] for path in shapes if path in flat and not path.startswith("head/")}

    def draw(key):
        drawn = flax.traverse_util.flatten_dict(new.init(key, example)["params"], sep="/")
        return {
            path: x for path, x in drawn.items() if path not in kept
        }  # the compiler removes the others

    made = jax.jit(draw)(jax.random.key(0) if key is None else key)
    return new, flax.traverse_util.unflatten_dict(
        {path: (kept | made)[path] for path in shapes}, sep="/"
    )
