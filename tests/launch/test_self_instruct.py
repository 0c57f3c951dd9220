"""The study of Self-Instruct: its stages read what earlier ones make, and :tiny runs."""

import importlib
from pathlib import Path

import pytest

from launch.stages import load_study

ROOT = Path(__file__).parents[2]
CONFIG = "configs/studies/self_instruct.py"


def test_a_stage_reads_what_no_earlier_stage_makes(monkeypatch):
    monkeypatch.chdir(ROOT)
    for variant in ("", ":tiny"):
        study, made = load_study(f"{CONFIG}{variant}", samples="samples"), set()
        for stage in study.stages:
            named = {part for arg in stage.args for part in arg.partition("=")[2].split(",")}
            read = {place for place in named if place.startswith(f"{study.workdir}/")}
            assert read <= made | set(stage.outputs), stage.name
            made |= set(stage.outputs)


@pytest.mark.slow
def test_tiny_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load_study(f"{CONFIG}:tiny", workdir=str(tmp_path))
    for stage in study.stages:
        main = importlib.import_module(stage.module).main
        assert main(list(stage.args)) in (0, None), stage.name
    assert (tmp_path / "made" / "report.html").is_file()
    assert all((tmp_path / f"{name}.json").is_file() for name in ("model", "seeds", "both"))
