"""Non-finite gradients: the run continues for the allowed number of steps, weights unchanged."""

import pytest

from configs.defaults import defaults
from lm.training import guard, loop, trackers
from lm.weights.runs import weights as run_weights
from tests.lm.small_models import identical
from tests.lm.training import runs


def test_a_run_stops_too_early_or_too_late_or_its_weights_are_not_those_before(tmp_path):
    broken = {
        "optimizer.learning_rate": 1e30,
        "optimizer.clip": 0.0,
        "optimizer.warmup": 0,
        "checkpoint.every": 1,
    }
    c = runs.config(tmp_path, **broken, **{"optimizer.skip_nonfinite": 2, "steps": 9})
    with pytest.raises(
        loop.TrainingError,
        match=r"at step 4: stopped. No checkpoint is from before it; step 1, which led",
    ):
        loop.train(c, tmp_path / "run")
    rows = trackers.read(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0.0, 1.0, 2.0] and [
        row["gradient_norm"] is None for row in rows
    ] == [False, True, True]
    assert [
        folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir() if folder.is_dir()
    ] == ["1.diverged"]


def test_an_average_is_not_what_a_run_is_loaded_as_or_a_frozen_part_is_not_itself(tmp_path):
    rates = ((r"embeddings", 0.0), (r".", 1.0))
    c = runs.config(
        tmp_path,
        **{
            "optimizer.ema": 0.9,
            "optimizer.rates": rates,
            "optimizer.learning_rate": 0.1,
            "steps": 2,
        },
    )
    assert loop.train(c, tmp_path / "run") == 0
    with pytest.MonkeyPatch.context() as patch:
        _, average, _ = run_weights.load_params(tmp_path / "run")
        patch.setattr(run_weights, "average_of", lambda params, _: params)
        _, params, _ = run_weights.load_params(tmp_path / "run")
    assert identical(average["embeddings"], params["embeddings"])
    assert not identical(average["layers"], params["layers"])


def see(losses):
    spike = guard.Spike()
    return spike, [spike.see(step, loss, 1.0) for step, loss in enumerate(losses, 1)]


def test_a_spike_begins_where_the_loss_leaves_its_usual_height():
    quiet = [5.0 - n / 10 for n in range(20)]  # down to 3.1
    assert not any(see(quiet + [4.5, 3.0])[1])
    spike, off = see(quiet + [40.0, 90.0, float("nan")])
    assert off == [False] * 20 + [True] * 3 and spike.since == 21
    spike, _ = see(quiet + [40.0, 90.0, 3.2])
    assert spike.since is None
    spike, off = see(quiet + [40.0] * 200)
    assert spike.since is None and sum(off) == guard.LASTS, "a lasting change is no spike"
    spike, _ = see([5.0, 900.0, float("inf")])
    assert spike.since == 3, "too few losses to tell what is usual"


def test_the_advice_is_not_what_is_so_already():
    config = defaults()
    config.optimizer.update({"learning_rate": 0.01, "warmup": 7, "clip": 1.0, "skip_nonfinite": 0})
    assert guard.advice(config) == (
        "an optimizer.learning_rate below 0.01, an optimizer.warmup longer than 7 or "
        "optimizer.skip_nonfinite=3"
    )
    config.optimizer.update({"clip": 0.0, "skip_nonfinite": 3})
    config.model.dtype = "bfloat16"
    assert guard.advice(config).endswith(
        "longer than 7, optimizer.clip=1.0 or model.dtype='float32'"
    )
