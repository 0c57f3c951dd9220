"""Retrieval quality of a memory by vectors, by words and by both.

python -m tests.benchmarks.retrieval_quality --data=xquad.en.json [--encoder=PATH] [--json]

Passages are the paragraphs of a SQuAD file and queries its questions; only a question's own
paragraph counts as right. If sentence-transformers is installed, its vectors of the same weights
are compared too, for every paragraph and question.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile

import numpy as np

from lm.data import samples
from retrieval import Encoder, Memory, Passage
from retrieval.search.ranking import MODES

AT = (1, 5, 20)
DEEP = 100  # hits a question; a passage that is not among them counts as not found


def read(path: pathlib.Path) -> tuple[list[Passage], list[tuple[str, str]]]:
    """Read (paragraphs, (question, id of its paragraph)) from a SQuAD file."""
    passages, questions = [], []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            id = f"p{len(passages)}"
            passages.append(Passage(id, paragraph["context"]))
            questions += [(asked["question"], id) for asked in paragraph["qas"]]
    return passages, questions


def places(memory: Memory, questions: list[tuple[str, str]], mode: str) -> np.ndarray:
    """Rank of each question's paragraph from 1, infinity if it is not found. float64 [N]"""
    found = memory.search(
        [question for question, _ in questions], min(DEEP, len(memory)), mode=mode
    )
    ranks = [[hit.id for hit in hits] for hits in found]
    return np.array(
        [
            ids.index(id) + 1 if id in ids else np.inf
            for ids, (_, id) in zip(ranks, questions, strict=True)
        ]
    )


def measured(
    passages: list[Passage], questions: list[tuple[str, str]], encoder
) -> dict[str, dict[str, float]]:
    """mode -> {"recall@1" ..., "mrr"} of a memory of these passages."""
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory.create(pathlib.Path(folder) / "memory", encoder)
        memory.add(passages)
        ranks = {mode: places(memory, questions, mode) for mode in MODES}
    return {
        mode: {f"recall@{k}": float((rank <= k).mean()) for k in AT}
        | {"mrr": float((1 / rank).mean())}
        for mode, rank in ranks.items()
    }


def difference(path: str, texts: list[str], encoder: Encoder) -> float | None:
    """Largest difference of a component from sentence-transformers' vectors; None without it."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer, models

    module = models.Transformer(path, max_seq_length=encoder.max_length)
    reference = SentenceTransformer(
        modules=[module, models.Pooling(module.get_word_embedding_dimension(), "mean")],
        device="cpu",
    )
    theirs = reference.encode(texts, normalize_embeddings=True, convert_to_numpy=True)
    return float(np.abs(encoder(texts) - theirs).max())


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.retrieval_quality",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument(
        "--data",
        required=True,
        type=pathlib.Path,
        metavar="FILE",
        help="a SQuAD v1.1 file, such as XQuAD's",
    )
    parser.add_argument(
        "--encoder", metavar="PATH", help="directory or hub id (default: MiniLM of lm.data.samples)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if not args.data.is_file():
        parser.error(f"--data={args.data} is no file: expected a SQuAD v1.1 file")
    path = args.encoder or str(samples.fetch("minilm"))
    encoder, (passages, questions) = Encoder.from_hf(path), read(args.data)
    found = measured(passages, questions, encoder)
    apart = difference(
        path, [p.text for p in passages] + [question for question, _ in questions], encoder
    )
    if args.json:
        print(
            json.dumps(
                {
                    "passages": len(passages),
                    "questions": len(questions),
                    "modes": found,
                    "difference": apart,
                }
            )
        )
        return 0
    print(f"{len(passages)} passages, {len(questions)} questions\n")
    print(
        "| mode | "
        + " | ".join(next(iter(found.values())))
        + " |\n|---"
        + "|---" * (len(AT) + 1)
        + "|"
    )
    for mode, values in found.items():
        print(f"| {mode} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |")
    print(
        "\nsentence-transformers is not installed"
        if apart is None
        else f"\nlargest difference from sentence-transformers: {apart:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
