"""What a decoding step reads is read in place."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import lm
from lm.families import preset
from lm.generation.decode import decode_step
from lm.models import init_cache
from lm.models.quantised import quantise
from tests.lm.small_models import drawn

ROWS, LENGTH, SOURCE = 8, 40, 24
LEAST = 2048  # numbers; the smallest matrix and the keys of a layer have more


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_step_copies_neither_weights_nor_keys(family, quantized):
    model = lm.build(preset(family, "tiny"))
    params = drawn(model)
    if quantized:
        params = quantise(model, params)
    model, params = lm.for_decoding(model, params)
    cache = init_cache(model.config, ROWS, LENGTH, SOURCE)
    tokens = jnp.zeros(ROWS, jnp.int32)
    step = jax.jit(functools.partial(decode_step, model), donate_argnums=3)
    program = step.lower(params, tokens, tokens, cache).compile().as_text()
    moved = re.findall(r"= (\w+)\[([\d,]+)\]\S* (?:copy|transpose)\(", program)
    sizes = [functools.reduce(lambda n, d: n * int(d), dims.split(","), 1) for _, dims in moved]
    assert max(sizes, default=0) < LEAST
