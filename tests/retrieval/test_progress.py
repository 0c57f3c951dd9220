import io
import sys

from retrieval.progress import chunks_with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, stream, count):
    monkeypatch.setattr(sys, "stderr", stream)
    items = list(range(count))
    assert [item for chunk in chunks_with_progress(items, "encoding") for item in chunk] == items
    return stream.getvalue()


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr("retrieval.progress.LOG_EVERY", 0.0)
    with caplog.at_level("INFO", "retrieval.progress"):
        show(monkeypatch, io.StringIO(), 1_500)
    assert [line.rpartition(", about")[0] for line in caplog.messages] == [
        "encoding: 512 of 1,500",
        "encoding: 1,024 of 1,500",
    ]


def test_a_long_job_shows_its_progress_on_a_terminal_only(monkeypatch):
    assert "encoding" in show(monkeypatch, Terminal(), 1_500) and "1500/1500" in show(
        monkeypatch, Terminal(), 1_500
    )
    assert show(monkeypatch, io.StringIO(), 1_500) == "", "a log file gets no bar"
    assert show(monkeypatch, Terminal(), 100) == "", "a short job gets no bar"


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in show(monkeypatch, Terminal(), 1_500)
