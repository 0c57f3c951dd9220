"""The studies of the doors, whose :tiny runs, and the Python of their page."""

import importlib
import json
import re
import runpy
from pathlib import Path

import pytest

from configs.memory import fid, in_context
from launch.stages import load_study
from tests.retrieval.models import save_reader

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/memory").glob("*.py"))
STUDIES = [f"{p.relative_to(ROOT)}" for p in CONFIGS if "return chain(" in p.read_text()]


@pytest.mark.parametrize("config", STUDIES)
def test_a_stage_reads_what_no_earlier_stage_makes(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = (":trained", ":trained-tiny") if "trained" in Path(config).read_text() else ()
    for variant in ("", ":tiny", ":bart", ":tiny,bart", *trained):
        study, made = load_study(f"{config}{variant}"), set()
        assert {"memory", "ask", "audit"} <= {stage.name for stage in study.stages}
        for stage in study.stages:
            named = {arg.partition("=")[2] for arg in stage.args}
            read = {place for place in named if place.startswith(f"{study.workdir}/")}
            assert read <= made | set(stage.outputs), stage.name
            examples = {place for place in named if place.startswith("configs/examples/")}
            assert all((ROOT / place).is_file() for place in examples)
            made |= set(stage.outputs)


def test_a_reader_that_a_door_does_not_serve_is_named():
    with pytest.raises(ValueError, match="'mamba' is unknown; this config has t5, bart"):
        fid.get_config("tiny,mamba")
    with pytest.raises(ValueError, match="no reader for 'classes' is published"):
        in_context.get_config("classes")
    with pytest.raises(ValueError, match="variant 'small' is unknown"):
        in_context.get_config("small,t5")
    stages = in_context.get_config("t5").stages
    assert stages[-1]["args"]["reader"] == "google/flan-t5-small" and len(stages) == 5


def test_the_python_of_the_page_runs(memory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    save_reader(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/memory_doors.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if "door_of" in block]
    (tmp_path / "script.py").write_text(block)
    runpy.run_path("script.py", {"memory": memory})
    assert "'p" in capsys.readouterr().out


RAG, FID = "configs/memory/rag.py", "configs/memory/fid.py"
FURTHER = [f"{RAG}:sequence-tiny", f"{RAG}:trained-tiny", f"{FID}:trained-tiny"]
IN_CONTEXT, REPLUG = "configs/memory/in_context.py", "configs/memory/replug.py"
FURTHER += [f"{IN_CONTEXT}:tiny,{of}" for of in ("mamba", "bart", "t5", "spans", "classes")]
FURTHER += [f"{REPLUG}:tiny,mamba", f"{RAG}:tiny,bart", f"{RAG}:sequence-tiny,t5"]
FURTHER += [f"{FID}:tiny,bart"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [*(f"{study}:tiny" for study in STUDIES), *FURTHER])
def test_tiny_runs(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    study = load_study(config, workdir=str(tmp_path))
    for stage in study.stages:
        main = importlib.import_module(stage.module).main
        assert main(list(stage.args)) in (0, None), stage.name
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["citations"] for row in rows)
    said = capsys.readouterr().out
    assert "counterfactual: " in said and "DOES NOT MOVE" in said
