"""Each family's tiny preset: it learns, packs exactly, shards by the rules and runs in every mode.

Families come from the registry, so a new family is tested once it is registered. `python -m pytest
-m slow` adds the larger sweep.
"""

import functools

import jax
import numpy as np
import pytest

import lm
from lm import families
from lm.distributed import sharding
from lm.losses.tokens import token_loss
from tests.lm.small_models import drawn

FAMILIES = sorted(families.FAMILIES)
DOCUMENTS = [[5, 9, 2, 7, 7, 30, 11], [3, 4, 50, 61, 12], [8, 8, 1, 40, 33, 20, 19, 2, 70]]
LENGTH = 24
MASK = 90


@functools.cache
def tiny(name: str, **changes):
    """The tiny preset made smaller, with initial weights large enough to reveal errors."""
    preset = families.preset(name, "tiny")
    config = preset.replace(
        vocab_size=97,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        decoder_start_token_id=None,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        initializer_range=0.1,
        dropout=0.0,
    )
    return lm.build(config.replace(**changes))


@functools.cache
def initial(name: str):
    return drawn(tiny(name))


def packed(name: str, documents) -> lm.Batch:
    """The documents in one row with the family's task.

    It predicts the next token, or every third token masked (Devlin et al. 2019, section 3.1).
    """
    c = tiny(name).config
    rows = np.zeros((2, LENGTH), np.int32)
    at = 0
    for i, document in enumerate(documents, 1):
        rows[:, at : at + len(document)] = document, [i] * len(document)
        at += len(document)
    tokens, segments = rows[:1], rows[1:]
    read = {}
    if c.encoder_layers:  # the encoder reads the same documents with token ids shifted by one
        read = dict(encoder_tokens=np.where(segments > 0, tokens + 1, 0), encoder_segments=segments)
    if c.causal:
        return lm.Batch.of(tokens, segments, **read)
    places = lm.Batch.of(tokens, segments).positions
    hidden = (segments > 0) & (places % 3 == 1)
    return lm.Batch.of(np.where(hidden, MASK, tokens), segments, targets=tokens, weights=hidden)


@functools.cache
def gradient(model):
    """Compiled function for float32 loss sum, weight sum and gradients, cached for each model."""

    def loss(params, batch):
        found = token_loss(model, params, batch, None)
        return found.first.sum, found.first.weight

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda params, batch: jax.device_get(run(params, batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_loss_and_gradients_are_those_of_the_documents_alone(name):
    run = gradient(tiny(name))
    (total, weight), together = run(initial(name), packed(name, DOCUMENTS))
    alone = [run(initial(name), packed(name, [document])) for document in DOCUMENTS]
    np.testing.assert_allclose(total, sum(loss for (loss, _), _ in alone), rtol=1e-5)
    assert weight == sum(w for (_, w), _ in alone)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(together))
    assert largest > 0.1
    jax.tree.map(
        lambda p, *a: np.testing.assert_allclose(p, sum(a), atol=1e-5 * max(1.0, largest)),
        together,
        *[g for _, g in alone],
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_overfits_one_batch_with_its_natural_task(name):
    run, batch, params = gradient(tiny(name)), packed(name, DOCUMENTS), initial(name)
    means = squares = jax.tree.map(np.zeros_like, jax.device_get(params))
    losses = []
    for step in range(1, 151):
        (loss, weight), grads = run(params, batch)
        losses.append(float(loss / weight))
        means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, grads)
        squares = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, squares, grads)
        params = jax.tree.map(functools.partial(_adam, step), params, means, squares)
        if losses[-1] < 0.1 * losses[0]:
            break
    assert losses[0] > 2.0, "an untrained model that already knows the answer"
    assert losses[-1] < 0.1 * losses[0], losses[::5]


def _adam(step, param, mean, square, rate=3e-3):
    """Adam's update (Kingma & Ba 2015, algorithm 1), in NumPy: nothing is compiled."""
    mean, square = mean / (1 - 0.9**step), square / (1 - 0.999**step)
    return np.float32(param - rate * mean / (np.sqrt(square) + 1e-8))


def agree(name, changes, atol, share):
    """Check loss and gradients of another execution mode.

    The tolerance is atol, or that share of the largest gradient.
    """
    (loss, _), plain = gradient(tiny(name))(initial(name), packed(name, DOCUMENTS))
    (other, _), same = gradient(tiny(name, **changes))(initial(name), packed(name, DOCUMENTS))
    np.testing.assert_allclose(other, loss, rtol=max(share, 1e-5))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(same), strict=True
    ):
        limit = atol + share * float(np.abs(x).max())
        assert x.dtype == y.dtype == np.float32
        assert float(np.abs(x - y).max()) <= limit, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", FAMILIES)
def test_unscanned_and_rematerialised_layers_give_the_same_gradients(name):
    agree(name, dict(layers="unrolled", remat="full"), atol=1e-4, share=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(remat="dots"),
        dict(remat="full"),
        dict(layers="unrolled"),
        dict(layers="unrolled", remat="dots"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_stack_and_every_rematerialisation_gives_the_same_gradients(name, changes):
    agree(name, changes, atol=1e-4, share=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_gradients_of_float32_parameters_stay_near_the_exact_ones(name):
    agree(name, dict(dtype="bfloat16"), atol=0.05, share=0.25)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_compute_with_float32_parameters_agrees(name):
    model, batch = tiny(name), packed(name, DOCUMENTS)
    # Matrices alone are random: with random norms, rounding comes near the limit in some families.
    params = jax.tree.map(
        lambda random, centre, names: random if len({*names} - {"layers"}) > 1 else centre,
        initial(name),
        drawn(model, 0.0),
        model.logical_axes(),
    )
    inside = np.asarray(batch.segments[0]) > 0
    exact, rough = (
        np.asarray(lm.forward(m, params, batch).logits)[0, inside]
        for m in (model, tiny(name, dtype="bfloat16"))
    )
    assert rough.dtype == np.float32
    assert np.abs(exact - rough).max() < 0.06 * np.abs(exact).max()
    separated, split = lm.separate(model, params)
    if separated.config.layers == "separate":
        _, by_output = lm.for_decoding(model, params)
        assert jax.tree.structure(by_output) != jax.tree.structure(split)
        np.testing.assert_allclose(
            np.asarray(lm.forward(separated, by_output, batch).logits)[0, inside], exact, atol=5e-5
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_place_on_a_mesh(name):
    """The default rules cover every dimension and shard the large matrices."""
    model = tiny(name)
    shapes = model.shapes()
    for (path, names), x in zip(
        jax.tree_util.tree_leaves_with_path(
            model.logical_axes(), is_leaf=lambda n: isinstance(n, tuple)
        ),
        jax.tree.leaves(shapes),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        assert len(names) == x.ndim, where
        assert set(names) <= set(sharding.PARAMETERS), where
        inner = [n for n in names if n != "layers"]
        if (
            len(inner) > 1
            and x.size > 2000
            and not {"positions", "types", "buckets", "conv"} & set(inner)
        ):
            assert any(sharding.PARAMETERS[n] for n in inner), (
                f"{where} would be whole on every device"
            )
