"""Runs of labels and embeddings on the encoder of an encoder-decoder."""

import json

import numpy as np
import pytest

import lm
import retrieval
from configs.defaults import defaults
from lm import evaluate, export, families, tasks
from lm.batch import Batch
from lm.data import tokenizers
from lm.models.config import ConfigError
from lm.training import checkpoints, loop, setup
from lm.weights.runs import paths
from tests.lm.evaluation.test_labelled import check_label
from tests.lm.small_models import drawn, identical

TOPICS, PAIRS = "configs/examples/topics.jsonl", "configs/examples/pairs.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Directory of a T5 with random weights."""
    model = lm.build(families.preset("t5", "tiny").replace(n_layers=1, encoder_layers=1))
    path = tmp_path_factory.mktemp("t5") / "base"
    lm.to_hf(model, drawn(model), path, tokenizers.bytes_only())
    return path


def config(base, folder, task, files, length):
    c = defaults()
    c.task = task
    c.update_from_flattened_dict(
        {
            "steps": 3,
            "batch_size": 8,
            "length": length,
            "init_from": str(base),
            "data.files": files,
            "data.cache": str(folder / "cache"),
            "optimizer.warmup": 1,
            "log.tensorboard": False,
            "checkpoint.every": 3,
        }
    )
    return c


def test_a_classifier_on_an_encoder_trains_resumes_and_labels(base, tmp_path, capsys, caplog):
    c = config(base, tmp_path, tasks.defaults("classification"), TOPICS, 64)
    run = str(tmp_path / "run")
    assert loop.train(c, run) == 0
    assert "its decoder is dropped" in caplog.text
    encoder = lm.encoder_of(*lm.from_hf(base))[1]
    started = setup.prepare(c, paths.resolve(str(tmp_path / "other"))).params
    assert identical({name: x for name, x in started.items() if name != "head"}, encoder)
    c.steps = 5
    assert loop.train(c, run) == 0 and checkpoints.steps(run)[-1] == 5

    model, params, _ = lm.load(run)
    assert model.config.encoder_layers == 0
    assert model.config.label_names == ("animal", "food", "weather")
    arguments = [f"--model={run}", f"--data={TOPICS}", "--task=classification"]
    assert evaluate.main([*arguments, f"--predictions={tmp_path / 'predictions.jsonl'}"]) == 0
    check_label(tmp_path, arguments[:2], "classification", capsys)
    with pytest.raises(ConfigError, match=r"encoder alone of a t5 model .* lm\.label read"):
        lm.to_hf(model, params, tmp_path / "hf")


def test_an_embedding_of_an_encoder_is_that_of_its_export(base, tmp_path, capsys):
    task = tasks.defaults("contrastive", field="question", pair_field="passage")
    run, out = str(tmp_path / "run"), str(tmp_path / "hf")
    assert loop.train(config(base, tmp_path, task, PAIRS, 80), run) == 0
    arguments = [f"--model={run}", f"--data={PAIRS}", "--task=contrastive", "--json"]
    assert evaluate.main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["records"] > 10
    assert export.main([f"--model={run}", f"--output={out}"]) == 0
    texts = ["a text", "another text"]
    found = retrieval.Encoder.from_hf(out)(texts)
    model, params, tokenizer = lm.load(run)
    for text, vector in zip(texts, found, strict=True):
        pooled = lm.forward(model, params, Batch.of([tokenizer(text)["input_ids"]])).pooled
        np.testing.assert_allclose(vector, np.asarray(pooled)[0], atol=1e-5)
    assert identical(lm.from_hf(out)[1], params)
