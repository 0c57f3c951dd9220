"""Contrastive learning: torch's loss over the whole batch, however split; the exported encoder."""

import json
import pathlib

import jax
import numpy as np
import pytest
import transformers

import lm
import retrieval
from configs import smoke
from lm import evaluate, fisher
from lm.batch import Batch
from lm.data import tokenizers
from lm.data.encode import labels as label_rows
from lm.data.encode.labels import Shape
from lm.data.read.sources import DataError
from lm.data.records import labels as labelled
from lm.distributed import sharding
from lm.models.config import ConfigError
from lm.tasks import Contrastive
from lm.training import loop, settings, setup, trackers
from lm.weights.runs import paths
from lm.weights.runs import weights as run_weights
from tests.lm.training import small

torch = pytest.importorskip("torch")

WIDTH = 7


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return (BERT on torch, the same model here with mean pooling)."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    theirs = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
        ),
        add_pooling_layer=False,
    ).eval()
    theirs.save_pretrained(folder)
    return theirs, *lm.from_hf(folder, head="embedding")


def texts_of(rows, texts, seed=0):
    """Token ids [B, C, W] and their mask, with lengths from 2 to W."""
    rng = np.random.default_rng(seed)
    there = np.arange(WIDTH) < rng.integers(2, WIDTH + 1, (rows, texts, 1))
    return rng.integers(1, 50, (rows, texts, WIDTH)) * there, there


def batch_of(tokens, there):
    rows, texts, _ = tokens.shape
    segments = there * np.arange(1, texts + 1)[:, None]
    return Batch.of(tokens.reshape(rows, -1), segments.reshape(rows, -1))


def run(task, model, params, batch):
    """The task's loss, compiled as a whole: operations one by one take longer to compile."""
    return jax.jit(lambda params, batch: task.loss(model, params, batch))(params, batch)


def embedded(model, tokens, there):
    """Mean vectors on torch, [B, C, D]."""
    flat = lambda x: torch.tensor(x.reshape(-1, WIDTH))
    with torch.no_grad():
        hidden = model(input_ids=flat(tokens), attention_mask=flat(there).long()).last_hidden_state
    mean = (hidden * flat(there)[..., None]).sum(1) / flat(there).sum(1, keepdim=True)
    return mean.reshape(*tokens.shape[:2], -1)


def of_torch(vectors, temperature, symmetric, out=None):
    """F.cross_entropy over the matrix of cosines; `out` bool [B, N] excludes negatives."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    scores = unit[:, 0] @ torch.cat([unit[:, i] for i in range(1, unit.shape[1])]).T / temperature
    out = torch.zeros_like(scores, dtype=torch.bool) if out is None else torch.tensor(out)
    own = torch.arange(len(unit))
    found = torch.nn.functional.cross_entropy(scores.masked_fill(out, -torch.inf), own)
    if not symmetric:
        return float(found)
    square = scores[:, : len(unit)].T.masked_fill(out[:, : len(unit)].T, -torch.inf)
    return float((found + torch.nn.functional.cross_entropy(square, own)) / 2)


@pytest.mark.parametrize(
    ("negatives", "temperature", "symmetric"),
    [(0, 0.05, False), (2, 0.1, False), (0, 0.5, True), (1, 0.05, True)],
)
def test_the_loss_is_not_torchs_or_reads_the_padding(encoder, negatives, temperature, symmetric):
    theirs, model, params = encoder
    tokens, there = texts_of(6, 2 + negatives)
    wanted = of_torch(embedded(theirs, tokens, there), temperature, symmetric)
    options = dict(temperature=temperature, negatives=negatives, symmetric=symmetric)
    task = Contrastive(**options)
    loss = jax.jit(lambda p, b, parts: task.loss(model, p, b, parts=parts), static_argnums=2)
    ours = loss(params, batch_of(tokens, there), 1)
    assert float(ours.first.weight) == 6 and float(ours.first.sum) / 6 == pytest.approx(
        wanted, abs=2e-4
    )
    # Filled up like the last batch of an evaluation.
    filled = batch_of(*(np.pad(x, ((0, 3), (0, 0), (0, 0))) for x in (tokens, there)))
    for parts in (1, 3):
        again = loss(params, filled, parts)
        assert float(again.first.weight) == 6 and float(again.first.sum) == pytest.approx(
            float(ours.first.sum), rel=1e-5
        )
        assert float(again.metrics["accuracy"]) == float(ours.metrics["accuracy"])


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_not_that_of_sentence_transformers(encoder, symmetric):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    theirs, model, params = encoder
    tokens, there = texts_of(5, 2 if symmetric else 3)

    class Model(torch.nn.Module):
        def forward(self, features):
            return features

    kind = (
        losses.MultipleNegativesSymmetricRankingLoss
        if symmetric
        else losses.MultipleNegativesRankingLoss
    )
    vectors = embedded(theirs, tokens, there)
    features = [{"sentence_embedding": vectors[:, i]} for i in range(vectors.shape[1])]
    wanted = float(kind(Model(), scale=20.0)(features, None))
    task = Contrastive(negatives=tokens.shape[1] - 2, symmetric=symmetric)
    ours = run(task, model, params, batch_of(tokens, there))
    assert float(ours.first.sum) / 5 == pytest.approx(wanted, abs=2e-4)


def test_a_right_answer_of_another_row_is_a_negative(encoder):
    """Equal texts in several rows must not count as negatives.

    Row 1 has row 0's text, row 2 its positive; row 3 has it as a positive; row 4's positive is its
    own text and a negative of row 5.
    """
    theirs, model, params = encoder
    tokens, there = texts_of(6, 3)
    for to, of in (
        ((1, 0), (0, 0)),
        ((2, 1), (0, 1)),
        ((3, 1), (0, 0)),
        ((4, 1), (4, 0)),
        ((5, 2), (4, 0)),
    ):
        tokens[to], there[to] = tokens[of], there[of]
    out = np.zeros((6, 12), bool)
    text = lambda row, which: tuple(tokens[row, which])
    for i in range(6):
        for column in range(12):
            j, which = column % 6, 1 + column // 6
            right = text(j, which) in (text(i, 0), text(i, 1)) or (
                which == 1 and text(j, 0) == text(i, 0)
            )
            out[i, column] = right and column != i
    assert out.sum() > 6
    vectors = embedded(theirs, tokens, there)
    for symmetric in (False, True):
        task = Contrastive(negatives=1, symmetric=symmetric)
        ours = run(task, model, params, batch_of(tokens, there))
        assert float(ours.first.sum) / 6 == pytest.approx(
            of_torch(vectors, 0.05, symmetric, out), abs=2e-4
        )
    assert of_torch(vectors, 0.05, False) > of_torch(vectors, 0.05, False, out) + 1e-2


def metrics_of(folder, mesh=(1, 1, 1), accumulate=1):
    """Metrics of a first step."""
    config = smoke.get_config("contrastive,bert")
    config.data.cache, config.accumulate = str(folder / "cache"), accumulate
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    with pytest.MonkeyPatch.context() as m:
        m.setattr(jax, "device_count", lambda: int(np.prod(mesh)))
        m.setattr(setup, "make_mesh", lambda **sizes: small.mesh_of(*mesh))
        run = setup.prepare(config, paths.resolve(str(folder / "run")))
    batch = next(setup.train_source(config, run, setup.training_data(config, run)))
    with sharding.activate(run.mesh, run.activations):
        return jax.device_get(run.train_step(run.fresh_state(0), batch)[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return metrics_of(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("mesh", "accumulate"), [((2, 2, 2), 1), ((1, 4, 1), 4)])
def test_the_negatives_are_those_of_a_device_or_of_a_micro_batch(mesh, accumulate, alone, tmp_path):
    together = metrics_of(tmp_path, mesh, accumulate)
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=1e-6)
    for name in ("gradient_norm", "accuracy", "weight"):
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-5, err_msg=name)


def test_a_text_is_its_own_pair_under_one_dropout_or_a_part_has_the_masks_of_another(encoder):
    _, model, params = encoder
    noisy = lm.build(model.config.replace(dropout=0.5))
    tokens, there = texts_of(4, 2)
    tokens[:], there[:] = tokens[:1, :1], there[:1, :1]  # the same text eight times
    batch = batch_of(tokens, there)
    for parts in (1, 2):
        vectors = np.asarray(_vectors(noisy, params, batch, parts)).reshape(8, -1)
        assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(vectors) for b in vectors[:i])


def _vectors(model, params, batch, parts):
    from lm.tasks.contrastive import _embedded

    embedded = jax.jit(_embedded, static_argnums=(0, 4, 5))
    return embedded(model, params, batch, jax.random.key(0), 2, parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task.temperature": 0.0},
            r"temperature=0\.0: expected a number above 0",
        ),
        (
            {"task.temperature": float("nan")},
            r"temperature=nan: expected a number above 0",
        ),
        ({"task.negatives": 0}, r"negatives=0 and task\.negatives_field='others'"),
        ({"task.pooling": "cls"}, r"pooling='cls': expected mean, first or last"),
        ({"length": 64}, r"length=64 does not divide by the 3 texts"),
        (
            {"length": 600},
            r"makes documents of 200 tokens, which is more than model\.max_length=128",
        ),
        ({"task.pair_field": ""}, r"told apart by dropout alone, and model\.dropout=0"),
        (
            {"task.label_field": "x"},
            r"task\.label_field: the task 'contrastive' has no such field.*tasks classification, ",
        ),
        (
            {"task.label_smoothing": 0.1},
            r"label_smoothing: the task 'contrastive' has no such field.*tasks next_token, ",
        ),
        (
            {
                "task.negatives": 0,
                "task.negatives_field": "",
                "batch_size": 1,
                "length": 64,
            },
            "there is none; raise it",
        ),
        (
            {"task.name": "next_token"},
            r"task\.\w+: the task 'next_token' has no such field.*tasks .*contrastive\b.*\. ",
        ),
    ],
)
def test_options_that_cannot_work_are_started(changes, message):
    config = smoke.get_config("contrastive,bert")
    with config.unlocked():
        for name, value in changes.items():
            section, _, field = name.rpartition(".")
            (config[section] if section else config)[field] = value
    with pytest.raises(ConfigError, match=message):
        settings.check(config, 1)


def test_information_of_a_row_is_taken_that_has_none(tmp_path):
    config = smoke.get_config("contrastive,bert")
    config.init_from = "unused"
    with pytest.raises(ConfigError, match="compares the rows of a batch"):
        fisher.write(config, str(tmp_path), sampled=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 2: no field 'positive'"),
        ({"text": "a", "positive": " "}, "line 2: field 'positive' is empty"),
        (
            {"text": "a", "positive": "b", "no": []},
            "line 2: field 'no' holds 0 texts, fewer than task.negatives=1",
        ),
        ({"text": "a", "positive": "b", "no": ["c", ""]}, "line 2: field 'no' holds .*none empty"),
    ],
)
def test_a_group_that_cannot_be_used_is_learned_from(tmp_path, row, message):
    good = {"text": "a", "positive": "b", "no": "c"}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (good, row, good)))
    make = Contrastive(pair_field="positive", negatives_field="no", negatives=1).record
    with pytest.raises(DataError, match=message):
        labelled.read(str(tmp_path / "x.jsonl"), make)
    assert [g.texts for g in labelled.read(str(tmp_path / "x.jsonl"), make, max_bad_share=0.5)] == [
        ("a", "b", "c")
    ] * 2


def test_a_text_is_laid_elsewhere_or_cut_otherwise_than_it_is_embedded():
    tokenizer = tokenizers.bytes_only()
    groups = [labelled.Group(("ab", "c" * 9, "de"), ""), labelled.Group(("f", "gh", "i"), "")]
    shape = Shape(15, framed=False, texts=3)
    packed = label_rows.pack(
        list(label_rows.encode(groups, tokenizer, label_rows.groups, shape)),
        [13, 4],
        shape,
    )
    assert len(packed) == packed.stats()["documents"] == 2 and not packed.stats()["split_documents"]
    assert packed.counts == {"cut_texts": 1}
    for row, group in enumerate(groups):
        for number, text in enumerate(group.texts):
            at = slice(5 * number, 5 * number + 5)
            segments = packed.segments[row, at]
            n = int((segments > 0).sum())
            assert set(segments[:n]) == {number + 1}
            assert (
                packed.tokens[row, at][:n].tolist()
                == tokenizer(text, truncation=True, max_length=5)["input_ids"]
            )


def test_what_is_learned_is_not_what_the_memory_searches_with(tmp_path, capsys):
    """Train on pairs, evaluate, export; the encoder of a memory then finds the passages."""
    config = smoke.get_config("contrastive,bert")
    config.data.cache, config.log.tensorboard, config.eval.data.heldout = (
        str(tmp_path / "cache"),
        False,
        config.data.files,
    )
    config.model.dropout, config.steps, config.optimizer.warmup, config.checkpoint.every = (
        0.1,
        25,
        5,
        100,
    )
    assert loop.train(config, tmp_path / "run") == 0
    last = next(
        row for row in reversed(trackers.read(tmp_path / "run")) if "eval/heldout/loss" in row
    )
    assert last["eval/heldout/accuracy"] > 0.9 and last["eval/heldout/loss"] < 1
    arguments = [
        f"--model={tmp_path / 'run'}",
        f"--data={config.data.files}",
        "--task=contrastive",
        "--json",
    ]
    assert evaluate.main(arguments) == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scored["records"], scored["texts"], scored["length"]) == (32, 32, 40) and scored[
        "mrr"
    ] >= scored["accuracy"] > 0.9
    model, params, tokenizer = run_weights.load_params(tmp_path / "run")
    lm.to_hf(model, params, tmp_path / "hf", tokenizer=tokenizer)
    found = retrieval.Encoder.from_hf(tmp_path / "hf", 40)
    pairs = [json.loads(line) for line in pathlib.Path(config.data.files).read_text().splitlines()]
    asked, passages = found([p["question"] for p in pairs]), found([p["passage"] for p in pairs])
    assert ((asked @ passages.T).argmax(1) == np.arange(len(pairs))).mean() > 0.9
    run = setup.prepare(config, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(config, run)
    batch = Batch.of(np.asarray(packed.tokens[:4, :40]), np.asarray(packed.segments[:4, :40]))
    pooled = jax.jit(model.apply)({"params": params}, batch).pooled
    np.testing.assert_allclose(pooled, asked[:4], atol=1e-5)
