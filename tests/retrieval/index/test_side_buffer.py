import numpy as np

from retrieval.index.side_buffer import Unproven


def test_rows_put_dropped_and_proven_are_merged_as_a_search_of_both_would(rng):
    unproven, held, put = Unproven(8), {}, {}
    others = {f"o{i}": row for i, row in enumerate(rng.normal(size=(30, 8)).astype(np.float32))}
    look = 0
    for turn in range(60):
        ids = [f"u{i}" for i in rng.choice(40, 5, replace=False)] + [f"o{rng.integers(30)}"]
        rows = rng.normal(size=(6, 8)).astype(np.float32)
        unproven.put(rows, ids)
        held |= dict(zip(ids, rows, strict=True))
        put |= dict.fromkeys(ids, turn)
        gone = [f"u{i}" for i in rng.choice(40, 3, replace=False)]  # some of them unknown
        unproven.drop(gone)
        held = {id: row for id, row in held.items() if id not in gone}
        if turn % 10 == 5:
            look, since = unproven.look(), turn
        if turn % 10 == 8:
            unproven.proven(look)
            held = {id: row for id, row in held.items() if put[id] > since}
        assert sorted(unproven.ids()) == sorted(held) and len(unproven.sample(4)) <= max(
            4, len(held)
        )
        # A searcher would have the newest vectors.
        searched = others | {id: row for id, row in held.items() if id in others}
        for count, k in ((1, 5), (3, 5), (2, 100)):
            queries = rng.normal(size=(count, 8)).astype(np.float32)
            found = [
                sorted(((float(q @ row), id) for id, row in searched.items()), reverse=True)[:k]
                for q in queries
            ]
            ids, scores = unproven.beside(
                queries,
                k,
                [[id for _, id in one] for one in found],
                [np.array([s for s, _ in one], np.float32) for one in found],
            )
            for query, names, values in zip(queries, ids, scores, strict=True):
                right = sorted(
                    ((float(query @ row), id) for id, row in (searched | held).items()),
                    reverse=True,
                )[:k]
                assert names == [id for _, id in right] and values.dtype == np.float32
                np.testing.assert_allclose(
                    values, [score for score, _ in right], rtol=1e-5, atol=1e-5
                )
