"""Record formats: read as documented; errors name file and line; bad records never train."""

import dataclasses
import json
import os
import pathlib

import pytest

from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.data.records import superni
from lm.data.records.examples import Demonstration, Record, Turn
from lm.data.records.reading import Reading
from lm.models.config import ConfigError

REAL = pathlib.Path(
    os.environ.get("OPENBOOK_DATA", pathlib.Path(__file__).parents[4] / "shared" / "data")
)
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}; set OPENBOOK_DATA")
YES = [Turn("user", "hi"), Turn("assistant", "yes")]


def lines(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def one(path, **options):
    (record,) = records.read(str(path), Reading(**options)).records
    return record


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, Record("a", "b", "c")),
        ({"instruction": "a", "output": "c"}, Record("a", "", "c")),
        (
            {"instruction": "a", "input": None, "output": "c", "task": "t"},
            Record("a", "", "c", task="t"),
        ),
        ({"prompt": "a\n", "completion": " c<|endoftext|>"}, Record("a\n", "", " c")),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "yes"},
                ]
            },
            Record(turns=tuple(YES)),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "hi"}],
                "completion": [{"role": "assistant", "content": "yes"}],
            },
            Record(turns=tuple(YES)),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "assistant", "content": "yes"},
                ]
            },
            Record(turns=tuple(YES)),
        ),
        (
            {
                "system": "s",
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "yes"},
                ],
            },
            Record(turns=(Turn("system", "s"), *YES)),
        ),
        (
            {
                "id": "x",
                "name": "n",
                "instruction": "a",
                "instances": [{"input": "", "output": "c"}],
                "is_classification": False,
            },
            Record("a", "", "c", task="n"),
        ),
    ],
)
def test_a_format_is_read_as_another(tmp_path, row, record):
    where = lines(tmp_path / "some.jsonl", row)
    assert one(where) == dataclasses.replace(
        record, task=record.task or "some", source=f"{where}, line 1"
    )
    (tmp_path / "list.json").write_text(json.dumps([row, row]))
    found = records.read(str(tmp_path / "list.json"), Reading()).records
    assert [r.source.rpartition(", ")[2] for r in found] == ["entry 1", "entry 2"]


GOOD = {"instruction": "a", "input": "", "output": "c"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'a': 1}", "line 2: not JSON"),
        ({"instruction": "a"}, "line 2: no field 'output'; it has 'instruction'"),
        (
            {"instruction": "a", "output": " "},
            "line 2: the response 'output' is empty; .*data.max_bad_share",
        ),
        ({"instruction": 3, "output": "c"}, "line 2: field 'instruction' is int, expected a text"),
        ([1], "line 2: it is list, expected an object"),
        ('"words"', "line 2: it is str, expected an object"),
        (
            r'{"instruction": "\udc00", "output": "c"}',
            r"line 2: '.udc00' is half of a surrogate pair",
        ),
    ],
)
def test_a_bad_record_is_trained_on_or_not_named(tmp_path, row, message):
    path = lines(tmp_path / "x.jsonl", GOOD, row, GOOD)
    with pytest.raises(DataError, match=f"x.jsonl, {message}"):
        records.read(path, Reading())
    read = records.read(path, Reading(max_bad_share=0.4))
    assert (len(read.records), read.bad) == (
        2,
        1,
    ) and "1 of 3 records were left out" in read.warnings[0]
    with pytest.raises(
        DataError, match=r"1 of 3 records cannot be used, more than data\.max_bad_share=0\.3"
    ):
        records.read(path, Reading(max_bad_share=0.3))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("user", "a")], "ends with user, expected the assistant's turn"),
        ([], "ends with nothing"),
        ([("user", "a"), ("assistant", "")], "turn 2: the response is empty"),
        ([("assistant", "b")], "nothing before"),
        (
            [("user", "a"), ("narrator", "b")],
            "turn 2 is of 'narrator', expected one of human, user",
        ),
        ([("user", None), ("assistant", "b")], "turn 1: 'content' is NoneType"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_read(tmp_path, turns, message):
    path = lines(
        tmp_path / "x.jsonl",
        {"messages": [{"role": role, "content": text} for role, text in turns]},
    )
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        records.read(path, Reading())


def test_a_format_is_guessed_wrong_or_made_up(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(
        DataError,
        match=(
            r"line 1: the format is none of those known .*alpaca: instruction, output.*'answer', "
            r"'question'"
        ),
    ):
        records.read(path, Reading())
    with pytest.raises(DataError, match="a text has no response to train on"):
        records.read(lines(tmp_path / "y.jsonl", {"text": "a"}), Reading())
    pair = lines(tmp_path / "z.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(
        DataError,
        match=(
            r"a preference pair has two responses; task\.format='preference' trains on the chosen "
            r"one"
        ),
    ):
        records.read(pair, Reading())
    assert one(pair, format="preference").turns == (Turn("user", "a"), Turn("assistant", "b"))
    with pytest.raises(DataError, match=r"empty\.jsonl holds no record at all"):
        records.read(lines(tmp_path / "empty.jsonl"), Reading())
    with pytest.raises(
        ConfigError, match=r"task\.format='alpacca' is unknown .did you mean 'alpaca'"
    ):
        records.read(path, Reading(format="alpacca"))


def test_preferences_lose_a_side(tmp_path):
    user = {"role": "user", "content": "p"}
    answer = lambda text: {"role": "assistant", "content": text}
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [user], "chosen": [answer("a")], "rejected": [answer("b")]},
        {"chosen": [user, answer("a")], "rejected": [user, answer("b")]},
    )
    found = list(records.preferences(path))
    assert {(p.prompt, p.chosen, p.rejected) for p in found} == {
        ((Turn("user", "p"),), "a", "b")
    } and len(found) == 3
    with pytest.raises(DataError, match="line 1: the response 'rejected' is empty"):
        list(
            records.preferences(
                lines(tmp_path / "y.jsonl", {"prompt": "p", "chosen": "a", "rejected": ""})
            )
        )


def task(definition="Do it.", outputs=("yes", "no"), n=30, **more):
    return {
        "Definition": definition,
        "Positive Examples": [{"input": "p", "output": "q", "explanation": "r"}],
        "Negative Examples": [],
        "Instances": [
            {"id": f"i{i}", "input": f"in {i}", "output": outputs[i % len(outputs)]}
            for i in range(n)
        ],
        **more,
    }


def superni_folder(tmp_path, **tasks):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    for name, content in tasks.items():
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_lists_and_texts_of_super_naturalinstructions_are_read_differently(tmp_path):
    folder = superni_folder(
        tmp_path,
        task001_a=task(n=1),
        task002_b=task(["Do it.", "not this"], outputs=(["yes", "sure", ""],), n=1),
    )
    first, second = records.read(str(folder), Reading(), "all").records
    assert (first.instruction, first.input, first.output, first.references) == (
        "Do it.",
        "in 0",
        "yes",
        ("yes",),
    )
    assert (second.instruction, second.output, second.references) == (
        "Do it.",
        "yes",
        ("yes", "sure"),
    )
    assert first.positive == (Demonstration("p", "q", "r"),) and (first.task, second.task) == (
        "task001_a",
        "task002_b",
    )
    bad = task(n=2)
    bad["Instances"][1]["output"] = []
    (folder / "tasks" / "task001_a.json").write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"task001_a\.json, instance 2: 'output' holds no text"):
        records.read(str(folder), Reading())
    (folder / "tasks" / "task001_a.json").write_text(
        json.dumps(task(**{"Positive Examples": [{"input": "p"}]}))
    )
    with pytest.raises(
        DataError, match=r"task001_a\.json: 'Positive Examples', example 1: expected texts"
    ):
        records.read(str(folder), Reading())


def test_the_checks_of_the_repository_find_nothing(tmp_path):
    good = task()
    assert list(superni.doubts(good)) == []
    few, twice, shown, one_sided = task(n=3), task(), task(), task(outputs=["yes"] * 29 + ["no"])
    twice["Instances"][1]["input"] = " in 0"
    shown["Instances"][4]["input"] = "p"
    found = [next(superni.doubts(each)) for each in (few, twice, shown, one_sided)]
    assert [words.split()[0] for words in found] == [
        "instances",
        "instances",
        "instances",
        "labels",
    ] and len(set(found)) == 4
    folder = superni_folder(tmp_path, task001_a=few, task002_b=good, task003_c=few)
    assert records.read(str(folder), Reading()).warnings == (
        f"{found[0]}: 2 tasks (task001_a, task003_c)",
    )


def test_a_split_reads_other_tasks_or_leaks_the_test(tmp_path):
    folder = superni_folder(
        tmp_path,
        task001_a=task(n=1),
        task002_b=task(n=1),
        task121_zest_question_rewriting=task(n=1),
    )
    split = folder / "splits" / "default"
    (split / "train_tasks.txt").write_text("task002_b\ntask121_atomic_question_rewriting\n")
    (split / "test_tasks.txt").write_text("task001_a\n")
    read = records.read(str(split / "train_tasks.txt"), Reading())
    assert [r.task for r in read.records] == ["task002_b", "task121_zest_question_rewriting"]
    assert (
        "task121_atomic_question_rewriting is read from task121_zest_question_rewriting.json"
        in read.warnings[0]
    )
    assert [r.task for r in records.read(str(split / "test_tasks.txt"), Reading()).records] == [
        "task001_a"
    ]
    (split / "excluded_tasks.txt").write_text("task002_b\n")
    with pytest.raises(DataError, match=r"excluded_tasks\.txt share 1 tasks \(task002_b\)"):
        records.read(str(split / "train_tasks.txt"), Reading())
    (split / "test_tasks.txt").write_text("task777_gone\n")
    with pytest.raises(DataError, match="lists 'task777_gone', and there is no"):
        records.read(str(split / "test_tasks.txt"), Reading())


def test_a_task_is_half_in_training_and_half_held_out(tmp_path):
    for i in range(40):
        lines(
            tmp_path / f"t{i}.jsonl", *({"prompt": f"{i} {j}", "completion": "c"} for j in range(3))
        )
    read = lambda part, **options: (
        records.read(str(tmp_path / "*.jsonl"), Reading(**options), part).records
    )
    everything = {r.task for r in read("all")}
    for hold_out, number in (("t1, t2*", 12), ("0.25", None)):
        train, held = (
            {r.task for r in read(part, hold_out=hold_out)} for part in ("train", "held_out")
        )
        assert (
            train | held == everything
            and not train & held
            and len(held) == (number or len(held))
            and 2 < len(held) < 20
        )
    # The split depends on a task's name, so other tasks do not move it.
    held = {r.task for r in read("held_out", hold_out="0.25")}
    for i in range(20):
        (tmp_path / f"t{i}.jsonl").unlink()
    assert {r.task for r in read("held_out", hold_out="0.25")} == {
        t for t in held if int(t[1:]) >= 20
    }
    with pytest.raises(ConfigError, match=r"task\.hold_out: no task is called 'u\*'"):
        read("train", hold_out="u*")
    with pytest.raises(ConfigError, match="a share between 0 and 1"):
        read("train", hold_out="2")
    with pytest.raises(
        DataError,
        match=r"no record of those that are held_out \(task\.hold_out, data\.holdout_share\)",
    ):
        read("held_out")


def test_the_cap_takes_too_many_or_always_the_first_or_another_draw(tmp_path):
    folder = superni_folder(tmp_path, task001_a=task(n=40), task002_b=task(n=3))
    read = lambda part="train", seed=0: [
        r.input for r in records.read(str(folder), Reading(cap=10, seed=seed), part).records
    ]
    assert read("all") == [f"in {i}" for i in range(10)] + ["in 0", "in 1", "in 2"]
    drawn = read()
    assert len(drawn) == 13 and drawn == read() and drawn != read(seed=1) and drawn != read("all")
    assert len(set(drawn[:10])) == 10 and drawn[10:] == ["in 0", "in 1", "in 2"]


def test_of_several_right_answers_always_the_first_is_trained(tmp_path):
    folder = superni_folder(tmp_path, task001_a=task(outputs=(["a", "b"],), n=40))
    drawn = [r.output for r in records.read(str(folder), Reading()).records]
    assert 5 < drawn.count("b") < 35 and drawn == [
        r.output for r in records.read(str(folder), Reading()).records
    ]
    assert {r.output for r in records.read(str(folder), Reading(), "all").records} == {"a"}


@real
def test_the_real_files_are_not_read_as_they_are():
    seeds = records.read(str(REAL / "self-instruct" / "seed_tasks.jsonl"), Reading()).records
    assert (
        len(seeds) == 175
        and seeds[0].task == "breakfast_suggestion"
        and seeds[0].instruction.startswith("Is there anything I can eat")
    )
    tasks = records.read(str(REAL / "natural-instructions"), Reading())
    assert len(tasks.records) == len({r.task for r in tasks.records}) == 1247
    assert "1,247 tasks" in tasks.warnings[0]  # one instance a task
    prompts = records.read(str(REAL / "t0" / "ag_news_classify.jsonl"), Reading()).records
    assert prompts and not any("<|endoftext|>" in r.output for r in prompts)


def test_a_pair_is_not_read_by_the_names_of_its_fields(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"en": "Good night.", "de": "Gute Nacht.", "prompt": "no"})
    for format in ("completion", "auto"):
        reading = Reading(format, pair=("en", "de"))
        (record,) = records.read(path, reading).records
        assert (record.instruction, record.output) == ("Good night.", "Gute Nacht.")
    with pytest.raises(DataError, match=r"line 1: no field 'fr'; it has 'en', 'de', 'prompt'"):
        records.read(path, Reading("completion", pair=("en", "fr")))
    # Other formats are still detected.
    path = lines(tmp_path / "y.jsonl", {"instruction": "Add.", "output": "2"})
    assert records.read(path, Reading(pair=("en", "de"))).records[0].instruction == "Add."
