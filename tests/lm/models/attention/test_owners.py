"""Fusion in decoder: passages are encoded apart, and one question reads all of its own."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import lm
from lm.models.cache import init_cache
from tests.lm.models.attention.test_backends import HERE, config
from tests.lm.small_models import drawn

PASSAGES = [[5, 9, 2, 7, 7], [3, 4, 50], [8, 8, 1, 40, 33, 20]]
QUESTIONS = [[11, 12, 13], [21, 22, 23, 24]]  # the first owns passages 0 and 1, the second 2


def batch(order, padding=3):
    """Both questions in one row; the encoder reads the passages in this order, then padding."""
    tokens, segments, owners = [], [], []
    for number, i in enumerate(order, 1):
        tokens += PASSAGES[i]
        segments += [number] * len(PASSAGES[i])
        owners += [1 + (i == 2)] * len(PASSAGES[i])
    zeros = [0] * padding
    return lm.Batch.of(
        [QUESTIONS[0] + QUESTIONS[1]],
        [[1] * 3 + [2] * 4],
        encoder_tokens=[tokens + zeros],
        encoder_segments=[segments + zeros],
        encoder_owners=[owners + [1] * padding],
    )


@functools.cache
def model(backend):
    made = lm.build(config("t5", attention_backend=backend))
    return made, drawn(made)


@pytest.mark.parametrize("backend", ["dense", f"{HERE}:Eights"])
def test_a_question_reads_all_its_passages_and_they_do_not_see_each_other(backend):
    run = functools.partial(lm.forward, *model(backend))
    out = run(batch((0, 1, 2)))
    # T5's encoder knows distances within a passage alone, so that their order changes nothing.
    moved = run(batch((2, 1, 0)))
    np.testing.assert_allclose(out.logits, moved.logits, atol=2e-6)
    np.testing.assert_allclose(out.encoder_hidden[:, :5], moved.encoder_hidden[:, 9:14], atol=2e-6)

    def changed(at):
        b = batch((0, 1, 2))
        tokens = np.array(b.encoder_tokens)
        tokens[0, at] = 60
        other = run(dataclasses.replace(b, encoder_tokens=tokens))
        apart = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(-1)[0]
        return apart(out.logits, other.logits), apart(out.encoder_hidden, other.encoder_hidden)

    logits, encoded = changed(6)  # of passage 1
    assert (encoded[:5] == 0).all() and (encoded[5:8] > 0).all() and (encoded[8:14] == 0).all()
    assert (logits[:3] > 0).all() and (logits[3:] == 0).all()
    assert (changed(15)[0] == 0).all()  # padding


def test_owners_are_kept_in_the_cache():
    made, params = model("dense")
    whole, b = lm.forward(made, params, batch((0, 1, 2))).logits, batch((0, 1, 2))
    first = dataclasses.replace(b, **{n: getattr(b, n)[:, :5] for n in OWN})
    rest = {n: getattr(b, n)[:, 5:] for n in OWN}
    rest |= {n: None for n in vars(b) if n.startswith("encoder")}

    @jax.jit
    def run(params):
        cache = init_cache(made.config, 1, 8, b.encoder_tokens.shape[1])
        begun = made.apply({"params": params}, first, cache=cache)
        return made.apply({"params": params}, dataclasses.replace(b, **rest), cache=begun.cache)

    np.testing.assert_allclose(run(params).logits, whole[:, 5:], atol=2e-5)


OWN = ("tokens", "targets", "weights", "segments", "positions")


def test_owners_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"encoder_owners have shape \(1, 2\), encoder_tokens"):
        lm.Batch.of([[1]], encoder_tokens=[[1, 2, 3]], encoder_owners=[[1, 1]])
