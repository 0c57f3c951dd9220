"""Training with a memory: mixtures in float64, what is trained, other meshes, and resuming."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import lm
from lm import export, tasks
from lm.families import preset
from lm.models.config import ConfigError
from lm.training import loop, settings, setup, trackers
from lm.weights.runs import paths
from lm.weights.runs import weights as run_weights
from lm.weights.runs.steps import CheckpointError
from retrieval import Encoder, Memory, Passage, cli
from tests.lm.small_models import identical
from tests.lm.training import runs
from tests.retrieval.models import save_encoder
from tests.retrieval.tasks import two_processes

pytest.importorskip("torch")
NAME = "retrieval.tasks.open_book:OpenBook"
SIDES = ("queries", "passages")
MESH = {"mesh.data": 4, "mesh.fsdp": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder, a memory of towns, and questions about them."""
    folder = tmp_path_factory.mktemp("open_book")
    save_encoder(folder / "encoder")
    memory = Memory.create(folder / "memory", Encoder.from_hf(folder / "encoder"))
    memory.add([Passage(f"p{i}", f"town {i} lies in land {i * 7 % 13}") for i in range(12)])
    asked = [
        {"question": f"where is town {i}", "answer": ["land " + str(i * 7 % 13)]} for i in range(12)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder


def config(folder, tmp_path, door="rag_token", own=(), **changes):
    task = tasks.defaults(
        NAME, memory=str(folder / "memory"), door=door, target_length=12, k=3, **dict(own)
    )
    fields = {
        "task": task,
        "data.files": str(folder / "asked.jsonl"),
        "data.cache": str(tmp_path / "cache"),
        "length": 384,
        "batch_size": 8,
        "model.max_length": 512,
        "steps": 4,
        "eval.data": {},
    }
    return runs.config(tmp_path, **{**fields, **changes})


def of_family(name, **own):
    """Fields of a tiny model of a family."""
    fields = settings.model_section(preset(name, "tiny", vocab_size=320, **own)).to_dict()
    known = {key: value for key, value in fields.items() if value is not None}
    return {f"model.{key}": value for key, value in known.items() if "max_length" not in key}


def prepared(c, folder):
    """(run, state, first batch)."""
    run = setup.prepare(c, paths.resolve(str(folder / "run")))
    batches = setup.train_source(c, run, setup.training_data(c, run))
    return run, run.fresh_state(c.seed), next(batches)


def log_softmax(z):
    z = np.float64(z) - np.max(np.float64(z), -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def answers(model, params, batch, k):
    """Log-probabilities of the answer's tokens [K, A] by row, with each passage in a row."""
    apart = lambda x: np.asarray(x).reshape(len(x) * k, -1)
    segments, weights, targets = (apart(x) for x in (batch.segments, batch.weights, batch.targets))
    fields = {"segments": (segments > 0).astype(np.int32)}
    if batch.encoder_tokens is not None:
        fields["encoder_tokens"] = apart(batch.encoder_tokens)
        fields["encoder_segments"] = (apart(batch.encoder_segments) > 0).astype(np.int32)
    logits = lm.forward(model, params, lm.Batch.of(apart(batch.tokens), **fields)).logits
    picked = np.take_along_axis(log_softmax(logits), targets[..., None], 2)[..., 0]
    found = [row[weight > 0] for row, weight in zip(picked, weights, strict=True)]
    return [np.array(found[i : i + k]) for i in range(0, len(found), k)]


def mixtures(of_rows, shares, whole):
    """Mean over tokens of the negative log-probability of the answers, in float64."""
    total = count = 0
    for each, log_shares in zip(of_rows, shares, strict=True):
        p = np.exp(np.float64(log_shares[: len(each)]))
        if whole:
            total -= np.log(np.sum(p * np.exp(each.sum(1))))
        else:
            total -= np.log((p[:, None] * np.exp(each)).sum(0)).sum()
        count += each.shape[1]
    return total / count


T5 = of_family("t5", n_layers=1, encoder_layers=1)
MAMBA = of_family("mamba", n_layers=1, d_model=16, ssm_inner=32)
CASES = {
    "llama": ("rag_token", "marginal", {}),
    "t5": ("rag_sequence", "", T5),
    "mamba": ("rag_sequence", "", MAMBA),
}


def shares_of(folder, batch):
    """Log-softmax of the cosines of questions and passages over 0.1, float64 [B, K]."""
    encoder = Encoder.from_hf(folder / "encoder")
    texts = [f"where is town {i}" for i in range(12)]
    places = {tuple(ids): i for i, ids in enumerate(encoder.query_tokens(texts))}
    rows = [tuple(int(i) - 1 for i in row if i > 0) for row in batch.more["query_tokens"]]
    queries = encoder.queries(texts)[[places[row] for row in rows]]
    return log_softmax(np.einsum("bd,bkd->bk", queries, batch.more["passage_vectors"]) / 0.1)


@pytest.mark.parametrize("family", ["llama", "t5", pytest.param("mamba", marks=pytest.mark.slow)])
def test_the_loss_of_an_ensemble_is_not_the_enumerated_mixture(folder, tmp_path, family):
    door, retriever, changes = CASES[family]
    c = config(folder, tmp_path, door, {"retriever": retriever}, **changes)
    run, state, batch = prepared(c, tmp_path)
    batch, before = jax.device_get((batch, state.params))
    found = answers(run.model, {n: x for n, x in before.items() if n != "models"}, batch, 3)
    shares = batch.more["log_shares"]
    np.testing.assert_allclose(np.exp(shares).sum(1), 1, rtol=1e-5)
    if retriever:  # at the start it gives what the search gave
        np.testing.assert_allclose(shares_of(folder, batch), shares, atol=2e-3)
        shares = shares_of(folder, batch)
    wanted = mixtures(found, shares, door == "rag_sequence")
    new, metrics = run.train_step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=2e-5)
    for name, params in jax.device_get(new.params).items():
        assert not identical(params, before[name])


def test_the_retriever_s_loss_differs_on_a_mesh_from_the_formula(folder, tmp_path):
    """Perplexity distillation in float64: KL(softmax(log p(answer | passage) / s) || retriever)."""
    own = {"retriever": "perplexity_distillation", "sharpness": 0.05}
    changes = MESH | {"accumulate": 2}
    c = config(folder, tmp_path, "rag_sequence", own, **changes)
    run, state, batch = prepared(c, tmp_path)
    batch = jax.device_get(batch)
    before = jax.device_get(state.params)
    main = {name: x for name, x in before.items() if name != "models"}
    found = answers(run.model, main, batch, 3)
    shares = shares_of(folder, batch)
    reader = mixtures(found, shares, True)
    log_probs = np.array([each.sum(1) for each in found])
    wanted = log_softmax(log_probs / 0.05)
    distance = np.mean((np.exp(wanted) * (wanted - shares)).sum(1))
    # A KL is flat at its minimum: an error e of the logits changes one of size d by sqrt(2 d) e.
    rounding = np.finfo(np.float32).eps * np.abs(log_probs).max() / 0.05 * np.sqrt(2 * distance)
    assert rounding < 0.01 * distance  # sharpness 0.5 would change it by a third
    new, metrics = run.train_step(state, batch)
    seen, of_retriever = (float(metrics[f"loss/{name}"]) for name in ("loss", "retriever"))
    assert seen == pytest.approx(reader, rel=1e-6)
    assert of_retriever == pytest.approx(distance, rel=1e-4, abs=rounding)
    after = jax.device_get(new.params)
    assert not identical(after["models"], before["models"]), "the retriever has not changed"
    again = runs.saved_and_restored(run, new)
    ends = [jax.device_get(run.train_step(one, batch)) for one in (new, again)]
    assert identical(*ends), "a resumed run goes on otherwise"


def test_passages_are_not_searched_with_the_retriever_of_the_step(folder, tmp_path):
    """After the retriever's weights change, a question gets other passages; a source resumes."""
    c = config(folder, tmp_path, own={"retriever": "marginal", "search": True})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    rows = setup.training_data(c, run)
    source, state = setup.train_source(c, run, rows), run.fresh_state(c.seed)
    first = jax.device_get(source.next(state))
    scores = shares_of(folder, first)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(scores, first.more["log_shares"], atol=2e-3)
    mine = setup.train_source(c, run, rows)._source  # as one of several processes, with two rows
    mine.tools = dataclasses.replace(mine.tools, rows=(2, 5))
    part, whole = jax.device_get((mine.next(state), first))
    np.testing.assert_array_equal(part.segments.any(1), np.isin(np.arange(8), (2, 5)))
    for name, values in part.fields().items():
        wanted = whole.fields()[name][[2, 5]]
        np.testing.assert_allclose(values[[2, 5]], wanted, rtol=1e-5, err_msg=name)
    new, metrics = run.train_step(state, first)
    assert np.isfinite(float(metrics["loss"]))
    shaken = jax.tree.map(lambda x: x * 0.5 if x.ndim > 1 else x, new.params["models"])
    other = new.replace(params=new.params | {"models": shaken})
    again = setup.train_source(c, run, rows)
    again.restore(source.position(), {})
    second, same, changed = (
        jax.device_get(one.next(state)).more["passage_vectors"]
        for one, state in ((source, new), (again, new), (setup.train_source(c, run, rows), other))
    )
    np.testing.assert_array_equal(second, same)
    assert not np.array_equal(changed, first.more["passage_vectors"])
    asked = lambda batch: {tuple(row) for row in batch.more["query_tokens"]}
    fresh = setup.train_source(c, run, rows)
    epoch = [jax.device_get(fresh.next(new)) for _ in range(3)]  # 24 rows: two epochs of 12
    assert set.union(*map(asked, epoch)) == {tuple(row) for row in rows.extra["query_tokens"]}
    with pytest.raises(ConfigError, match="was at version 1 of"):
        again.restore(source.position() | {"memory": 1}, {})


@pytest.mark.slow
def test_two_processes_end_elsewhere_than_one(folder):
    """Retriever and reader, with a search at every step, of a process's own rows, and without."""
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    }
    argv = [sys.executable, "-m", "tests.retrieval.tasks.two_processes", str(folder)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "[0, 0]", done.stdout + done.stderr
    searches = [(folder / f"searches{rank}").read_text().split() for rank in (0, 1)]
    assert searches == [["4"] * 3] * 2
    for name, searched in (("searched", True), ("rows", False)):
        assert two_processes.run(folder, name, searched) == 0
        theirs = folder / ("two-searched" if searched else "two")
        (_, ours, _), (_, other, _) = map(run_weights.load_params, (folder / name, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), ours, other)
        one, two = (trackers.read(at)[-1] for at in (folder / name, theirs))
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)


def test_the_decoder_of_fid_reads_other_passages_than_its_row_s(folder, tmp_path):
    c = config(folder, tmp_path, "fid,tokens=100", **T5)
    run, state, batch = prepared(c, tmp_path)
    batch, params = jax.device_get((batch, state.params))
    assert set(np.unique(batch.encoder_segments)) == {0, 1, 2, 3}
    assert set(np.unique(batch.encoder_owners)) == {0, 1}
    _, metrics = run.train_step(state, batch)
    theirs = torch_t5(run.model, params, tmp_path)
    total = count = 0
    for row in range(len(batch.tokens)):
        mine = batch.segments[row] > 0
        read = [batch.encoder_tokens[row][batch.encoder_segments[row] == i] for i in (1, 2, 3)]
        logits = theirs(read, batch.tokens[row][mine])
        total -= np.take_along_axis(log_softmax(logits), batch.targets[row][mine][:, None], 1).sum()
        count += mine.sum()
    assert count == np.sum(batch.weights)
    assert float(metrics["loss"]) == pytest.approx(total / count, rel=2e-5)


def torch_t5(model, params, folder):
    """transformers' T5: (token lists that are encoded apart, decoder tokens) -> logits [T, V]."""
    import torch
    import transformers

    lm.to_hf(model, params, folder / "t5")
    t5 = transformers.T5ForConditionalGeneration.from_pretrained(folder / "t5").eval()

    @torch.no_grad()
    def logits(read, written):
        states = [t5.encoder(torch.tensor(ids[None])).last_hidden_state for ids in read]
        whole = transformers.modeling_outputs.BaseModelOutput(torch.cat(states, 1))
        ids = torch.tensor(written[None])
        return t5(encoder_outputs=whole, decoder_input_ids=ids).logits[0].numpy()

    return logits


def test_a_run_that_goes_on_after_an_edit_of_its_memory_learns_from_both(folder, tmp_path):
    """Rows are found by the memory's version; another version is another sequence.

    The trained encoder of questions is written by `lm.export --beside`.
    """
    c = config(folder, tmp_path, own={"retriever": "marginal"}, steps=2)
    assert loop.train(c, tmp_path / "run") == 0
    asked = [f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", "--beside=retriever"]
    assert export.main(asked) == 0
    ends = (folder / "encoder", tmp_path / "out")
    before, after = (Encoder.from_hf(at).queries(["town 3"])[0] for at in ends)
    assert before.shape == after.shape and 1e-3 < np.linalg.norm(before - after) < 1.9
    asked = cli.open_memory(folder / "memory", None, reader=str(tmp_path / "run"))
    ((ours, _), (old, _)) = (asked._encoder.vectors(["town 3"], "", s) for s in SIDES)
    np.testing.assert_allclose([ours[0], old[0]], [after, before], atol=1e-6)
    assert len(asked.search(["town 3"], 2)[0]) == 2
    other = Memory.create(tmp_path / "other", Encoder.from_hf(tmp_path / "out"))
    other.add([Passage("p", "town")])
    same = cli.open_memory(tmp_path / "other", None, reader=str(tmp_path / "run"))
    assert same._encoder.encode is None  # of another encoder: its own is loaded
    memory = Memory.open(folder / "memory")
    memory.edit("p3", text="town 3 lies in land 99")
    try:
        c.steps = 4
        with pytest.raises(CheckpointError, match="would read other rows"):
            loop.train(c, tmp_path / "run")
    finally:
        memory.undo()


@pytest.mark.parametrize(
    "own, changes, said",
    [
        ({"door": "rag"}, {}, "task.door: .*'rag' is unknown"),
        ({"door": "rag_token,stride=4"}, {}, "stride searches again"),
        ({"retriever": "marginal", "door": "in_context"}, {}, "needs a prompt for each passage"),
        ({"search": True}, {}, "search=True .*set task.retriever"),
        ({"retriever": "atlas"}, {}, "task.retriever='atlas': expected one of"),
        ({"memory": "/nowhere"}, {}, "task.memory: "),
        ({"memory": ""}, {}, "task.memory is not set"),
        ({}, {"length": 481}, "length=481 does not divide by the 3 prompts"),
        ({"door": "fid"}, {}, "task.door=fid: .*encoder-decoder"),
        ({}, {"length": 60}, "asked.jsonl, line 1: .*raise length"),
    ],
)
def test_a_setting_that_does_not_fit_is_not_named(folder, tmp_path, own, changes, said):
    c = config(folder, tmp_path, **changes)
    c.task.update(own)
    with pytest.raises(ValueError, match=said):
        prepared(c, tmp_path)
