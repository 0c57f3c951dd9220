"""Fields of chat files: trained turns, tool calls, reasoning, system, history; none is dropped."""

import copy
import datetime
import json

import pytest

import lm
from lm import tasks
from lm.data import templates
from lm.data.encode import instruct
from lm.data.encode.encoding import Encoder
from lm.data.encode.fitting import Limits
from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.data.records.examples import Record, Turn
from lm.data.records.reading import Reading
from lm.generation_flags import spelled
from lm.models import build
from lm.models.config import ConfigError
from lm.tasks import Kept, Start
from tests.lm.data.template_cases import CHATML, tokenizer
from tests.lm.training import runs, small

ASK, SAY = {"role": "user", "content": "Which?"}, {"role": "assistant", "content": "That."}
WRONG = {"role": "assistant", "content": "Nothing."}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {}},
    },
}
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<call>' + call.function.name + (call.function.arguments | tojson) + '</call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
THINK = CHATML.replace(
    "<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n' }}{% endif"
)
CLOCK = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}" + CHATML


def chat(text):
    found = copy.deepcopy(tokenizer("bytes"))
    found.chat_template = text
    return found


def trained(tok, template, record):
    (e,) = Encoder(tok)([template.render(record)])
    return tok.decode(e.ids[e.trained])


def read(tmp_path, *rows, **options):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return records.read(str(tmp_path / "x.jsonl"), Reading(**options))


def sharegpt(messages):
    names = {"user": "human", "assistant": "gpt"}
    return [
        {
            "from": names[m["role"]],
            "value": m["content"],
            **{k: m[k] for k in m if k not in ("role", "content")},
        }
        for m in messages
    ]


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"train": False},
        {"loss": 0.0},
        {"training": 0},
        {"masked": True},
        {"mask": True},
    ],
)
def test_a_turn_that_is_marked_is_trained(tmp_path, mark):
    messages = [ASK, WRONG | mark, ASK, SAY, ASK, WRONG | mark]
    for row in (
        {"messages": messages},
        {"conversations": sharegpt(messages)},
        {"prompt": messages[:2], "completion": messages[2:]},
    ):
        (record,) = read(tmp_path, row).records
        for name, tok in (("chatml", tokenizer("bytes")), ("jinja", chat(CHATML))):
            assert trained(tok, templates.get(name, tok), record) == "That.<|im_end|>"
        text = "".join(
            s.text for s in templates.get("chatml", tokenizer("bytes")).render(record).segments
        )
        assert text.count("Nothing.") == 1  # first: context; last: after all trained turns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, "turn 2: 'weight' is 0.5, expected 0 or 1"),
        ({"messages": [ASK, SAY | {"mask": 1}]}, "turn 2: 'mask' is 1, expected true or false"),
        (
            {"messages": [ASK, SAY | {"weight": 1, "train": False}]},
            "turn 2: 'weight' and 'train' contradict",
        ),
        (
            {"messages": [ASK | {"weight": 1}, SAY]},
            "turn 1 is of the user, and 'weight' asks to train it",
        ),
        ({"messages": [ASK, SAY | {"weight": 0}]}, "no turn of the assistant is trained"),
        (
            {"messages": [ASK, SAY | {"refusal": "I will not"}]},
            "turn 2: the field 'refusal' cannot be obeyed",
        ),
        (
            {"messages": [ASK | {"content": [{"type": "image_url", "image_url": {}}]}, SAY]},
            "a part of type 'image_url', expected texts",
        ),
        ({"messages": [ASK, SAY], "images": ["a.png"]}, "the field 'images' cannot be obeyed"),
        (
            {
                "messages": [
                    ASK,
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    },
                ]
            },
            "'f': not JSON",
        ),
        ({"messages": [ASK, SAY], "tools": [3]}, "field 'tools' holds 3, expected"),
        (
            {
                "messages": [ASK, {"role": "assistant", "tool_calls": [CALL, CALL]}],
                "parallel_tool_calls": False,
            },
            "makes several calls",
        ),
        (
            {"conversations": sharegpt([ASK, SAY]), "mask": "Assistant"},
            "the field 'mask' is 'Assistant'",
        ),
        ({"prompt": "a", "completion": "b", "label": False}, "the field 'label' is False"),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "'history' is no list of"),
        (
            {"system": "s", "messages": [{"role": "system", "content": "t"}, ASK, SAY]},
            "there is a turn of the system, and 'system'",
        ),
        (
            {"prompt": [ASK], "chosen": [SAY | {"tool_calls": [CALL]}], "rejected": [WRONG]},
            "'chosen' ends with a turn that has more",
        ),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_dropped(tmp_path, row, message):
    with pytest.raises(DataError, match=f"x.jsonl, line 1: .*{message}"):
        read(tmp_path, row, format="preference" if "chosen" in row else "auto")


def test_alpacas_system_and_history_are_dropped(tmp_path):
    row = {
        "instruction": "And Peru?",
        "input": "",
        "output": "Lima.",
        "system": "One word.",
        "history": [["Chile's capital?", "Santiago."]],
    }
    (record,) = read(tmp_path, row).records
    said = (
        ("system", "One word."),
        ("user", "Chile's capital?"),
        ("assistant", "Santiago."),
        ("user", "And Peru?"),
        ("assistant", "Lima."),
    )
    assert record.turns == tuple(Turn(*turn) for turn in said)
    with pytest.raises(DataError, match=r"line 1: .*no place for turns of system, user"):
        templates.get("alpaca", tokenizer("bytes")).render(record)
    (record,) = read(tmp_path, row | {"system": "", "history": []}).records
    assert record == Record("And Peru?", "", "Lima.", task="x", source=record.source)


def test_tool_turns_are_spelled_unlike_transformers_would(tmp_path):
    tok = chat(TOOLS)
    messages = [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "blue", "tool_call_id": "c1"},
        SAY | {"reasoning_content": "It is blue."},
    ]
    theirs = tok.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    strings = copy.deepcopy(messages)
    strings[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])
    old = copy.deepcopy(messages)
    old[1] = {
        "role": "assistant",
        "content": None,
        "function_call": strings[1]["tool_calls"][0]["function"],
    }
    old[2] = {"role": "function", "name": "look", "content": "blue"}
    flat = [
        {"from": "human", "value": "Which?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "blue"},
        {"from": "gpt", "value": "That.", "reasoning_content": "It is blue."},
    ]
    for row in (
        {"messages": messages, "tools": [TOOL]},
        {"messages": strings, "tools": [TOOL], "parallel_tool_calls": False},
        {"messages": old, "functions": [TOOL["function"]]},
        {"conversations": flat, "tools": json.dumps([TOOL["function"]])},
    ):
        (record,) = read(tmp_path, row).records
        template = templates.get("jinja", tok)
        assert "".join(segment.text for segment in template.render(record).segments) == theirs
        wanted = '<call>look{"at": "sky"}</call><|im_end|><think>It is blue.</think>That.<|im_end|>'
        assert trained(tok, template, record) == wanted
        asked = tok.apply_chat_template(
            messages[:3], tools=[TOOL], add_generation_prompt=True, return_dict=False
        )
        assert Encoder(tok).prompt(template.prompt(record)) == asked
    ending = Record(
        turns=(Turn("user", "Which?"), Turn("assistant", "", fields={"tool_calls": [CALL]}))
    )
    assert (
        trained(tok, templates.get("jinja", tok), ending)
        == '<call>look{"at": "sky"}</call><|im_end|>'
    )


@pytest.mark.parametrize(
    ("template", "change", "message"),
    [
        (
            "chatml",
            {"tool_calls": [CALL]},
            "the answer has 'tool_calls', for which it has no place",
        ),
        (
            "chatml",
            {"reasoning_content": "hm"},
            "the answer has 'reasoning_content', for which it has no place",
        ),
        (CHATML, {"tool_calls": [CALL]}, "leaves out 'tool_calls' of turn 2"),
        (CHATML, {"reasoning_content": "hm"}, "leaves out 'reasoning_content' of turn 2"),
        (TOOLS, {"name": "Ann"}, "leaves out 'name' of turn 2"),
        (
            TOOLS,
            {"reasoning_content": "<|im_end|>"},
            "'reasoning_content' spells out the control token",
        ),
    ],
)
def test_a_field_that_the_template_leaves_out_is_dropped(tmp_path, template, change, message):
    tok = chat(template)
    template = templates.get("chatml" if template == "chatml" else "jinja", tok)
    (record,) = read(tmp_path, {"messages": [ASK, SAY | change]}).records
    with pytest.raises(DataError, match=f"x.jsonl, line 1: .*{message}"):
        template.render(record)
    (record,) = read(tmp_path, {"messages": [ASK, SAY], "tools": [TOOL]}).records
    if tok.chat_template != TOOLS:
        with pytest.raises(DataError, match=r"'tools'"):
            template.render(record)


def test_a_field_that_nothing_reads_is_not_named(tmp_path):
    rows = [
        {"messages": [ASK | {"mood": "x"}, SAY], "id": 1, "empty": None},
        {"messages": [ASK, SAY], "id": 2},
    ]
    found = read(tmp_path, *rows)
    assert dict(found.unread) == {"id": 2, "messages[].mood": 1}
    tok = tokenizer("bytes")
    template = templates.get("chatml", tok)
    for _ in range(2):  # the second time from the cache
        packed = instruct.pack_examples(
            str(tmp_path / "x.jsonl"), template, tok, Limits(64, 0, "drop", 1.0), tmp_path / "cache"
        )
        assert packed.counts["records with the unread field 'messages[].mood'"] == 1
    task = {
        "Definition": "d",
        "Instances": [{"id": 1, "input": "a", "output": "b", "why": "c"}],
        "Source": ["s"],
        "Mood": "x",
    }
    assert dict(read(tmp_path, task).unread) == {"Mood": 1, "Instances[].why": 1}


def test_a_template_that_opens_the_reasoning_is_refused():
    tok = chat(THINK)
    template = templates.get("jinja", tok)
    record = Record(turns=(Turn("user", "Hi"), Turn("assistant", "<think>\nhm\n</think>Yo")))
    theirs = tok.apply_chat_template(
        [{"role": t.role, "content": t.text} for t in record.turns], tokenize=False
    )
    assert "".join(segment.text for segment in template.render(record).segments) == theirs
    assert trained(tok, template, record) == "hm\n</think>Yo<|im_end|>"
    asked = tok.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert Encoder(tok).prompt(template.prompt(record)) == asked and tok.decode(asked).endswith(
        "<think>\n"
    )
    with pytest.raises(
        DataError,
        match=r"ends in '<think>', is not what its turn begins with.*begin each answer so",
    ):
        template.render(Record(turns=(Turn("user", "Hi"), Turn("assistant", "Yo"))))


def test_a_template_that_reads_the_clock_is_another_the_next_day(monkeypatch, tmp_path):
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(2031, 5, 17)

    tok = chat(CLOCK)
    before = templates.get("jinja", tok)
    kept = json.loads(json.dumps(templates.remember(before)))
    assert before.options["date"] == datetime.date.today().isoformat()
    theirs = tok.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    spell = lambda template: "".join(
        segment.text for segment in template.prompt(Record("Which?")).segments
    )
    assert spell(before) == theirs
    old = kept | {"options": {"turns": "all"}}  # as saved before the date became an option
    monkeypatch.setattr(templates.datetime, "date", Tomorrow)
    assert "17 May 2031" in spell(templates.get("jinja", tok))
    assert spell(templates.recall(kept, tok)) == theirs
    assert (
        templates.get("jinja", tok, **templates.date_of(kept, "jinja", tok)).fingerprint
        == before.fingerprint
    )
    monkeypatch.undo()
    assert spell(templates.recall(old, tok)) == theirs and templates.date_of(old, "jinja", tok) == {
        "date": before.options["date"]
    }
    assert "date" not in templates.get("jinja", chat(CHATML)).options
    monkeypatch.setattr(templates.datetime, "date", Tomorrow)
    config = runs.config(
        tmp_path,
        **{"task": tasks.defaults("instruct"), "task.format": "auto", "task.template": "jinja"},
    )
    start = Start(build(small.MODEL.replace(vocab_size=384)), None, tok)
    for there in (kept, old | {"options": {"turns": "all", "date": before.options["date"]}}):
        resumed = tasks.of(config).prepare(start, config, [config], Kept(None, there)).template
        assert resumed is not None and resumed.fingerprint == before.fingerprint


def test_named_templates_are_called_none(tmp_path):
    folder = tmp_path / "tokenizer"
    tokenizer("bytes").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    for listed in (False, True):
        if listed:
            (folder / "chat_template.jinja").unlink()
            (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
            config = json.loads((folder / "tokenizer_config.json").read_text())
            config["chat_template"] = [
                {"name": "default", "template": CHATML},
                {"name": "tool_use", "template": TOOLS},
            ]
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tok = lm.load_tokenizer(folder)
        template = templates.get("jinja", tok)
        for tools in ((), (TOOL,)):
            record = Record(turns=(Turn("user", "Which?"), Turn("assistant", "That.")), tools=tools)
            theirs = tok.apply_chat_template([ASK, SAY], tools=list(tools) or None, tokenize=False)
            assert "".join(segment.text for segment in template.render(record).segments) == theirs
    tok.chat_template = {"rag": CHATML, "tool_use": TOOLS}
    with pytest.raises(ConfigError, match="are called rag, tool_use, and none is 'default'"):
        templates.get("jinja", tok)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{{ messages[0].content + 3 if messages | length == 1 }}", "TypeError"),
        ("{{ nothing.at_all if messages[0].content == 'x' }}", "'nothing' is undefined"),
        ("{{ (1 // 0) if messages[0].content == 'x' }}", "ZeroDivisionError"),
        ("{{ messages[0].content[::0] if messages[0].content == 'x' }}", "ValueError"),
    ],
)
def test_an_exception_in_a_template_is_a_stack_trace(broken, said):
    tok = chat(CHATML + broken)
    template = templates.get("jinja", tok)
    record = Record(turns=(Turn("user", "x"), Turn("assistant", "b")), source="a.jsonl, line 3")
    with pytest.raises(
        DataError,
        match=(
            f"a.jsonl, line 3: template 'jinja': the tokenizer's chat template refuses it: .*{said}"
        ),
    ):
        template.render(record)
    with pytest.raises(DataError, match=said):
        spelled(None, tok, None, [{"role": "user", "content": "x"}], chat=True)
    with pytest.raises(ConfigError, match="undefined"):
        templates.get("jinja", chat(CHATML + "{{ nothing.at_all }}"))
