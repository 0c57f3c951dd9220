"""LMLM: which tokens have no loss, swaps that text and call share, and values from the memory."""

import json
from pathlib import Path

import numpy as np
import pytest

import lm
from configs.memory import lmlm as config
from lm import tasks
from lm.data.read.sources import DataError
from lm.generation.engine import Engine
from lm.generation.requests import Request
from lm.models.config import ConfigError
from lm.training import loop, setup
from lm.weights.runs import paths
from retrieval import Memory, Passage
from retrieval.doors import calls
from retrieval.doors.lookup import LookUp
from retrieval.errors import RetrievalError
from retrieval.tasks.lmlm import LMLM, Annotated, Fact, packed, spelled
from tests.lm.training import runs
from tests.retrieval.datastore.stores import observer
from tests.retrieval.models import byte_tokenizer
from tests.retrieval.toy import encode

ROOT = Path(__file__).parents[3]
NAME = "retrieval.tasks.lmlm:LMLM"
TEXT = "Zorba lies in Kelland, by a lake. Mirra (Oswen) is old."
FACTS = (Fact("Zorba", "land", "Kelland", 14), Fact("Mirra", "land", "Oswen", 41))
RECORD = Annotated(TEXT, FACTS, "x")
SPELLED = (
    "Zorba lies in [[ Zorba | land -> {0} ]] {1}, by a lake. Mirra ( [[ Mirra | land -> Oswen ]]"
    "Oswen) is old."
)


def of(values, record=RECORD):
    """(text of all tokens but the first and last, text of those without weight)."""
    tokenizer = byte_tokenizer(None)
    ids, weights, _ = spelled(record, values, tokenizer)
    assert ids[0] == ids[-1] == tokenizer.eos_token_id and weights[-1] == 1
    inner, held = ids[1:-1], weights[1:-1] == 0
    return tokenizer.decode(inner), tokenizer.decode(inner[held])


def test_the_values_of_calls_and_no_other_tokens_have_no_loss():
    text, held = of(["Kelland", "Oswen"])
    assert text == SPELLED.format("Kelland", "Kelland")
    assert held == " Kelland ]] Oswen ]]"
    # a swapped value is that of the call and of the mention
    text, held = of(["Calder", "Oswen"])
    assert text == SPELLED.format("Calder", "Calder") and held == " Calder ]] Oswen ]]"
    # what the memory does not know is not learned from the mention either
    text, held = of([None, "Oswen"])
    assert text == SPELLED.format("unknown", "Kelland")
    assert held == " unknown ]] Kelland Oswen ]]"


def test_swaps_and_dropout_come_at_their_shares_and_from_values_of_the_relation():
    lands = [f"land{i}" for i in range(9)]
    records = [
        Annotated(f"t {land} x", (Fact("t", "land", land, 2), Fact("t", "end", "x", 8)), "")
        for land in lands
    ]
    drawn = list(LMLM(swap=0.4, dropout=0.25, copies=100).drawn(records, 0))
    values = [(record.facts[0].value, found[0]) for record, found in drawn]
    lost = np.mean([new is None for _, new in values])
    swapped = np.mean([new not in (None, old) for old, new in values])
    assert lost == pytest.approx(0.25, abs=0.05) and swapped == pytest.approx(0.3, abs=0.05)
    assert {new for _, new in values} == {*lands, None}
    assert {found[1] for _, found in drawn} == {"x", None}  # the only one of its relation
    assert drawn == list(LMLM(swap=0.4, dropout=0.25, copies=100).drawn(records, 0))
    assert all(found == ["land0", "x"] for _, found in LMLM().drawn(records[:1], 0))


def test_rows_keep_the_weights_of_their_texts():
    texts = [spelled(RECORD, ["Kelland", None], byte_tokenizer(None)) for _ in range(2)]
    rows = packed(texts, 32)  # texts are longer than rows
    assert rows.extra["weights"].sum() == sum(weights[1:].sum() for _, weights, _ in texts)
    assert np.count_nonzero(rows.segments) == sum(len(ids) - 1 for ids, *_ in texts)
    assert not np.any(rows.extra["weights"][rows.segments == 0])


@pytest.mark.parametrize(
    "row, said",
    [
        ({"facts": []}, "field 'text' is None"),
        ({"text": "a b"}, "field 'facts' is None: expected a list"),
        ({"text": "a b", "facts": [{"entity": "a"}]}, "expected an object with the texts entity"),
        ({"text": "a b", "facts": ["a"]}, "expected an object with the texts entity"),
        (
            {"text": "a b", "facts": [{"entity": "a", "relation": "r", "value": "c"}]},
            "its value is not in the text",
        ),
        (
            {"text": "a b", "facts": [{"entity": "a", "relation": "r|s", "value": "b"}]},
            "contains '|', which marks calls",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named_with_its_line(tmp_path, row, said):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    c = runs.config(tmp_path, task=tasks.defaults(NAME), **{"data.files": str(file)})
    with pytest.raises(DataError, match=r"a\.jsonl, line 1") as error:
        setup.training_data(c, setup.prepare(c, paths.resolve(str(tmp_path / "run"))))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "own", [{"swap": 1.5}, {"dropout": -0.1}, {"copies": 0}, {"separator": "-"}]
)
def test_a_setting_out_of_range_is_named(tmp_path, own):
    c = runs.config(tmp_path, task=tasks.defaults(NAME, **own))
    with pytest.raises(ConfigError, match=f"task.{next(iter(own))}="):
        setup.prepare(c, paths.resolve(str(tmp_path / "run")))


@pytest.fixture
def facts(tmp_path):
    memory = Memory.create(tmp_path / "memory", encode)
    towns = {"Zorba": "Kelland", "Mirra": "Oswen"}
    memory.add([Passage(name, f"land: {of}", title=name) for name, of in towns.items()])
    return memory


def test_generation_takes_the_value_of_a_call_from_the_newest_memory(facts):
    """One edit changes the next text, undo restores the old; a value never mixes two versions."""
    one = observer("gpt2")
    tokenizer, size = one.tokenizer, 24
    prompt = [tokenizer.eos_token_id, *calls.asked(tokenizer, "zorba", "Land")]
    hook = LookUp(memory=facts, tokenizer=tokenizer)
    engine = Engine(one.model, length=64, rows=2, stop_tokens=[])

    def written(tokens=prompt, hook=hook):
        [found] = engine.run(one.params, [Request(tokens, size)], [hook])
        cited = {source.passage for sources in found.sources for source in sources}
        return tokenizer.decode(found.answer), cited

    text, cited = written()
    assert text.startswith(" Kelland ]]") and cited == {"Zorba"}
    assert len(text) > len(" Kelland ]]"), "the model goes on after the value"
    facts.edit("Zorba", "land: Newland [[ x")
    assert written()[0].startswith(" Newland x ]]")
    facts.undo()
    assert written()[0] == text
    facts.delete(["Zorba", "Mirra"])
    assert written() == (written()[0], set()) and written()[0].startswith(" unknown ]]")
    facts.undo()

    search, changed = facts.search, []

    def changing(*args, **options):
        found = search(*args, **options)
        if not changed:
            changed.append(facts.edit("Zorba", "land: Elsewhere"))
        return found

    facts.search = changing
    assert written()[0].startswith(" Kelland ]]") and changed
    assert written()[0].startswith(" Elsewhere ]]")


def test_a_call_is_found_where_its_value_is_being_given_and_nowhere_else():
    tokenizer = byte_tokenizer(None)
    call, value = calls.asked(tokenizer, "A b", "r"), calls.given(tokenizer, "v w")
    text = tokenizer("He said")["input_ids"]
    for start in ([], [*text, *call, *value]):
        for done in range(len(value)):
            found = calls.pending(tokenizer, [*start, *text, *call, *value[:done]])
            assert found == (len([*start, *text, *call]), "A b", "r")
        assert calls.pending(tokenizer, [*start, *text, *call, *value]) is None
        assert calls.pending(tokenizer, [*start, *text, *call[:-1]]) is None


@pytest.mark.parametrize(
    "own, said",
    [({"memory": None}, "memory is not given"), ({"threshold": "high"}, "threshold='high'")],
)
def test_a_hook_without_its_parts_is_refused(facts, own, said):
    with pytest.raises(RetrievalError, match=said):
        LookUp(**{"memory": facts, "tokenizer": byte_tokenizer(None), **own})


@pytest.mark.slow
def test_a_model_of_the_config_copies_the_value_that_the_memory_gives(tmp_path, facts, monkeypatch):
    monkeypatch.chdir(ROOT)
    c = config.get_config("tiny")
    c.data.cache, c.log.tensorboard = str(tmp_path / "cache"), False
    assert loop.train(c, tmp_path / "run") == 0
    model, params, tokenizer = lm.weights.loading.load(str(tmp_path / "run"))
    facts.edit("Zorba", "land: Oswen")
    hook = LookUp(memory=facts, tokenizer=tokenizer)
    prompt = [
        tokenizer.eos_token_id,
        *tokenizer("Zorba is a town in", add_special_tokens=False)["input_ids"],
    ]
    prompt += calls.asked(tokenizer, "Zorba", "land")
    [answer] = lm.generate(model, params, [prompt], 16, hooks=[hook], stop_tokens=[])
    assert tokenizer.decode(answer).startswith(" Oswen ]] Oswen")
