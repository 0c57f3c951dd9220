"""Documents: the site builds, and the Python of the README and the notebook runs twice."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lm.data import samples
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
