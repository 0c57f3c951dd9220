"""python -m lm.tokenize makes the rows that lm.train reads, for every source, never stale ones."""

import json
import os
import pathlib
import time

import pytest

from lm import tokenize, train
from lm.data import cache, packed
from lm.data.encode import plain_text
from lm.training import trackers
from tests.lm.training import runs

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"
MIXTURE = """
from configs import tiny
def get_config(variant=""):
    c = tiny.get_config(variant)
    c.unlock()
    c.data.files = ""
    c.data.mixture = {mixture!r}
    return c.lock()
"""


def arguments(folder, workdir, *more, config=CONFIG):
    settings = {
        "steps": 4,
        "batch_size": 8,
        "length": 16,
        "data.cache": folder / "cache",
        "eval.data.heldout": folder / "held.txt",
        "model.d_model": 16,
        "model.n_layers": 1,
        "model.d_ff": 32,
        "model.n_heads": 2,
        "model.n_kv_heads": 2,
        "log.every": 1,
        "samples.prompts": "()",
        "eval.every": 0,
        "optimizer.warmup": 1,
    }
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return [f"--config={config}", f"--workdir={workdir}", *fields, *more]


@pytest.fixture
def folder(tmp_path):
    runs.text(tmp_path)
    runs.text(tmp_path, "held.txt")
    return tmp_path


def folders(folder):
    return {path.name for path in (folder / "cache").iterdir()}


def test_training_packs_again_what_was_tokenised(folder, monkeypatch, capsys):
    data = f"--config.data.files={folder / 'x.txt'}"
    assert tokenize.main(arguments(folder, folder / "run", data)) == 0
    said = capsys.readouterr().out
    assert (
        "training: " in said and "heldout: " in said and f"rows are in {folder / 'cache'}" in said
    )
    made = folders(folder)
    monkeypatch.setattr(cache, "save", lambda *_: pytest.fail("rows were packed again"))
    assert train.main(arguments(folder, folder / "run", data)) == 0
    assert folders(folder) == made


def test_rows_of_a_file_that_has_changed_are_used(folder):
    data = f"--config.data.files={folder / 'x.txt'}"
    tokenize.main(arguments(folder, folder / "run", data))
    before = folders(folder)
    (folder / "x.txt").write_text(
        "something else entirely, and long enough to be a row of its own\n" * 3
    )
    tokenize.main(arguments(folder, folder / "run", data))
    assert len(folders(folder) - before) == 1


def test_what_a_killed_process_left_is_kept_or_what_is_being_written_is_removed(folder):
    old, new = (folder / "cache" / f"{packed.UNFINISHED}{name}" for name in ("old", "new"))
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (time.time() - 10**6,) * 2)
    assert (
        tokenize.main(arguments(folder, folder / "run", f"--config.data.files={folder / 'x.txt'}"))
        == 0
    )
    assert new.exists() and not old.exists()


def test_an_interrupted_or_failed_save_leaves_half_a_folder(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plain_text.np, "save", interrupted)
    assert (
        tokenize.main(arguments(folder, folder / "run", f"--config.data.files={folder / 'x.txt'}"))
        == 130
    )
    assert not folders(folder)


def mixed(folder, **mixture):
    path = folder / "mixed.py"
    path.write_text(MIXTURE.format(mixture=mixture))
    return path


def test_a_run_on_a_mixture_learns_from_one_source_alone(folder, capsys):
    (folder / "old.jsonl").write_text(
        "".join(
            json.dumps({"body": f"old text number {i}, in its own words"}) + "\n" for i in range(30)
        )
    )
    config = mixed(
        folder,
        new={"files": str(folder / "x.txt"), "weight": 3.0},
        old={"files": str(folder / "old.jsonl"), "weight": 1.0, "task": {"field": "body"}},
    )
    for command in (tokenize, train):
        assert command.main(arguments(folder, folder / "run", config=config)) == 0
    said = "".join(capsys.readouterr())
    assert (
        "mixture: new: 75.00% of the rows" in said
        and "mixture: old: 25.00% of the rows, 30 documents" in said
    )
    assert [row["step"] for row in trackers.read(folder / "run") if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ({"a": {"weight": 1.0}}, "data.mixture.a.files is not set"),
        (
            {"a": {"files": "x", "wieght": 1.0}},
            "data.mixture.a.wieght is unknown (did you mean 'weight'?)",
        ),
        ({"a": {"files": "x", "weight": 0.0}}, "sum to 0"),
        ({"a": {"files": "/nowhere.txt", "weight": 1.0}}, "nowhere.txt"),
        ({"a": "x.txt"}, "data.mixture.a='x.txt': expected fields"),
        ({"a": {"files": ["x"]}}, "data.mixture.a.files=['x']: expected a text"),
        ({"a": {"files": "x", "weight": "1"}}, "data.mixture.a.weight='1': expected a number"),
        ({"a": {"files": "x", "limit": 1.5}}, "data.mixture.a.limit=1.5: expected a whole number"),
    ],
)
def test_a_mixture_that_cannot_be_is_begun(folder, capsys, mixture, said):
    assert tokenize.main(arguments(folder, folder / "run", config=mixed(folder, **mixture))) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and error.count("\n") == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["--config.task.stride=17"], "task.stride=17: expected at most length=16"),
        (["--config.data.temperature=2.0"], "data.temperature=2.0 is of data.mixture"),
        (["--config.data.max_bad_share=1.5"], "data.max_bad_share=1.5"),
    ],
)
def test_a_setting_that_cannot_be_is_taken(folder, capsys, fields, said):
    assert (
        tokenize.main(
            arguments(folder, folder / "run", f"--config.data.files={folder / 'x.txt'}", *fields)
        )
        == 2
    )
    assert said in capsys.readouterr().err
