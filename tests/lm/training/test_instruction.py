"""Instruct runs: contradictions are refused, templates are saved, held-out tasks are evaluated."""

import importlib.util
import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lm
from configs import tiny
from lm import export, preview, tasks
from lm.data import templates, tokenizers
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.families import preset
from lm.models.config import ConfigError
from lm.training import command_line, loop, settings, setup
from lm.training.checkpoints import CheckpointError
from lm.weights.loading import load_template
from lm.weights.runs import paths
from lm.weights.runs import weights as run_weights


def command_of():
    """The module of the command; `lm.generate` is the function."""
    spec = importlib.util.spec_from_file_location(
        "generate_command", pathlib.Path(lm.__file__).parent / "generate.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unlocked(name):
    """Section of a task in which any field can be set."""
    return ConfigDict(tasks.defaults(name).to_dict())


def config(folder, family="llama", **changes):
    """A run of a few seconds on eight tasks of a few records."""
    for task in range(8):
        rows = [
            {"instruction": f"task {task}", "input": str(i), "output": "ab"[i % 2] * 3}
            for i in range(6)
        ]
        (folder / f"t{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = tiny.get_config("gpt2" if family == "gpt2" else "")
    if family == "t5":
        c.model.update(
            settings.model_section(preset("t5", "tiny")).to_dict()
            | {"vocab_size": 0, "max_length": 128, "dropout": 0.0}
            | {"n_layers": 1, "encoder_layers": 1}
        )
    own = {"task": tasks.defaults("instruct", template="tulu", hold_out="t7")}
    changes = {
        "steps": 4,
        "batch_size": 8,
        "length": 64,
        **({} if "task" in changes else own),
        "data.files": str(folder / "*.jsonl"),
        "data.cache": str(folder / "cache"),
        "eval.data.heldout": "hold_out",
        "optimizer.warmup": 1,
        "log.tensorboard": False,
        "samples.prompts": ("task 1",),
        "samples.tokens": 2,
        **changes,
    }
    if family == "llama":
        changes = {
            "model.d_model": 16,
            "model.n_layers": 1,
            "model.n_heads": 2,
            "model.n_kv_heads": 2,
            "model.d_ff": 32,
        } | changes
    c.update_from_flattened_dict(changes)
    return c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": unlocked("next_token"), "task.template": "tulu"},
            r"task\.template: the task 'next_token' has no such field; it is a field of the tasks "
            r"instruct, dpo, .*\. Its fields are",
        ),
        ({"task.format": "text"}, r"task\.format='text' is unknown; one of auto, superni"),
        ({"task.format": "alpacca"}, r"task\.format='alpacca' is unknown .did you mean 'alpaca'"),
        ({"task.template": ""}, r"task\.template is not set: one of alpaca"),
        ({"task.template": "chatm"}, r"task\.template='chatm' is unknown .did you mean 'chatml'"),
        (
            {"task": unlocked("instruct"), "task.field": "body"},
            r"task\.field: the task 'instruct' has no such field.*a field of the tasks next_token",
        ),
        (
            {"task.tk_instruct.positive": 1},
            r"task\.tk_instruct\.positive is for the template 'tk_instruct'",
        ),
        (
            {"task.template": "alpaca", "task.turns": "last"},
            r"task\.turns='last': template 'alpaca' has one turn",
        ),
        ({"task.turns": "first"}, r"task\.turns='first'.*all, last"),
        ({"task.too_long": "cut"}, r"task\.too_long='cut'.*drop, truncate_prompt, raise"),
        ({"task.max_long": 2.0}, r"task\.max_long=2\.0"),
        ({"task.cap": -1}, r"task\.cap=-1"),
        (
            {"task.prompt_loss_weight": 1.5},
            r"task\.prompt_loss_weight=1\.5",
        ),
        (
            {"task.hold_out": ""},
            r"eval\.data asks for 'hold_out', and task\.hold_out names no tasks",
        ),
        (
            {"data.files": "", "data.synthetic_rows": 8},
            r"data\.synthetic_rows=8: the task 'instruct' does not learn from random tokens",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_accepted(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(config(tmp_path, **changes), 8)


def test_what_only_data_or_model_can_refuse_is_trained_on(tmp_path):
    def rows(**changes):
        c = config(tmp_path, **changes)
        return setup.training_data(c, setup.prepare(c, paths.resolve(str(tmp_path / "run"))))

    with pytest.raises(ConfigError, match=r"task\.target_length=8 is for an encoder-decoder"):
        rows(**{"task.target_length": 8})
    with pytest.raises(
        ConfigError,
        match=(
            r"prompt_loss_weight=0\.1 is for a decoder: the encoder of this model reads the prompt"
        ),
    ):
        weigh = {"family": "t5", "task.prompt_loss_weight": 0.1}
        rows(**weigh)
    with pytest.raises(
        DataError, match=r"42 of 42 examples \(100\.0%\) are longer than a row of 8 tokens"
    ):
        rows(length=8)
    with pytest.raises(ConfigError, match=r"task\.hold_out: no task is called 'u7'"):
        rows(**{"task.hold_out": "u7"})


def test_a_prompt_s_weight_is_that_of_evaluation_or_of_another_task(tmp_path):
    c = config(tmp_path, **{"task.prompt_loss_weight": 0.25})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    trained, held_out = setup.training_data(c, run), setup.evaluation_data(c, run)["heldout"]
    for packed, prompt in ((trained, 0.25), (held_out, 0.0)):
        assert isinstance(packed, Packed)
        weights = packed.extra["weights"][packed.segments > 0]
        assert {float(w) for w in weights} == {prompt, 1.0}
        assert (weights == 1).sum() == 4 * len(packed.document_bytes)  # three letters, end token
    c.update_from_flattened_dict({"task.prompt_loss_weight": 0.0})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    plain = setup.training_data(c, run)
    assert isinstance(trained, Packed) and isinstance(plain, Packed)
    again = plain.extra["weights"]
    assert again.dtype == "uint8" and (again == (trained.extra["weights"] == 1)).all(), (
        "the cache kept the other weights"
    )
    with pytest.raises(
        ConfigError,
        match=r"prompt_loss_weight: the task 'next_token' has no such field.* tasks instruct",
    ):
        of_text = {
            "data.files": "x",
            "task": unlocked("next_token"),
            "task.prompt_loss_weight": 0.5,
        }
        other = tiny.get_config("")
        other.update_from_flattened_dict(of_text)
        settings.check(other, 8)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_run_evaluates_other_tasks_or_forgets_its_template(tmp_path, family, capsys):
    workdir, c = (
        str(tmp_path / "run"),
        config(
            tmp_path, family, **{"task.target_length": 16, "steps": 2} if family == "t5" else {}
        ),
    )
    loop.train(c, workdir)
    said = capsys.readouterr().out
    template = templates.get("tulu", tokenizers.bytes_only())
    # Three letters and the end token of each of 42 examples.
    assert f"template tulu {template.fingerprint}: 168 trained tokens" in said
    rows = [
        json.loads(line) for line in pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    ]
    assert (
        any("eval/heldout/loss" in row for row in rows)
        and "heldout loss" in said
        and "over 24 tokens" in said
    )
    _, _, tokenizer = run_weights.load_params(workdir)
    kept = load_template(workdir, tokenizer)
    assert kept is not None and kept.fingerprint == template.fingerprint
    assert "task 1" in pathlib.Path(workdir, "samples.md").read_text()
    if family == "t5":
        return
    with pytest.raises(CheckpointError, match=r"holds a run with another template: tulu .* plain"):
        loop.train(config(tmp_path, **{"task.template": "plain", "steps": 5}), workdir)
    # A run that starts from this run, or from its export, keeps its template by default.
    assert export.main([f"--model={workdir}", f"--output={tmp_path / 'exported'}"]) == 0
    for start in (workdir, str(tmp_path / "exported")):
        next_ = config(tmp_path, **{"init_from": start, "tokenizer": "", "task.template": ""})
        carried = setup.prepare(next_, paths.resolve(str(tmp_path / "next"))).template
        assert carried is not None and carried.fingerprint == template.fingerprint
    # Generation formats prompts as training did by default.
    seen, command = [], command_of()
    with pytest.MonkeyPatch.context() as m:
        keep = lambda model, params, tokenizer, ids, *_, **__: (
            seen.append(tokenizer.decode(ids)) or iter(())
        )
        m.setattr("lm.generation.stream_text", keep)
        assert command.main([f"--model={workdir}", "--prompt=hi"]) == 0
        assert command.main([f"--model={workdir}", "--prompt=hi", "--template=plain"]) == 0
        assert command.main([f"--model={workdir}", "--prompt=hi", "--template=none"]) == 0
        assert command.main([f"--model={workdir}", "--prompt=hi", "--template=nonsense"]) == 2
    assert seen == ["<|user|>\nhi\n<|assistant|>\n", "hi", "hi"]
    file = tmp_path / "run" / "model" / "template.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 16}))
    (tmp_path / "run" / "digests-0-of-1").unlink()  # otherwise the digests would fail first
    assert command.main([f"--model={workdir}", "--prompt=hi"]) == 2
    assert "spells records differently" in capsys.readouterr().err


@pytest.mark.parametrize(("family", "own"), [("llama", "next_token"), ("t5", "span_corruption")])
def test_text_that_is_replayed_beside_answers_is_not_learned_by_its_own_task(tmp_path, family, own):
    """Replayed rows equal those of a run of their task alone; a run learns both kinds."""
    (tmp_path / "old.txt").write_text(
        "".join(f"The old text goes on and on, {i} times. " for i in range(40))
    )
    mixture = {
        "new": {"files": str(tmp_path / "*.jsonl"), "weight": 0.5, "task": {"hold_out": "t7"}},
        "old": {"files": str(tmp_path / "old.txt"), "weight": 0.5, "task": tasks.defaults(own)},
    }
    changes = {"task.hold_out": "", "eval.data.heldout": "", "steps": 2} | (
        {"task.target_length": 32} if family == "t5" else {}
    )
    c = config(tmp_path, family, **changes)
    c.data.files, c.data.mixture = "", ConfigDict(mixture)
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(c, run)
    batch = jax.device_get(next(setup.train_source(c, run, packed)))
    trained = (batch.weights > 0).sum(1) / (batch.segments > 0).sum(1)
    of_text = np.array([packed.at(place)[0] == 1 for place in range(c.batch_size)])
    assert of_text.any() and (~of_text).any()
    assert (trained[of_text] == 1).all()
    if family == "t5":
        marked = (batch.encoder_tokens == run.tokenizer.convert_tokens_to_ids("<extra_id_0>")).any(
            1
        )
        assert marked[of_text].all() and not marked[~of_text].any()
    else:
        assert (trained[~of_text] < 0.7).all()
    loop.train(c, str(tmp_path / "run"))
    for task, said in (
        (ConfigDict({"name": "praise"}), "task.name='praise' is unknown"),
        (tasks.defaults("masked"), "masked"),
        (tasks.defaults("classification"), "does not go with task.name='instruct'"),
    ):
        c.data.mixture.old.task = task
        with pytest.raises(ConfigError, match=said):
            setup.prepare(c, paths.resolve(str(tmp_path / "other")))


@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_the_preview_misses_the_end_of_an_answer_or_shows_a_prompt_as_trained(
    tmp_path, template, capsys
):
    text = (
        "from tests.lm.training.test_instruction import config\n\ndef get_config(variant=''):\n"
        "    import pathlib\n"
    )
    (tmp_path / "c.py").write_text(f"{text}    return config(pathlib.Path({str(tmp_path)!r}))\n")
    arguments = [
        f"--config={tmp_path / 'c.py'}",
        f"--config.task.template={template}",
        "--config.length=256",
        "--config.model.max_length=256",
    ]
    preview.main([*arguments, "--json", "--rows=1"])
    shown = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in shown["checks"]}
    assert checks["training: end token trained"]["ok"] and checks["template"]["found"].startswith(
        template
    )
    trained = "".join(
        piece["text"] for piece in shown["rows"][0]["tokens"] if piece["kind"] == "trained"
    )
    stop = "<|im_end|>" if template == "chatml" else "<|endoftext|>"
    assert stop in trained and set(trained.split(stop)) <= {"aaa", "bbb", ""}


def test_the_commands_of_the_page_are_refused():
    page = (
        (pathlib.Path(lm.__file__).parents[1] / "docs" / "data.md").read_text().replace("\\\n", "")
    )
    commands = re.findall(r"^    openbook (?:train|preview) (.*)", page, re.MULTILINE)
    assert len(commands) == 5
    for flags in commands:
        own = [flag for flag in shlex.split(flags) if not flag.startswith("--rows=")]
        c, _ = command_line.parse([*own, *([] if "--workdir" in flags else ["--workdir=x"])])
        settings.check(c, 8)
    assert set(re.findall(r"^\| `([a-z_0-9]+)` \|", page, re.MULTILINE)) == {
        *templates.TEMPLATES,
        *records.FORMATS,
        *tokenizers.MODELS,
    }


def test_control_tokens_of_a_template_are_not_learned_to_end_an_answer(tmp_path):
    c = config(tmp_path, **{"task.template": "chatml"})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    stop = run.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (
        run.model.config.eos_token_ids == (run.tokenizer.eos_token_id, stop)
        and run.model.config.vocab_size == 320
    )
    packed = setup.training_data(c, run)
    last = jax.numpy.diff(jax.numpy.asarray(packed.segments, int), axis=1, append=0) != 0
    assert set(packed.targets[last & (packed.segments > 0)].tolist()) == {stop}
    assert (
        run.tokenizer.decode(run.prompt_ids("hi"))
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
