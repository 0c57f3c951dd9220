"""Ids, positions, types and labels beyond a table are refused; XLA's gather would clamp them."""

import importlib
import json

import numpy as np
import pytest
import transformers

import lm
from lm import evaluate, fisher
from lm.batch import Batch
from lm.data import batches, templates, tokenizers
from lm.data.encode import plain_text
from lm.data.records.examples import Record
from lm.distributed import sharding
from lm.evaluation import generation, labelled, likelihood, pseudo
from lm.evaluation.harness import Harness
from lm.models import ConfigError, inputs
from lm.tasks import TASKS
from lm.training import loop
from retrieval.encoders.cross_encoder import CrossEncoder
from retrieval.encoders.encoder import Encoder
from retrieval.reading.answering import Reader
from tests.lm.evaluation.test_likelihood import Request
from tests.lm.small_models import tiny
from tests.lm.training import runs, small

TEXT = "The cat <new_3> sat."
NEW = 257 + 3  # the id of <new_3>
NAMED = r"'<new_3>' \(id 260\).*outside the vocabulary of 258"
FIELDS = dict(vocab_size=258, max_length=64)


def extended():
    """One token a byte and ten added tokens; the test models have room for the first only."""
    tokenizer = tokenizers.bytes_only(mask=False)
    tokenizer.add_tokens([f"<new_{i}>" for i in range(10)])
    return tokenizer


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2", **FIELDS, eos_token_ids=(0,))


@pytest.fixture(scope="module")
def folder(gpt2, tmp_path_factory):
    """A model directory whose tokenizer has grown since."""
    path = tmp_path_factory.mktemp("model")
    lm.to_hf(*gpt2, path)
    extended().save_pretrained(path)
    (path / "new.txt").write_text(f"{TEXT}\n" * 3)
    (path / "old.txt").write_text("The cat <new_0> sat.\n")
    (path / "ask.jsonl").write_text(
        json.dumps({"instruction": TEXT, "input": "", "output": "yes"}) + "\n"
    )
    return path


@pytest.mark.parametrize(
    "ask", ["--data={}/new.txt", "--examples={}/ask.jsonl --template=plain", "--prompt"]
)
def test_a_command_computes_with_the_embedding_of_another_token(folder, capsys, ask):
    if ask == "--prompt":
        assert (
            importlib.import_module("lm.generate").main([f"--model={folder}", f"--prompt={TEXT}"])
            == 2
        )
    else:
        assert (
            evaluate.main([f"--model={folder}", "--max-new-tokens=8", *ask.format(folder).split()])
            == 2
        )
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and "'<new_3>' (id 260)" in error
        and "vocabulary of 258" in error
    )


def test_a_token_that_the_model_has_is_refused_or_scored_as_another(folder, gpt2, capsys):
    """<new_0> has id 257, the last embedding. split_special_tokens keeps added tokens whole."""
    assert evaluate.main([f"--model={folder}", f"--data={folder}/old.txt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ((ids, _),) = plain_text.encode(["The cat <new_0> sat.\n"], extended())
    assert 257 in ids
    logits = np.asarray(lm.forward(*gpt2, Batch.of(ids[None, :-1])).logits[0], np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    assert found["loss"] == pytest.approx(
        -logits[np.arange(len(ids) - 1), ids[1:]].mean(), rel=1e-4
    )


def test_a_function_computes_with_the_embedding_of_another_token(gpt2):
    model, params = gpt2
    tokenizer, harness = extended(), Harness(*gpt2, extended())
    wrong = tokenizer.encode(TEXT)
    assert NEW in wrong
    for call in (
        lambda: harness.loglikelihood([Request(("The cat", " <new_3> sat"))]),
        lambda: harness.loglikelihood_rolling([Request((TEXT,))]),
        lambda: harness.generate_until([Request((TEXT, {"max_gen_toks": 4}))]),
        lambda: lm.generate_text(model, params, tokenizer, [TEXT], 4),
        lambda: Reader(model, params, tokenizer)([wrong], 4),
        lambda: Encoder(model, params, tokenizer)([TEXT]),
    ):
        with pytest.raises(ValueError, match=NAMED):
            call()
    for call in (
        lambda: likelihood.log_likelihoods(model, params, [([1, NEW], [2])]),
        lambda: likelihood.log_likelihoods(model, params, [([1], [NEW])]),
        lambda: lm.generate(model, params, [[1, NEW]], 4),
        lambda: lm.forward(model, params, Batch.of([[1, NEW]])),
        lambda: model.apply({"params": params}, Batch.of([[1, NEW]])),
        lambda: inputs.check_ids(model.config, [[NEW]]),
    ):
        with pytest.raises(ValueError, match=r"260, outside the vocabulary of 258.*ids 0 to 257"):
            call()
    with pytest.raises(ValueError, match="holds token -1, outside"):
        likelihood.log_likelihoods(model, params, [([1], [-1])])


def test_packed_rows_and_what_tasks_make_of_them_are_not_looked_at(gpt2):
    mesh = small.mesh_of(1, 1, 1)
    rows = sharding.batch_sharding(mesh, (2, 16))
    packed = plain_text.pack(plain_text.encode([TEXT, "more"], extended()), 16)
    with pytest.raises(ConfigError, match="hold token 260, outside"):
        list(batches.in_order(packed, 2, rows, config=gpt2[0].config))
    with pytest.raises(ConfigError, match="hold token 260, outside"):
        next(batches.TrainBatches(packed, 2, 0, rows, config=gpt2[0].config))
    masked = tokenizers.bytes_only(mask=True)  # id 257
    plain = plain_text.pack(plain_text.encode(["a text of several words"], masked, whole=True), 16)
    bert = tiny("bert", vocab_size=257, max_length=64)[0]
    task = TASKS["masked"](rate=0.9, mask=1.0, random=0.0, whole_words=False)
    transform = task.transform(masked, bert.config)
    with pytest.raises(ConfigError, match="tokens hold token 257, outside the vocabulary of 257"):
        next(batches.TrainBatches(plain, 2, 0, rows, transform=transform, config=bert.config))
    with pytest.raises(ConfigError, match="outside the vocabulary of 258"):
        pseudo.evaluate(tiny("bert", **FIELDS)[0], {}, packed, masked, mesh, 2)


def test_positions_types_and_labels_beyond_their_tables_are_clamped():
    gpt2, llama = tiny("gpt2", **FIELDS)[0].config, tiny("llama", **FIELDS)[0].config
    bert = tiny("bert", **FIELDS, type_vocab_size=2)[0].config
    long = Batch.of(np.zeros((1, 65), np.int32))
    with pytest.raises(
        ConfigError, match="positions hold 64: this gpt2 model has learned positions 0 to 63"
    ):
        inputs.check(gpt2, long)
    inputs.check(llama, long)  # rotary positions are unbounded
    # Two documents, each within the table.
    inputs.check(gpt2, Batch.of(np.zeros((1, 65), np.int32), np.repeat([[1, 2]], [32, 33], axis=1)))
    with pytest.raises(ConfigError, match="positions hold -1"):
        inputs.check(gpt2, Batch.of([[1, 2]], positions=[[-1, 0]]))
    with pytest.raises(ConfigError, match="types hold 2, 5: this bert model has 2 token types"):
        inputs.check(bert, Batch.of([[1, 2, 3]], types=[[0, 2, 5]]))
    inputs.check(bert, Batch.of([[1, 999]], [[1, 0]], types=[[1, 9]]))  # padding is ignored
    classes = bert.replace(head="sequence_classification", n_labels=3)
    for wrong in (3.0, -1.0, 0.5):
        with pytest.raises(
            ConfigError, match=f"labels hold {wrong:g}: this bert model has 3 labels"
        ):
            inputs.check(
                classes,
                Batch.of([[1]]).replace(labels=np.array([[wrong]], np.float32)),
                learned=True,
            )
    inputs.check(
        classes, Batch.of([[1]]).replace(labels=np.array([[2.0]], np.float32)), learned=True
    )
    inputs.check(
        classes.replace(n_labels=1),
        Batch.of([[1]]).replace(labels=np.array([[7.5]], np.float32)),
        learned=True,
    )
    with pytest.raises(ConfigError, match="labels hold 4: a row has 2 tokens"):
        span = bert.replace(head="question_answering")
        inputs.check(
            span,
            Batch.of([[1, 2]]).replace(labels=np.array([[1.0, 4.0]], np.float32)),
            learned=True,
        )
    with pytest.raises(ConfigError, match="targets hold 5: this bert model has 2 labels"):
        inputs.check(
            bert.replace(head="token_classification", n_labels=2),
            Batch.of([[1, 2]], targets=[[5, 9]], weights=[[1, 0]]),
            learned=True,
        )
    # Targets are next tokens here, not labels.
    inputs.check(bert.replace(head="token_classification", n_labels=2), Batch.of([[5, 9]]))


def test_labelled_rows_and_pairs_are_not_looked_at():
    tokenizer = extended()
    model, params = tiny(
        "bert", **FIELDS, head="sequence_classification", n_labels=1, type_vocab_size=2
    )
    rows = [labelled.Encoded([1, NEW], [0, 0], 0)]
    with pytest.raises(ConfigError, match=rf"text 0 holds {NAMED}"):
        labelled.outputs(model, params, rows, labelled.Shape(8), tokenizer=tokenizer)
    words = transformers.BertTokenizer(
        vocab={
            word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"])
        }
    )
    words.add_tokens(["zzz"])
    narrow, params = tiny(
        "bert",
        vocab_size=8,
        max_length=64,
        head="sequence_classification",
        n_labels=1,
        type_vocab_size=2,
    )
    with pytest.raises(ConfigError, match=r"'zzz' \(id 8\), outside the vocabulary of 8"):
        CrossEncoder(narrow, params, words)("a", ["b zzz"])


def test_a_tokenizer_with_gaps_is_taken_for_as_large_as_its_length(tmp_path, folder, capsys):
    """Length 258, largest id 300: training, Fisher information and export must use 300."""
    tokenizer = tokenizers.bytes_only()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"]["zz"] = 300
    gaps = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.tokenizers.Tokenizer.from_str(json.dumps(described))
    )
    gaps.add_special_tokens({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    assert len(gaps) < inputs.id_count(gaps) == 301
    gaps.save_pretrained(tmp_path / "gaps")
    config = runs.config(tmp_path, tokenizer=str(tmp_path / "gaps"), **{"model.vocab_size": 258})
    with pytest.raises(ConfigError, match="cannot hold the tokenizer's 301 tokens"):
        loop.train(config, tmp_path / "run")
    with pytest.raises(
        ConfigError, match="the tokenizer has 267 tokens and the model's vocabulary 258"
    ):
        fisher.write(
            runs.config(tmp_path, tokenizer="", init_from=str(folder), length=16),
            str(tmp_path / "fisher"),
            False,
        )


def test_questions_for_generation_name_their_record(gpt2):
    record = Record(instruction=TEXT, output="x", source="ask.jsonl line 1")
    template = templates.get("plain", extended())
    with pytest.raises(ValueError, match=rf"ask.jsonl line 1: its prompt holds {NAMED}"):
        generation.questions([record], template, gpt2[0], extended(), 4)
