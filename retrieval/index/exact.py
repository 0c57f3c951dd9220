"""ExactIndex: exact search on the accelerator, with vectors sharded across its devices."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.xla_flags import avoid_wrong_fusion
from retrieval.errors import RetrievalError
from retrieval.index.index import Rows
from retrieval.index.vectors import Ids, check_ids, check_k, read_manifest, save_index, unit_rows
from retrieval.store.locks import ReadersWriter

SCORES_AT_ONCE = 1 << 27  # scores in one step of a search: at most half a gigabyte


def rows_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of devices (default: all of this process) with one axis, "rows"."""
    devices = devices or jax.local_devices()
    return jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)


class ExactIndex:
    """Compare every query with every vector: a matrix product and a top-k on each device.

    Only k results per device are merged. The vectors are sharded by rows over `mesh` (axis "rows";
    default: all devices of this process) and updated in place. They are padded to powers of two, so
    a growing memory compiles only a few times. On a TPU the top-k is `approx_max_k` (Chern et al.
    2022) at recall 0.99; elsewhere it is exact.
    """

    def __init__(self, vectors: np.ndarray, rows: Rows, mesh: Mesh | None = None):
        avoid_wrong_fusion("float32")  # an index may start JAX before the encoder is loaded
        self._mesh = mesh or rows_mesh()
        self.dim, self.numbers, self._rows = vectors.shape[1], rows.numbers, rows
        self._vectors = self._sharded(vectors)
        self._lock = ReadersWriter()

    @classmethod
    def build(cls, vectors, ids: Ids, mesh: Mesh | None = None) -> "ExactIndex":
        """Build an index of vectors [N, dim] on a mesh with the single axis "rows"."""
        vectors = unit_rows(vectors, None)
        return cls(vectors, Rows.of(ids, len(vectors)), mesh)

    def __len__(self):
        return len(self._rows)

    def __contains__(self, id: str | int) -> bool:
        return id in self._rows.row

    def search(self, queries, k: int):
        k, queries = check_k(k), unit_rows(queries, self.dim, "queries")
        with self._lock.read():
            k = min(k, len(self._rows))
            if k == 0 or len(queries) == 0:
                return self._rows.answer(
                    np.zeros((len(queries), k), int), np.zeros((len(queries), k), np.float32)
                )
            padded_k = min(_power_of_two(k, 16), len(self._vectors))
            step = max(1, SCORES_AT_ONCE // len(self._vectors))
            found = [
                self._top_k(queries[start : start + step], padded_k)
                for start in range(0, len(queries), step)
            ]
            scores, rows = (np.concatenate(part)[:, :k] for part in zip(*found, strict=True))
            return self._rows.named(rows, scores)

    def upsert(self, vectors, ids: Ids) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = self._rows.check(ids, len(vectors))
        if not ids:
            return
        with self._lock.write():
            where = [self._rows.place(id) for id in ids]
            if len(self._rows) > len(self._vectors):
                self._vectors = self._sharded(np.asarray(self._vectors), len(self._rows))
            self._in_place(_put, where, vectors)

    def delete(self, ids: Ids) -> None:
        with self._lock.write():
            came_from: dict[int, int] = {}  # row -> the row whose vector ends up there
            for id in self._rows.check_known(ids):
                row, last = self._rows.remove(id)
                came_from[row] = came_from.pop(last, last)
            moved = {to: at for to, at in came_from.items() if to < len(self._rows)}
            if moved:
                self._in_place(_move, list(moved), np.array(list(moved.values()), np.int32))

    def save(self, directory, **facts) -> None:
        with self._lock.read():
            vectors = np.asarray(self._vectors)[: len(self._rows)]
            write = lambda folder: np.save(folder / "vectors.npy", vectors, allow_pickle=False)
            save_index(
                directory,
                write,
                self._rows.ids(),
                kind="exact",
                dim=self.dim,
                numbers=self.numbers,
                **facts,
            )

    def health(self) -> dict:
        """Return kind, size, devices and recall: 1.0, or 0.99 on a TPU."""
        return {
            "kind": "exact",
            "size": len(self),
            "devices": self._mesh.size,
            "recall": 0.99 if _on_tpu() else 1.0,
        }

    @classmethod
    def load(cls, directory, mesh: Mesh | None = None) -> tuple["ExactIndex", dict]:
        folder, manifest, ids = read_manifest(directory, "exact")
        try:
            vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise RetrievalError(
                f"{folder} cannot be loaded ({error}): build the index again"
            ) from None
        numbers = manifest.get("numbers", False)
        return cls(
            unit_rows(vectors, manifest["dim"]),
            Rows(check_ids(ids, len(vectors), numbers), numbers),
            mesh,
        ), manifest

    def _sharded(self, vectors: np.ndarray, size: int = 0) -> jax.Array:
        """Place vectors with room for `size` rows, one block of rows per device."""
        devices = self._mesh.size
        length = -(-_power_of_two(max(size, len(vectors))) // devices) * devices
        return jax.device_put(_padded(vectors, length), NamedSharding(self._mesh, P("rows")))

    def _top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(queries)
        with jax.set_mesh(self._mesh):
            found = _jitted_top_k(
                self._vectors,
                _padded(queries, _power_of_two(count, 1)),
                len(self._rows),
                k=k,
                mesh=self._mesh,
            )
        return np.asarray(found[0])[:count], np.asarray(found[1])[:count]

    def _in_place(self, change, rows: list[int], what: np.ndarray) -> None:
        """Apply `change` to rows of the array, donating its memory.

        The rows are padded with an index beyond the end, which the update drops.
        """
        padding = _power_of_two(len(rows), 1) - len(rows)
        at = np.pad(np.array(rows, np.int32), (0, padding), constant_values=len(self._vectors))
        what = np.pad(what, [(0, padding)] + [(0, 0)] * (what.ndim - 1))
        with jax.set_mesh(self._mesh):
            self._vectors = change(self._vectors, at, what)


@functools.partial(jax.jit, donate_argnums=0)
def _put(vectors_ND, rows, new_MD):
    return jax.lax.with_sharding_constraint(vectors_ND.at[rows].set(new_MD, mode="drop"), P("rows"))


@functools.partial(jax.jit, donate_argnums=0)
def _move(vectors_ND, rows, came_from):
    return jax.lax.with_sharding_constraint(
        vectors_ND.at[rows].set(vectors_ND[came_from], mode="drop"), P("rows")
    )


def _on_tpu() -> bool:
    return jax.default_backend() == "tpu"


def _scores_top_k(vectors_ND, queries_QD, size, *, k: int, mesh: Mesh):
    """Return scores and rows [Q, k], best first; rows from `size` on are padding."""

    def block_top_k(vectors_BD, queries_QD, size):
        first = jax.lax.axis_index("rows") * len(vectors_BD)
        scores_QB = jnp.einsum(
            "qd,bd->qb", queries_QD, vectors_BD, precision=jax.lax.Precision.HIGHEST
        )
        scores_QB = jnp.where(first + jnp.arange(len(vectors_BD)) < size, scores_QB, -jnp.inf)
        some = min(k, len(vectors_BD))
        found = (
            jax.lax.approx_max_k(scores_QB, some, recall_target=0.99)
            if _on_tpu()
            else jax.lax.top_k(scores_QB, some)
        )
        return found[0], found[1] + first

    local = jax.shard_map(
        block_top_k, mesh=mesh, in_specs=(P("rows"), P(), P()), out_specs=P(None, "rows")
    )
    scores, rows = local(vectors_ND, queries_QD, size)
    best, at = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(rows, at, axis=1)


_jitted_top_k = jax.jit(_scores_top_k, static_argnames=("k", "mesh"))


def _power_of_two(size: int, least: int = 1024) -> int:
    return max(least, 1 << max(0, size - 1).bit_length())


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((length - len(rows), rows.shape[1]), np.float32)])
