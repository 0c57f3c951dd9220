"""Translation with configs/translate_transformer.py: fields, beams and scores of a corpus."""

import json

import pytest

from configs import translate_transformer
from lm import evaluate
from lm.models.config import ConfigError
from lm.training import loop, settings

PAIRS = "configs/examples/translation.jsonl"


def test_the_scores_of_a_run_are_not_those_of_its_answers(tmp_path, capsys):
    metrics = pytest.importorskip("sacrebleu.metrics")
    config = translate_transformer.get_config("tiny")
    config.update_from_flattened_dict(
        {
            "steps": 12,
            "optimizer.warmup": 2,
            "data.cache": str(tmp_path / "cache"),
            "log.tensorboard": False,
            "eval.generation.files": "",
        }
    )
    assert loop.train(config, tmp_path / "run") == 0
    capsys.readouterr()
    # The names of the fields are those of the run.
    arguments = [
        f"--model={tmp_path / 'run'}",
        f"--examples={PAIRS}",
        "--metrics=bleu,chrf",
        "--beams=2",
        "--length-penalty=0.6",
        "--max-new-tokens=16",
        "--max-examples=6",
        f"--answers={tmp_path / 'answers.jsonl'}",
        f"--json={tmp_path / 'found.json'}",
    ]
    assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all({"bleu", "chrf"}.isdisjoint(row) for row in rows)
    assert rows[0]["prompt"] == "Good morning." and rows[0]["references"] == ["Guten Morgen."]
    texts = [row["answer"] for row in rows], [[row["references"][0] for row in rows]]
    for name, kind in (("bleu", metrics.BLEU), ("chrf", metrics.CHRF)):
        assert found["all"]["scores"][name] == pytest.approx(kind().corpus_score(*texts).score)
        assert f"{name}: {found['signatures'][name]}" in said
    assert found["beams"] == 2 and "2 beams, length penalty 0.6" in said


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"task.format": "alpaca"}, "are of the format 'completion', and task.format='alpaca'"),
        ({"task.prompt_field": ""}, "expected the names of two fields"),
        ({"eval.generation.beams": 0}, "beams=0: expected a number of at least 1"),
    ],
)
def test_a_contradiction_is_found_after_hours(changes, said):
    config = translate_transformer.get_config("tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=said):
        settings.check(config, 1)


def test_the_schedule_is_not_that_of_the_paper():
    from lm.training.schedules import schedule

    o = translate_transformer.get_config().optimizer
    rate = schedule(o.schedule, o.learning_rate, o.warmup, 100_000)
    for step in (1, 400, 4000, 40_000):  # section 5.3, equation 3
        paper = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(rate(step - 1)) == pytest.approx(paper, rel=1e-4)
