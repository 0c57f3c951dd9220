"""Runs that read TFDS data sets from files: text, labels as numbers, values, pairs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import glue_bert, translate_transformer
from lm.data.read import sources
from lm.models.config import ConfigError
from lm.training import loop, settings, trackers
from lm.weights.runs import weights as run_weights
from tests.lm.training import runs

WRITER = Path(__file__).with_name("tfds_sets.py")
SHORT = {"steps": 2, "log.every": 1, "log.tensorboard": False, "checkpoint.every": 2}


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """Another process writes the data sets, so that their code is not loaded here."""
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, str(WRITER), str(folder)], check=True, capture_output=True)
    tfds.core.add_data_dir(folder)
    return folder


def trained(config, tmp_path, **changes):
    """(folder, metrics) of a run of two steps."""
    config.update_from_flattened_dict({**SHORT, "data.cache": str(tmp_path / "cache"), **changes})
    assert loop.train(config, tmp_path / "run") == 0
    return tmp_path / "run", trackers.read(tmp_path / "run")


def test_text_of_a_tfds_data_set_is_not_read_from_the_field_that_is_named(tmp_path):
    files = "tfds:tiny_news:train[:4]"
    texts = list(sources.documents([files], "body"))
    assert len(texts) == 4 and all(text.startswith("The river ") for text in texts)
    _, rows = trained(
        runs.config(tmp_path),
        tmp_path,
        **{
            "data.files": files,
            "task.field": "body",
            "eval.data.heldout": "tfds:tiny_news:validation",
        },
    )
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    assert any("eval/heldout/bits_per_byte" in row for row in rows)
    with pytest.raises(sources.DataError, match="no field 'text'; it has 'body', 'label'"):
        list(sources.documents([files]))
    with pytest.raises(sources.DataError, match="field 'label' is int"):
        list(sources.documents([files], "label"))


def glue(name):
    """The config of a task of GLUE at the size of :tiny, with the data sets of the paper."""
    config, small = glue_bert.get_config(name), glue_bert.get_config("tiny")
    config.model, config.tokenizer, config.init_from = small.model, "bytes", ""
    config.length, config.batch_size, config.optimizer.warmup = 32, 8, 1
    return config


def test_labels_of_glue_are_not_numbers_of_classes(tmp_path):
    workdir, rows = trained(glue("mrpc"), tmp_path)
    model = run_weights.load_params(workdir)[0]
    assert model.config.label_names == ("not_equivalent", "equivalent")
    (last,) = [row for row in rows if "eval/validation/f1" in row]
    assert {name.split("/")[-1] for name in last if name.startswith("eval/")} == {
        "loss",
        "accuracy",
        "macro_f1",
        "matthews",
        "f1",
    }


def test_values_of_glue_have_no_correlations(tmp_path):
    _, rows = trained(glue("stsb"), tmp_path)
    (last,) = [row for row in rows if "eval/validation/pearson" in row]
    assert abs(last["eval/validation/spearman"]) <= 1
    assert last["eval/validation/mean_squared_error"] > 0


def test_a_translation_is_not_read_by_the_names_of_its_languages(tmp_path):
    pytest.importorskip("sacrebleu")
    config = translate_transformer.get_config("tiny")
    files = "tfds:tiny_translate:train"
    _, rows = trained(
        config,
        tmp_path,
        **{"data.files": files, "eval.generation.files": files, "eval.generation.beams": 2},
    )
    (last,) = [row for row in rows if "eval/generation/bleu" in row]
    assert 0 <= last["eval/generation/bleu"] <= 100 and 0 <= last["eval/generation/chrf"] <= 100


@pytest.mark.parametrize("name", glue_bert.GLUE)
def test_a_task_of_glue_has_other_fields_or_labels_than_tfds(name):
    from tensorflow_datasets.text import glue as of_tfds

    (found,) = [one for one in of_tfds.Glue.BUILDER_CONFIGS if one.name == name]
    assert glue_bert.GLUE[name].texts == tuple(found.text_features)
    assert glue_bert.GLUE[name].labels == tuple(found.label_classes or ())
    config = glue_bert.get_config(name)
    assert config.data.files == f"tfds:glue/{name}:train"
    settings.check(config, 1)


def test_an_unknown_task_of_glue_is_taken():
    with pytest.raises(ConfigError, match=r"variant 'mrcp' is unknown.*mrpc"):
        glue_bert.get_config("mrcp")
