"""Parity of encoder-decoders with transformers: random checkpoints are imported and exported."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import families
from lm.batch import Batch
from lm.models.config import ConfigError
from lm.weights import WeightsError
from tests.lm.families.test_greedy import NEW_TOKENS, PROMPTS, likeliest
from tests.lm.families.test_parity import (
    TOLERANCE,
    export_and_load,
    torch,
    torch_model,
    transformers,
)

TOKENS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, decoder_start_token_id=3)
BART = dict(
    vocab_size=87,
    d_model=24,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=3,
)
BART |= dict(
    encoder_ffn_dim=40,
    decoder_ffn_dim=36,
    max_position_embeddings=40,
    forced_eos_token_id=None,
    **TOKENS,
)
T5 = dict(
    vocab_size=83,
    d_model=24,
    d_kv=10,
    num_heads=3,
    d_ff=36,
    num_layers=3,
    num_decoder_layers=2,
    **TOKENS,
)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=20)
FEW = dict(
    relative_attention_num_buckets=12,
    relative_attention_max_distance=9,
    num_layers=1,
    num_decoder_layers=3,
    num_heads=4,
)
SAME = dict(encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=36)

# name: (transformers class, base options, changed options). "untied": the head has its own table.
CASES = {
    "marian": ("MarianMTModel", BART, dict(activation_function="swish", scale_embedding=True)),
    "marian-relu": ("MarianMTModel", BART, dict(**SAME, activation_function="relu", vocab_size=59)),
    "marian-untied": (
        "MarianMTModel",
        BART,
        dict(tie_word_embeddings=False, d_model=12, encoder_layers=1, decoder_layers=3),
    ),
    "marian-headless": ("MarianModel", BART, dict(decoder_attention_heads=4)),
    "bart": ("BartForConditionalGeneration", BART, {}),
    "bart-scaled": (
        "BartForConditionalGeneration",
        BART,
        dict(**SAME, scale_embedding=True, activation_function="relu", vocab_size=59),
    ),
    "bart-untied": (
        "BartForConditionalGeneration",
        BART,
        dict(tie_word_embeddings=False, encoder_layers=1, decoder_layers=3),
    ),
    "bart-headless": ("BartModel", BART, dict(activation_function="gelu_new")),
    "mbart": ("MBartForConditionalGeneration", BART, dict(scale_embedding=True)),
    "mbart-relu": (
        "MBartForConditionalGeneration",
        BART,
        dict(**SAME, activation_function="relu", vocab_size=59),
    ),
    "mbart-untied": (
        "MBartForConditionalGeneration",
        BART,
        dict(tie_word_embeddings=False, encoder_layers=1, decoder_layers=3),
    ),
    "mbart-headless": ("MBartModel", BART, dict(activation_function="gelu_new")),
    "t5": ("T5ForConditionalGeneration", T5, {}),
    "t5-untied": (
        "T5ForConditionalGeneration",
        T5,
        dict(**FEW, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "t5-silu": (
        "T5ForConditionalGeneration",
        T5,
        dict(feed_forward_proj="gated-silu", vocab_size=61, layer_norm_epsilon=1e-3),
    ),
    "t5-headless": ("T5Model", T5, dict(**FEW, feed_forward_proj="gelu")),
    "t5-encoder": ("T5EncoderModel", T5, dict(feed_forward_proj="gated-gelu")),
    "mt5": ("MT5ForConditionalGeneration", T5, dict(vocab_size=61)),
    "mt5-untied": ("MT5ForConditionalGeneration", T5, FEW),
    "mt5-headless": ("MT5Model", T5, dict(feed_forward_proj="relu", num_heads=1)),
    "umt5": ("UMT5ForConditionalGeneration", T5, dict(vocab_size=61)),
    "umt5-untied": ("UMT5ForConditionalGeneration", T5, FEW),
    "umt5-published-untied": (
        "UMT5ForConditionalGeneration",
        T5,
        dict(num_heads=2, layer_norm_epsilon=1e-3),
    ),
    "umt5-headless": ("UMT5Model", T5, dict(**FEW, feed_forward_proj="relu")),
    "umt5-encoder": ("UMT5EncoderModel", T5, FEW),
}


def reference(name, **more):
    """A `torch_model` with a random logits bias, and an untied head if `name` says so."""
    model = torch_model(name, cases=CASES, **more)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(std=0.3)
    for module in model.modules():
        if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
            # Sinusoids are no weights, though torch lists them.
            module.weight.data.copy_(module.create_weight())
    if name.endswith("untied") and hasattr(model, "model"):
        # transformers also unties the encoder's and decoder's tables.
        for side in (model.model.encoder, model.model.decoder):
            side.embed_tokens.weight.data.copy_(model.model.shared.weight.data)
    elif name.endswith("untied"):  # transformers ties a new T5 whatever its configuration says
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return as_published(name, model)


def as_published(name, model):
    """Undo tie_word_embeddings of a published UMT5.

    UMT5 is published with tie_word_embeddings=false and unscaled outputs; transformers 5 scales
    them as if it were tied.
    """
    if "published" in name:
        model.config.tie_word_embeddings = False
    return model


def rows(lengths, width, vocab_size, seed):
    """(tokens [B, width], mask of real tokens) of rows padded on the right."""
    valid = np.arange(width)[None] < np.array(lengths)[:, None]
    return np.where(
        valid, np.random.default_rng(seed).integers(3, vocab_size, valid.shape), 2
    ), valid


def run_torch(model, encoder, decoder):
    """(encoder's hidden states, decoder's or None, logits or None), float32 numpy arrays.

    Each side is (tokens, valid).
    """
    inputs = dict(
        input_ids=torch.tensor(encoder[0]), attention_mask=torch.tensor(encoder[1]).long()
    )
    if "Encoder" not in type(model).__name__:
        inputs |= dict(
            decoder_input_ids=torch.tensor(decoder[0]),
            decoder_attention_mask=torch.tensor(decoder[1]).long(),
        )
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    if "decoder_input_ids" not in inputs:
        return out.last_hidden_state.numpy(), None, None
    logits = getattr(out, "logits", None)
    return (
        out.encoder_last_hidden_state.numpy(),
        out.decoder_hidden_states[-1].numpy(),
        None if logits is None else logits.numpy(),
    )


@pytest.mark.parametrize("name", CASES)
def test_imported_model_computes_what_torch_computes_and_exports_without_loss(
    name, tmp_path, caplog
):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")
    assert model.config.tie_embeddings == (not name.endswith("untied"))

    vocab_size = model.config.vocab_size
    sides = encoder, decoder = (
        rows([13, 9, 4], 13, vocab_size, 0),
        rows([7, 11, 3], 11, vocab_size, 1),
    )
    expected = run_torch(theirs, *sides)
    (tokens, valid), read = decoder, dict(encoder_tokens=encoder[0], encoder_segments=encoder[1])
    if not model.config.encoder_layers:
        (tokens, valid), read = encoder, {}
    out = lm.forward(model, params, Batch.of(tokens, valid, **read))
    pairs = [(out.encoder_hidden, encoder[1]), (out.hidden, decoder[1]), (out.logits, decoder[1])]
    pairs = pairs if read else [(out.hidden, valid), (out.encoder_hidden, None), (out.logits, None)]
    for (ours, real), numbers in zip(pairs, expected, strict=True):
        assert (ours is None) == (numbers is None)
        if numbers is not None:
            np.testing.assert_allclose(
                np.asarray(ours)[real], numbers[real], atol=TOLERANCE, rtol=0
            )

    exported, warnings, report = export_and_load(theirs, model, params, tmp_path / "ours", caplog)
    if name.endswith("untied") and "T5" in CASES[name][0]:
        # transformers warns about the published Flan-T5 and mT5 too.
        assert [warning[:31] for warning in warnings] == ["The tied weights mapping and co"]
    elif name == "marian-headless":
        # The class expects sinusoids, which files of the model with a head never hold.
        assert len(warnings) == 1
        assert report.pop("missing_keys") == {
            f"{side}.embed_positions.weight" for side in ("encoder", "decoder")
        }
    else:
        assert not warnings
    assert not any(report.values()), report
    again = run_torch(as_published(name, exported), *sides)
    for numbers, same, (_, real) in zip(expected, again, pairs, strict=True):
        if numbers is not None:
            # The memory layout differs, so kernels of torch may round differently.
            np.testing.assert_allclose(same[real], numbers[real], atol=2e-6, rtol=1e-6)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [type(theirs).__name__]


@pytest.mark.parametrize("name", ["marian", "bart", "mbart", "t5", "mt5-untied", "umt5"])
def test_packed_pairs_get_what_each_gets_alone(name, tmp_path):
    reference(name).save_pretrained(tmp_path)
    model, params = lm.from_hf(tmp_path)
    rng = np.random.default_rng(0)
    pairs = [
        [rng.integers(3, model.config.vocab_size, n) for n in lengths]
        for lengths in ((6, 4), (5, 8))
    ]
    width = 16
    packed = []  # tokens and segments of the encoder, then of the decoder
    for side in zip(*pairs, strict=True):
        parts = [(tokens, np.full(len(tokens), number)) for number, tokens in enumerate(side, 1)]
        packed += [
            np.pad(np.concatenate(x), (0, width - sum(map(len, x))))[None]
            for x in zip(*parts, strict=True)
        ]
    together = lm.forward(
        model,
        params,
        Batch.of(packed[2], packed[3], encoder_tokens=packed[0], encoder_segments=packed[1]),
    )
    for number, (source, target) in enumerate(pairs, 1):
        alone = lm.forward(model, params, Batch.of(target[None], encoder_tokens=source[None]))
        for ours, single, segments in (
            (together.encoder_hidden, alone.encoder_hidden, packed[1]),
            (together.hidden, alone.hidden, packed[3]),
            (together.logits, alone.logits, packed[3]),
        ):
            np.testing.assert_allclose(
                np.asarray(ours)[segments == number], single[0], atol=2e-5, rtol=1e-5
            )


@pytest.mark.parametrize("name", ["marian-untied", "bart", "mbart", "t5", "mt5-untied", "umt5"])
def test_an_encoder_alone_computes_what_torch_computes(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")
    tokens, valid = rows([13, 9, 4], 13, model.config.vocab_size, 0)
    given = dict(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long())
    hidden = lambda encoder: encoder(**given).last_hidden_state.detach().numpy()[valid]
    expected = hidden(theirs.get_encoder())

    alone, its_params = lm.encoder_of(model, params)
    assert its_params["layers"] is params["encoder"]["layers"]
    assert lm.encoder_of(model, None) == (alone, None)
    assert lm.encoder_of(alone, its_params)[1] is its_params
    for one, own in ((alone, its_params), lm.encoder_of(*lm.separate(model, params))):
        ours = np.asarray(lm.forward(one, own, Batch.of(tokens, valid)).hidden)
        np.testing.assert_allclose(ours[valid], expected, atol=TOLERANCE, rtol=0)

    embedder = lm.with_head(alone, its_params, "embedding")
    if "t5" not in name:
        with pytest.raises(ConfigError, match=r"encoder alone of a .* has no Hugging Face class"):
            lm.to_hf(*embedder, tmp_path / "ours")
        return
    lm.to_hf(*embedder, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    exported = getattr(transformers, written["architectures"][0])
    assert exported.__name__.endswith("EncoderModel")
    again = hidden(exported.from_pretrained(tmp_path / "ours").eval())
    np.testing.assert_allclose(again, expected, atol=1e-5, rtol=0)
    classifier = lm.with_head(alone, its_params, "sequence_classification", n_labels=2)
    assert classifier[0].config.pooling == "mean"
    with pytest.raises(
        ConfigError, match=r"no Hugging Face class; heads that have one: none, token_class"
    ):
        lm.to_hf(*classifier, tmp_path / "refused")


# Models whose answers vary.
GREEDY = (
    "marian-untied",
    "bart-untied",
    "mbart-untied",
    "t5-untied",
    "mt5-untied",
    "umt5-untied",
)


def test_every_family_that_answers_is_among_the_greedy_ones():
    answering = {
        f.model_type for f in families.FAMILIES.values() if "seq2seq_lm" in f.architectures.values()
    }
    assert {
        getattr(transformers, CASES[name][0]).config_class.model_type for name in GREEDY
    } == answering


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_equals_transformers_greedy(name, tmp_path):
    if CASES[name][1] is BART:
        theirs = reference(name, matrices=0.1, vectors=0.02, max_position_embeddings=96)
        for side in (theirs.model.encoder, theirs.model.decoder):
            side.embed_positions.weight.data.mul_(1 if name.startswith("marian") else 4)
    else:  # transformers' cache is too short for a decoder deeper than its encoder
        theirs = reference(name, matrices=0.3, vectors=0.02, num_layers=3)
    theirs.save_pretrained(tmp_path)
    model, params = lm.from_hf(tmp_path)
    starts = [[3, 9, 4], [3], [3, 11]]
    ours = lm.generate(model, params, PROMPTS, NEW_TOKENS, decoder_prompts=starts, stop_tokens=[])
    for prompt, start, answer in zip(PROMPTS, starts, ours, strict=True):
        assert len(answer) == NEW_TOKENS
        assert answer == likeliest(theirs, start, answer, input_ids=torch.tensor([prompt]))
    assert lm.generate(model, params, PROMPTS, NEW_TOKENS, stop_tokens=[])[1] == ours[1], (
        "an answer begins after another token"
    )
    assert sum(len(set(answer)) for answer in ours) > 20, (
        "a model that repeats itself would hide a wrong position"
    )
    assert len({tuple(answer) for answer in ours}) == len(ours), (
        "answers that do not depend on the prompt would hide a wrong encoder"
    )


def config_json(model_type, name, **options):
    return dict(model_type=model_type, architectures=[name], is_encoder_decoder=True, **options)


PUBLISHED = {  # published config.json, shortened, and the preset
    "t5-small": (
        config_json(
            "t5",
            "T5ForConditionalGeneration",
            d_ff=2048,
            d_kv=64,
            d_model=512,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            eos_token_id=1,
            initializer_factor=1.0,
            layer_norm_epsilon=1e-6,
            n_positions=512,
            num_heads=8,
            num_layers=6,
            output_past=True,
            pad_token_id=0,
            relative_attention_num_buckets=32,
            vocab_size=32128,
        ),
        ("t5", "small"),
    ),
    "flan-t5-base": (
        config_json(
            "t5",
            "T5ForConditionalGeneration",
            d_ff=2048,
            d_kv=64,
            d_model=768,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            dense_act_fn="gelu_new",
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
            is_gated_act=True,
            n_positions=512,
            num_decoder_layers=12,
            num_heads=12,
            num_layers=12,
            pad_token_id=0,
            relative_attention_max_distance=128,
            tie_word_embeddings=False,
            vocab_size=32128,
        ),
        ("t5", "v1_1_base"),
    ),
    "mt5-small": (
        config_json(
            "mt5",
            "MT5ForConditionalGeneration",
            d_ff=1024,
            d_kv=64,
            d_model=512,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
            num_decoder_layers=8,
            num_heads=6,
            num_layers=8,
            pad_token_id=0,
            tie_word_embeddings=False,
            vocab_size=250112,
        ),
        ("mt5", "small"),
    ),
    "umt5-small": (
        config_json(
            "umt5",
            "UMT5ForConditionalGeneration",
            d_ff=1024,
            d_kv=64,
            d_model=512,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
            num_decoder_layers=8,
            num_heads=6,
            num_layers=8,
            pad_token_id=0,
            scalable_attention=True,
            tie_word_embeddings=False,
            vocab_size=256384,
        ),
        ("umt5", "small"),
    ),
    "bart-base": (
        config_json(
            "bart",
            "BartForConditionalGeneration",
            activation_function="gelu",
            add_final_layer_norm=False,
            bos_token_id=0,
            d_model=768,
            decoder_attention_heads=12,
            decoder_ffn_dim=3072,
            decoder_layers=6,
            decoder_start_token_id=2,
            dropout=0.0,
            encoder_attention_heads=12,
            encoder_ffn_dim=3072,
            encoder_layers=6,
            eos_token_id=2,
            max_position_embeddings=1024,
            normalize_before=False,
            normalize_embedding=True,
            pad_token_id=1,
            scale_embedding=False,
            vocab_size=50265,
        ),
        ("bart", "base"),
    ),
    "mbart-large-cc25": (
        config_json(
            "mbart",
            "MBartForConditionalGeneration",
            add_final_layer_norm=True,
            bos_token_id=0,
            d_model=1024,
            decoder_attention_heads=16,
            decoder_ffn_dim=4096,
            decoder_layers=12,
            dropout=0.0,
            encoder_attention_heads=16,
            encoder_ffn_dim=4096,
            encoder_layers=12,
            eos_token_id=2,
            max_position_embeddings=1024,
            normalize_before=True,
            pad_token_id=1,
            scale_embedding=True,
            static_position_embeddings=False,
            vocab_size=250027,
        ),
        ("mbart", "large_cc25"),
    ),
    "opus-mt-en-de": (
        config_json(
            "marian",
            "MarianMTModel",
            activation_function="swish",
            add_bias_logits=False,
            bos_token_id=0,
            add_final_layer_norm=False,
            d_model=512,
            decoder_attention_heads=8,
            decoder_ffn_dim=2048,
            decoder_layers=6,
            decoder_start_token_id=58100,
            decoder_vocab_size=58101,
            dropout=0.0,
            encoder_attention_heads=8,
            encoder_ffn_dim=2048,
            encoder_layers=6,
            eos_token_id=0,
            extra_pos_embeddings=58101,
            forced_eos_token_id=0,
            max_position_embeddings=512,
            normalize_before=False,
            normalize_embedding=False,
            pad_token_id=58100,
            scale_embedding=True,
            vocab_size=58101,
            share_encoder_decoder_embeddings=True,
            static_position_embeddings=True,
        ),
        ("marian", "base"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_shapes_in_the_spelling_of_their_time(name):
    hf, preset = PUBLISHED[name]
    assert families.config_from_hf(hf) == families.preset(*preset)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("opus-mt-en-de", dict(share_encoder_decoder_embeddings=False)),
        ("opus-mt-en-de", dict(decoder_vocab_size=700)),
        ("opus-mt-en-de", dict(normalize_embedding=True)),
        ("bart-base", dict(normalize_before=True)),
        ("bart-base", dict(static_position_embeddings=True)),
        ("bart-base", dict(forced_eos_token_id=[2, 3])),
        ("mbart-large-cc25", dict(add_final_layer_norm=False)),
        ("t5-small", dict(feed_forward_proj="gated-relu-twice")),
        ("t5-small", dict(feed_forward_proj="swiglu")),
        ("flan-t5-base", dict(is_gated_act=False)),
        ("flan-t5-base", dict(dense_act_fn="relu")),
        ("t5-small", dict(is_decoder=True)),
    ],
)
def test_what_would_change_the_model_is_refused_by_name(name, changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}.*is not supported"):
        families.config_from_hf(PUBLISHED[name][0] | changes)


def test_answers_begin_and_end_as_generation_config_says(tmp_path):
    theirs = reference("bart", forced_eos_token_id=1)
    theirs.generation_config.update(
        decoder_start_token_id=5, forced_bos_token_id=7, eos_token_id=[1, 4]
    )
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = lm.from_hf(tmp_path / "theirs")
    c = model.config
    assert (
        c.decoder_start_token_id,
        c.forced_bos_token_id,
        c.forced_eos_token_id,
        c.eos_token_ids,
    ) == (5, 7, 1, (1, 4))

    lm.to_hf(model, params, tmp_path / "ours")
    written = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (
        written.decoder_start_token_id,
        written.forced_bos_token_id,
        written.forced_eos_token_id,
    ) == (5, 7, 1)
    assert lm.from_hf(tmp_path / "ours")[0].config.replace(dropout=0.0) == c.replace(dropout=0.0)

    file = tmp_path / "theirs" / "generation_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({name: i for name, i in said.items() if "forced" not in name}))
    c = lm.from_hf(tmp_path / "theirs")[0].config
    assert (c.forced_bos_token_id, c.forced_eos_token_id) == (None, None), (
        "config.json forces a token that generation_config.json does not"
    )


def test_an_encoder_with_a_token_table_of_its_own_is_refused(tmp_path):
    theirs = reference("bart-untied")
    theirs.model.encoder.embed_tokens.weight.data[5, 5] += 1
    theirs.save_pretrained(tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"model\.encoder\.embed_tokens\.weight differs from model\.shared\.weight",
    ):
        lm.from_hf(tmp_path)


def test_sinusoids_in_a_file_are_not_taken_for_weights(tmp_path):
    from safetensors.numpy import load_file, save_file

    reference("marian").save_pretrained(tmp_path)
    before = lm.from_hf(tmp_path)[1]
    file = tmp_path / "model.safetensors"
    old = {
        f"model.{side}.embed_positions.weight": np.full((40, 24), jnp.pi, np.float32)
        for side in ("encoder", "decoder")
    }
    save_file(load_file(file) | old, file)
    after = lm.from_hf(tmp_path)[1]
    assert np.array_equal(before["embeddings"]["token"], after["embeddings"]["token"])
    assert before["embeddings"].keys() == after["embeddings"].keys() == {"token"}
