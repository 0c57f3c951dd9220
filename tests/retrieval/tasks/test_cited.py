"""Reinforcement learning with passages: the prompt, the rewards, a run, and bad input."""

import json
import types

import pytest

from configs.memory import cite
from lm import rewards
from lm.data import templates, tokenizers
from lm.data.read.sources import DataError
from lm.families import preset
from lm.models.config import ConfigError
from lm.tasks.checked import Checked
from lm.tasks.task import Tools
from lm.training import loop, settings, trackers
from retrieval import Encoder, Memory, Passage
from retrieval.doors.prompt import build_prompt
from retrieval.tasks import cited
from tests.lm.tasks import policies
from tests.retrieval.models import save_encoder

pytest.importorskip("torch")
SHOWN = {"passages": ["Oslo lies in Norway.", "Bergen: a town in Norway", "Rome is old."]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder, a memory of towns, and questions about them."""
    folder = tmp_path_factory.mktemp("cited")
    save_encoder(folder / "encoder")
    memory = Memory.create(folder / "memory", Encoder.from_hf(folder / "encoder"))
    memory.add([Passage(f"p{i}", f"town {i} lies in land {i * 7 % 13}") for i in range(12)])
    asked = [
        {"question": f"where is town {i}", "answer": [f"land {i * 7 % 13}"]} for i in range(12)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder


def tools(length=300):
    tokenizer = tokenizers.bytes_only()
    model = preset("llama", "tiny", vocab_size=320)
    plain = templates.get("plain", tokenizer)
    return Tools(model, tokenizer, plain, "", length, 0, None)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("text", "right", "supports"),
    [
        ("Norway [1]", 1, 1),
        ("norway. [2][1]", 1, 1),
        ("Norway [1] [3]", 1, 0.5),
        ("Norway", 1, 0),
        ("Norway [7]", 1, 0),
        ("Rome [3]", 0, 1),
        ("Rome [1]", 0, 0),
        ("[1]", 0, 0),
        ("Nor [1]", 0, 0),
    ],
)
def test_a_citation_is_rewarded_that_supports_nothing(text, right, supports):
    answer = rewards.Answer("where", text, {**SHOWN, "answer": ["Norway"]})
    assert (cited.right(answer), cited.supports(answer)) == (right, supports)


def test_the_prompt_is_not_that_of_ask_or_the_record_lacks_its_passages(folder):
    task = Checked(cited.CitedGRPO(memory=str(folder / "memory"), k=3, new_tokens=8))
    given = tools()
    rows = task.rows(str(folder / "asked.jsonl"), "train", given)
    assert len(rows) == 12 and rows.texts[3] == "where is town 3"
    memory = Memory.open(folder / "memory", Encoder.from_hf(folder / "encoder"))
    hits = memory.search(["where is town 3"], 3)[0]
    shown = rows.records[3]["passages"]
    assert shown == [hit.text for hit in hits][: len(shown)] and shown
    text = given.tokenizer.decode(rows.ids[3])
    assert cited.INSTRUCTION in text and f"[1] {shown[0]}" in text
    same = build_prompt(given.tokenizer, "where is town 3", hits[: len(shown)], 292)
    asked = given.tokenizer.decode(same.tokens)
    assert text.partition("Use these facts:")[2] == asked.partition("Use these facts:")[2]
    held = types.SimpleNamespace(**{**vars(given), "holdout_share": 0.5})
    parts = [len(task.rows(str(folder / "asked.jsonl"), p, held)) for p in ("train", "holdout")]
    assert sum(parts) == 12 and min(parts) > 0
    with pytest.raises(DataError, match=r"asked\.jsonl, line 1: the question .*raise length, or"):
        task.rows(str(folder / "asked.jsonl"), "train", tools(60))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("memory", "", "task.memory is not set"),
        ("memory", "no/such", "task.memory: "),
        ("k", 0, "task.k=0: expected at least 1"),
        ("instruction", " ", "task.instruction is empty"),
        ("group", 1, "task.group=1"),
    ],
)
def test_a_wrong_value_is_accepted(folder, tmp_path, field, value, words):
    fields = {"memory": str(folder / "memory"), field: value}
    with pytest.raises(ConfigError, match=words):
        settings.check(config(tmp_path, folder, **fields), 8)


def config(tmp_path, folder, **fields):
    name = "retrieval.tasks.cited:CitedGRPO"
    fields = {"rewards": cited.REWARDS, "memory": str(folder / "memory"), "k": 2, **fields}
    return policies.config(
        tmp_path,
        name,
        fields=fields,
        **{"data.files": str(folder / "asked.jsonl"), "length": 320, "model.max_length": 512},
    )


@pytest.mark.slow
def test_the_config_does_not_run(folder, tmp_path):
    base = policies.config(tmp_path, **{"length": 320, "model.max_length": 512, "steps": 1})
    assert loop.train(base, tmp_path / "base") == 0
    c = cite.get_config("tiny")
    c.init_from, c.data.files = str(tmp_path / "base"), str(folder / "asked.jsonl")
    c.task.memory, c.log.tensorboard = str(folder / "memory"), False
    c.evals = {"held": {"type": "rewards", "files": c.data.files, "every": 4}}
    assert loop.train(c, tmp_path / "run") == 0
    found = trackers.read(tmp_path / "run")
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert {"eval/held/right", "eval/held/supports"} <= set().union(*found)
