"""metrics.jsonl holds each step once, also across kills."""

import json

import pytest

from lm.training import trackers


def test_rows_after_the_restored_step_are_kept_or_others_lost(tmp_path):
    first = trackers.Trackers(tmp_path, 0, tensorboard=False)
    for step in range(1, 6):
        first.write({"step": step, "loss": 6.0 - step})
        if step == 3:
            first.write({"step": 3, "eval/x/loss": 9.0})
    first.close()
    with (tmp_path / trackers.FILE).open("a") as f:
        f.write('{"step": 6, "lo')  # a kill in the middle of a line
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
    (tmp_path / trackers.FILE).write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "eval/x/loss": 2.0}\n')
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
    assert (tmp_path / "metrics.jsonl.unreadable").read_text() == damaged and "lines [2, 6] are no rows" in caplog.text
