"""From a model's vectors to keys, and from keys to the unit vectors of an index."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError

LARGEST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Projection:
    """Key of a vector x [D]: (x - mean) directions, float32 [K].

    directions [D, K]: the principal components of a sample, or None for keys of D numbers.
    Distances between keys are those between vectors, but for the components left out.
    """

    mean: np.ndarray
    directions: np.ndarray | None = None

    @classmethod
    def fit(cls, sample: np.ndarray, components: int = 0) -> "Projection":
        """Fit to vectors [N, D]; components: K of a PCA, 0 for none. Raises RetrievalError."""
        width = sample.shape[1]
        if not 0 <= components <= width:
            raise RetrievalError(
                f"pca={components}: expected 1 to {width}, the width of the vectors, or 0 for none"
            )
        mean = sample.mean(axis=0, dtype=np.float64)
        if not components:
            return cls(mean.astype(np.float32))
        around = sample - mean
        _, directions = np.linalg.eigh(around.T @ around)
        kept = directions[:, ::-1][:, :components]
        return cls(mean.astype(np.float32), np.ascontiguousarray(kept, np.float32))

    @property
    def width(self) -> int:
        """Numbers of a key."""
        return len(self.mean) if self.directions is None else self.directions.shape[1]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        around = np.asarray(vectors, np.float32) - self.mean
        return around if self.directions is None else around @ self.directions

    def stored(self, vectors: np.ndarray) -> np.ndarray:
        """Keys as they are stored, float16 [N, K]. Raises RetrievalError for too large ones."""
        keys = self(vectors)
        if not (np.abs(keys) < LARGEST).all():
            raise RetrievalError(
                "context vectors hold NaN or numbers beyond float16: check the model, or use "
                "another tap"
            )
        return keys.astype(np.float16)

    def save(self, path: Path) -> None:
        arrays: dict = {"mean": self.mean}
        if self.directions is not None:
            arrays["directions"] = self.directions
        with open(path, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> "Projection":
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls(found["mean"], found.get("directions"))
        except (OSError, ValueError, KeyError) as error:
            raise RetrievalError(
                f"{path} cannot be read ({error}): build the datastore again"
            ) from None


def on_sphere(keys: np.ndarray, radius: float) -> np.ndarray:
    """Unit vectors [N, K + 2] of keys [N, K], none longer than `radius`.

    The cosine with `query_on_sphere` of q falls as the distance to q grows: so an index of cosines
    finds the nearest keys. With c = (|k|^2 - radius^2) / 2, the product of (k, -c / radius) and
    (q, radius) is q.k - c; a last number gives all keys one length (Bachrach et al. 2014, "Speeding
    Up the Xbox Recommender System", section 3).
    """
    keys = keys.astype(np.float32) / np.float32(radius)
    squares = np.minimum(np.einsum("nk,nk->n", keys, keys), 1.0)
    lift = (1 - squares) / 2
    rest = np.sqrt(np.maximum(0.0, 1 - squares - lift**2))
    return np.concatenate([keys, lift[:, None], rest[:, None]], axis=1)


def query_on_sphere(queries: np.ndarray, radius: float) -> np.ndarray:
    """Vectors [Q, K + 2] to search `on_sphere` with; their length does not matter."""
    ends = np.broadcast_to(np.array([1, 0], np.float32), (len(queries), 2))
    return np.concatenate([queries / np.float32(radius), ends], axis=1)
