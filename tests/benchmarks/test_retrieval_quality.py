"""The retrieval quality benchmark: figures of known ranks, and a reference on real data."""

import json
import os
import pathlib

import pytest

from lm.data import samples
from retrieval import Encoder
from tests.benchmarks import retrieval_quality
from tests.retrieval.toy import encode

XQUAD = (
    pathlib.Path(
        os.environ.get("OPENBOOK_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")
    )
    / "xquad"
    / "xquad.en.dev.json"
)


def test_a_rank_is_counted_wrongly(tmp_path):
    paragraphs = [
        {"context": f"word{i} other{i}", "qas": [{"question": f"word{i}"}]} for i in range(30)
    ]
    # This question names a word of another paragraph, so its own is not found by words.
    paragraphs[0]["qas"].append({"question": "word7"})
    (tmp_path / "squad.json").write_text(
        json.dumps({"data": [{"paragraphs": paragraphs[:10]}, {"paragraphs": paragraphs[10:]}]})
    )
    passages, questions = retrieval_quality.read(tmp_path / "squad.json")
    assert (len(passages), len(questions), questions[1]) == (30, 31, ("word7", "p0"))
    found = retrieval_quality.measured(passages, questions, encode)["lexical"]
    assert found == pytest.approx(
        {"recall@1": 30 / 31, "recall@5": 30 / 31, "recall@20": 30 / 31, "mrr": 30 / 31}
    )


@pytest.mark.slow
def test_minilm_differs_from_sentence_transformers_or_finds_less_than_it_did():
    pytest.importorskip("sentence_transformers")
    if not XQUAD.is_file():
        pytest.skip(
            f"{XQUAD} is not there: set OPENBOOK_DATA to a folder with xquad/xquad.en.dev.json"
        )
    try:
        path = str(samples.fetch("minilm"))
    except (OSError, ValueError) as error:
        pytest.skip(f"no MiniLM: {error}")
    encoder, (passages, questions) = Encoder.from_hf(path), retrieval_quality.read(XQUAD)
    apart = retrieval_quality.difference(path, [p.text for p in passages], encoder)
    assert apart is not None and apart < 1e-4
    found = retrieval_quality.measured(passages, questions, encoder)
    assert found["dense"]["recall@5"] > 0.95 and found["hybrid"]["mrr"] >= found["dense"]["mrr"]
