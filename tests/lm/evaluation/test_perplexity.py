"""Perplexity and bits per byte: each token counts once; the standard error has its coverage."""

import json
import math

import jax
import numpy as np
import pytest

from lm import evaluate
from lm.data import tokenizers
from lm.data.encode import plain_text
from lm.evaluation.perplexity import make_evaluator, summarise
from lm.losses.tokens import token_losses
from lm.models import build
from lm.training import loop, trackers
from lm.training.checkpoints import Checkpoints
from lm.training.state import create_state
from lm.weights.runs import model_files
from lm.weights.runs import weights as run_weights
from tests.lm.small_models import drawn
from tests.lm.training import runs, small

TEXTS = ["one text", "another, longer text than a row can hold", "é", "and more of it"]
CONFIG = small.MODEL.replace(vocab_size=320, n_layers=1)


@pytest.fixture(scope="module")
def packed():
    return plain_text.pack(plain_text.encode(TEXTS, tokenizers.bytes_only()), 16)


def test_a_token_is_left_out_or_counted_twice(packed):
    model = build(CONFIG)
    mesh = small.mesh_of(2, 2, 2)
    params = create_state(model, small.parts()[1], mesh, 0, params=drawn(model)).params
    result = make_evaluator(model, mesh, batch_size=4)(params, packed)
    losses, run = [], jax.jit(lambda p, b: token_losses(model, p, b))
    for text in TEXTS:  # one document at a time, in windows of 16 predictions
        ((ids, _),) = plain_text.encode([text], tokenizers.bytes_only())
        for at in range(0, len(ids) - 1, 16):
            window = plain_text.pack([(ids[at : at + 17], 1)], 16)
            from lm.batch import Batch

            batch = Batch.of(
                window.tokens, window.segments, targets=window.targets, weights=window.segments > 0
            )
            losses += list(np.asarray(run(params, batch))[np.asarray(batch.weights) > 0])
    size = sum(len(t.encode()) for t in TEXTS)
    assert (result.tokens, result.bytes, result.units, result.unit) == (
        size + 4,
        size,
        4,
        "document",
    )
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(np.sum(losses) / size / math.log(2), rel=1e-5)


def test_the_standard_error_does_not_cover_the_spread_of_samples():
    random = np.random.default_rng(0)
    found, spread = [], []
    for _ in range(200):
        lengths = random.integers(2, 60, 40)
        packed = plain_text.pack([(np.ones(n + 1, np.int32), int(n)) for n in lengths], 16)
        level = random.gamma(4.0, 0.5, 40)  # each document has its own difficulty
        losses = np.zeros(packed.tokens.shape)
        for row, segment, document in zip(
            packed.piece_row, packed.piece_segment, packed.piece_document, strict=True
        ):
            losses[row][packed.segments[row] == segment] = level[document]
        result = summarise(packed, losses)
        found.append(result.bits_per_byte)
        spread.append(result.bits_per_byte_stderr)
    assert np.mean(spread) == pytest.approx(np.std(found), rel=0.15)


def test_rows_left_out_are_counted(packed):
    losses = np.ones(packed.tokens.shape)
    seen = np.zeros(len(packed), bool)
    seen[0] = True
    part = summarise(packed, losses, seen)
    assert part.loss == pytest.approx(1.0)
    assert part.tokens == np.count_nonzero(packed.segments[0])
    assert part.bits_per_byte == pytest.approx(part.tokens / part.bytes / math.log(2), rel=0.05)


def test_one_document_has_no_standard_error():
    packed = plain_text.pack(
        plain_text.encode(["a long text of one document"], tokenizers.bytes_only()), 8
    )
    result = summarise(packed, np.random.default_rng(0).random(packed.tokens.shape))
    assert (result.units, result.unit) == (4, "window") and result.bits_per_byte_stderr > 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    model_files.save_model(workdir, CONFIG, tokenizers.bytes_only())
    model, adamw, _ = small.parts(CONFIG)
    writer = Checkpoints(workdir, keep=1)
    state = create_state(model, adamw, small.mesh_of(1, 1, 1), 0, params=drawn(model))
    writer.save(1, state, {})
    writer.close()
    return workdir


def test_the_command_gives_other_numbers_than_the_function(run_folder, packed, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    args = [f"--model={run_folder}", f"--data={tmp_path}/x.jsonl", "--length=16"]
    assert evaluate.main([*args, f"--json={tmp_path}/out/x.json"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "x.json").read_text())
    model, params, _ = run_weights.load_params(run_folder)
    expected = make_evaluator(model, small.mesh_of(1, 1, 1), 8)(params, packed)
    assert written["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert written["bits_per_byte_stderr"] == pytest.approx(expected.bits_per_byte_stderr, rel=1e-4)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data=nowhere*"], "no file matches"),
        (["--data={}/empty.txt"], "is empty: no document"),
        (["--data={}/x.txt", "--length=33"], "rows of 33 tokens: expected 1 to 32"),
        (["--data={}/x.txt", "--batch-size=0"], "expected at least 1"),
        (["--data={}/x.txt", "--max-rows=-1"], "--max-rows=-1: expected at least 0"),
        (["--data={}/x.txt", "--model={}"], "config.json"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(run_folder, tmp_path, capsys, args, said):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "x.txt").write_text("text")
    assert evaluate.main([f"--model={run_folder}", *(a.format(tmp_path) for a in args)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error


def test_a_run_is_read_in_other_rows_than_it_was_trained_in(tmp_path, capsys):
    (tmp_path / "heldout.txt").write_text(
        "|".join(f"It is {n * n} miles from here to the {n}th of them." for n in range(9))
    )
    changes = {
        "task.separator": "|",
        "eval.data.heldout": f"{tmp_path}/heldout.txt",
        "steps": 2,
        "length": 24,
        "model.max_length": 96,
    }
    assert loop.train(runs.config(tmp_path, **changes), tmp_path / "run") == 0
    own = [row for row in trackers.read(tmp_path / "run") if "eval/heldout/loss" in row][-1]
    args = [f"--model={tmp_path}/run", f"--data={tmp_path}/heldout.txt"]
    capsys.readouterr()
    assert evaluate.main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length"] == 24 and found["units"] == 9
    for name in ("loss", "bits_per_byte", "bits_per_byte_stderr"):
        assert found[name] == pytest.approx(own[f"eval/heldout/{name}"], rel=1e-5)
    assert evaluate.main([*args, "--length=96"]) == 0
    assert "tokens in rows of 96, 392 bytes" in capsys.readouterr().out
