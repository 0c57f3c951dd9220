"""with_head: a loaded model with another head, its other weights kept."""

import flax.traverse_util
import jax

from lm import families
from lm.batch import Batch
from lm.models import LanguageModel, build


def with_head(
    model: LanguageModel, params: dict, head: str, key: jax.Array | None = None, **fields
) -> tuple[LanguageModel, dict]:
    """The model and its parameters with `head` (see `ModelConfig`) instead of its own: to fine-tune, or to read hidden states.

    The new head has the layers, biases and pooling of the family's Hugging Face class for it, so that it can be exported; `fields` of
    ModelConfig change that: n_labels=3, label_names=(...), pooling="mean", normalize_embedding=False. Its parameters are drawn with
    `key` (default jax.random.key(0)) as in a new model: weights from a normal of `initializer_range`, biases 0, and a value's weights 0,
    so that a new critic expects nothing. An embedding is the mean over a bidirectional model's tokens, or the last of a causal one's.
    Nothing of the old head is kept, but for the number of labels and their names where both have them; all else is the same arrays.

    Raises ConfigError when the model cannot have that head, or its labels are not given.
    """
    new = build(families.other_head(model.config, head, **fields))
    example = Batch.of([[0, 0]])
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    shapes = flax.traverse_util.flatten_dict(
        jax.eval_shape(new.init, jax.random.key(0), example)["params"], sep="/"
    )
    kept = {path: flat[path] for path in shapes if path in flat and not path.startswith("head/")}

    def draw(key):
        drawn = flax.traverse_util.flatten_dict(new.init(key, example)["params"], sep="/")
        return {
            path: x for path, x in drawn.items() if path not in kept
        }  # the compiler leaves out the others

    made = jax.jit(draw)(jax.random.key(0) if key is None else key)
    return new, flax.traverse_util.unflatten_dict(
        {path: (kept | made)[path] for path in shapes}, sep="/"
    )
