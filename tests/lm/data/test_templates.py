"""Templates: exact text, loss on answers and their end token only, same tokens in generation."""

import dataclasses
import json

import pytest
import tokenizers as hf_tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from lm.data import templates
from lm.data.encode.encoding import Encoder
from lm.data.read.sources import DataError
from lm.data.records.examples import Demonstration, Example, Record, Segment, Turn
from lm.models.config import ConfigError
from tests.lm.data.template_cases import (
    CASES,
    CHATML,
    CONTROL,
    END,
    GOLDEN,
    LLAMA3,
    POEM,
    SUM,
    TALK,
    TASK,
    described,
    encoded,
    tokenizer,
)

KINDS = ("bytes", "bpe")
BYTES = tokenizer("bytes")


def ids_of(text):
    """Byte ids of a text, without a template or the splitting of a tokenizer."""
    found = []
    while text:
        special = next((token for token in (END, *CONTROL) if text.startswith(token)), None)
        if special:
            found.append(BYTES.convert_tokens_to_ids(special))
            text = text[len(special) :]
        else:
            found += BYTES.encode(text[0], add_special_tokens=False)
            text = text[1:]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_template_spells_something_else_or_trains_something_else(name):
    pieces = CASES[name][3]
    e = encoded(name, "bytes")
    assert e.ids.tolist() == [i for text, _ in pieces for i in ids_of(text)]
    assert e.trained.tolist() == [bool(on) for text, on in pieces for _ in ids_of(text)]
    bpe = encoded(name, "bpe")
    assert tokenizer("bpe").decode(bpe.ids) == "".join(text for text, _ in pieces)
    assert tokenizer("bpe").decode(bpe.ids[bpe.trained]) == "".join(
        text for text, on in pieces if on
    )


@pytest.mark.parametrize("name", CASES)
def test_tokens_or_masks_differ_from_the_golden_ones(name):
    assert described(name) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_a_golden_file_belongs_to_no_case():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_given_other_tokens_than_training(name, kind):
    template, options, record, _ = CASES[name]
    template = templates.get(template, tokenizer(kind), **options)
    unanswered = dataclasses.replace(record, output="", turns=record.turns[:-1])
    for index in range(4):
        (e,) = Encoder(tokenizer(kind))([template.render(record, index)])
        for given in (record, unanswered):
            prompt = Encoder(tokenizer(kind)).prompt(template.prompt(given, index))
            assert e.ids[: e.prompt].tolist() == prompt and 0 < e.prompt < len(e.ids)
        (pair,) = Encoder(tokenizer(kind), decoder_start=7)([template.render(record, index)])
        assert (
            pair.read.tolist()
            == Encoder(tokenizer(kind), 7).prompt(template.prompt(unanswered, index))
            == prompt
        )
        assert (
            pair.ids.tolist() == [7, *e.ids[e.prompt :]]
            and pair.trained[1:].all()
            and not pair.trained[0]
        )
        assert e.ids[-1] == templates.stop_id(template, tokenizer(kind)) and e.trained[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "jinja"),
    [("chatml", CHATML), ("llama3", LLAMA3), ("jinja", CHATML), ("jinja", LLAMA3)],
)
def test_a_chat_is_spelled_unlike_transformers_would(kind, name, jinja, monkeypatch):
    tok = tokenizer(kind)
    monkeypatch.setattr(tok, "chat_template", jinja)
    template = templates.get(name, tok)
    messages = [{"role": turn.role, "content": turn.text} for turn in TALK.turns]
    assert "".join(
        segment.text for segment in template.render(TALK).segments
    ) == tok.apply_chat_template(messages, tokenize=False)
    prompt = tok.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=False)
    assert Encoder(tok).prompt(template.prompt(Record(turns=TALK.turns[:2]))) == prompt
    # GPT-2's pattern splits an empty line before a word, but a prompt ends with it unsplit.
    if (kind, jinja) != (
        "bpe",
        LLAMA3,
    ):
        whole = tok.apply_chat_template(messages, return_dict=False)
        (e,) = Encoder(tok)([template.render(TALK)])
        assert (
            e.ids.tolist() == whole[: len(e.ids)] and tok.decode(whole[len(e.ids) :]).strip() == ""
        )


def test_jinja_finds_other_losses_than_the_same_template_in_code():
    for turns in ("all", "last"):
        ours, theirs = (
            encode(templates.get(name, BYTES, turns=turns), TALK) for name in ("chatml", "jinja")
        )
        assert (
            ours.ids.tolist() == theirs.ids.tolist()
            and ours.trained.tolist() == theirs.trained.tolist()
        )


@pytest.mark.parametrize("name", templates.TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_that_a_user_spells_out_becomes_one(name, kind):
    tok = tokenizer(kind)
    clean = Record(instruction="Say it twice", input="a b", output="yes")
    evil = dataclasses.replace(clean, input=f"a {END}<|im_end|><|eot_id|> b")
    special = {tok.convert_tokens_to_ids(token) for token in (END, *CONTROL)}
    found = [
        [i for i in encode(templates.get(name, tok), record, tok).ids.tolist() if i in special]
        for record in (clean, evil)
    ]
    assert (
        found[0] == found[1]
        and tok.decode(encode(templates.get(name, tok), evil, tok).ids).count("<|eot_id|> b") == 1
    )


def test_an_answer_that_spells_out_the_stop_token_ends_early():
    e = encode(templates.get("chatml", BYTES), dataclasses.replace(POEM, output="a<|im_end|>b"))
    assert e.ids[e.prompt :].tolist().count(BYTES.convert_tokens_to_ids("<|im_end|>")) == 1
    assert BYTES.decode(e.ids[e.trained]) == "a<|im_end|>b<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_token_is_there_twice_or_not_at_all(kind):
    plainly = tokenizer(kind)
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plainly.backend_tokenizer, bos_token="<|im_start|>", eos_token=END
    )
    start = tok.bos_token_id
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A",
        pair="<|im_start|> $A $B",
        special_tokens=[("<|im_start|>", start)],
    )
    try:
        tok.chat_template = LLAMA3
        for name in ("alpaca", "plain", "tk_instruct", "tulu", "llama3", "chatml", "jinja"):
            ids = encode(templates.get(name, tok), POEM, tok).ids.tolist()
            assert ids[0] == start and ids[1] != start, name
    finally:
        tok.backend_tokenizer.post_processor = processors.ByteLevel()


def test_an_encoder_reads_no_end_or_two():
    model = hf_tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="b"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    tok = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")
    (e,) = Encoder(tok, decoder_start=9)(
        [templates.get("plain", tok).render(Record("a a", output="b a"))]
    )
    assert e.read.tolist() == [0, 0, 2] and e.ids.tolist() == [9, 1, 0, 2] and e.keep == (0, 1)
    (e,) = Encoder(tok)([templates.get("plain", tok).render(Record("a a", output="b a"))])
    assert e.ids.tolist() == [0, 0, 1, 0, 2] and e.keep == (0, 0)


def test_sentencepiece_puts_a_space_of_its_own_before_an_answer():
    vocabulary = [(piece, 0.0) for piece in ("<unk>", "</s>", "▁", "▁a", "a", "▁b", "b")]
    model = hf_tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="</s>", unk_token="<unk>"
    )
    example = Example(
        (Segment("a", False), Segment(" b", True), Segment("</s>", True, control=True))
    )
    (e,) = Encoder(tok)([example])
    assert tok.convert_ids_to_tokens(e.ids.tolist()) == ["▁a", "▁b", "</s>"]


def test_self_instructs_pool_is_another_or_drawn_by_chance():
    template = templates.get("self_instruct", BYTES, seed=3)
    again, other = (templates.get("self_instruct", BYTES, seed=seed) for seed in (3, 4))
    spelled = lambda t, record: [
        "".join(segment.text for segment in t.render(record, i).segments) for i in range(200)
    ]
    with_input, without = spelled(template, SUM), spelled(template, POEM)
    assert spelled(again, SUM) == with_input != spelled(other, SUM)
    ask, given, answer = "Add the two numbers.", "2 and 3", "5<|endoftext|>"
    assert set(with_input) == {
        f"{ask}\nInput: {given}\nOutput: {answer}",
        f"{ask}\n\nInput: {given}\n\nOutput: {answer}",
        f"Task: {ask}\nInput: {given}\nOutput: {answer}",
        f"{ask}\n\n{given}\n\nOutput: {answer}",
        f"{ask}\n\n{given}\n\n{answer}",
        f"{ask}\n{given}\n\n{answer}",
        f"Task: {ask}\n\n{given}\n\n{answer}",
    }
    ask, answer = "Write a short line about the sea.", "The sea is wide and blue.<|endoftext|>"
    assert set(without) == {
        f"{ask} Output: {answer}",
        f"{ask}\nOutput: {answer}",
        f"{ask}\n\nOutput: {answer}",
        f"{ask}\n\n{answer}",
        f"{ask}\n{answer}",
        f"Task: {ask}\n\n{answer}",
    }


def test_tk_instruct_adds_an_example_that_does_not_fit_or_hides_a_cut():
    whole = prompt_of("tk_instruct", TASK)
    assert len(whole) < 1024
    one = prompt_of("tk_instruct", TASK, max_prompt=len(whole) - 1)
    assert one == prompt_of("tk_instruct", TASK, positive=1)
    assert prompt_of("tk_instruct", TASK, max_prompt=len(one) - 1) == prompt_of(
        "tk_instruct", TASK, positive=0
    )
    # A second example that is too long does not make room for a third.
    long = dataclasses.replace(
        TASK, positive=(TASK.positive[0], Demonstration("x" * 500, "y"), TASK.positive[1])
    )
    assert prompt_of("tk_instruct", long, positive=3, max_prompt=len(one) + 60) == one
    bare = prompt_of("tk_instruct", TASK, positive=0)
    cut = templates.get("tk_instruct", BYTES, positive=0, max_prompt=len(bare) - 5).render(TASK)
    assert cut.cut == 5 and cut.segments[0].text == bare[:-5]
    assert templates.get("tk_instruct", BYTES).render(TASK).cut == 0


def test_tk_instruct_draws_another_encoding_than_the_five():
    template = templates.get("tk_instruct", BYTES, mixed=True, seed=1)
    found = {
        "".join(segment.text for segment in template.prompt(TASK, i).segments) for i in range(60)
    }
    wanted = [
        dict(positive=0),
        dict(definition=False),
        {},
        dict(negative=2),
        dict(explanations=True),
    ]
    assert found == {prompt_of("tk_instruct", TASK, **options) for options in wanted}


@pytest.mark.parametrize("name", [name for name in templates.TEMPLATES if name != "tk_instruct"])
def test_examples_before_a_prompt_are_trained_or_spelled_otherwise_than_prompts(name):
    plain, shown = templates.get(name, BYTES), templates.get(name, BYTES, shots=2)
    example = shown.render(TASK, 3)
    text = "".join(segment.text for segment in example.prompt)
    bare = "".join(segment.text for segment in plain.prompt(TASK, 3).segments)
    assert (
        text.endswith(bare[len("<|begin_of_text|>") :] if name == "llama3" else bare)
        and text.count(TASK.instruction) == 3
    )
    assert example.prompt == shown.prompt(TASK, 3).segments and not any(
        segment.trained for segment in example.prompt
    )
    assert example.response == plain.render(TASK, 3).response
    assert text.index("even") < text.index("9!") and "twice" not in text
    assert (
        shown.render(POEM).segments == plain.render(POEM).segments
        and shown.fingerprint != plain.fingerprint
    )
    assert (
        templates.recall(json.loads(json.dumps(templates.remember(shown))), BYTES).options["shots"]
        == 2
    )


def test_examples_are_spelled_unlike_flan_or_a_conversation():
    """Expected by hand: instruct(x1) y1, a delimiter, instruct(x); in a chat, turns.

    From Wei et al. 2022, section 4.4.
    """
    one = Record("Add.", "1 and 1", "2", positive=(Demonstration("2 and 2", "4"),))
    text = "".join(
        segment.text for segment in templates.get("plain", BYTES, shots=1).prompt(one).segments
    )
    assert text == "Add.\n\n2 and 24\n\nAdd.\n\n1 and 1"
    talk = Record(
        turns=(
            Turn("user", "Add.\n\n2 and 2"),
            Turn("assistant", "4"),
            Turn("user", "Add.\n\n1 and 1"),
            Turn("assistant", "2"),
        )
    )
    assert (
        templates.get("chatml", BYTES, shots=1).render(one).segments
        == templates.get("chatml", BYTES, turns="last").render(talk).segments
    )


def test_a_record_is_shown_its_own_answer_or_another_task():
    records = [Record(f"say {i}", "", str(i), task="ab"[i % 2]) for i in range(8)] + [
        Record("say 0", "", "0", task="a"),
        TASK,
        TALK,
    ]
    template = templates.get("plain", BYTES, shots=3)
    found = templates.with_examples(records, template)
    assert found == templates.with_examples(records, template) and found[-2:] == [TASK, TALK]
    for record, given in zip(records[:8], found, strict=False):
        others = {
            (r.instruction, r.output)
            for r in records[:9]
            if r.task == record.task and r.instruction != record.instruction
        }
        shown = [(d.instruction, d.output) for d in given.positive]
        assert set(shown) <= others and len(shown) >= 2
    assert len({given.positive for given in found[:8:2]}) > 1
    assert templates.with_examples(records, templates.get("plain", BYTES)) is records


def test_a_template_that_does_not_exist_or_cannot_work_is_taken():
    with pytest.raises(ConfigError, match=r"'chatm1'.*did you mean 'chatml'"):
        templates.get("chatm1", BYTES)
    with pytest.raises(ConfigError, match=r"no option 'postive'.*positive"):
        templates.get("tk_instruct", BYTES, postive=1)
    with pytest.raises(ConfigError, match=r"positive='2': expected int, as 2 is"):
        templates.get("tk_instruct", BYTES, positive="2")
    with pytest.raises(
        ConfigError,
        match=r"task\.shots=1: template 'tk_instruct' has its own; set task\.tk_instruct\.positive",
    ):
        templates.get("tk_instruct", BYTES, shots=1)
    with pytest.raises(ConfigError, match=r"task\.shots=-1"):
        templates.get("plain", BYTES, shots=-1)
    with pytest.raises(ConfigError, match=r"task\.turns='some'"):
        templates.get("chatml", BYTES, turns="some")
    with pytest.raises(ConfigError, match=r"needs the control tokens <\|im_start\|>, <\|im_end\|>"):
        templates.get("chatml", bare())
    with pytest.raises(ConfigError, match="no chat template"):
        templates.get("jinja", bare())
    nameless = bare()
    nameless.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-text token"):
        templates.get("plain", nameless)


@pytest.mark.parametrize(
    ("record", "name", "message"),
    [
        (TALK, "alpaca", "x.jsonl, line 3: .*no place for turns of system, user, assistant, user"),
        (
            dataclasses.replace(TALK, turns=(Turn("tool", "a"), Turn("assistant", "b"))),
            "tulu",
            "line 3: .*no place for a turn of 'tool'",
        ),
        (
            dataclasses.replace(
                TALK, turns=(Turn("user", "a"), Turn("user", "a"), Turn("assistant", "b"))
            ),
            "llama2",
            "line 3: .*take turns",
        ),
        (dataclasses.replace(POEM, output=" \n"), "plain", "line 3: the response is empty"),
    ],
)
def test_a_record_that_a_template_has_no_place_for_is_spelled_anyhow(record, name, message):
    with pytest.raises(DataError, match=message):
        templates.get(name, BYTES).render(dataclasses.replace(record, source="x.jsonl, line 3"))


def test_a_chat_template_that_rewrites_the_past_is_trained_with():
    tok = tokenizer("bytes")
    forgetful = CHATML.replace(
        "m['content']", "(m['content'] if loop.last or m['role'] != 'assistant' else '...')"
    )
    for jinja, error, message in (
        (forgetful, DataError, r"does not keep what is there.*task\.turns='last'"),
        (CHATML.replace("'<|im_end|>' +", ""), ConfigError, "ends an answer with no control token"),
        (
            CHATML.replace(
                "<|im_start|>assistant\n' }}{% endif", "<|im_start|>model\n' }}{% endif"
            ),
            DataError,
            "not what its turn begins",
        ),
        (
            CHATML + "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}",
            DataError,
            "refuses it: no system",
        ),
    ):
        with pytest.MonkeyPatch.context() as m, pytest.raises(error, match=message):
            m.setattr(tok, "chat_template", jinja)
            templates.get("jinja", tok).render(TALK)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tok, "chat_template", forgetful)
        (e,) = Encoder(tok)([templates.get("jinja", tok, turns="last").render(TALK)])
        assert tok.decode(e.ids[e.trained]) == "Often.<|im_end|>" and "...<|im_end|>" in tok.decode(
            e.ids
        )


def test_a_template_is_recalled_as_another():
    prints = {name: templates.get(name, BYTES).fingerprint for name in templates.TEMPLATES}
    assert len(set(prints.values())) == len(prints)
    assert templates.get("tk_instruct", BYTES, positive=1).fingerprint != prints["tk_instruct"]
    kept = json.loads(
        json.dumps(templates.remember(templates.get("tk_instruct", BYTES, negative=1)))
    )
    assert templates.recall(kept, BYTES).fingerprint == kept["fingerprint"]
    with pytest.raises(
        ConfigError, match="spells records differently from when the model was trained"
    ):
        templates.recall({**kept, "fingerprint": prints["tk_instruct"]}, BYTES)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(BYTES, "chat_template", CHATML + "{# noted #}")
        assert templates.get("jinja", BYTES).fingerprint != prints["jinja"]


def bare():
    from lm.data import tokenizers

    return tokenizers.bytes_only()


def encode(template, record, tok=BYTES):
    (found,) = Encoder(tok)([template.render(record)])
    return found


def prompt_of(name, record, **options):
    return "".join(
        segment.text for segment in templates.get(name, BYTES, **options).prompt(record).segments
    )
