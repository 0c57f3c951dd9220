"""A `sequence` axis splits the tokens of a row; loss, gradients and prefill stay what they are."""

import jax
import numpy as np
import pytest

from lm.batch import Batch
from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.losses.tokens import token_loss
from lm.models import across, init_cache, scan
from lm.models.attention import ring
from lm.models.config import ConfigError
from lm.training.setup import abstract_batch
from tests.lm.small_models import drawn, tiny

ROWS, T = 4, 16
# Packed, padded at the end, inside a document, and at the edge of a part.
SEGMENTS = [[1] * 7 + [2] * 6 + [3] * 2 + [0], [1] * 16, [1] * 2 + [0] * 3 + [1] * 3 + [2] * 8]
SEGMENTS = np.asarray([*SEGMENTS, [1] * 4 + [2] * 12])
READ = [[1] * 5 + [2] * 6 + [3] * 4 + [0], [1] * 16, [1] * 4 + [2] * 11 + [0], [2] * 11 + [1] * 5]
READ = np.asarray(READ)
SPLIT = (2, 1, 1, 4)  # data, fsdp, tensor, sequence
BOTH = (2, 1, 2, 2)

MODELS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {"n_kv_heads": 2, "sliding_window": 4}),
    "bert": ("bert", {}),
    "t5": ("t5", {}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {}),
    "bamba": ("bamba", {"layer_pattern": ("ssm", "global"), "n_layers": 2}),
}


def made(name: str):
    """(model, params, batch) of a representative."""
    family, changes = MODELS[name]
    model, _ = tiny(family, vocab_size=40, **changes)
    rng = np.random.default_rng(0)
    read = rng.integers(0, 40, (ROWS, T)) if model.config.encoder_layers else None
    batch = Batch.of(
        rng.integers(0, 40, (ROWS, T)),
        SEGMENTS,
        encoder_tokens=read,
        encoder_segments=None if read is None else READ,
    )
    if name == "bert":  # a few positions are predicted, as in masked language modelling
        weights = (rng.random((ROWS, T)) < 0.2).astype(np.float32)
        batch = batch.replace(weights=weights, targets=batch.tokens)
    return model, drawn(model, 0.1), batch


def on(shape, model, params, batch, function):
    """The result of function(params, batch), which is compiled for a mesh."""
    devices = jax.devices()[: np.prod(shape)]
    mesh = make_mesh(*shape, devices=devices)
    rows = sharding.batch_sharding(mesh, (ROWS, T))
    places = sharding.parameter_shardings(mesh, model.logical_axes(), params)
    with sharding.activate(mesh):
        params = jax.tree.map(jax.device_put, params, places)
        batch = jax.tree.map(lambda x: jax.device_put(x, rows), batch)
        return jax.device_get(jax.jit(function)(params, batch))


def same(ours, theirs, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs
    )


def trained(model, batch):
    """Function of loss and gradients of a batch, by the sum of the weights."""
    sparse = model.config.head == "masked_lm"
    weight = batch.weights.sum()
    loss = lambda p, b: token_loss(model, p, b, sparse=sparse).first.sum / weight
    return jax.value_and_grad(loss)


SLOW = pytest.mark.slow
CAUSAL = [name for name in MODELS if name != "bert"]


@pytest.mark.parametrize(
    ("name", "shape", "most"),
    [
        ("llama", SPLIT, None),
        ("bamba", SPLIT, None),
        *(
            pytest.param(name, shape, most, marks=SLOW)
            for name in MODELS
            for shape, most in ((SPLIT, None), (SPLIT, 0), (BOTH, None))
            if (name, shape, most) not in (("llama", SPLIT, None), ("bamba", SPLIT, None))
            and not (most == 0 and name in ("llama", "mamba", "mamba2"))  # the same program
        ),
    ],
)
def test_split_rows_train_otherwise(monkeypatch, name, shape, most):
    if most is not None:
        monkeypatch.setattr(ring, "MOST_GATHERED", most)
    model, params, batch = made(name)
    alone, ours = (on(s, model, params, batch, trained(model, batch)) for s in ((1,) * 4, shape))
    same(ours, alone)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[SLOW] * (name != "bamba")) for name in CAUSAL]
)
def test_a_split_prompt_gives_other_logits_or_another_cache(name):
    model, params, batch = made(name)
    if name == "bamba":  # no padding inside a document that goes on
        batch = batch.replace(segments=np.where(SEGMENTS == 0, 9, SEGMENTS))
    read = T if model.config.encoder_layers else 0

    def prefill(params, batch):
        out = model.apply({"params": params}, batch, init_cache(model.config, ROWS, T + 4, read))
        return out.logits, out.cache

    same(*(on(s, model, params, batch, prefill) for s in (SPLIT, (1,) * 4)))


@pytest.mark.parametrize("kind", ["s6", pytest.param("ssd", marks=SLOW)])
def test_a_state_and_a_window_from_before_the_row_are_lost(kind):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    dt, segments = rng.uniform(0.01, 1, (2, 16, 4)).astype(np.float32), SEGMENTS[1:3]
    x, b, c, h = normal(2, 16, 4), normal(2, 16, 3), normal(2, 16, 3), normal(2, 3, 4)
    A, skip, kernel, window = -rng.uniform(1, 2, (4, 3)), normal(4), normal(3, 4), normal(2, 2, 4)
    whole, split = scan.selective_scan, across.s6
    if kind == "ssd":
        x, h, A = normal(2, 16, 4, 2), normal(2, 4, 2, 3), A[:, 0]
        b, c = b[:, :, None], c[:, :, None]
        whole, split = scan.ssd, across.ssd_scan

    def both(x, window, h, A, split):
        conv = lambda *of: across.causal_conv(*of, "mlp") if split else scan.causal_conv(*of)
        flat, ends = conv(x.reshape(2, 16, -1)[..., :4], kernel, segments, window)
        y, h = whole(x, dt, A, b, c, skip, segments, h, 3, split)
        return flat, ends, y, h

    def of(split):
        sums = lambda *a: sum(jax.numpy.sin(z).sum() for z in both(*a, split))
        return jax.jit(lambda *a: (both(*a, split), jax.grad(sums, (0, 1, 2, 3))(*a)))

    expected = of(None)(x, window, h, A)
    with sharding.activate(make_mesh(*SPLIT)):
        same(of(split)(x, window, h, A), expected, 2e-5)


def test_a_field_that_does_not_divide_reaches_the_compiler():
    rows = sharding.batch_sharding(make_mesh(*SPLIT), (4, 16))
    with pytest.raises(
        ConfigError, match=r"field 'encoder_tokens' .* encoder_length 10 .* mesh.sequence = 4"
    ):
        abstract_batch(rows, 4, (16, 10))
