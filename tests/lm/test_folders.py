"""Folders with other contents are refused before anything is written, and keep their bytes."""

import json

import pytest

from lm import export, fisher, folders, interpolate, train, train_tokenizer
from lm.models.config import ConfigError

FILES = {
    "a model": {
        "config.json": json.dumps({"model_type": "llama"}),
        "model.safetensors": "x",
        "tokenizer.json": "{}",
    },
    "an adapter": {"adapter_config.json": "{}", "adapter_model.safetensors": "x"},
    "other files": {"config.json": "[1]", "notes.txt": "x"},
    "a run": {"config.json": json.dumps({"optimizer": {}, "data": {}}), "metrics.jsonl": ""},
}


def make(folder, files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def held(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


COMMANDS = [
    (
        train.main,
        "--config=configs/tiny.py --workdir={it}",
        ("a model", "an adapter", "other files"),
    ),
    (
        fisher.main,
        "--config=configs/tiny.py --workdir={it} --config.init_from=nowhere",
        ("a model", "an adapter", "a run"),
    ),
    (train_tokenizer.main, "--input=README.md --output={it}", ("a model", "an adapter", "a run")),
    (export.main, "--model=nowhere --adapter --output={it}", ("a model", "a run")),
    (export.main, "--model=nowhere --output={it}", ("a run",)),
    (interpolate.main, "--base=a --tuned=b --alphas=1 --output={it}", ("a run",)),
]


@pytest.mark.parametrize(
    ("main", "command", "kind"),
    [(main, command, kind) for main, command, kinds in COMMANDS for kind in kinds],
)
def test_a_folder_of_something_else_is_written_over(tmp_path, capsys, main, command, kind):
    it = make(tmp_path / "it", FILES[kind])
    before = held(it)
    assert main(command.format(it=it).split()) == 2
    said = capsys.readouterr().err
    assert f"={it} holds {kind}" in said and "Traceback" not in said
    assert held(it) == before


def test_what_is_read_is_written_over(tmp_path, capsys):
    base = make(tmp_path / "base", FILES["a model"])
    tuned = make(
        tmp_path / "tuned",
        {"config.json": json.dumps({"optimizer": {}, "data": {}, "init_from": str(base)})},
    )
    for main, command in (
        (interpolate.main, f"--base={base} --tuned={tuned} --alphas=1 --output={base}"),
        (interpolate.main, f"--soup={tuned},{base} --output={tmp_path}/tuned/../base"),
        (export.main, f"--model={tuned} --output={base}"),
    ):
        assert main(command.split()) == 2
        assert "is read too" in capsys.readouterr().err and held(base) == {
            n: t.encode() for n, t in FILES["a model"].items()
        }


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ((), ""),
        (("notes.txt", "cache/x"), ""),
        (("fisher.safetensors",), ""),
        (("model.gguf",), "a model"),
        (("checkpoints/x",), "other files"),
        (("run.json",), "a run"),
        (("environment.json", "status.json"), "a run"),
        (("checkpoints/3/x", "model/config.json"), "a run"),
        (("adapter_config.json", "model.safetensors"), "a model"),
        (("vocab.txt",), "a tokenizer"),
        (("pytorch_model.bin",), "a model"),
    ],
)
def test_a_folder_is_taken_for_another_kind(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert folders.kind(tmp_path) == kind


def test_a_file_is_taken_for_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match="x holds a file: give another folder"):
        folders.refuse("workdir", str(tmp_path / "x"))
