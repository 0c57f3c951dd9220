"""Mixture: the numbers of a kNN-LM, tuned on text and kept beside its datastore."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.doors.knn import KnnLM, checked
from retrieval.doors.knn_perplexity import Scored, tuned
from retrieval.doors.knn_share import Share
from retrieval.errors import RetrievalError

MIXTURE, SHARE = "mixture.json", "share.npz"  # files in the folder of a datastore
LOST = 1e-3  # of the perplexity, that skipped searches may cost
SKIPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # least predicted shares to choose from


@dataclasses.dataclass(frozen=True)
class Mixture:
    """k neighbours, share and temperature; see `retrieval.doors.knn.KnnLM` for the others."""

    k: int = 64
    share: float = 0.25
    temperature: float = 1.0
    skip: float = 0.0
    adaptive: Share | None = None

    def hook(self, store, **options) -> KnnLM:
        """The hook of lm.generation with these numbers; options: other fields of KnnLM."""
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in FIELDS}
        return KnnLM(store, **(own | options))

    def shares(self, scored: Scored) -> np.ndarray:
        """The share of every prediction, float64 [N]; 0 where nothing is searched."""
        if self.adaptive is None:
            return np.full(len(scored.log_probs), self.share)
        assert scored.vectors is not None
        found = self.adaptive(scored.vectors).astype(np.float64)
        return np.where(found >= self.skip, found, 0.0)

    def loss(self, scored: Scored) -> float:
        """Nats per prediction."""
        return -float(scored.mixed(self.shares(scored), self.temperature).mean())

    def save(self, folder: Path) -> None:
        if self.adaptive is not None:
            self.adaptive.save(folder / SHARE)
        own = {field.name: getattr(self, field.name) for field in FIELDS}
        own["adaptive"] = self.adaptive is not None
        (folder / MIXTURE).write_text(json.dumps(own) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Mixture":
        """Of a datastore; the defaults where it was never tuned. Raises RetrievalError."""
        path = folder / MIXTURE
        if not path.exists():
            return cls()
        try:
            own = json.loads(path.read_text(encoding="utf-8"))
            adaptive = Share.load(folder / SHARE) if own.pop("adaptive") else None
            made = cls(**own, adaptive=adaptive)
            checked(made.k, made.share, made.temperature)
            return made
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RetrievalError(
                f"{path} cannot be read ({error}): tune the datastore again"
            ) from None


FIELDS = dataclasses.fields(Mixture)


def tune(scored: Scored, adaptive: bool = False) -> Mixture:
    """The best mixture of these predictions; never worse on them than the model alone.

    adaptive: also fit the network that predicts the share, on the documents of every second row.
    It is kept only if it is better than the constant share on the other rows. Searches are then
    skipped below the largest of SKIPS that costs at most LOST of the perplexity there. `scored`
    must have its vectors.
    """
    k = scored.distances.shape[1]
    share, temperature = tuned(scored)
    constant = Mixture(k, share, temperature)
    if not adaptive or not share:
        return constant
    if scored.vectors is None:
        raise RetrievalError("a predicted share needs context vectors: score with vectors=True")
    fit = scored.rows % 2 == 0
    held_out = scored.part(~fit)
    if fit.all() or not fit.any():
        raise RetrievalError(
            "a predicted share is fitted on half of the rows and judged on the others: give text "
            "of at least two rows"
        )
    network = Share.fit(
        scored.vectors[fit], scored.log_probs[fit], scored.memory(temperature)[fit], share
    )
    found = Mixture(k, share, temperature, 0.0, network)
    best = found.loss(held_out)
    if best >= constant.loss(held_out) or found.loss(scored) >= constant.loss(scored):
        return constant
    limit = min(best + LOST, constant.loss(held_out))
    skips = [dataclasses.replace(found, skip=skip) for skip in SKIPS]
    return [one for one in skips if one.loss(held_out) <= limit][-1]


def skipping(scored: Scored, mixture: Mixture) -> list[tuple[float, float, float]]:
    """(least share, part of the tokens that are searched, perplexity) for each of SKIPS."""
    found = []
    for skip in SKIPS:
        one = dataclasses.replace(mixture, skip=skip)
        searched = float(np.mean(one.shares(scored) > 0))
        found.append((skip, searched, float(np.exp(one.loss(scored)))))
    return found
