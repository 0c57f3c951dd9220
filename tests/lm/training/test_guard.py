"""A run whose gradients are not finite goes on for as long as it is allowed to, its weights untouched, and then stops."""

import numpy as np
import pytest

from lm.training import checkpoints, loop, trackers
from tests.lm.small_models import identical
from tests.lm.training import runs


def test_a_run_stops_too_early_or_too_late_or_its_weights_are_not_those_before(tmp_path):
    broken = {"optimizer.learning_rate": 1e30, "optimizer.clip": 0.0, "optimizer.warmup": 0, "checkpoint.every": 1}
    c = runs.config(tmp_path, **broken, **{"optimizer.skip_nonfinite": 2, "steps": 9})
    with pytest.raises(loop.TrainingError, match=r"at step 4: stopped. The last checkpoint is step"):
        loop.train(c, tmp_path / "run")
    rows = trackers.read(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0.0, 1.0, 2.0] and [row["gradient_norm"] is None for row in rows] == [False, True, True]
    (_, first, _), (_, last, _) = (checkpoints.load_params(tmp_path / "run", step) for step in checkpoints.steps(tmp_path / "run")[-2:])
    assert identical(first, last) and np.isfinite(np.asarray(first["final_norm"]["scale"])).all()


def test_an_average_is_not_what_a_run_is_loaded_as_or_a_frozen_part_is_not_itself(tmp_path):
    rates = ((r"embeddings", 0.0), (r".", 1.0))
    c = runs.config(tmp_path, **{"optimizer.ema": 0.9, "optimizer.rates": rates, "optimizer.learning_rate": 0.1, "steps": 2})
    assert loop.train(c, tmp_path / "run") == 0
    with pytest.MonkeyPatch.context() as patch:
        _, average, _ = checkpoints.load_params(tmp_path / "run")
        patch.setattr(checkpoints, "average_of", lambda params, _: params)
        _, params, _ = checkpoints.load_params(tmp_path / "run")
    assert identical(average["embeddings"], params["embeddings"])
    assert not identical(average["layers"], params["layers"])
