"""Instruct data from file to loss: cache keys, weights in packed rows, learning when to stop."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lm
from lm.batch import Batch
from lm.data import cache, templates, tokenizers
from lm.data.encode import fitting, instruct
from lm.data.encode.encoding import Encoder
from lm.data.encode.fitting import Limits
from lm.data.records import reading as records
from lm.data.records.examples import Record, Turn
from lm.data.records.reading import Reading
from lm.losses.tokens import token_loss
from lm.models.config import ConfigError
from tests.lm.small_models import tiny

TOKENIZER = tokenizers.bytes_only()
RECORDS = [
    Record("Add.", "1 1", "2"),
    Record("Say hi", "", "hi there"),
    Record("x" * 9, "yy", "zzz"),
    Record(
        turns=(
            Turn("user", "a"),
            Turn("assistant", "bc"),
            Turn("user", "de"),
            Turn("assistant", "f"),
        )
    ),
]


def batch_of(packed, rows):
    """A batch of `rows` rows: the packed rows, then empty ones."""
    fill = lambda x: np.pad(x, ((0, rows - len(x)), (0, 0)))
    encoder = {
        name: fill(packed.extra[name])
        for name in ("encoder_tokens", "encoder_segments")
        if name in packed.extra
    }
    tokens, targets, segments, weights = map(
        fill, (packed.tokens, packed.targets, packed.segments, packed.extra["weights"])
    )
    return Batch.of(tokens, segments, targets=targets, weights=weights, **encoder)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "mamba"])
def test_packed_examples_weigh_other_than_each_alone(family):
    model, params = tiny(family, vocab_size=320)
    params = jax.tree.map(lambda x: x * 0.3, params)
    start = 5 if model.config.encoder_layers else None
    encoded = list(
        Encoder(TOKENIZER, start)(
            templates.get("tulu", TOKENIZER).render(record) for record in RECORDS
        )
    )
    limits = Limits(96, 96 if start else 0)
    packed = fitting.pack(encoded, limits)
    alone = [fitting.pack([e], limits) for e in encoded]
    assert len(packed) < len(alone)
    stack = lambda name: np.concatenate([getattr(p, name) for p in alone])
    extra = {name: np.concatenate([p.extra[name] for p in alone]) for name in packed.extra}
    apart = dataclasses.replace(
        packed,
        tokens=stack("tokens"),
        targets=stack("targets"),
        segments=stack("segments"),
        extra=extra,
    )
    weigh = jax.jit(
        jax.value_and_grad(
            lambda p, batch: (lambda found: (found.first.sum, found.first.weight))(
                token_loss(model, p, batch)
            ),
            has_aux=True,
        )
    )
    together, each = (weigh(params, batch_of(rows, len(alone))) for rows in (packed, apart))
    assert together[0][1] == each[0][1] == sum(e.trained[1:].sum() for e in encoded)
    np.testing.assert_allclose(together[0][0], each[0][0], rtol=2e-6)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(each[1]))
    for a, b in zip(jax.tree.leaves(together[1]), jax.tree.leaves(each[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_a_model_that_knows_its_answers_does_not_stop_after_them():
    records_ = [
        Record(f"{i:02d}: ", output="abcdefgh"[i % 3 : i % 7 + 1][::-1] + str(i)) for i in range(25)
    ]
    template = templates.get("plain", TOKENIZER)
    packed = fitting.pack(
        Encoder(TOKENIZER)(template.render(record) for record in records_), Limits(128)
    )
    config = lm.ModelConfig(
        family="llama",
        vocab_size=320,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        d_ff=128,
        max_length=128,
        eos_token_ids=(templates.stop_id(template, TOKENIZER),),
    )
    model = lm.build(config)
    batch = batch_of(packed, len(packed))
    params = model.init(jax.random.key(0), batch)["params"]
    adam = optax.adam(optax.cosine_decay_schedule(5e-3, 300))

    @jax.jit
    def learn(params, state):
        def loss(p):
            found = token_loss(model, p, batch)
            return found.first.sum / found.first.weight

        def step(_, carry):
            value, gradient = jax.value_and_grad(loss)(carry[0])
            update, state = adam.update(gradient, carry[1])
            return optax.apply_updates(carry[0], update), state, value

        return jax.lax.fori_loop(0, 300, step, (params, state, jnp.float32(0)))

    params, _, loss = learn(params, adam.init(params))
    assert loss < 0.05
    asked = [Encoder(TOKENIZER).prompt(template.prompt(record)) for record in records_]
    answers = lm.generate(model, params, asked, 16)
    assert [TOKENIZER.decode(answer) for answer in answers] == [
        record.output for record in records_
    ]


def files(folder, *rows):
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_cache_is_not_used_or_used_for_other_rows(tmp_path, monkeypatch):
    path = files(tmp_path, *({"instruction": f"do {i}", "output": "it"} for i in range(6)))
    tokenizer = tokenizers.bytes_only()

    def pack(
        name="tulu",
        limits=None,
        reading=instruct.EVERYTHING,
        part="train",
        tokenizer=tokenizer,
        start=None,
        weight=0.0,
        **options,
    ):
        template, limits = templates.get(name, tokenizer, **options), limits or Limits(64)
        return instruct.pack_examples(
            path,
            template,
            tokenizer,
            limits,
            tmp_path / "cache",
            reading,
            part=part,
            decoder_start=start,
            prompt_weight=weight,
        )

    def folders():
        return len(list((tmp_path / "cache").iterdir()))

    first = pack()
    with monkeypatch.context() as m:
        m.setattr(records, "read", lambda *_: pytest.fail("read again"))
        again = pack()
    assert (
        np.array_equal(first.tokens, again.tokens)
        and np.array_equal(first.extra["weights"], again.extra["weights"])
        and folders() == 1
    )
    other = tokenizers.bytes_only(mask=True)
    for i, changed in enumerate(
        (
            dict(name="plain"),
            dict(turns="last"),
            dict(limits=Limits(65)),
            dict(limits=Limits(64, most=0.5)),
            dict(part="all"),
            dict(reading=Reading(cap=3)),
            dict(reading=Reading(seed=1)),
            dict(tokenizer=other),
            dict(limits=Limits(64, 64), start=0),
            dict(weight=0.5),
        ),
        2,
    ):
        pack(**changed)
        assert folders() == i, changed
    before = folders()
    with monkeypatch.context() as m:
        m.setattr(cache, "code", lambda: "of another version")
        pack()
    assert folders() == before + 1
    files(tmp_path, {"instruction": "do", "output": "that"})
    assert len(pack().document_bytes) == 1
    with pytest.raises(ConfigError, match="needs a length for its encoder"):
        pack(limits=Limits(64, 64))


def test_changed_code_finds_the_rows_of_the_old(tmp_path, monkeypatch):
    folder = pathlib.Path(cache.__file__).parent
    shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "data" / "cache.py"))
    found = [cache.code.__wrapped__()]
    for name in ("packing.py", "read/sources.py", "templates/plain.py", "encode/labels.py"):
        with open(tmp_path / "data" / name, "a") as file:
            file.write("# changed")
        found.append(cache.code.__wrapped__())
    assert found[0] == cache.code() and len(set(found)) == 5


def test_a_record_without_a_place_in_the_template_is_not_named(tmp_path):
    path = files(
        tmp_path,
        {"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    with pytest.raises(
        instruct.sources.DataError,
        match=r"x\.jsonl, line 1: template 'alpaca': it has no place for turns of tool",
    ):
        instruct.pack_examples(
            path, templates.get("alpaca", TOKENIZER), TOKENIZER, Limits(64), tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
