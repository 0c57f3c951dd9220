"""Runs of several tasks: each has its own loss and weight, in one step."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lm import tasks
from lm.models.config import ConfigError
from lm.training import loop, settings, setup
from lm.weights.runs import paths
from tests.lm.training import runs


def config(folder, coefficient=0.5, own="prefix_lm", **changes):
    c = runs.config(folder, **{"steps": 4, "batch_size": 8, "checkpoint.every": 2, **changes})
    (folder / "old.txt").write_text("what was learned before is not forgotten. " * 40)
    c.further_tasks = ConfigDict(
        {
            "old": {
                "task": tasks.defaults(own),
                "files": str(folder / "old.txt"),
                "batch_size": 16,
                "coefficient": coefficient,
            }
        }
    )
    return c


def metrics(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


def test_the_loss_is_not_the_weighted_sum_of_two_means(tmp_path):
    """Against the tasks' own losses on their own batches, and their gradients in float64."""
    c = config(tmp_path, coefficient=0.25, **{"task.label_smoothing": 0.1})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(c, run)
    others = {name: setup.packed(part, run) for name, part in run.parts.further.items()}
    both = next(setup.train_source(c, run, packed, others))
    assert both["main"].tokens.shape == (8, 16) and both["old"].tokens.shape == (16, 16)
    weights = np.asarray(both["old"].weights)
    assert 0 < weights.sum() < (np.asarray(both["old"].segments) > 0).sum()
    state = run.fresh_state(0)
    params = jax.device_get(state.params)
    every = {"main": run.task, "old": tasks.TASKS["prefix_lm"]()}

    def mean(params, batch, name):
        found = every[name].loss(run.model, params, batch)
        return found.first.sum / found.first.weight

    alone = jax.jit(jax.value_and_grad(mean), static_argnums=2)
    parts = {name: alone(params, jax.device_get(both[name]), name) for name in every}
    new, found = run.train_step(state, both)
    values = {name: float(value) for name, (value, _) in parts.items()}
    assert float(found["loss"]) == pytest.approx(values["main"] + 0.25 * values["old"], rel=1e-6)
    assert float(found["loss/old/loss"]) == pytest.approx(values["old"], rel=1e-6)
    assert "main/cross_entropy" in found
    norm = sum(
        np.sum(np.square(np.asarray(a, np.float64) + 0.25 * np.asarray(b, np.float64)))
        for a, b in zip(*(jax.tree.leaves(g) for _, g in parts.values()), strict=True)
    )
    assert float(found["gradient_norm"]) == pytest.approx(np.sqrt(norm), rel=1e-5)
    assert int(new.step) == 1


def test_micro_batches_or_an_interruption_change_the_run(tmp_path):
    changes = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, **CONSTANT}
    for name, accumulate in (("whole", 1), ("parts", 2)):
        c = config(tmp_path, **changes, accumulate=accumulate)
        assert loop.train(c, tmp_path / name) == 0
    for steps in (2, 4):
        assert loop.train(config(tmp_path, **changes, steps=steps), tmp_path / "two") == 0
    whole, parts, two = (
        [row["loss"] for row in metrics(tmp_path / name)] for name in ("whole", "parts", "two")
    )
    assert whole == pytest.approx(parts, rel=1e-5)
    assert two == whole


CONSTANT = {"optimizer.schedule": "constant", "optimizer.warmup": 0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": ""}, r"further_tasks\.old\.files is not set"),
        ({"batch_size": 7}, r"batch_size=7 / accumulate=1 = 7 rows do not divide"),
        ({"coefficient": 0.0}, r"further_tasks\.old\.coefficient=0\.0: expected more than 0"),
        ({"weight": 1.0}, r"further_tasks\.old\.weight is unknown"),
        ({"task": tasks.defaults("masked")}, r"the task 'masked' needs 'masked_lm'"),
        ({"task": tasks.defaults("classification")}, r"does not go with task\.name='next_token'"),
        ({"task": tasks.defaults("prefix_lm", chunk=-1)}, r"task\.chunk=-1"),
    ],
)
def test_further_tasks_that_make_no_sense_are_taken(tmp_path, fields, said):
    c = config(tmp_path)
    for name, value in fields.items():
        c.further_tasks.old[name] = value
    with pytest.raises(ConfigError, match=said):
        settings.check(c, 8)


def test_the_divergence_from_the_base_is_taken_on_a_dict(tmp_path):
    c = config(tmp_path, **{"adaptation.kl.strength": 0.1, "init_from": "x"})
    with pytest.raises(ConfigError, match=r"adaptation\.kl\.strength=0\.1: the divergence"):
        settings.check(c, 8)
