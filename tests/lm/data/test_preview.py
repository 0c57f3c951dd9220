"""The preview shows the tokens and weights of training, and its checks fail on real faults."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from lm import preview as command
from lm.batch import Batch
from lm.data import tokenizers
from lm.data.encode import plain_text
from lm.data.preview import preview, rendering
from tests.lm.training import runs

TOKENIZER = tokenizers.bytes_only(mask=True)
END, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def packed(*texts, length=16, **extra):
    rows = plain_text.pack(plain_text.encode(texts, TOKENIZER), length)
    return rows if not extra else dataclasses.replace(rows, extra=extra)


def batch(rows):
    weights = rows.extra.get("weights", rows.segments > 0)
    return Batch.of(rows.tokens, rows.segments, targets=rows.targets, weights=weights)


def found(checks, name):
    return next(check for check in checks if check.name.endswith(name))


def test_a_token_is_shown_as_trained_exactly_when_it_carries_a_loss():
    rows = packed("ab cd", "ef")
    weights = (np.asarray(rows.segments) > 0).astype(np.uint8)
    weights[0, :3] = 0
    row = preview.rows(batch(packed("ab cd", "ef", weights=weights)), TOKENIZER, shifted=True)[0]
    shown = [(piece.text, piece.kind) for piece in row.tokens if piece.kind != "padding"]
    first = [("<|endoftext|>", "context"), ("a", "context"), ("b", "context"), ("·", "context")]
    assert shown[:7] == [*first, ("c", "trained"), ("d", "trained"), ("<|endoftext|>", "trained")]
    assert shown[7:] == [
        ("<|endoftext|>", "context"),
        ("e", "trained"),
        ("f", "trained"),
        ("<|endoftext|>", "trained"),
    ]
    assert [piece.segment for piece in row.tokens if piece.kind != "padding"] == [1] * 7 + [2] * 4


def test_a_masked_place_shows_what_is_read_and_what_must_be_said():
    tokens, targets = [[*ids("a"), MASK, *ids("c")]], [ids("abc")]
    row = preview.rows(
        Batch.of(tokens, targets=targets, weights=[[0, 1, 1]]), TOKENIZER, shifted=False
    )[0]
    assert [(p.text, p.kind, p.target) for p in row.tokens] == [
        ("a", "context", ""),
        ("<mask>", "trained", "b"),
        ("c", "trained", ""),
    ]
    assert rendering.line(row.tokens).plain == "a‹<mask>→b›c"


def test_an_end_token_without_a_loss_fails_the_check():
    rows = packed("ab", "cd", "e")
    good = preview.checks(batch(rows), {"x": rows}, {}, TOKENIZER, shifted=True)
    assert (
        found(good, "end token trained").ok and "3 of 3" in found(good, "end token trained").found
    )
    weights = ((np.asarray(rows.segments) > 0) & (np.asarray(rows.targets) != END)).astype(np.uint8)
    bad = packed("ab", "cd", "e", weights=weights)
    checks = preview.checks(batch(bad), {"x": bad}, {}, TOKENIZER, shifted=True)
    assert (
        found(checks, "end token trained").ok is False
        and "0 of 3" in found(checks, "end token trained").found
    )


def test_two_start_tokens_or_a_row_without_a_loss_fail_the_checks():
    tokenizer = tokenizers.bytes_only(mask=True)
    tokenizer.bos_token = "<mask>"
    tokens = np.array([[MASK, MASK, *ids("ab")], [MASK, *ids("abc")]])
    given = Batch.of(
        tokens, targets=np.roll(tokens, -1, 1), weights=np.array([[1.0] * 4, [0.0] * 4])
    )
    checks = preview.checks(given, {}, {}, tokenizer, shifted=True)
    assert (
        found(checks, "one start token").ok is False
        and "1 of 2" in found(checks, "one start token").found
    )
    assert (
        found(checks, "rows that train nothing").ok is False
        and "1 of 2" in found(checks, "rows that train nothing").found
    )


def test_copies_and_shared_runs_of_thirteen_tokens_are_counted_and_twelve_are_not():
    train = packed("0123456789abcdef", "same", "same", length=32)
    assert preview.duplicates(train) == (3, 1)
    grams = preview.ngrams(train)
    assert len(grams) == 17 - preview.GRAM + 1
    for text, seen in (("xx0123456789abcxx", 1), ("xx0123456789abxx", 0), ("3210456789abcdefx", 0)):
        assert preview.overlap(packed(text, length=32), [grams]) == (1, seen), text
    # A run that crosses a document border is in neither document.
    assert preview.overlap(packed("0123456", "789abcdef", length=32), [grams]) == (2, 0)


def test_repeats_in_one_document_count_and_short_ends_of_others_do_not():
    assert preview.duplicates(packed("x" * 62, length=16))[1] >= 2
    numbers = " ".join(f"{i:06}" for i in range(5000))  # windows that differ
    total, copies = preview.duplicates(packed(numbers, length=16))
    assert total > 2000 and copies == 0
    once = packed(f"{'y' * 34}{numbers}", length=16)  # one window comes twice
    assert once.tokens.size and preview.duplicates(once)[1] == 0
    assert preview.duplicates(packed(f"{'y' * 80}{numbers}", length=16))[1] >= 3
    ends = packed(*(letter * 16 + "." for letter in "abc"), length=16)
    assert preview.duplicates(ends) == (6, 0)


def test_what_a_template_writes_into_every_prompt_counts_as_overlap():
    template = "Answer the question: {} Answer: yes"
    train = packed(*(template.format(f"{i:016}") for i in range(preview.COMMON + 1)), length=64)
    for text, seen in ((template.format("abcdefghijklmnop"), 0), (template.format(f"{7:016}"), 1)):
        assert preview.overlap(packed(text, length=64), [preview.ngrams(train)]) == (1, seen)


def test_what_most_documents_have_is_no_overlap_and_bytes_need_longer_runs():
    template = "System: be brief. Asked: {} Answer: yes"
    train = packed(*(template.format(f"{i:016}") for i in range(preview.SOME)), length=64)
    for text, seen in ((template.format("abcdefghijklmnop"), 0), (template.format(f"{3:016}"), 1)):
        assert preview.overlap(packed(text, length=64), [preview.ngrams(train)]) == (1, seen)

    short, long = "the quick brown fox jumps over", "0123456789" * 8
    for run, ok in ((short, True), (long, False)):
        train, held_out = (
            {"x": packed(text + run, length=256)} for text in ("Now " * 30, "Then " * 24)
        )
        checks = preview.checks(batch(train["x"]), train, held_out, TOKENIZER, shifted=True)
        assert found(checks, "x: overlap").ok is ok


def test_a_page_escapes_what_texts_hold():
    row = preview.rows(batch(packed("<script>")), TOKENIZER, shifted=True)[0]
    page = rendering.page("x<y", [row], [preview.Check("a<b", False, "c>d")])
    assert "<script" not in page and "&lt;" in page and "x&lt;y" in page and "a&lt;b" in page


def test_what_is_trained_stays_visible_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=200, highlight=False)
    with console.capture() as capture:
        rendering.show(preview.rows(batch(packed("ab")), TOKENIZER, shifted=True), [], console)
    assert "\x1b[1;4ma" in capture.get() and "\x1b[32" not in capture.get()


@pytest.mark.parametrize("task", ["next_token", "prefix_lm"])
def test_the_command_shows_the_first_batch_of_training(task, tmp_path, capsys):
    file = runs.text(tmp_path)
    config = tmp_path / "c.py"
    config.write_text(
        "from configs.tiny import get_config as tiny\nfrom lm import tasks\n\n"
        "def get_config(variant=''):\n"
        f"    c = tiny(variant)\n    c.task = tasks.defaults({task!r})\n    return c\n"
    )
    arguments = [
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.files={file}",
        "--config.length=32",
        "--config.samples.prompts=()",
        f"--config.eval.data.heldout={file}",
    ]
    # The held-out text is the training text.
    assert command.main([*arguments, "--json", "--html", "--rows=2"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["rows"]) == 2 and all(len(row["tokens"]) >= 32 for row in shown["rows"])
    weights = [
        piece["weight"]
        for row in shown["rows"]
        for piece in row["tokens"]
        if piece["kind"] != "padding"
    ]
    assert (0.0 in weights[1:32]) == (task == "prefix_lm")
    assert [check["ok"] for check in shown["checks"] if check["name"] == "heldout: overlap"] == [
        False
    ]
    assert "What the model sees" in (tmp_path / "run" / "preview.html").read_text()
    assert command.main([*arguments[:-1], "--config.data.files=nowhere.txt"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
