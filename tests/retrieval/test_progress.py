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


def test_a_long_job_shows_its_progress_on_a_terminal_only(monkeypatch):
    assert "encoding" in show(monkeypatch, Terminal(), 1_500) and "1500/1500" in show(monkeypatch, Terminal(), 1_500)
    assert show(monkeypatch, io.StringIO(), 1_500) == "", "a log file gets no bar"
    assert show(monkeypatch, Terminal(), 100) == "", "a short job gets no bar"


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in show(monkeypatch, Terminal(), 1_500)
