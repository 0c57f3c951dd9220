"""Label losses equal those of transformers for any padding and any split of the batch."""

import dataclasses

import jax
import numpy as np
import pytest

import lm
from configs import smoke
from lm.batch import Batch
from lm.distributed import sharding
from lm.tasks import TASKS
from lm.training import setup
from lm.weights.runs import paths
from tests.lm.families import test_heads as heads
from tests.lm.families import test_parity as parity
from tests.lm.training import small

torch = pytest.importorskip("torch")

KINDS = {
    "classification": heads.SEQUENCE,
    "token_classification": heads.TOKEN,
    "question_answering": heads.SPAN,
}


def case(tmp_path, kind, **changes):
    """Return (transformers' model, our model, params)."""
    cases = {
        "x": (f"Bert{kind}", parity.BERT, dict(num_labels=2 if kind == heads.SPAN else 3) | changes)
    }
    reference = parity.torch_model("x", cases=cases)
    reference.save_pretrained(tmp_path)
    return (reference, *lm.from_hf(tmp_path))


@pytest.mark.parametrize("task", [*KINDS, "regression"])
def test_a_loss_is_not_that_of_transformers_or_reads_the_padding(tmp_path, task):
    name = "classification" if task == "regression" else task
    reference, model, params = case(
        tmp_path, KINDS[name], **(dict(num_labels=1) if task == "regression" else {})
    )
    rng = np.random.default_rng(0)
    tokens, types = rng.integers(0, 83, (4, 9)), np.repeat([[0, 1]], [4, 5], axis=1).repeat(4, 0)
    given = dict(input_ids=torch.tensor(tokens), token_type_ids=torch.tensor(types))
    weights, targets = np.zeros((4, 9), np.float32), np.zeros((4, 9), np.int32)
    if task == "token_classification":
        targets, weights = rng.integers(0, 3, (4, 9)), (rng.random((4, 9)) < 0.5).astype(np.float32)
        labels, wanted = None, dict(labels=torch.tensor(np.where(weights > 0, targets, -100)))
    elif task == "question_answering":
        labels = np.sort(rng.integers(0, 9, (4, 2)), axis=1)
        wanted = dict(
            start_positions=torch.tensor(labels[:, 0]), end_positions=torch.tensor(labels[:, 1])
        )
    else:
        labels = rng.normal(size=(4, 1)) if task == "regression" else rng.integers(0, 3, (4, 1))
        wanted = dict(
            labels=torch.tensor(labels[:, 0]).float()
            if task == "regression"
            else torch.tensor(labels[:, 0])
        )
    with torch.no_grad():
        theirs = float(reference(**given, **wanted).loss)
    padded = lambda x: np.pad(x, ((0, 1), (0, 3)), constant_values=0)
    segments = padded(np.ones((4, 9), np.int32))
    batch = Batch.of(
        padded(tokens),
        segments,
        targets=padded(targets),
        weights=padded(weights),
        types=padded(types),
    )
    if labels is not None:
        batch = dataclasses.replace(
            batch, labels=np.pad(labels, ((0, 1), (0, 0))).astype(np.float32)
        )
    loss = jax.jit(lambda p, b: TASKS[name]().loss(model, p, b))
    ours = loss(params, batch)
    assert float(ours.first.sum / ours.first.weight) == pytest.approx(theirs, abs=2e-4)
    assert float(ours.first.weight) == (weights.sum() if task == "token_classification" else 4)
    parts = [loss(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(5)]
    assert sum(float(part.first.sum) for part in parts) == pytest.approx(
        float(ours.first.sum), rel=1e-4
    )
    for metric, value in ours.metrics.items():
        assert sum(float(part.metrics[metric]) for part in parts) == pytest.approx(float(value))


def first_metrics(folder, mesh=(1, 1, 1), accumulate=1):
    """Metrics of the first step of a run."""
    config = smoke.get_config("question_answering,bert")
    config.data.cache, config.accumulate = str(folder / "cache"), accumulate
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    with pytest.MonkeyPatch.context() as m:
        m.setattr(jax, "device_count", lambda: int(np.prod(mesh)))
        m.setattr(setup, "make_mesh", lambda **sizes: small.mesh_of(*mesh))
        run = setup.prepare(config, paths.resolve(str(folder / "run")))
    batch = next(setup.train_source(config, run, setup.training_data(config, run)))
    with sharding.activate(run.mesh, run.activations):
        return jax.device_get(run.train_step(run.fresh_state(0), batch)[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return first_metrics(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("mesh", "accumulate"), [((2, 2, 2), 1), ((1, 4, 1), 2)])
def test_a_step_on_several_devices_or_in_micro_batches_differs_from_one_device(
    mesh, accumulate, alone, tmp_path
):
    together = first_metrics(tmp_path, mesh, accumulate)
    for name in ("loss", "gradient_norm", "exact", "weight"):
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-5, err_msg=name)
