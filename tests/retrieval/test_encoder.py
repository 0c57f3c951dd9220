import json
import logging

import numpy as np
import pytest
import transformers

from retrieval import Encoder, Memory, Passage, RetrievalError
from tests.retrieval.models import byte_tokenizer, save_encoder, save_reader

torch = pytest.importorskip("torch")

TEXTS = ["bagheria is in italy", "a", "one two three four five six seven eight nine", "z9", "the quick brown fox " * 2]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, *save_encoder(path)


@pytest.fixture(scope="module")
def encoder(bert):
    return Encoder.from_hf(bert[0])


def on_torch(model, tokenizer, texts, max_length):
    """Mean pooling over the attention mask, then length 1, as in sentence-transformers."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
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
    types = [dict(type=f"sentence_transformers.models.{kind}", path=path) for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
    (tmp_path / "modules.json").write_text(json.dumps(types))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    first = Encoder.from_hf(tmp_path)
    with torch.no_grad():
        hidden = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    assert np.abs(first(TEXTS) - torch.nn.functional.normalize(hidden, dim=-1).numpy()).max() < 1e-4
    assert first.fingerprint != encoder.fingerprint


def test_an_empty_list_gives_no_rows_and_a_string_is_refused(encoder):
    assert encoder([]).shape == (0, 32)
    with pytest.raises(RetrievalError, match="put it in a list"):
        encoder("a string")


def test_few_shapes_are_compiled(encoder):
    before = encoder._embed._cache_size()
    for n in range(1, 70, 7):
        encoder(["x y z"] * n)
    assert encoder._embed._cache_size() - before <= 2


def test_the_fingerprint_is_stable_and_changes_with_weights_and_length(bert, encoder, tmp_path):
    path, model, tokenizer = bert
    assert Encoder.from_hf(path).fingerprint == encoder.fingerprint
    assert Encoder.from_hf(path, max_length=20).fingerprint != encoder.fingerprint
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] += 0.5
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Encoder.from_hf(tmp_path).fingerprint != encoder.fingerprint


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
        last = [model(torch.tensor([byte_tokenizer()(text)["input_ids"]])).last_hidden_state[0, -1].numpy() for text in texts]
    expected = np.stack(last) / np.linalg.norm(last, axis=1, keepdims=True)
    assert np.abs(encoder(texts) - expected).max() < 1e-4
    assert encoder.fingerprint != Encoder.from_hf(tmp_path, max_length=100).fingerprint
