"""Backends of attention: one result for every model, users' own, and refusals in words."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import plugins
from lm.models.attention import BACKENDS, Backend, Mask, backends, dense
from lm.models.attention.backends import choose, described
from lm.models.cache import init_cache
from lm.models.config import ConfigError
from tests.lm.models.test_model import CONFIGS
from tests.lm.small_models import drawn, tiny

HERE = "tests.lm.models.attention.test_backends"
SMALL = dict(
    family="llama",
    vocab_size=97,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=8,
    d_ff=48,
    max_length=64,
    initializer_range=0.2,
)
PAGE = pathlib.Path(__file__).parents[4] / "docs/write_a_backend.md"


class Other:
    """No backend."""


@dataclasses.dataclass(frozen=True)
class Eights(BACKENDS["chunked"]):
    block: int = 8


@dataclasses.dataclass(frozen=True)
class Raising(Backend):
    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        raise RuntimeError("no kernel")


@dataclasses.dataclass(frozen=True)
class Half(Backend):
    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        y, lse = dense.attend(q, k, v, mask, bias, scale=scale, softcap=softcap)
        return y[..., :4], lse


@dataclasses.dataclass(frozen=True)
class Narrow(Backend):
    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        y, lse = dense.attend(q, k, v, mask, bias, scale=scale, softcap=softcap)
        return y, lse.astype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Single(Backend):
    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        return dense.attend(q, k, v, mask, bias, scale=scale, softcap=softcap)[0]


@dataclasses.dataclass(frozen=True)
class Global(Backend):
    def why_not(self, config, mask, platform):
        return f"it has no windows on {platform}" if config.sliding_window else ""

    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        return dense.attend(q, k, v, mask, bias, scale=scale, softcap=softcap)


def config(kind="llama-window", **changes):
    options = SMALL | CONFIGS[kind] | changes
    return lm.ModelConfig(**options | dict(n_layers=2))


def batch(c):
    rng = np.random.default_rng(0)
    segments = np.asarray([[1] * 9 + [2] * 10, [1] * 6 + [2] * 7 + [0] * 6])
    encoder = (
        dict(
            encoder_tokens=rng.integers(0, 97, (2, 11)),
            encoder_segments=np.asarray([[1] * 6 + [2] * 5, [1] * 3 + [2] * 6 + [0] * 2]),
        )
        if c.encoder_layers
        else {}
    )
    return lm.Batch.of(rng.integers(0, 97, segments.shape), segments, **encoder)


def logits_and_gradients(c, params):
    model, rows = lm.build(c), batch(c)
    weights = np.random.default_rng(1).normal(size=(97,)).astype(np.float32)

    def loss(params):
        logits = model.apply({"params": params}, rows).logits
        logits = jnp.where((rows.segments > 0)[..., None], logits, 0)
        return (jax.nn.log_softmax(logits) * weights).mean(), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("kind", ["llama-window", "gemma2", "t5", "bert"])
def test_both_backends_give_the_same_logits_and_gradients(kind):
    c = config(kind, n_kv_heads=2 if kind == "llama-window" else 4)
    params = drawn(lm.build(c))
    found, expected = (
        logits_and_gradients(c.replace(attention_backend=name), params)
        for name in (f"{HERE}:Eights", "dense")
    )
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def traced(c, **cache):
    model, rows = lm.build(c), batch(c)
    shapes = lm.build(c.replace(attention_backend="dense")).shapes()
    return jax.eval_shape(lambda params: model.apply({"params": params}, rows, **cache), shapes)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raising", r"\(tests/lm/.*test_backends\.py\) raised RuntimeError: no kernel"),
        (
            "Half",
            r"returned y float32\[.*, 4, 4\], expected float32\[.*, 4, 8\]",
        ),
        ("Narrow", r"returned lse bfloat16\[.*, 4\], expected float32\[.*, 4\]"),
        ("Single", r"returned .*, expected a tuple \(y, lse\)"),
        ("Global", r"cannot compute this model: it has no windows on cpu; use 'dense' or"),
    ],
)
def test_a_backend_that_fails_is_named_with_its_file(name, said):
    with pytest.raises(ConfigError) as caught:
        traced(config(attention_backend=f"{HERE}:{name}"))
    assert re.search(said, str(caught.value))


def test_an_unknown_backend_is_refused_when_the_model_is_built():
    for name, said in (
        ("chunkd", "model.attention_backend='chunkd' is unknown (did you mean 'chunked'?)"),
        ("nowhere:Mine", "the class 'Mine' of the module 'nowhere'"),
        (f"{HERE}:Other", "derives from lm.models.attention.backends.Backend"),
    ):
        with pytest.raises(ConfigError) as caught:
            lm.build(config(attention_backend=name))
        assert said in str(caught.value)


def chosen(c, queries, keys, bias, cached=False):
    mask = Mask.between(jnp.zeros((1, queries)), jnp.zeros((1, keys)))
    return choose(c, mask, bias, cached)


def test_auto_is_dense_for_short_rows_and_makes_no_long_mask():
    c = config()
    assert c.attention_backend == "auto"
    assert [chosen(c, n, n, False) for n in (256, 257, 16384)] == ["dense", "chunked", "chunked"]
    assert [chosen(c, n, n, True) for n in (1024, 1025)] == ["dense", "chunked"]  # T5's bias
    # a cache: single tokens and short prompts are dense, a long prompt is not
    cached = [chosen(c, n, 4096, False, cached=True) for n in (1, 256, 257)]
    assert cached == ["dense", "dense", "chunked"]
    assert chosen(c.replace(attention_backend="dense"), 16384, 16384, False) == "dense"
    assert chosen(c.replace(attention_backend="a:B"), 9, 9, False, cached=True) == "dense"
    said = described(c, (512, 0))
    assert said == "attention: chunked for rows of 512 (auto: dense up to 256 tokens)"
    said = described(config("t5"), (512, 2048))
    assert said.startswith("attention: dense for rows of 512, chunked for encoder of 2048, ")
    assert "chunked for reading it (auto" in said


def test_a_long_prompt_with_a_cache_gives_the_dense_logits(monkeypatch):
    monkeypatch.setattr(backends, "MOST_DENSE", 0)
    for kind in ("llama-window", "t5"):
        found = []
        for backend in ("auto", "dense"):
            c = config(kind, layers="separate", attention_backend=backend)
            model, rows = lm.build(c), batch(c)
            run = jax.jit(
                lambda p, cache, model=model, rows=rows: (
                    model.apply({"params": p}, rows, cache=cache).logits
                )
            )
            found.append(run(drawn(model), init_cache(c, 2, 32)))
        real = np.asarray(rows.segments) > 0
        np.testing.assert_allclose(*(np.asarray(x)[real] for x in found), rtol=1e-4, atol=1e-4)


def test_steps_that_read_a_cache_are_dense():
    c = config(attention_backend=f"{HERE}:Raising", layers="separate")
    assert traced(c, cache=init_cache(c, 2, 32)).logits.shape == (2, 19, 97)


def test_an_exported_config_does_not_name_the_backend(tmp_path):
    model, params = tiny(attention_backend="chunked")
    lm.to_hf(model, params, tmp_path)
    assert "chunked" not in (tmp_path / "config.json").read_text()
    assert lm.from_hf(tmp_path)[0].config.attention_backend == "auto"


def test_the_backend_of_the_page(tmp_path, monkeypatch):
    page = PAGE.read_text()
    text = re.search(r"```python\n(\"\"\"(\w+\.py):.*?)```", page, re.DOTALL)
    name = re.search(r"attention_backend = \"(.*?)\"", page)
    assert text and name and len(text[1].splitlines()) <= 40
    (tmp_path / text[2]).write_text(text[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert traced(config(attention_backend=name[1])).logits.shape == (2, 19, 97)
    with pytest.raises(ConfigError, match="cannot compute this model: it is for float32"):
        traced(config(attention_backend=name[1], dtype="bfloat16"))
    rng, index = np.random.default_rng(0), jnp.arange(20)
    q, k, v = (rng.normal(size=(1, 20, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    segments = jnp.asarray([[1] * 8 + [2] * 12])
    mask = Mask(segments, segments, index, index, causal=True)

    def gradients(attend):
        def loss(q, k, v):
            y, lse = attend(q, k, v, mask, None, scale=0.3, softcap=2.0)
            return (y**2).sum() + (lse**2).sum(), (y, lse)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    mine = plugins.find("", name[1], {}, Backend)(at_once=5)
    found, expected = map(gradients, (mine, dense.attend))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
