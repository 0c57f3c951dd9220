"""Evaluate search against relevance judgements.

python -m retrieval.evaluate_search --memory=DIR --beir=FOLDER
python -m retrieval.evaluate_search --memory=DIR --queries=FILE --qrels=FILE
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from retrieval import build, measures
from retrieval.cli import add_encoder_option, entry_point, open_memory, parser
from retrieval.errors import RetrievalError
from retrieval.sanitising import as_json
from retrieval.search import MODES
from retrieval.store.locations import exists

ABOUT = (
    "Measure search against judgements (qrels): recall, nDCG, MAP and MRR, "
    "as trec_eval computes them."
)
EPILOG = (
    "A BEIR folder has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv. With --encoder, a memory "
    "that does not exist is built from it\nfirst, as `retrieval.build --beir=FOLDER` does. A "
    "document that was cut into passages ranks where its best passage does. As in\nBEIR, a "
    "document with the query's own id is left out."
)


def documents(ids: Sequence[str], names: set[str], query: str) -> list[str]:
    """Return the distinct documents of ranked passages, best first, without the query's own.

    NAME:2 belongs to NAME where the memory has a passage of that name.
    """
    owner = lambda id: (
        name
        if (name := id.rpartition(":")[0]) in names and id.rpartition(":")[2].isdecimal()
        else id
    )
    return [id for id in dict.fromkeys(map(owner, ids)) if id != query]


@entry_point
def main(argv=None):
    options = parser("retrieval.evaluate_search", ABOUT, EPILOG)
    options.add_argument("--beir", type=Path, metavar="FOLDER", help="a folder of BEIR's layout")
    options.add_argument("--split", default="test", help="which judgements of the folder")
    options.add_argument(
        "--queries", type=Path, metavar="FILE", help="JSON lines with _id and text"
    )
    options.add_argument(
        "--qrels", type=Path, metavar="FILE", help="query-id, corpus-id and score, divided by tabs"
    )
    options.add_argument(
        "-k", type=int, nargs="+", default=[1, 5, 10, 100], help="recall at these ranks; nDCG at 10"
    )
    options.add_argument(
        "--depth", type=int, default=1000, help="passages to retrieve, which MAP and MRR look at"
    )
    options.add_argument(
        "--mode",
        choices=MODES,
        default="dense",
        help="by vectors, by words (BM25), or both fused by rank",
    )
    add_encoder_option(options)
    args = options.parse_args(argv)
    if bool(args.beir) == bool(args.queries and args.qrels):
        options.error("give either --beir=FOLDER or both --queries=FILE and --qrels=FILE")
    if min(args.k) < 1 or args.depth < max(args.k):
        options.error(
            f"--depth={args.depth}, -k {args.k}: expected ranks from 1 on, none beyond the depth"
        )
    queries = measures.read_queries(args.queries or args.beir / "queries.jsonl")
    qrels = measures.read_qrels(args.qrels or args.beir / "qrels" / f"{args.split}.tsv")
    judged = {id: grades for id, grades in qrels.items() if max(grades.values()) > 0}
    if lost := [id for id in judged if id not in queries]:
        raise RetrievalError(
            f"{len(lost):,} judged queries have no text, such as {lost[0]!r}: give the queries "
            "that belong to these judgements"
        )
    if not judged:
        raise RetrievalError("no query has a relevant document: nothing can be measured")
    if args.beir and args.encoder and not exists(args.memory):
        made = ["--json"] if args.json else []
        built = [f"--memory={args.memory}", f"--encoder={args.encoder}", f"--beir={args.beir}"]
        with contextlib.redirect_stdout(sys.stderr):
            code = build.main([*built, *made])
        if code:
            return code
    memory = open_memory(args.memory, args.encoder)
    names = set(memory.ids())
    if not any(names.intersection(grades) for grades in judged.values()):
        raise RetrievalError(
            "the memory holds none of the judged documents: build it with --id-field naming the "
            "field of their ids, such as _id"
        )
    from retrieval import EVERY_GROUP

    found = memory.search(
        [queries[id] for id in judged], args.depth, mode=args.mode, groups=EVERY_GROUP
    )
    ranked = [
        documents([hit.id for hit in hits], names, id)
        for id, hits in zip(judged, found, strict=True)
    ]
    pairs = list(zip(ranked, judged.values(), strict=True))
    mean = lambda measure, *at: (
        sum(measure(ranking, grades, *at) for ranking, grades in pairs) / len(pairs)
    )
    figures = {f"recall@{k}": mean(measures.recall, k) for k in args.k}
    figures |= {
        "ndcg@10": mean(measures.ndcg, 10),
        "map": mean(measures.average_precision),
        "mrr": mean(measures.reciprocal_rank),
    }
    if args.json:
        print(as_json({"queries": len(judged), "mode": args.mode, **figures}))
        return 0
    print(f"{len(judged):,} queries, {args.mode}")
    print("\n".join(f"  {name:<12}{value:.4f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
