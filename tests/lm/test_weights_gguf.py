"""GGUF files: tiny ones in llama.cpp's layout, made by the `gguf` package, and damaged ones."""

import time

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import lm
from lm.batch import Batch
from lm.models import ConfigError
from lm.weights import WeightsError
from lm.weights.gguf import open_reader
from tests.lm.small_models import identical, tiny

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}
LETTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
TOKENS = [
    "<|end|>",
    "<|start|>",
    *sorted({*LETTERS, *(chr(256 + i) for i in range(68))}),
    "he",
    "ll",
    "hell",
    "Ġhell",
    "12",
]
MERGES = ["h e", "l l", "he ll", "Ġ hell", "1 2"]


def permuted(weight, heads):
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(path, model, params, quantise=None, tokens=TOKENS, pre="smollm", **fields):
    """Write the model as llama.cpp's converter does."""
    c = model.config
    lm.to_hf(model, params, path.parent / "hf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.n_layers)
    writer.add_context_length(c.max_length)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template(
        "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
    )
    for name, value in fields.items():
        name = name.replace("__", ".")
        adders = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            str: writer.add_string,
            float: writer.add_float32,
            list: writer.add_array,
        }
        adders[type(value)](name, value)
    for name, tensor in load_file(path.parent / "hf" / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = permuted(tensor, c.n_heads if "q_proj" in name else c.n_kv_heads)
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        if quantise and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quantize(tensor, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path, tied):
    model, params = tiny(
        tie_embeddings=tied, norm_eps=1e-5, vocab_size=len(TOKENS), rope_theta=100_000.0
    )
    again, read = lm.from_hf(write_gguf(tmp_path / "m.gguf", model, params))
    assert identical(params, read)
    assert again.config == model.config.replace(bos_token_id=1, eos_token_ids=(0,))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_tensors_are_dequantised_to_what_the_file_means(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    model, params = tiny(d_model=32, d_ff=64, head_dim=8, vocab_size=len(TOKENS))
    path = write_gguf(tmp_path / "m.gguf", model, params, quantise=kind)
    _, read = lm.from_hf(path)
    up = np.asarray(params["layers"]["mlp"]["up"][1]).T
    assert np.array_equal(
        np.asarray(read["layers"]["mlp"]["up"][1]).T, gguf.dequantize(gguf.quantize(up, kind), kind)
    )
    assert not np.array_equal(np.asarray(read["layers"]["mlp"]["up"][1]).T, up)
    _, halves = lm.from_hf(path, dtype="bfloat16")
    assert identical(
        halves["embeddings"], {"token": read["embeddings"]["token"].astype("bfloat16")}
    )


def test_the_tokenizer_of_a_gguf_file_merges_splits_digits_and_keeps_specials_whole(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    tokenizer = lm.load_tokenizer(write_gguf(tmp_path / "m.gguf", model, params))
    ids = lambda *tokens: [TOKENS.index(t) for t in tokens]
    assert tokenizer.encode("hello<|end|> hell 12") == ids(
        "hell", "o", "<|end|>", "Ġhell", "Ġ", "1", "2"
    )
    assert tokenizer.decode(tokenizer.encode("naïve ☃")) == "naïve ☃"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 0, len(TOKENS))
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        == "<|start|>hi<|end|>"
    )

    lm.to_hf(model, params, tmp_path / "out", tokenizer)
    exported = lm.load_tokenizer(tmp_path / "out")
    assert exported.encode("hello<|end|> hell 12") == tokenizer.encode("hello<|end|> hell 12")
    assert exported.chat_template == tokenizer.chat_template and exported.eos_token_id == 0


def test_a_gguf_tokenizer_that_begins_every_text_says_so(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    path = write_gguf(
        tmp_path / "m.gguf", model, params, tokenizer__ggml__add_bos_token=True, pre="gpt-2"
    )
    assert lm.load_tokenizer(path).encode("12") == [1, TOKENS.index("12")]
    assert lm.load_tokenizer(path).encode("12", add_special_tokens=False) == [TOKENS.index("12")]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_words_are_cut_as_the_original_tokenizer_cuts_them(tmp_path, pre):
    model, params = tiny(vocab_size=len(TOKENS))
    tokenizer = lm.load_tokenizer(write_gguf(tmp_path / "m.gguf", model, params, pre=pre))
    pieces = [
        piece
        for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
            "It's 1234\n\n x!?"
        )
    ]
    digits = ["123", "4"] if pre == "llama-bpe" else ["1", "2", "3", "4"]
    assert pieces == ["It", "'s", "Ġ", *digits, "ĊĊ", "Ġx", "!?"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(llama__rope__scaling__type="yarn"), "rope.scaling.type='yarn'"),
        (dict(llama__expert_count=8), "llama.expert_count=8"),
        (dict(split__count=3), "part 1 of 3"),
    ],
    ids=["yarn", "experts", "parts"],
)
def test_what_a_gguf_file_asks_for_beyond_us_is_refused_by_name(tmp_path, fields, words):
    model, params = tiny(vocab_size=len(TOKENS))
    path = write_gguf(tmp_path / "m.gguf", model, params, **fields)
    with pytest.raises(ConfigError) as error:
        lm.from_hf(path)
    assert words in str(error.value) and "m.gguf" in str(error.value)


def test_metadata_is_read_as_the_gguf_package_reads_it_in_a_fraction_of_the_time(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    lists = dict(
        many=[f"tôken {i}" for i in range(5000)],
        numbers=[3, -2],
        halves=[0.5, 1.5],
        flags=[True, False],
    )
    kinds = dict(a_text="naïve", a_flag=True, a_number=7, a_half=0.25)
    path = write_gguf(tmp_path / "m.gguf", model, params, **lists, **kinds)

    def timed(read):
        start = time.process_time()
        return read(path), time.process_time() - start

    (theirs, theirs_s), (ours, ours_s) = timed(gguf.GGUFReader), timed(open_reader)
    assert {*lists, *kinds} <= ours.fields.keys() and ours_s < theirs_s / 4
    for name, value in ours.fields.items():
        assert value == theirs.get_field(name).contents(), name
    assert ours.tensors.keys() == {t.name for t in theirs.tensors}
    for t in theirs.tensors:
        assert ours.tensors[t.name].data.tobytes() == t.data.tobytes()


def test_a_later_part_of_a_gguf_model_is_not_named_as_one(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m-00002-of-00003.gguf", "llama")
    writer.kv_data = [{}]  # as llama-gguf-split writes it: only the part's place as metadata
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (lm.from_hf, lm.load_tokenizer):
        with pytest.raises(ConfigError, match=r"part 2 of 3.*--merge FIRST_PART"):
            read(tmp_path / "m-00002-of-00003.gguf")


def test_another_pre_tokenizer_is_refused_by_name(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    with pytest.raises(
        WeightsError, match=r"pre-tokenizer 'deepseek' is not supported.*original directory"
    ):
        lm.load_tokenizer(write_gguf(tmp_path / "m.gguf", model, params, pre="deepseek"))


def test_a_cut_or_foreign_gguf_file_is_refused_by_name(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    whole = write_gguf(tmp_path / "m.gguf", model, params).read_bytes()
    for length in (10, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut.gguf is a damaged or truncated GGUF file"):
            lm.from_hf(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=r"cut.gguf is not a GGUF file"):
        lm.load_tokenizer(tmp_path / "cut.gguf")


def test_a_gguf_model_runs(tmp_path):
    model, params = tiny(vocab_size=len(TOKENS))
    batch = Batch.of(np.arange(8)[None])
    expected = lm.forward(model, params, batch).logits
    np.testing.assert_array_equal(
        lm.forward(*lm.from_hf(write_gguf(tmp_path / "m.gguf", model, params)), batch).logits,
        expected,
    )
