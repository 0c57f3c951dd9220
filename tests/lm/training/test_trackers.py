"""metrics.jsonl contains each step once, also after kills."""

import json
import sys
import types

import pytest

from lm.models.config import ConfigError
from lm.training import trackers


def test_rows_after_the_restored_step_are_kept_or_others_lost(tmp_path):
    first = trackers.Trackers(tmp_path, 0, tensorboard=False)
    for step in range(1, 6):
        first.write({"step": step, "loss": 6.0 - step})
        if step == 3:
            first.write({"step": 3, "eval/x/loss": 9.0})
    first.close()
    with (tmp_path / trackers.FILE).open("a") as f:
        f.write('{"step": 6, "lo')  # killed in the middle of a line
    assert [row["step"] for row in trackers.read(tmp_path)] == [1, 2, 3, 3, 4, 5]
    second = trackers.Trackers(tmp_path, 3, tensorboard=False)
    second.write({"step": 4, "loss": 0.5})
    second.close()
    lines = (tmp_path / trackers.FILE).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4]
    assert rows[3] == {"step": 3, "eval/x/loss": 9.0} and rows[4]["loss"] == 0.5


def test_a_row_waits_in_a_buffer(tmp_path):
    tracker = trackers.Trackers(tmp_path, 0, tensorboard=False)
    tracker.write({"step": 1, "loss": 1.0})
    assert (tmp_path / trackers.FILE).read_text() == '{"step": 1, "loss": 1.0}\n'
    tracker.close()


def test_a_process_that_is_not_the_first_writes(tmp_path):
    tracker = trackers.Trackers(tmp_path, 0, active=False)
    tracker.write({"step": 1})
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_the_picture_is_not_drawn(tmp_path):
    trackers.plot(tmp_path)
    assert not (tmp_path / "plots").exists()
    (tmp_path / trackers.FILE).write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 1, "eval/x/loss": 2.0}\n'
    )
    trackers.plot(tmp_path)
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", ["", '{"step": 1}', "nonsense\n"])
def test_a_damaged_file_stops_the_run(tmp_path, content):
    (tmp_path / trackers.FILE).write_text(content)
    trackers.Trackers(tmp_path, 5, tensorboard=False).close()
    assert (tmp_path / trackers.FILE).read_text() == ""


def test_a_damaged_line_loses_those_after_it_or_stops_the_run(tmp_path, caplog):
    rows = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    rows[1] = rows[1][:9]
    damaged = "\n".join([*rows, "7", ""])
    (tmp_path / trackers.FILE).write_text(damaged)
    assert [row["step"] for row in trackers.read(tmp_path)] == [1, 3, 4, 5]
    trackers.keep_until(tmp_path / trackers.FILE, 5)
    assert (tmp_path / trackers.FILE).read_text() == "\n".join([rows[0], *rows[2:], ""])
    assert (
        tmp_path / "metrics.jsonl.unreadable"
    ).read_text() == damaged and "lines [2, 6] are no rows" in caplog.text


class Wandb(types.ModuleType):
    """A stand-in for wandb that records calls."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.rows, self.ended, self.refuses = [], [], 0, False

    def init(self, **options):
        if self.refuses:
            raise self.Error("api_key not configured (no-tty)\nmore")
        self.begun.append(options)
        return self

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.ended += 1


def test_resuming_begins_another_run_of_wandb_or_a_key_is_handed_over(tmp_path, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("run", "other", "third"):
        (tmp_path / name).mkdir()
    for step in (0, 2):
        tracker = trackers.Trackers(
            tmp_path / "run", step, tensorboard=False, wandb="speeches", config={"seed": 3}
        )
        tracker.write({"step": step + 1, "loss": 1.5, "mfu": None})
        tracker.close()
        tracker.close()
    first, second = fake.begun
    assert (
        first == second
        and first["id"] == json.loads((tmp_path / "run" / trackers.WANDB).read_text())["id"]
    )
    assert (first["project"], first["resume"], first["name"], first["config"]) == (
        "speeches",
        "allow",
        "run",
        {"seed": 3},
    )
    assert not {"key", "api_key"} & first.keys() and fake.ended == 2
    assert fake.rows == [(1, {"loss": 1.5}), (3, {"loss": 1.5})]
    trackers.Trackers(tmp_path / "other", 0, tensorboard=False, active=False, wandb="speeches")
    assert len(fake.begun) == 2  # only the first process reports
    fake.refuses = True
    with pytest.raises(
        ConfigError,
        match=r"log\.wandb='speeches': api_key not configured \(no-tty\)\. Use wandb login",
    ):
        trackers.Trackers(tmp_path / "third", 0, tensorboard=False, wandb="speeches")


def test_a_run_begins_without_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check_wandb("")
    with pytest.raises(ConfigError, match=r"pip install 'openbook\[wandb\]'"):
        trackers.check_wandb("speeches")
