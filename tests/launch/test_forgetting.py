"""The forgetting study: disjoint texts, connected stages, a table that matches the results."""

import importlib
import json

import pytest

from launch.forgetting import report, texts
from launch.stages import load_study

WIKI = (
    " \n = One = \n \n Of one . \n = = Part = = \n \n More . \n \n = Two = \n \n Of two . \n \n = "
    "Three = \n \n Of three . \n"
)


def test_an_article_is_in_both_texts_or_in_none(tmp_path):
    (tmp_path / "valid.txt").write_text(WIKI)
    assert texts.main([f"--input={tmp_path / 'valid.txt'}", f"--output={tmp_path}"]) == 0
    old, heldout = ((tmp_path / name).read_text() for name in ("old.txt", "heldout.txt"))
    assert "Of one" in old and "= = Part" in old and "Of three" in old and "Of two" not in old
    assert "Of two" in heldout and "Of one" not in heldout and "Of three" not in heldout


def test_a_text_of_another_format_is_cut_somewhere(tmp_path, capsys):
    (tmp_path / "plain.txt").write_text("no titles")
    assert texts.main([f"--input={tmp_path / 'plain.txt'}", f"--output={tmp_path}"]) == 2
    assert "' = Title = '" in capsys.readouterr().err


def test_a_stage_reads_what_no_earlier_stage_writes():
    study = load_study(
        "configs/studies/forgetting.py", workdir="runs/forgetting", samples="samples"
    )
    made: set[str] = set()
    for stage in study.stages:
        for path in map(str, stage.inputs):
            assert path in made or not path.startswith("runs/forgetting"), (
                f"{stage.name} reads {path}"
            )
        made.update(map(str, stage.outputs))


def found(rouge, perplexity, baselines=False):
    of = {
        "scores": {"rouge_l": rouge, "exact_match": 5.0, "stop_rate": 90.0},
        "intervals": {"rouge_l": [rouge - 2, rouge + 2]},
    }
    tasks = {"answers": 40, "all": of} | ({"baselines": {"copy input": of}} if baselines else {})
    return {"tasks": tasks, "text": {"perplexity": perplexity}}


def test_the_table_has_other_numbers_than_were_measured(tmp_path):
    for number, run in enumerate(report.NAMES):
        for what, values in found(10.0 + number, 20.0 + number, run == "base").items():
            (tmp_path / "m").mkdir(exist_ok=True)
            (tmp_path / "m" / f"{run}-{what}.json").write_text(json.dumps(values))
    assert report.main([f"--workdir={tmp_path}", "--models", "m=Model"]) == 0
    written = (tmp_path / "report.md").read_text()
    assert "| before | 10.0 (8.0 to 12.0) | 5 % | 90 % | 20.00 |  |" in written
    assert "| plain | 11.0 (9.0 to 13.0) | 5 % | 90 % | 21.00 | +5.0% |" in written
    assert "| copy input | 10.0 (8.0 to 12.0) |" in written and "40 of Model" in written
    assert (tmp_path / "forgetting.svg").read_text().startswith("<?xml")


def test_a_missing_measurement_ends_in_a_stack_trace(tmp_path, capsys):
    assert report.main([f"--workdir={tmp_path}", "--models", "m=Model"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_small_t5_of_the_study_cannot_be_written_for_transformers():
    from lm import families
    from lm.data import tokenizers
    from lm.training import settings

    section = importlib.import_module("configs.forgetting").get_config("t5-text").model
    ours = settings.model_config(section, tokenizers.bytes_only(sentinels=100))
    theirs = families.config_from_hf(families.config_to_hf(ours))
    assert (theirs.logit_scale, theirs.d_model, theirs.encoder_layers) == (
        ours.logit_scale,
        ours.d_model,
        ours.encoder_layers,
    )


@pytest.mark.parametrize(
    "variant",
    ["", "replay", "kl", "l2_sp", "ewc", "fisher", "lora", "t5", "t5-text", "t5-replay", "t5-lora"],
)
def test_a_run_of_the_study_is_refused(variant):
    config = importlib.import_module("configs.forgetting").get_config(variant)
    assert config.length == 256 and (config.task.name == "instruct") == (
        variant not in ("fisher", "t5-text")
    )
