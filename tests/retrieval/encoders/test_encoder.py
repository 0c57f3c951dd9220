import json
import logging
import shutil

import jax
import numpy as np
import pytest
import transformers

import lm
from retrieval import Encoder, Memory, Passage, RetrievalError, build, search
from retrieval.index.exact import rows_mesh
from retrieval.store.store import Store
from tests.retrieval.models import byte_tokenizer, save_encoder, save_reader, word_tokenizer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("compiled_once")  # every encoder has the same few shapes

TEXTS = [
    "bagheria is in italy",
    "a",
    "one two three four five six seven eight nine",
    "z9",
    "the quick brown fox " * 2,
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, *save_encoder(path)


@pytest.fixture(scope="module")
def encoder(bert):
    return Encoder.from_hf(bert[0])


def on_torch(model, tokenizer, texts, max_length):
    """Mean pooling over the attention mask, then length 1, as in sentence-transformers."""
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()


def test_vectors_equal_torch_whatever_shares_their_batch(bert, encoder):
    _, model, tokenizer = bert
    texts = TEXTS * 15  # more than two batches, of mixed lengths
    vectors = encoder(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (75, encoder.dim)
    assert np.abs(vectors - on_torch(model, tokenizer, texts, 64)).max() < 1e-4
    alone = np.concatenate([encoder([text]) for text in TEXTS])
    assert np.abs(vectors[:5] - alone).max() < 1e-5


def test_a_text_longer_than_the_model_is_cut_as_torch_cuts_it_counted_and_said(bert, caplog):
    path, model, tokenizer = bert
    encoder = Encoder.from_hf(path, max_length=20)
    texts = ["short", "long words " * 100, "also long " * 9, "x"]
    with caplog.at_level(logging.WARNING):
        vectors = encoder(texts)
    assert np.abs(vectors - on_torch(model, tokenizer, texts, 20)).max() < 1e-4
    assert encoder.truncated == 2 and "2 of 4 texts" in caplog.text


def test_the_length_in_sentence_bert_config_is_kept(bert, tmp_path):
    model, tokenizer = save_encoder(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    vectors = Encoder.from_hf(tmp_path)(["many words in one text"])
    assert np.abs(vectors - on_torch(model, tokenizer, ["many words in one text"], 10)).max() < 1e-4


def test_the_pooling_of_a_sentence_transformers_directory_is_kept(bert, encoder, tmp_path):
    model, tokenizer = save_encoder(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules("Transformer", "Pooling")))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    first = Encoder.from_hf(tmp_path)
    with torch.no_grad():
        hidden = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state[
            :, 0
        ]
    assert np.abs(first(TEXTS) - torch.nn.functional.normalize(hidden, dim=-1).numpy()).max() < 1e-4
    assert first.fingerprint != encoder.fingerprint


def test_an_empty_list_gives_no_rows_and_a_string_is_refused(encoder):
    assert encoder([]).shape == (0, 32)
    for wrong, said in (
        ("a string", "put it in a list"),
        (None, "put it in a list"),
        ([5], "is a int"),
        (["\ud800"], "not valid Unicode"),
    ):
        with pytest.raises(RetrievalError, match=said):
            encoder(wrong)


def test_few_shapes_are_compiled(encoder):
    before = encoder._embed._cache_size()
    for n in range(1, 70, 7):
        encoder(["x y z"] * n)
    assert encoder._embed._cache_size() - before <= 3


def test_the_fingerprint_is_stable_and_changes_with_weights_and_length(bert, encoder, tmp_path):
    path, model, tokenizer = bert
    assert Encoder.from_hf(path).fingerprint == encoder.fingerprint
    assert Encoder.from_hf(path, max_length=20).fingerprint != encoder.fingerprint
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] += 0.5
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Encoder.from_hf(tmp_path).fingerprint != encoder.fingerprint


def test_the_fingerprint_sees_every_value_and_the_tokenizer(bert, encoder, tmp_path):
    path, _, tokenizer = bert
    model = transformers.BertModel.from_pretrained(path)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[3, 40] += 0.5
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    changed = Encoder.from_hf(tmp_path)
    assert (
        changed.fingerprint != encoder.fingerprint
        and changed.former_fingerprint == encoder.former_fingerprint
    )
    shutil.copytree(path, tmp_path / "tokens")
    words = json.loads((tmp_path / "tokens" / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["##h"], vocabulary["##e"] = vocabulary["##e"], vocabulary["##h"]
    (tmp_path / "tokens" / "tokenizer.json").write_text(json.dumps(words))
    assert Encoder.from_hf(tmp_path / "tokens").fingerprint != encoder.fingerprint


def test_a_memory_of_earlier_days_opens_with_its_encoder(encoder, tmp_path):
    store = Store.create(tmp_path / "m", encoder.dim, encoder.former_fingerprint, encoder.source)
    store.add([Passage("a", "bagheria is in italy")], encoder.passages(["bagheria is in italy"]))
    memory = Memory.open(tmp_path / "m")
    memory.add([Passage("b", "zzz")])
    assert Memory.open(tmp_path / "m", encoder).search(["bagheria is in italy"], 1)[0][0].id == "a"
    with pytest.raises(RetrievalError, match="already"):
        memory.reembed(encoder)


def test_a_memory_opens_with_the_encoder_it_was_made_with(bert, encoder, tmp_path):
    memory = Memory.create(tmp_path / "m", encoder)
    memory.add([Passage("a", "bagheria is in italy"), Passage("b", "zzz")])
    assert Memory.open(tmp_path / "m").search(["bagheria is in italy"], 1)[0][0].id == "a"
    other = Encoder.from_hf(bert[0], max_length=10)
    with pytest.raises(RetrievalError, match=f"{encoder.fingerprint}.*{other.fingerprint}"):
        Memory.open(tmp_path / "m", other)


def test_a_decoder_embeds_other_than_by_its_last_token(tmp_path):
    save_reader(tmp_path)
    encoder = Encoder.from_hf(tmp_path)
    model = transformers.LlamaModel.from_pretrained(tmp_path).eval()
    texts = ["a", "towns by the sea", "the sea and the hills " * 4]
    with torch.no_grad():
        last = [
            model(torch.tensor([byte_tokenizer()(text)["input_ids"]]))
            .last_hidden_state[0, -1]
            .numpy()
            for text in texts
        ]
    expected = np.stack(last) / np.linalg.norm(last, axis=1, keepdims=True)
    assert np.abs(encoder(texts) - expected).max() < 1e-4
    assert encoder.fingerprint != Encoder.from_hf(tmp_path, max_length=100).fingerprint


def save_sentences(path, kind, pooling, prompts=None, length=None, normalize=True):
    """Save a random BERT or Llama as sentence-transformers does; return it."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    {"bert": save_encoder, "llama": save_reader}[kind](path / "plain")
    if kind == "llama":
        # With a chat template, sentence-transformers 6 renders every text as a chat turn.
        (path / "plain" / "chat_template.jinja").unlink()
        tokenizer = byte_tokenizer(chat_template=None)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(path / "plain")
    made = [
        Transformer(str(path / "plain"), max_seq_length=length),
        Pooling(32, pooling),
        *([Normalize()] if normalize else []),
    ]
    reference = SentenceTransformer(modules=made, prompts=prompts, device="cpu")
    reference.save(str(path / "model"))
    return reference


E5 = {"query": "query: ", "document": "passage: "}


@pytest.mark.parametrize(
    ("kind", "pooling", "prompts", "length", "normalize"),
    [
        ("bert", "mean", E5, 24, True),
        ("bert", "cls", {"query": "find what answers this: "}, None, False),
        ("llama", "lasttoken", {"query": "Instruct: find towns\nQuery:"}, 40, True),
        ("llama", "mean", None, None, True),
    ],
)
def test_a_folder_of_sentence_transformers_gives_other_vectors_than_there(
    kind, pooling, prompts, length, normalize, tmp_path
):
    reference = save_sentences(tmp_path, kind, pooling, prompts, length, normalize)
    encoder, texts = Encoder.from_hf(tmp_path / "model"), [*TEXTS, "a b c " * 30]
    sides = [
        (encoder.queries, reference.encode_query),
        (encoder.passages, reference.encode_document),
        (encoder, reference.encode),
    ]
    for ours, theirs in sides:
        assert np.abs(ours(texts) - theirs(texts, normalize_embeddings=True)).max() < 1e-4
    assert np.abs(encoder.queries(texts) - encoder(texts)).max() > 1e-3 or not prompts
    cut = Encoder.from_hf(tmp_path / "model", dim=8).queries(texts)
    assert cut.shape == (6, 8) and np.abs(np.linalg.norm(cut, axis=1) - 1).max() < 1e-6
    assert (
        np.abs(cut - reference.encode_query(texts, truncate_dim=8, normalize_embeddings=True)).max()
        < 1e-4
    )


@pytest.mark.parametrize(
    ("settings", "query", "passage"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: ", ""),
        ({"prompts": {"any": "a: ", "other": "o: "}, "default_prompt_name": "any"}, "a: ", "a: "),
        ({"prompts": {"query": None, "document": None}, "default_prompt_name": None}, "", ""),
        ({}, "", ""),
    ],
)
def test_the_prompts_of_an_older_folder_are_kept(bert, settings, query, passage, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = Encoder.from_hf(folder)
    assert (encoder.query_prefix, encoder.passage_prefix) == (query, passage)
    given = Encoder.from_hf(folder, query_prefix="x: ", passage_prefix="")
    assert (given.query_prefix, given.passage_prefix) == ("x: ", "")
    assert (given.queries(["a"]) == given(["x: a"])).all() and (
        given.passages(["a"]) == given(["a"])
    ).all()


def modules(*kinds):
    return [
        {
            "type": f"sentence_transformers.models.{kind}",
            "path": "" if kind == "Transformer" else f"1_{kind}",
        }
        for kind in kinds
    ]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", modules("Transformer", "Pooling", "Dense"), "Dense"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "pooling_mode_max_tokens",
        ),
        (
            "sentence_bert_config.json",
            {"max_seq_length": 20, "do_lower_case": True},
            "do_lower_case=True",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {}, "message": {}}},
            "chat template",
        ),
        ("sentence_bert_config.json", {"max_seq_length": "20"}, "'20' tokens"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "a text for each name"),
        ("config_sentence_transformers.json", [], "expected an object"),
    ],
)
def test_what_a_folder_asks_for_and_we_lack_is_ignored(bert, file, content, said, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "modules.json": modules("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode": "cls"},
        file: content,
    }.items():
        (folder / name).write_text(json.dumps(value))
    with pytest.raises(RetrievalError, match=said):
        Encoder.from_hf(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dim": 33}, "dim=33: expected 1 to 32"),
        ({"dim": 0}, "dim=0"),
        ({"dim": True}, "dim=True"),
        ({"pooling": "max"}, "pooling='max'.*mean, first, last"),
        ({"dtype": "int8"}, "dtype='int8'"),
        (
            {"query_prefix": "long " * 40},
            "query_prefix='long.* takes 162 of the encoder's 64 tokens",
        ),
        ({"passage_prefix": "\ud800"}, "passage_prefix is not valid Unicode"),
        ({"max_length": 2}, "max_length=2"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": "x"}, "max_length='x'"),
        ({"query_prefix": 5}, "query_prefix is a int"),
    ],
)
def test_an_option_that_cannot_be_is_accepted(bert, options, said):
    with pytest.raises(RetrievalError, match=said):
        Encoder.from_hf(bert[0], **options)


OPTIONS = {
    "query_prefix": "q: ",
    "passage_prefix": "p: ",
    "dim": 16,
    "dtype": "bfloat16",
    "max_length": 40,
}


def test_a_memory_forgets_or_mixes_up_an_option_of_its_encoder(bert, encoder, tmp_path):
    own = Encoder.from_hf(bert[0], **OPTIONS)
    texts = ["one two three four five six seven eight nine " * 2, "zzz"]
    Memory.create(tmp_path / "m", own).add([Passage(str(i), text) for i, text in enumerate(texts)])
    again = Memory.open(tmp_path / "m")
    scores = {hit.id: hit.score for hit in again.search(["zzz"], 2)[0]}
    assert [scores["0"], scores["1"]] == pytest.approx(
        (own.queries(["zzz"]) @ own.passages(texts).T)[0], abs=2e-3
    )
    assert again._store.vectors(["0"])[0] == pytest.approx(own.passages(texts[:1]), abs=2e-3)
    for name, value in {**OPTIONS, "pooling": "first"}.items():
        others = {key: given for key, given in OPTIONS.items() if key != name}
        other = Encoder.from_hf(bert[0], **(others if name in OPTIONS else {**others, name: value}))
        assert (
            len(
                {
                    other.fingerprint,
                    own.fingerprint,
                    Encoder.from_hf(bert[0], **{name: value}).fingerprint,
                }
            )
            == 3
        )
        with pytest.raises(RetrievalError, match=f"{own.fingerprint}.*{other.fingerprint}"):
            Memory.open(tmp_path / "m", other)


def test_a_memory_that_remembers_only_a_path_is_read_by_newer_rules(bert, tmp_path):
    """A memory from before prompts and tokenizer lengths were read keeps its vectors.

    Its texts are embedded without them.
    """
    folder = shutil.copytree(bert[0], tmp_path / "model")
    plain = Encoder.from_hf(folder)
    assert plain.source == str(folder)
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "modules.json": modules("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode": "mean"},
    }.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": E5}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": 30}))
    Memory.create(tmp_path / "m", plain).add([Passage("a", "bagheria is in italy")])
    assert Memory.open(tmp_path / "m").search(["bagheria is in italy"])[0][
        0
    ].score == pytest.approx(1, abs=1e-3)
    newer = Encoder.from_hf(folder)
    assert newer.max_length == 30 and newer.query_prefix == "query: "
    with pytest.raises(RetrievalError, match="was made with the encoder"):
        Memory.open(tmp_path / "m", newer)


def test_the_fingerprint_of_an_encoder_without_options_changes(tmp_path):
    """Existing memories hold these fingerprints; the first is the older kind.

    The weights are the same on every machine.
    """
    config = transformers.BertConfig(
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        for number, (_, value) in enumerate(sorted(model.named_parameters())):
            value.copy_((torch.arange(value.numel()) % (number + 7)).reshape(value.shape) / 16)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    encoder = Encoder.from_hf(tmp_path)
    assert encoder.former_fingerprint == "model-c753e54a3786cfcc06b90455a5b2baa2"
    assert encoder.fingerprint == "model2-7b902d44b0e0aeb9829faa59c6c558ae"
    assert (  # of the same values
        Encoder.from_hf(tmp_path, dtype="bfloat16").fingerprint
        != Encoder.from_hf(tmp_path).fingerprint
    )


def test_a_memory_is_built_moved_changed_and_searched_with_other_options_by_command(
    bert, tmp_path, capsys
):
    folder = shutil.copytree(bert[0], tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": E5}))
    (tmp_path / "towns.txt").write_text("bagheria is in italy\n\nzzz")
    at, source = f"--memory={tmp_path / 'm'}", f"--input={tmp_path / 'towns.txt'}"
    assert build.main([at, source, f"--encoder={folder}", "--dim=16", "--query-prefix=q: "]) == 0
    assert build.main([at, source]) == 0 and "2 unchanged" in capsys.readouterr().out
    assert (
        build.main([at, source, "--dim=8"]) == 2
        and "was made with the encoder" in capsys.readouterr().err
    )
    moved = folder.rename(tmp_path / "moved")
    assert search.main([at, "--json", "x"]) == 2 and "model" in capsys.readouterr().err
    assert search.main([at, "--json", "x", f"--encoder={moved}"]) == 0
    score = json.loads(capsys.readouterr().out)["hits"][0]["score"]
    own = Encoder.from_hf(moved, dim=16, query_prefix="q: ")
    assert own.passage_prefix == "passage: " and score == pytest.approx(
        (own.queries(["x"]) @ own.passages(["bagheria is in italy", "zzz"]).T).max(), abs=2e-3
    )
    moved.rename(folder)
    assert (
        build.main([at, "--reembed", "--pooling=first"]) == 0
        and build.main([at, "--reembed", "--pooling=first"]) == 2
    )
    first = Encoder.from_hf(folder, dim=16, query_prefix="q: ", pooling="first")
    assert Memory.open(tmp_path / "m").search(["x"]) == Memory.open(tmp_path / "m", first).search(
        ["x"]
    )
    assert (
        build.main([at, "--reembed", f"--encoder={folder}"]) == 0
        and len(Memory.open(tmp_path / "m", Encoder.from_hf(folder))) == 2
    )


def test_a_build_cuts_passages_that_lose_their_ends_to_the_prefix(bert, tmp_path, caplog):
    (tmp_path / "towns.txt").write_text("one two three four. " * 30)
    arguments = [
        f"--memory={tmp_path / 'm'}",
        f"--input={tmp_path / 'towns.txt'}",
        f"--encoder={bert[0]}",
    ]
    assert build.main([*arguments, "--passage-prefix=what follows is a passage: "]) == 0
    assert (
        len(Memory.open(tmp_path / "m")) > 10 and "their ends are not searched" not in caplog.text
    )


def test_bfloat16_is_not_computed_in_or_is_far_off(bert, encoder):
    vectors, rounded = encoder(TEXTS), Encoder.from_hf(bert[0], dtype="bfloat16")(TEXTS)
    assert rounded.dtype == np.float32 and 1e-4 < np.abs(vectors - rounded).max() < 0.05
    assert (
        np.abs(np.linalg.norm(rounded, axis=1) - 1).max() < 1e-6
        and (vectors * rounded).sum(1).min() > 0.999
    )


def test_the_vectors_depend_on_how_many_devices_share_the_work(bert, encoder):
    assert encoder._mesh.size == len(jax.local_devices()) == 8
    one, three = (Encoder.from_hf(bert[0], mesh=rows_mesh(jax.local_devices()[:n])) for n in (1, 3))
    assert (
        one.fingerprint == three.fingerprint == encoder.fingerprint and one.source == encoder.source
    )
    for texts in (TEXTS[:1], TEXTS, TEXTS * 15):
        assert (
            np.abs(encoder(texts) - one(texts)).max() < 1e-5
            and np.abs(three(texts) - one(texts)).max() < 1e-5
        )


def test_the_work_is_not_shared_or_a_query_waits_for_every_device(encoder):
    made = {n: encoder._run(lm.Batch.of(np.ones((n, 16), np.int32))) for n in (4, 256)}
    assert len(made[4].devices()) == 1 and len(made[256].devices()) == 8
    assert {part.data.shape for part in made[256].addressable_shards} == {(32, encoder.dim)}
