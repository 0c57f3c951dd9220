"""Label, span, value and sentence heads: parity with transformers, export, and changes of head."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import families
from lm.batch import Batch
from lm.models.config import ConfigError
from tests.lm.families import test_parity as parity
from tests.lm.small_models import identical, tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4
SEQUENCE, TOKEN, SPAN = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
TOKENS = parity.TOKENS
NEO = dict(
    vocab_size=91,
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    attention_types=[[["global", "local"], 1]],
    window_size=4,
)
NEO |= dict(max_position_embeddings=64, **TOKENS)
ALBERT = parity.BERT | dict(embedding_size=10)
BART = dict(
    vocab_size=71,
    d_model=24,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=3,
    decoder_attention_heads=3,
)
BART |= dict(
    encoder_ffn_dim=40,
    decoder_ffn_dim=40,
    max_position_embeddings=40,
    decoder_start_token_id=1,
    **TOKENS,
)
T5 = dict(
    vocab_size=71,
    d_model=24,
    d_kv=6,
    d_ff=40,
    num_layers=2,
    num_heads=3,
    relative_attention_num_buckets=8,
    **TOKENS,
)
T5 |= dict(relative_attention_max_distance=20, decoder_start_token_id=2)
FAMILIES = {  # class stem: (options, heads besides sequence classification)
    "OpenAIGPT": (parity.GPT2, ()),
    "GPT2": (parity.GPT2, (TOKEN, SPAN)),
    "GPTNeo": (NEO, (TOKEN, SPAN)),
    "GPTNeoX": (parity.NEOX, (TOKEN, SPAN)),
    "OPT": (parity.OPT, (SPAN,)),
    "Llama": (parity.DECODER, (TOKEN, SPAN)),
    "Mistral": (parity.DECODER | dict(sliding_window=5), (TOKEN, SPAN)),
    "Qwen2": (parity.DECODER, (TOKEN, SPAN)),
    "Qwen3": (parity.DECODER | dict(head_dim=10), (TOKEN, SPAN)),
    "Phi3": (parity.DECODER, (TOKEN,)),
    "Gemma": (parity.DECODER | dict(head_dim=10), (TOKEN,)),
    "Gemma2": (parity.GEMMA2, (TOKEN,)),
    "Olmo2": (parity.DECODER, ()),
    "StableLm": (parity.DECODER | dict(partial_rotary_factor=0.34), (TOKEN,)),
    "Starcoder2": (parity.DECODER, (TOKEN,)),
    "Bert": (parity.BERT, (TOKEN, SPAN)),
    "Roberta": (parity.BERT | dict(pad_token_id=2), (TOKEN, SPAN)),
    "DistilBert": (parity.DISTIL, (TOKEN, SPAN)),
    "Electra": (ALBERT, (TOKEN, SPAN)),
    "Albert": (ALBERT, (TOKEN, SPAN)),
    "ModernBert": (parity.MODERN, (TOKEN, SPAN)),
    "Bart": (BART, (SPAN,)),
    "MBart": (BART, (SPAN,)),
    "T5": (T5, (TOKEN, SPAN)),
    "MT5": (T5, (TOKEN, SPAN)),
    "UMT5": (T5, (TOKEN, SPAN)),
}
LABELS = {SEQUENCE: 3, TOKEN: 5, SPAN: 2}
CASES: dict[str, tuple[str, dict, dict]] = {
    f"{stem}{kind}": (f"{stem}{kind}", options, dict(num_labels=LABELS[kind]))
    for stem, (options, more) in FAMILIES.items()
    for kind in (SEQUENCE, *more)
}
CASES |= {
    "Llama-regression": (
        "LlamaForSequenceClassification",
        parity.DECODER,
        dict(num_labels=1, tie_word_embeddings=True),
    ),
    "Bert-regression": (
        "BertForSequenceClassification",
        parity.BERT,
        dict(num_labels=1, tie_word_embeddings=False, hidden_act="relu"),
    ),
    "ModernBert-mean": (
        "ModernBertForSequenceClassification",
        parity.MODERN,
        dict(num_labels=7, classifier_pooling="mean", classifier_activation="silu", norm_bias=True),
    ),
    "Electra-discriminator": (
        "ElectraForPreTraining",
        parity.BERT,
        dict(num_labels=2, embedding_size=10, hidden_act="relu"),
    ),
    "Bart-untied": (
        "BartForSequenceClassification",
        BART,
        dict(num_labels=2, encoder_attention_heads=2),
    ),
}
# Families whose rows may be padded on the left.
LEFT = (
    "GPTNeoX",
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Phi3",
    "Gemma",
    "Gemma2",
    "Olmo2",
    "StableLm",
    "Starcoder2",
)


def inputs(reference, left=False):
    """Three rows of 13, 9 and 4 tokens: (Batch, the same for transformers, mask of real tokens).

    Rows of an encoder end with its eos token.
    """
    tokens, valid, types = parity.padded_batch(reference)
    if reference.config.is_encoder_decoder:
        tokens[np.arange(3), valid.sum(1) - 1] = reference.config.eos_token_id
    if left:
        tokens, valid = tokens[:, ::-1].copy(), valid[:, ::-1].copy()
    theirs = dict(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long())
    if types is not None:
        theirs["token_type_ids"] = torch.tensor(types)
    segments = valid.astype(np.int32)
    if not reference.config.is_encoder_decoder or type(reference).__name__.endswith(TOKEN):
        # T5's token classifier uses the encoder only.
        return Batch.of(tokens, segments, types=types), theirs, valid
    shifted = np.concatenate(
        [np.full((3, 1), reference.config.decoder_start_token_id), tokens[:, :-1]], axis=1
    )
    theirs["decoder_input_ids"] = torch.tensor(shifted)
    return (
        Batch.of(shifted, segments, encoder_tokens=tokens, encoder_segments=segments),
        theirs,
        valid,
    )


def labels_of(model, given):
    """Logits of transformers: [B, N], [B, T, N], or [B, T, 2] for starts and ends."""
    with torch.no_grad():
        out = model(**given)
    return (
        torch.stack([out.start_logits, out.end_logits], -1) if "start_logits" in out else out.logits
    ).numpy()


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_transformers_and_the_class_is_exported_without_loss(
    name, tmp_path, caplog
):
    reference = parity.torch_model(name, cases=CASES)
    reference.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")
    number = CASES[name][2]["num_labels"]
    unnamed = model.config.head in ("question_answering", "replaced_token_detection")
    assert model.config.n_labels == (0 if unnamed else number)

    for left in (False, True)[: 1 + (name.removesuffix(SEQUENCE) in LEFT)]:
        batch, given, valid = inputs(reference, left)
        ours, theirs = (
            np.asarray(lm.forward(model, params, batch).logits),
            labels_of(reference, given),
        )
        assert ours.shape == theirs.shape
        real = valid if ours.shape[:2] == valid.shape else slice(None)
        np.testing.assert_allclose(ours[real], theirs[real], atol=TOLERANCE, rtol=0)

    exported, warnings, report = parity.export_and_load(
        reference, model, params, tmp_path / "ours", caplog
    )
    assert not warnings
    assert not any(report.values()), report
    assert exported.config.num_labels == number
    np.testing.assert_allclose(labels_of(exported, given)[real], theirs[real], atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [
        type(reference).__name__
    ]


def test_every_class_with_labels_has_a_case():
    declared = {x.architecture for family in families.FAMILIES.values() for x in family.labels}
    assert declared == {cls for cls, *_ in CASES.values()}
    transformers_has = {
        f"{stem}{kind}"
        for stem in FAMILIES
        for kind in (SEQUENCE, TOKEN, SPAN)
        if hasattr(transformers, stem + kind)
    }
    assert declared == transformers_has | {"ElectraForPreTraining"}


def with_random_head(family, head, **fields):
    """(model, params) of a small model with that head; all parameters are random."""
    model, params = lm.with_head(*tiny(family), head, **fields)
    return model, jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), params
    )


@pytest.mark.parametrize(
    ("family", "head", "fields"),
    [
        ("llama", "token_classification", dict(n_labels=5)),
        ("bert", "question_answering", {}),
        ("bamba", "value", {}),
    ],
)
def test_in_packed_rows_every_document_has_the_outputs_that_it_has_alone(family, head, fields):
    model, params = with_random_head(family, head, **fields)
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 37, (1, n)) for n in (5, 3, 7)]
    segments = np.repeat([1, 2, 3, 0], [5, 3, 7, 2])[None]
    together = np.asarray(
        lm.forward(
            model,
            params,
            Batch.of(np.pad(np.concatenate(documents, 1), ((0, 0), (0, 2))), segments),
        ).logits
    )
    apart = np.concatenate(
        [np.asarray(lm.forward(model, params, Batch.of(d)).logits) for d in documents], axis=1
    )
    assert together.ndim == (2 if head == "value" else 3)
    np.testing.assert_allclose(together[:, :15], apart, atol=1e-4 * np.abs(apart).max(), rtol=0)


@pytest.mark.parametrize(
    ("family", "head", "fields"),
    [
        ("mamba", "sequence_classification", dict(n_labels=3)),
        ("mamba2", "embedding", {}),
        ("bamba", "token_classification", dict(n_labels=3)),
        ("falcon_mamba", "question_answering", {}),
    ],
)
def test_padding_on_either_side_changes_no_output_of_a_state_space_model(family, head, fields):
    model, params = with_random_head(family, head, **fields)

    def outputs(before, after):
        given = [np.pad(x, ((0, 0), (before, after)), constant_values=v) for x, v in rows]
        out = lm.forward(model, params, Batch.of(*given))
        found = np.asarray(out.pooled if head == "embedding" else out.logits)[0]
        return found if found.ndim == 1 else found[before : before + 6]

    tokens = np.random.default_rng(1).integers(0, 37, (1, 6))
    rows = (tokens, 5), (np.ones((1, 6), int), 0)
    alone = outputs(0, 0)
    for before, after in ((0, 4), (3, 0)):
        np.testing.assert_allclose(
            outputs(before, after), alone, atol=1e-4 * np.abs(alone).max(), rtol=0
        )


@pytest.mark.parametrize(
    ("family", "head", "fields", "made"),
    [
        ("llama", "value", {}, {"head/classifier"}),
        ("llama", "sequence_classification", dict(n_labels=3), {"head/classifier"}),
        (
            "gpt2",
            "token_classification",
            dict(n_labels=2),
            {"head/classifier", "head/classifier_bias"},
        ),
        ("llama", "none", {}, set()),
        ("llama", "embedding", dict(pooling="mean"), set()),
        (
            "bert",
            "sequence_classification",
            dict(n_labels=3),
            {"head/classifier", "head/classifier_bias", "pooler/kernel", "pooler/bias"},
        ),
        (
            "roberta",
            "sequence_classification",
            dict(n_labels=1),
            {"head/classifier", "head/classifier_bias", "head/dense", "head/dense_bias"},
        ),
        (
            "modernbert",
            "question_answering",
            {},
            {"head/classifier", "head/classifier_bias", "head/dense", "head/norm/scale"},
        ),
        (
            "bart",
            "sequence_classification",
            dict(n_labels=3),
            {"head/classifier", "head/classifier_bias", "head/dense", "head/dense_bias"},
        ),
    ],
)
def test_another_head_keeps_all_other_weights_and_has_what_its_class_has(
    family, head, fields, made, tmp_path
):
    model, params = tiny(family)
    new, changed = lm.with_head(model, params, head, **fields)
    assert new.config.head == head
    before, after = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (params, changed))
    name = lambda path: "/".join(key.key for key in path)
    assert {
        name(path) for path in after if path not in before or name(path).startswith("head/")
    } == made
    assert all(after[path] is before[path] for path in after if name(path) not in made)
    fresh = {name(path): np.asarray(x) for path, x in after.items() if name(path) in made}
    assert all((x == 0).all() == ("bias" in path or head == "value") for path, x in fresh.items())
    drawn = lm.with_head(model, params, head, jax.random.key(7), **fields)[1]
    assert identical(drawn, changed) == (head in ("value", "none", "embedding"))
    if head == "value":
        assert not np.asarray(lm.forward(new, changed, Batch.of([[3, 4, 5]])).logits).any()
        return
    lm.to_hf(new, changed, tmp_path / "out")
    again, params_again = lm.from_hf(tmp_path / "out")
    assert again.config == new.config
    assert identical(params_again, changed)


def test_a_separate_stack_keeps_its_layers_under_another_head():
    model, params = lm.separate(*tiny("gpt2"))
    new, changed = lm.with_head(model, params, "token_classification", n_labels=2)
    assert new.config.layers == "separate" and changed["layers_1"] == params["layers_1"]


def test_a_head_that_a_model_cannot_have_is_refused_in_words(tmp_path):
    llama, mamba, olmo = tiny("llama"), tiny("mamba"), tiny("olmo2")
    with pytest.raises(ConfigError, match=r"n_labels=0 with model\.head='token_classification'"):
        lm.with_head(*llama, "token_classification")
    with pytest.raises(ConfigError, match=r"'classifier' is unknown.*sequence_classification"):
        lm.with_head(*llama, "classifier")
    with pytest.raises(ConfigError, match=r"causal_lm.*bidirectional"):
        lm.with_head(*tiny("bert"), "causal_lm")
    with pytest.raises(ConfigError, match=r"label_names has 1 names for model\.n_labels=2"):
        lm.with_head(*llama, "token_classification", n_labels=2, label_names=("one",))
    for (model, params), head, fields in (
        (mamba, "sequence_classification", dict(n_labels=3)),
        (olmo, "token_classification", dict(n_labels=3)),
        (llama, "value", {}),
    ):
        new, changed = lm.with_head(model, params, head, **fields)
        with pytest.raises(
            ConfigError,
            match=(
                f"{model.config.family} model with head='{head}' has no Hugging Face class; "
                ".*causal_lm"
            ),
        ):
            lm.to_hf(new, changed, tmp_path / "out")
    encoder_decoder = lm.with_head(*tiny("t5"), "token_classification", n_labels=3)
    with pytest.raises(
        ConfigError, match=r"T5ForTokenClassification cannot express.*encoder_layers"
    ):
        lm.to_hf(*encoder_decoder, tmp_path / "out")
    pooled_otherwise = lm.with_head(*llama, "sequence_classification", n_labels=3, pooling="mean")
    with pytest.raises(ConfigError, match=r"pooling='mean' \(would read back as 'last'\)"):
        lm.to_hf(*pooled_otherwise, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewrite(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_number_of_labels_that_is_not_the_stored_classifiers_is_listed(tmp_path):
    lm.to_hf(*lm.with_head(*tiny("llama"), "sequence_classification", n_labels=3), tmp_path)
    rewrite(tmp_path, id2label={str(i): f"LABEL_{i}" for i in range(4)})
    with pytest.raises(
        lm.WeightsError, match=r"1 misshapen: score\.weight is \[3, 16\], expected \[4, 16\]"
    ):
        lm.from_hf(tmp_path)


def test_names_of_labels_are_kept_and_published_spellings_of_their_number_are_read(tmp_path):
    names = ("O", "B-PER", "I-PER")
    lm.to_hf(
        *lm.with_head(*tiny("bert"), "token_classification", n_labels=3, label_names=names),
        tmp_path / "names",
    )
    assert lm.from_hf(tmp_path / "names")[0].config.label_names == names
    theirs = transformers.BertForTokenClassification.from_pretrained(tmp_path / "names").config
    assert theirs.id2label == dict(enumerate(names)) and theirs.label2id["I-PER"] == 2

    hf = families.config_to_hf(
        lm.with_head(*tiny("bert"), "sequence_classification", n_labels=2)[0].config
    )
    number = lambda **given: (lambda c: (c.n_labels, c.label_names))(
        families.config_from_hf(hf | given)
    )
    assert number() == number(id2label=None) == (2, ())
    assert number(id2label=None, num_labels=5) == (5, ())
    assert number(id2label={str(i): str(i) for i in range(11)}) == (11, tuple(map(str, range(11))))
    for given, words in (
        (dict(id2label={"x": "y"}), "id2label"),
        (dict(id2label=None, num_labels=0), "num_labels=0"),
    ):
        with pytest.raises(ConfigError, match=words):
            number(**given)
    with pytest.raises(ConfigError, match=r"num_labels=3 is not supported for question answering"):
        families.config_from_hf(
            hf
            | dict(
                architectures=["BertForQuestionAnswering"], id2label={str(i): "x" for i in range(3)}
            )
        )
    with pytest.raises(ConfigError, match="token_classification_bias=False"):
        families.config_from_hf(
            hf | dict(architectures=["BertForTokenClassification"], token_classification_bias=False)
        )
    regression = families.config_to_hf(
        lm.with_head(*tiny("llama"), "sequence_classification", n_labels=1)[0].config
    )
    assert regression["problem_type"] == "regression" and regression["id2label"] == {"0": "LABEL_0"}


def test_a_checkpoint_is_read_with_another_head_where_its_weights_allow_it(tmp_path):
    batch = Batch.of(np.random.default_rng(0).integers(0, 37, (2, 6)), [[1] * 6, [1] * 4 + [0] * 2])
    for family, changes in (("bert", {}), ("llama", dict(tie_embeddings=False))):
        model, params = tiny(family, **changes)
        lm.to_hf(model, params, tmp_path / family)
        hidden = np.asarray(lm.forward(model, params, batch).hidden)
        bare, body = lm.from_hf(tmp_path / family, head="none")
        assert identical(body, {name: x for name, x in params.items() if name != "head"})
        assert np.array_equal(lm.forward(bare, body, batch).hidden, hidden)
        vector = np.asarray(
            lm.forward(*lm.from_hf(tmp_path / family, head="embedding"), batch).pooled
        )
        pooled = (
            np.stack([hidden[0].mean(0), hidden[1, :4].mean(0)])
            if family == "bert"
            else hidden[[0, 1], [5, 3]]
        )
        np.testing.assert_allclose(
            vector, pooled / np.linalg.norm(pooled, axis=-1, keepdims=True), atol=1e-5
        )

    spans, params = with_random_head("llama", "question_answering")  # stored under different names
    lm.to_hf(spans, params, tmp_path / "spans")
    assert identical(
        lm.from_hf(tmp_path / "spans", head="none")[1],
        {name: x for name, x in params.items() if name != "head"},
    )

    bare, params = lm.with_head(*tiny("gpt2"), "none")  # its embedding table is also its head
    lm.to_hf(bare, params, tmp_path / "bare")
    model, again = lm.from_hf(tmp_path / "bare", head="causal_lm")
    assert model.config == tiny("gpt2")[0].config and identical(again, params)

    with pytest.raises(lm.WeightsError, match=r"1 missing: lm_head\.weight"):
        lm.to_hf(*lm.with_head(*tiny("llama", tie_embeddings=False), "none"), tmp_path / "untied")
        lm.from_hf(tmp_path / "untied", head="causal_lm")


def test_a_reward_model_is_read_as_a_value_of_every_token(tmp_path):
    reward, params = with_random_head("llama", "sequence_classification", n_labels=1)
    lm.to_hf(reward, params, tmp_path / "reward")
    value, critic = lm.from_hf(tmp_path / "reward", head="value")
    batch = Batch.of([[3, 4, 5, 6], [7, 8, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]])
    rewards, values = (
        np.asarray(lm.forward(m, p, batch).logits) for m, p in ((reward, params), (value, critic))
    )
    np.testing.assert_allclose(values[[0, 1], [3, 1]], rewards[:, 0], rtol=1e-5)
    lm.to_hf(*with_random_head("bert", "sequence_classification", n_labels=1), tmp_path / "first")
    with pytest.raises(ConfigError, match="only a classifier of the last token"):
        lm.from_hf(tmp_path / "first", head="value")
    lm.to_hf(*with_random_head("llama", "sequence_classification", n_labels=2), tmp_path / "two")
    with pytest.raises(lm.WeightsError, match=r"score\.weight is \[2, 16\], expected \[1, 16\]"):
        lm.from_hf(tmp_path / "two", head="value")


def sentence_directory(path, mode, normalize=True, **settings):
    """Save a BERT as sentence-transformers does. Returns it on torch."""
    bert = parity.torch_model("bert")
    bert.save_pretrained(path)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")] + [
        ("Normalize", "2_Normalize")
    ] * normalize
    modules = [
        dict(idx=i, name=str(i), path=p, type=f"sentence_transformers.models.{kind}")
        for i, (kind, p) in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    modes = dict.fromkeys(
        ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False
    )
    settings = settings or modes | {f"pooling_mode_{mode}": True}
    (path / "1_Pooling" / "config.json").write_text(
        json.dumps(dict(word_embedding_dimension=24) | settings)
    )
    return bert


@pytest.mark.parametrize(
    ("mode", "settings", "normalize"),
    [
        ("mean_tokens", {}, True),
        ("cls_token", {}, False),
        ("lasttoken", {}, True),
        ("mean_tokens", dict(pooling_mode="mean"), True),
    ],
)
def test_a_sentence_transformers_directory_gives_its_vectors_and_is_written_back(
    mode, settings, normalize, tmp_path, caplog
):
    bert = sentence_directory(tmp_path / "theirs", mode, normalize, **settings)
    model, params = lm.from_hf(tmp_path / "theirs")
    batch, given, valid = inputs(bert)
    with torch.no_grad():
        hidden = bert(**given).last_hidden_state.numpy()
    rows, last = np.arange(3), valid.sum(1) - 1
    theirs = {
        "mean_tokens": (hidden * valid[..., None]).sum(1) / valid.sum(1, keepdims=True),
        "cls_token": hidden[:, 0],
        "lasttoken": hidden[rows, last],
    }[mode]
    theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True) if normalize else theirs
    out = lm.forward(model, params, batch)
    assert out.logits is None
    np.testing.assert_allclose(out.pooled, theirs, atol=TOLERANCE, rtol=0)

    _, warnings, report = parity.export_and_load(bert, model, params, tmp_path / "ours", caplog)
    assert not warnings and not any(report.values())
    read = lambda side, name: json.loads((tmp_path / side / name).read_text())
    assert read("ours", "modules.json") == read("theirs", "modules.json")
    assert {name for name, on in read("ours", "1_Pooling/config.json").items() if on is True} == {
        f"pooling_mode_{mode}"
    }

    # Without the head it is no sentence encoder.
    lm.to_hf(*lm.with_head(model, params, "none"), tmp_path / "ours")
    assert (
        not (tmp_path / "ours" / "modules.json").exists()
        and not (tmp_path / "ours" / "1_Pooling").exists()
    )
    assert lm.from_hf(tmp_path / "ours")[0].config.head == "none"


def test_a_sentence_encoder_that_does_more_than_pool_is_refused_unless_read_without(tmp_path):
    sentence_directory(tmp_path, "max_tokens")
    with pytest.raises(ConfigError, match=r"pools by.*max_tokens"):
        lm.from_hf(tmp_path)
    modules = [
        dict(path=p, type=f"sentence_transformers.models.{kind}")
        for kind, p in (("Transformer", ""), ("Pooling", "1"), ("Dense", "2"))
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"Transformer, Pooling, Dense.*head='none'"):
        lm.from_hf(tmp_path)
    assert lm.from_hf(tmp_path, head="none")[0].config.head == "none"
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(lm.WeightsError, match=r"modules\.json cannot be read"):
        lm.from_hf(tmp_path)
