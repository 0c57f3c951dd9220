"""Tasks in a user's own files: they train through the config alone, and their faults are named."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.defaults import defaults
from lm import tasks
from lm.families import preset
from lm.losses import Loss, Term
from lm.models.config import ConfigError
from lm.tasks import Transform
from lm.tasks.next_token import NextToken
from lm.training import loop, settings, setup
from lm.weights.runs import paths
from tests.lm.tasks import own_replaced, own_values

VALUES, REPLACED = "tests.lm.tasks.own_values:Values", "tests.lm.tasks.own_replaced:Replaced"
ROWS = [{"text": "ab" * n, "values": [-0.7 * n, 0.25] * n} for n in range(1, 9)]


def config(folder, task, family, **changes):
    c = defaults()
    c.model.update(settings.model_section(preset(family, "tiny")).to_dict())
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    c.update_from_flattened_dict(
        {
            "task": tasks.defaults(task),
            "tokenizer": "bytes",
            "data.files": str(folder / "rows.jsonl"),
            "data.cache": str(folder / "cache"),
            "eval.data.heldout": str(folder / "rows.jsonl"),
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "steps": 2,
            "batch_size": 8,
            "length": 16,
            "log.every": 1,
            "log.tensorboard": False,
            **changes,
        }
    )
    return c


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def started(folder, name="base"):
    """A run of a few steps on text, for tasks that keep its weights."""
    c = config(folder, "next_token", "gpt2", **{"eval.data.heldout": ""})
    assert loop.train(c, folder / name) == 0
    return str(folder / name)


def test_numbers_below_zero_reach_the_loss_as_they_are(tmp_path):
    base = started(tmp_path)
    changes = {"init_from": base, "tokenizer": "", "task.scale": 2.0}
    c = config(tmp_path, VALUES, "gpt2", **changes)
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(c, run)
    batch = next(setup.train_source(c, run, packed))
    expected = sorted(-0.7 * n / 2 for n in range(1, 9))
    first = np.asarray(batch.more["values"])[:, 0]
    np.testing.assert_allclose(sorted(first.tolist()), expected, rtol=1e-6)
    assert batch.more["values"].dtype == jnp.float32
    # A new value head predicts 0, so the first loss is the mean square of the numbers.
    assert loop.train(c, tmp_path / "run") == 0
    squares = [x**2 / 4 for row in ROWS for x in row["values"]]
    rows = metrics(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert rows[-1]["eval/heldout/loss"] < rows[0]["loss"]


def test_a_row_s_replaced_tokens_are_its_targets(tmp_path):
    c = config(tmp_path, REPLACED, "bert", **{"task.rate": 0.5, "steps": 3})
    assert loop.train(c, tmp_path / "run") == 0
    run = setup.prepare(c, paths.resolve(str(tmp_path / "other")))
    assert run.model.config.label_names == ("original", "replaced")
    packed = setup.training_data(c, run)
    batch = jax.device_get(next(setup.train_source(c, run, packed)))
    replaced = batch.targets[batch.weights > 0].mean()
    assert 0.05 < replaced < 0.5
    assert {"accuracy", "loss"} <= metrics(tmp_path / "run")[0].keys()


class Spread(NextToken):
    """Adds how far the losses of the rows are from each other, without saying `joint`."""

    def loss(self, model, params, batch, rng=None):
        logits = model.apply({"params": params}, batch).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)
        of_rows = -jnp.sum(chosen[..., 0] * batch.weights, axis=1)
        return Loss.of(jnp.sum(of_rows) + 10 * jnp.std(of_rows), jnp.sum(batch.weights))


def test_a_task_that_compares_rows_without_saying_so_differs_on_several_devices(tmp_path):
    c = config(tmp_path, f"{__name__}:Spread", "gpt2", **{"mesh.data": 8})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "other")))
    batch = jax.device_get(next(setup.train_source(c, run, setup.training_data(c, run))))
    found = run.parts.main.task.loss(run.model, jax.device_get(run.fresh_state(0).params), batch)
    assert loop.train(c, tmp_path / "run") == 0
    expected = float(found.first.sum / found.first.weight)
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(expected, rel=1e-5)


class Broken(own_values.Values):
    """Faults of a user's task, by the method that has them."""

    fault = ""

    def rows(self, files, part, tools):
        found = super().rows(files, part, tools)
        if self.fault == "rows raise":
            raise KeyError("values")
        if self.fault == "rows of no kind":
            return [found]
        if self.fault == "too few values":
            return dataclasses.replace(found, extra={"values": found.extra["values"][:3]})
        if self.fault == "undeclared":
            return dataclasses.replace(found, extra={"valuse": found.extra["values"]})
        if self.fault == "short values":
            return dataclasses.replace(found, extra={"values": found.extra["values"][:, :9]})
        if self.fault == "none":
            return dataclasses.replace(found, extra={})
        return found

    def transform(self, tokenizer, model):
        fields = {
            "rows of a list": lambda row, rng, lengths: [row],
            "a lossy dtype": lambda row, rng, lengths: {**row, "weights": 1.0, "labels": ["a"]},
            "transform raises": lambda row, rng, lengths: row["text"],
        }
        return Transform(fields[self.fault]) if self.fault in fields else None

    def loss(self, model, params, batch, rng=None):
        found = super().loss(model, params, batch, rng)
        wrong = {
            "loss raises": lambda: batch.more["value"],
            "a mean": lambda: found.first.sum,
            "a vector": lambda: Loss({"loss": Term(jnp.zeros(3), found.first.weight)}, {}),
            "a dtype": lambda: Loss({"loss": Term(found.first.sum, jnp.int32(1))}, {}),
            "two terms": lambda: Loss({"a": found.first, "b": found.first}, {}),
        }
        return wrong.get(self.fault, lambda: found)()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("rows raise", r"rows raised KeyError: 'values'"),
        ("rows of no kind", r"rows returned list, expected Packed"),
        ("too few values", r"rows returned 'values' for 3 rows, expected 8"),
        ("undeclared", r"rows: a row has the field 'valuse' .*values"),
        ("rows of a list", r"transform returned list for a row, expected a dict"),
        ("a lossy dtype", r"transform: the field 'labels' is declared as float32"),
        ("transform raises", r"transform\.fields raised KeyError: 'text'"),
        ("short values", r"a row has the field 'values' of shape \[9\], and .* declares \[16\]"),
        ("none", r"a row has the field 'values' of shape none, and .* declares \[16\]"),
        ("loss raises", r"loss raised KeyError: 'value'"),
        ("a mean", r"loss returned \w+, expected Loss"),
        ("a vector", r"the sum of the term 'loss' of the loss is float32\[3\], expected a float32"),
        ("a dtype", r"the weight of the term 'loss' of the loss is int32\[\], expected a float32"),
        ("two terms", r"the loss has the terms a, b; `weights` gives none"),
    ],
)
def test_a_fault_of_a_user_s_task_is_a_stack_trace_or_unnamed(
    tmp_path, fault, said, monkeypatch, base
):
    monkeypatch.setattr(Broken, "fault", fault)
    changes = {"init_from": base, "tokenizer": "", "eval.data.heldout": ""}
    c = config(tmp_path, f"{__name__}:Broken", "gpt2", **changes)
    with pytest.raises(ConfigError, match=said) as error:
        loop.train(c, tmp_path / "run")
    assert "test_own" in str(error.value) or fault == "two terms"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return started(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maskd", r"task\.name='maskd' is unknown .did you mean 'masked'"),
        ("no.such.module:Task", r"cannot be used .ModuleNotFoundError"),
        ("tests.lm.tasks.own_values:Value", r"cannot be used .AttributeError"),
        ("tests.lm.tasks.own_values:Loss", r"expected a frozen dataclass that derives from"),
        ("lm.tasks.text:TokenTask", r"TokenTask' does not define rows"),
    ],
)
def test_a_task_that_does_not_exist_is_taken(name, said):
    with pytest.raises(ConfigError, match=said):
        tasks.defaults(name)


def test_a_file_in_the_working_directory_is_not_found(tmp_path, monkeypatch):
    text = (sys.modules[own_replaced.__name__].__file__ or "", tmp_path / "mine.py")
    text[1].write_text(pathlib.Path(text[0]).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert tasks.defaults("mine:Replaced", rate=0.3).rate == 0.3


def test_a_declared_field_changes_another_task_s(monkeypatch):
    other = {"labels": dataclasses.replace(own_values.Values.new_fields["values"])}
    monkeypatch.setattr(own_values.Values, "new_fields", other)
    with pytest.raises(ConfigError, match="declares the batch field 'labels' as"):
        tasks.defaults(VALUES)
