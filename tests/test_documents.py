"""Documents: the site builds, and the Python of the README and the notebook runs twice."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from lm import tasks
from lm.data import samples
from lm.models.config import ConfigError
from lm.training import loop, settings
from tests.lm.training import runs
from tests.retrieval.models import save_encoder, save_reader

ROOT = Path(__file__).parent.parent


def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "site/search/search_index.json").read_text())
    assert {"glossary.html", "glossary/"} & {
        page["location"].split("#")[0] for page in index["docs"]
    }


def readme():
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


def notebook():
    cells = json.loads((ROOT / "docs/openbook.ipynb").read_text())["cells"]
    lines = [
        line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]
    ]
    return "".join(line for line in lines if not line.startswith("%"))


@pytest.mark.parametrize("document", [readme, notebook])
def test_the_python_of_a_document_runs_twice(document, tmp_path, monkeypatch, capsys):
    save_reader(tmp_path / "smollm2")
    save_encoder(tmp_path / "minilm")
    monkeypatch.setattr(samples, "fetch", lambda name: str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(document())
    for _ in range(2):
        found = runpy.run_path("script.py")
        assert "bagheria" in capsys.readouterr().out
        passage, _ = found["memory"]._store.get(["bagheria"])["bagheria"]
        assert passage.text == "Bagheria is a city in Italy."  # the edit was undone


def example(page):
    """(file name, text) of the Python of a page, whose docstring begins with the name."""
    text = re.search(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)[1]
    return re.match(r'"""(\w+\.py): ', text)[1], text


def test_what_the_pages_write_does_not_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for page in ("write_a_task.md", "write_an_evaluator.md", "write_a_source.md"):
        name, text = example(page)
        assert len(text.splitlines()) <= 40
        (tmp_path / name).write_text(text)
    section = {"type": "lengths:Lengths", "texts": 2, "tokens": 3}
    c = runs.config(tmp_path, steps=2, task=tasks.defaults("ending:Ending", share=0.75))
    c.evals = ConfigDict({"lengths": section})
    assert loop.train(c, tmp_path / "run") == 0
    rows = list(map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()))
    assert 0 <= rows[-1]["eval/lengths/length"] <= 3
    # A quarter of the 8 rows of 16 predictions is trained, rounded up in each document.
    assert 0.25 <= rows[0]["weight"] / (8 * 16) < 0.35
    bandit = tasks.defaults("bandit:Bandit", best=101)
    assert loop.train(runs.config(tmp_path, steps=2, task=bandit), tmp_path / "bandit") == 0
    with pytest.raises(ConfigError, match=r"task\.share=1\.0: expected 0 to less than 1"):
        settings.check(runs.config(tmp_path, task=tasks.defaults("ending:Ending", share=1.0)), 8)
