"""python -m lm.generate: arguments and output."""

import io
import os
import runpy
import subprocess
import sys

import pytest

import lm
from lm.data.tokenizers import bytes_only
from lm.families import preset
from tests.lm.models.test_model import make
from tests.lm.small_models import drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "gpt2"
    model, _ = make("gpt2")
    model = lm.build(model.config.replace(vocab_size=259, max_length=128))
    lm.to_hf(model, drawn(model), path, bytes_only())
    return str(path)


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bart"
    model = lm.build(
        preset("bart", "tiny", initializer_range=0.2, eos_token_ids=(0,), forced_eos_token_id=None)
    )
    lm.to_hf(model, drawn(model), path, bytes_only())
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
    expected = tokenizer.decode(
        lm.generate(model, params, [tokenizer.encode("Hello")], 8)[0], skip_special_tokens=True
    )
    assert capsys.readouterr().out == expected + "\n"


def test_an_answer_whose_reader_has_gone_is_an_error(monkeypatch, capsys, folder):
    ends = os.pipe()
    os.close(ends[0])
    with open(ends[1], "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(monkeypatch, f"--model={folder}", "--prompt=Hello", "--max-new-tokens=8") == 0
    assert capsys.readouterr().err == ""


def test_stops_before_a_stop_string(monkeypatch, capsys, folder):
    flags = (
        f"--model={folder}",
        "--prompt=Hello",
        "--max-new-tokens=24",
        "--temperature=1",
        "--seed=4",
    )
    assert run(monkeypatch, *flags) == 0
    free = capsys.readouterr().out[:-1]
    assert run(monkeypatch, *flags, f"--stop={free[4:7]}", "--stop=no such text") == 0
    assert capsys.readouterr().out[:-1] == free[: free.index(free[4:7])]


@pytest.mark.parametrize(
    ("flags", "sampler"),
    [
        ("--beams=3 --length-penalty=2", lm.Beams(3, 2.0)),
        ("--repetition-penalty=1.5", lm.Greedy(1.5)),
        (
            "--temperature=0.9 --top-k=30 --top-p=0.8 --min-p=0.1 --repetition-penalty=1.2",
            lm.Sample(0.9, 30, 0.8, 0.1, 1.2),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "bart"])
def test_the_flags_are_the_sampler_and_encoders_read_the_prompt(
    monkeypatch, capsys, request, kind, flags, sampler
):
    path = request.getfixturevalue(kind)
    assert (
        run(monkeypatch, f"--model={path}", "--prompt=Hello", "--max-new-tokens=8", *flags.split())
        == 0
    )
    model, params = lm.from_hf(path)
    assert (
        capsys.readouterr().out[:-1]
        == lm.generate_text(model, params, lm.load_tokenizer(path), ["Hello"], 8, sampler)[0]
    )


def test_reads_prompts_from_standard_input(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nYou\n"))
    assert (
        run(
            monkeypatch, f"--model={folder}", "--max-new-tokens=4", "--temperature=0.9", "--top-k=5"
        )
        == 0
    )
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=no/such/model/anywhere", "--prompt=x"], "no/such/model/anywhere"),
        (["--model={folder}", "--prompt=x", "--chat"], "no chat template"),
        (["--model={folder}", "--prompt=x", "--max-new-tokens=500"], "context is 128 tokens"),
        (["--model={folder}", "--prompt=x", "--temperature=nan"], "temperature"),
        (["--model={folder}", "--prompt=x", "--top-p=0.9"], "set --temperature above 0"),
        (["--model={folder}", "--prompt=x", "--length-penalty=2"], "set --beams"),
        (
            ["--model={folder}", "--prompt=x", "--beams=4", "--temperature=1"],
            "leave out --temperature",
        ),
        (["--model={folder}", "--prompt=x", "--beams=-1"], "at least 2 beams"),
        (["--model={folder}", "--prompt=x", "--stop="], "stop string is empty"),
    ],
)
def test_mistakes_end_in_one_line(monkeypatch, capsys, folder, arguments, message):
    assert run(monkeypatch, *(a.format(folder=folder) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.startswith("error: ")
        and message in captured.err
        and "Traceback" not in captured.err
    )


def test_running_the_command_leaves_the_function_of_the_same_name(monkeypatch):
    assert run(monkeypatch, "--help") == 0
    assert callable(lm.generate)


def test_help_waits_for_jax():
    run = (
        "try: runpy.run_module('lm.generate', run_name='__main__')\n"
        "finally: print('jax' in sys.modules)"
    )
    code = f"import runpy, sys; sys.argv = ['x', '--help']\n{run}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--system" in done.stdout and done.stdout.endswith("False\n")
