"""python -m lm.generate: what a person types and sees."""

import io
import runpy
import sys

import jax
import pytest

import lm
from lm.data.tokenizers import bytes_only
from tests.lm.models.test_model import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "gpt2"
    model, _ = make("gpt2")
    model = lm.build(model.config.replace(vocab_size=259, max_length=128))
    lm.to_hf(model, jax.jit(model.init)(jax.random.key(0), lm.Batch.of([[1, 2]]))["params"], path, bytes_only())
    return str(path)


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["lm.generate", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("lm.generate", run_name="__main__")
    return stop.value.code


def test_streams_what_generate_returns(monkeypatch, capsys, folder):
    assert run(monkeypatch, f"--model={folder}", "--prompt=Hello", "--max-new-tokens=8") == 0
    model, params = lm.from_hf(folder)
    tokenizer = lm.load_tokenizer(folder)
    expected = tokenizer.decode(lm.generate(model, params, [tokenizer.encode("Hello")], 8)[0], skip_special_tokens=True)
    assert capsys.readouterr().out == expected + "\n"


def test_reads_prompts_from_standard_input(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nYou\n"))
    assert run(monkeypatch, f"--model={folder}", "--max-new-tokens=4", "--temperature=0.9", "--top-k=5") == 0
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=no/such/model/anywhere", "--prompt=x"], "no/such/model/anywhere"),
        (["--model={folder}", "--prompt=x", "--chat"], "no chat template"),
        (["--model={folder}", "--prompt=x", "--max-new-tokens=500"], "context is 128 tokens"),
        (["--model={folder}", "--prompt=x", "--temperature=nan"], "temperature"),
    ],
)
def test_mistakes_end_in_one_line(monkeypatch, capsys, folder, arguments, message):
    assert run(monkeypatch, *(a.format(folder=folder) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and "Traceback" not in captured.err


def test_running_the_command_leaves_the_function_of_the_same_name(monkeypatch):
    assert run(monkeypatch, "--help") == 0
    assert callable(lm.generate)
