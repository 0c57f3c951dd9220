"""Texts are predicted in strides, with passages that were found before each."""

import dataclasses
import json

import numpy as np
import pytest

from retrieval import evaluate_text
from retrieval.doors.door import named
from retrieval.errors import RetrievalError
from retrieval.reading import reader as readers
from retrieval.reading import texts
from tests.retrieval.doors.readers import hits, next_log_probs, reader

pytestmark = pytest.mark.usefixtures("compiled_once")

TEXT = "the cat sat on it"


@dataclasses.dataclass
class Found:
    """A memory that finds the same passages, and remembers what it was asked."""

    hits: list
    asked: list = dataclasses.field(default_factory=list)

    def search(self, texts, k=5):
        self.asked += texts
        return [self.hits[:k] for _ in texts]


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("mamba", "t5"))]
)
@pytest.mark.parametrize("name", ["in_context", "replug"])
def test_every_stride_is_predicted_after_its_passages(name, family):
    made, memory = reader(family), Found(hits("a cat in a hat", "some other thing entirely"))
    door = named(f"{name},stride=5,query=7")
    found = texts.score([TEXT], made, door, memory, k=2)
    ids = made.tokenizer(TEXT)["input_ids"]
    passages = [made.tokenizer(f"{hit.text}\n")["input_ids"] for hit in memory.hits]
    rows = [passages[0] + passages[1]] if name == "in_context" else passages
    weights = np.exp([hit.score for hit in memory.hits])
    weights = [1.0] if name == "in_context" else weights / weights.sum()
    nats, queries = 0.0, []
    for start in range(1, len(ids), 5):
        queries.append(made.tokenizer.decode(ids[max(0, start - 7) : start]))
        for at in range(start, min(start + 5, len(ids))):
            each = [next_log_probs(made, row + ids[:start], ids[start:at])[ids[at]] for row in rows]
            nats -= np.log(np.dot(weights, np.exp(each)))
    assert memory.asked == queries and found.tokens == found.bytes == len(ids) - 1
    np.testing.assert_allclose(found.nats, nats, rtol=1e-5)
    assert found.passages == 2 * len(queries) and found.cut == 0
    assert found.perplexity == pytest.approx(np.exp(nats / (len(ids) - 1)), rel=1e-4)


def test_a_text_without_memory_is_scored_by_the_weights():
    made, ids = reader("gpt2"), reader("gpt2").tokenizer(TEXT)["input_ids"]
    alone = texts.score([TEXT], made, named("in_context,stride=5"), None)
    nats = -sum(next_log_probs(made, ids[:at], [])[ids[at]] for at in range(1, len(ids)))
    np.testing.assert_allclose(alone.nats, nats, rtol=1e-5)


@pytest.mark.parametrize(
    "door, message",
    [
        ("in_context", "stride=0: a text is predicted in strides; expected 1 to 255"),
        ("replug,stride=300", "stride=300: a text is predicted in strides"),
        ("rag_sequence", "mixes the probabilities of whole answers: for a text"),
        ("fid,stride=4", "a gpt2 model here is a decoder"),
    ],
)
def test_a_door_that_predicts_no_text_is_refused(door, message):
    with pytest.raises(RetrievalError, match=message):
        texts.score([TEXT], reader("gpt2"), named(door), None)


def test_the_command_prints_what_the_memory_gains(memory, tmp_path, monkeypatch, capsys):
    made = reader("gpt2")
    monkeypatch.setattr(readers, "door_of", lambda path, asked: named(asked))
    monkeypatch.setattr(readers, "load_reader", lambda path, door: made)
    monkeypatch.setattr(evaluate_text, "open_memory", lambda path, encoder: memory)
    (tmp_path / "a.jsonl").write_text('{"text": "town3 lies in la"}\n{"text": "another"}\n')
    command = ["--memory=m", "--reader=r", f"--data={tmp_path}/a.jsonl", "--max-texts=1"]
    command += ["--door=in_context,stride=5,query=7", "--controls", "-k=2"]
    assert evaluate_text.main([*command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["condition"] for row in rows] == ["closed-book", "open-book", "shuffled", "random"]
    assert [row["passages"] > 0 for row in rows] == [False, True, True, True]
    assert {row["tokens"] for row in rows} == {15} and rows[0]["gain"] == 0
    assert len({row["nats"] for row in rows}) == 4
    assert evaluate_text.main(command[:-2]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("closed-book: perplexity ")
    assert "passages read; " in said[1] and said[1].endswith("perplexity gained over closed-book)")
