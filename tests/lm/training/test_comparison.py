"""Comparison of runs: figures match the run folders, and names are escaped."""

import json

import pytest

from configs import tiny
from lm import compare
from lm.data import tokenizers
from lm.training import comparison, settings
from lm.weights.runs import model_files


@pytest.fixture
def runs(tmp_path):
    """Write two run folders without training; the name of one contains markup."""
    found = []
    for name, rate, losses in (("one", 1e-2, (5.0, 3.0)), ("<b>$x", 2e-2, (5.0, 2.5, 2.25))):
        config = tiny.get_config()
        config.optimizer.learning_rate = rate
        folder = tmp_path / name
        model_files.save_model(
            folder, settings.model_config(config.model, tokenizers.bytes_only()), None
        )
        (folder / "config.json").write_text(json.dumps(json.loads(config.to_json())))
        rows = [
            {"step": i + 1, "loss": loss, "tokens": 16 * (i + 1), "eval/held/loss": None}
            for i, loss in enumerate(losses)
        ]
        rows[-1]["eval/held/loss"] = losses[-1] + 0.5
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(str(folder))
    return found


def test_figures_are_not_the_last_of_each_run_or_differences_are_missed(runs, tmp_path, capsys):
    assert compare.main([*runs, f"--html={tmp_path}/out/page.html", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["differences"] == {"optimizer.learning_rate": [0.01, 0.02]} and found["runs"] == runs
    )
    assert (
        found["figures"]["loss"] == [3.0, 2.25]
        and found["figures"]["step"] == [2, 3]
        and found["figures"]["tokens"] == [32, 48]
    )
    assert (
        found["figures"]["eval/held/loss"] == [3.5, 2.75]
        and found["figures"]["parameters"] == [127_296] * 2
    )
    page = (tmp_path / "out/page.html").read_text()
    assert (
        page.count("<svg") == 2
        and "<b>" not in page
        and "&lt;b&gt;" in page
        and "optimizer.learning_rate" in page
    )
    said = comparison.text(comparison.compare(runs))
    assert "127,296" in said and "2.2500" in said and "0.02" in said
    assert "the configs are the same" in comparison.text(comparison.compare([runs[0], runs[0]]))


def test_what_is_no_run_ends_in_a_stack_trace(runs, tmp_path, capsys):
    for given, said in (
        ([runs[0]], "one run is given"),
        ([runs[0], str(tmp_path / "none")], "is not a run folder: it has no config.json"),
    ):
        assert compare.main(given) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error
