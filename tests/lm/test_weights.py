"""Checkpoints: sharded, older, damaged and interrupted. Files are written here, without torch."""

import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

import lm
from lm import families
from lm.models import ConfigError
from lm.weights import WeightsError, save
from tests.lm.small_models import identical, tiny


@pytest.fixture
def saved(tmp_path):
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "model")
    return tmp_path / "model", model, params


def rewrite(directory, change):
    """Apply `change` to the tensors {name: array} of a single-file checkpoint."""
    tensors = load_file(directory / "model.safetensors")
    save_file(
        change(tensors) or tensors, directory / "model.safetensors", metadata={"format": "pt"}
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_export_then_import_returns_every_bit(family, tmp_path):
    model, params = tiny(family)
    lm.to_hf(model, params, tmp_path / "out")
    again, params_again = lm.from_hf(tmp_path / "out")
    assert again.config == model.config
    assert identical(params, params_again)


def test_shards_are_written_with_an_index_and_read_back_each_file_once(tmp_path, monkeypatch):
    import safetensors

    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "out", max_shard_size=3000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert all(
        sum(x.nbytes for x in load_file(tmp_path / "out" / f).values()) <= 3000 for f in files
    )

    opened, real = [], safetensors.safe_open
    monkeypatch.setattr(
        safetensors, "safe_open", lambda path, **kw: opened.append(path.name) or real(path, **kw)
    )
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
    assert sorted(opened) == files


def test_no_tensor_is_read_twice(saved, monkeypatch):
    from lm.weights import load, sources

    reads, real = [], sources.open_safetensors
    counting = lambda s: sources.Source(
        s.where, s.shapes, s.dtypes, lambda name: reads.append(name) or s.read(name)
    )

    @load.contextlib.contextmanager
    def spying(directory):
        with real(directory) as source:
            yield counting(source)

    monkeypatch.setattr(load, "open_safetensors", spying)
    lm.from_hf(saved[0])
    assert len(reads) == len(set(reads)) == len(load_file(saved[0] / "model.safetensors"))


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_half_and_double_precision_checkpoints_are_read_exactly(saved, stored):
    directory, _, params = saved
    rewrite(directory, lambda t: {name: x.astype(stored) for name, x in t.items()})
    _, read = lm.from_hf(directory)
    assert identical(
        read, jax.tree.map(lambda x: np.asarray(x).astype(stored).astype(np.float32), params)
    )


def test_a_bfloat16_model_keeps_its_dtype_through_export(saved, tmp_path):
    directory, _, params = saved
    model, halves = lm.from_hf(directory, dtype="bfloat16")
    assert model.config.dtype == model.config.param_dtype == "bfloat16"
    assert identical(halves, jax.tree.map(lambda x: x.astype("bfloat16"), params))
    lm.to_hf(model, halves, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {str(x.dtype) for x in load_file(tmp_path / "half" / "model.safetensors").values()} == {
        "bfloat16"
    }
    assert identical(lm.from_hf(tmp_path / "half", dtype="bfloat16")[1], halves)


def test_an_unknown_dtype_is_refused(saved):
    with pytest.raises(ConfigError, match="float8"):
        lm.from_hf(saved[0], dtype="float8")


def test_parameters_sharded_over_devices_are_exported_whole(tmp_path):
    model, params = tiny()
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = lambda x: PartitionSpec(
        *([None] * (x.ndim - 1)), "tensor" if x.shape[-1] % 2 == 0 else None
    )
    sharded = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), params)
    lm.to_hf(model, sharded, tmp_path / "out")
    assert identical(lm.from_hf(tmp_path / "out")[1], params)


def test_layers_separated_for_generation_are_exported_as_the_same_model(tmp_path):
    model, params = tiny()
    lm.to_hf(*lm.separate(model, params), tmp_path / "out")
    assert identical(lm.from_hf(tmp_path / "out")[1], params)


def test_names_of_older_checkpoints_are_understood(tmp_path):
    model, params = tiny("gpt2")
    lm.to_hf(model, params, tmp_path / "gpt2")
    rewrite(
        tmp_path / "gpt2",
        lambda t: (
            {name.removeprefix("transformer."): x for name, x in t.items()}
            | {
                "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
                "h.0.attn.masked_bias": np.full((), -1e4, np.float32),
            }
        ),
    )
    assert identical(lm.from_hf(tmp_path / "gpt2")[1], params)

    model, params = tiny("bert")
    lm.to_hf(model, params, tmp_path / "bert")
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    extras = {
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(4)[None],
    }
    rewrite(tmp_path / "bert", lambda t: {old(name): x for name, x in t.items()} | extras)
    assert identical(lm.from_hf(tmp_path / "bert")[1], params)


def test_a_tied_copy_is_accepted_only_if_it_is_one(saved):
    directory, _, params = saved
    rewrite(directory, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    assert identical(lm.from_hf(directory)[1], params)
    rewrite(directory, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(
        WeightsError,
        match=r"lm_head.weight differs from model.embed_tokens.weight.*tie_word_embeddings",
    ):
        lm.from_hf(directory)


def test_every_missing_extra_and_misshapen_tensor_is_listed(saved):
    directory = saved[0]

    def damage(t):
        del t["model.norm.weight"], t["model.layers.1.mlp.up_proj.weight"]
        t["model.layers.2.mlp.up_proj.weight"] = np.ones((24, 16), np.float32)
        t["model.layers.0.self_attn.q_proj.weight"] = np.ones((16, 17), np.float32)
        t["model.layers.0.self_attn.k_proj.weight"] = np.ones((8, 16), np.int8)

    rewrite(directory, damage)
    with pytest.raises(WeightsError) as error:
        lm.from_hf(directory)
    text = str(error.value)
    assert str(directory) in text
    assert "2 missing: model.layers.1.mlp.up_proj.weight; model.norm.weight" in text
    assert "1 extra: model.layers.2.mlp.up_proj.weight" in text
    assert "model.layers.0.self_attn.q_proj.weight is [16, 17], expected [16, 16]" in text
    assert "model.layers.0.self_attn.k_proj.weight is I8" in text


def test_generation_config_decides_which_tokens_end_a_text(saved):
    directory = saved[0]
    (directory / "generation_config.json").write_text(
        json.dumps(dict(eos_token_id=[4, 5], pad_token_id=6))
    )
    config = lm.from_hf(directory)[0].config
    assert (config.eos_token_ids, config.pad_token_id) == ((4, 5), 6)


@pytest.mark.parametrize("where", ["length", "json", "short", "empty"])
def test_a_damaged_safetensors_file_is_refused_by_name(saved, where):
    path = saved[0] / "model.safetensors"
    data = bytearray(path.read_bytes())
    if where == "length":
        data[1] ^= 0x40
    elif where == "json":
        data[9] ^= 0x04
    else:
        data = data[: len(data) - 7] if where == "short" else b""
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model.safetensors is not a complete safetensors file"):
        lm.from_hf(saved[0])


def test_every_single_bit_flip_in_the_header_is_refused_or_harmless(saved):
    directory, _, params = saved
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in np.random.default_rng(0).choice(header * 8, 150, replace=False):
        data = bytearray(whole)
        data[position // 8] ^= 1 << (position % 8)
        path.write_bytes(data)
        try:
            read = lm.from_hf(directory)[1]
        except WeightsError:
            continue
        assert identical(read, params), f"bit {position} of the header changed the weights silently"


@pytest.fixture
def sharded(tmp_path):
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "model", max_shard_size=3000)
    return tmp_path / "model", model, params


def as_transformers_reads(directory):
    """The final norm's scale in the weights that transformers loads from a directory."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return (
        transformers.LlamaForCausalLM.from_pretrained(directory).model.norm.weight.detach().numpy()
    )


def test_older_shards_beside_a_newer_single_file_are_read(sharded, tmp_path, caplog):
    directory, model, params = sharded
    newer = jax.tree.map(lambda x: x + 1, params)
    lm.to_hf(model, newer, tmp_path / "newer")
    os.link(tmp_path / "newer" / "model.safetensors", directory / "model.safetensors")
    assert (
        identical(lm.from_hf(directory)[1], newer) and "model.safetensors.index.json" in caplog.text
    )
    np.testing.assert_array_equal(newer["final_norm"]["scale"], as_transformers_reads(directory))
    for shard in directory.glob("model-*.safetensors"):
        shard.unlink()
    assert identical(lm.from_hf(directory)[1], newer)


@pytest.mark.parametrize("named", ["other.safetensors", "other.safetensors.index.json"])
def test_the_file_that_config_json_names_is_not_read(sharded, tmp_path, named):
    directory, model, params = sharded
    lm.to_hf(model, jax.tree.map(lambda x: x + 1, params), tmp_path / "newer")
    os.link(tmp_path / "newer" / "model.safetensors", directory / "model.safetensors")
    if named.endswith(".json"):
        (directory / "model.safetensors.index.json").rename(directory / named)
        wanted = params
    else:
        (directory / "model.safetensors").rename(directory / named)
        wanted = jax.tree.map(lambda x: x + 1, params)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    assert identical(lm.from_hf(directory)[1], wanted)
    np.testing.assert_array_equal(wanted["final_norm"]["scale"], as_transformers_reads(directory))
    (directory / "config.json").write_text(
        json.dumps(config | {"transformers_weights": f"../model/../{named}"})
    )
    with pytest.raises(WeightsError, match=r"config.json points outside its directory: \.\./model"):
        lm.from_hf(directory)


def test_an_index_with_absent_or_foreign_files_or_absent_tensors_is_refused(sharded):
    directory, _, _ = sharded
    index = directory / "model.safetensors.index.json"
    stored = json.loads(index.read_text())["weight_map"]
    for shards, said in (
        (
            {"a": "model-00001-of-00002.safetensors"},
            r"lacks 1 of the 1 files that model.*index.json names: model-00001-of-00002",
        ),
        ({"a": "../other/model.safetensors"}, "outside its directory"),
        ({"a": str(directory.parent / "x.safetensors")}, "outside its directory"),
        ({"a": "pytorch_model-00001-of-00002.bin"}, "can run code"),
        (
            stored | {"model.extra": sorted(stored.values())[0]},
            r"lacks 1 of the \d+ tensors that its index names: model.extra \(model-00001",
        ),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": shards}))
        with pytest.raises(WeightsError, match=said):
            lm.from_hf(directory)
    index.write_text("{")
    with pytest.raises(WeightsError, match=r"index.json cannot be read as JSON"):
        lm.from_hf(directory)


def test_what_a_directory_without_weights_has_instead_is_said(sharded):
    directory, _, _ = sharded
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"no model.safetensors.index.json for its \d+ shards"):
        lm.from_hf(directory)
    for shard in directory.glob("model-*.safetensors"):
        shard.unlink()
    for name, said in (
        ("model.fp16.safetensors", r"only a variant: rename or link model.fp16.safetensors"),
        ("x.gguf", r"but x.gguf: give the path of that file"),
        ("adapter_config.json", r"is an adapter, which lm.load reads"),
        ("pytorch_model.bin.index.json", r"pytorch_model.bin.index.json: .*can run code"),
    ):
        (directory / name).write_text("{}")
        with pytest.raises(WeightsError, match=said):
            lm.from_hf(directory)
        (directory / name).unlink()
    (directory.parent / "x.gguf").write_text("")
    for missing, said in (
        (directory.parent, "give the path of its file x.gguf"),
        (directory / "none", "is it a model directory"),
    ):
        missing.mkdir(exist_ok=True)
        with pytest.raises(WeightsError, match=f"has no config.json.*{said}"):
            lm.from_hf(missing)


def test_the_same_tensor_in_two_files_is_refused(saved):
    directory = saved[0]
    save_file({"model.norm.weight": np.ones(16, np.float32)}, directory / "more.safetensors")
    (directory / "model.safetensors").rename(directory / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "more.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"'model.norm.weight' is in two files"):
        lm.from_hf(directory)


def test_pickled_weights_are_refused_with_advice_and_never_opened(saved):
    directory = saved[0]
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin.*can run code.*save_pretrained"):
        lm.from_hf(directory)
    with pytest.raises(WeightsError, match="can run code"):
        lm.from_hf(directory / "pytorch_model.bin")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(WeightsError, match=r"does not exist: give a directory"):
        lm.from_hf(tmp_path / "nothing")
    with pytest.raises(WeightsError, match=r"does not exist"):
        lm.from_hf("nothing.gguf")
    with pytest.raises(WeightsError, match=r"has no config.json"):
        lm.from_hf(tmp_path)
    with pytest.raises(
        WeightsError, match=r"'nobody/nothing' is not a local directory.*Without a network, copy"
    ):
        lm.from_hf("nobody/nothing")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config.json holds a JSON list"):
        lm.from_hf(tmp_path)


def test_an_unsupported_model_is_refused_before_its_weights_are_opened(saved):
    directory = saved[0]
    (directory / "model.safetensors").write_bytes(b"not weights")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(config | dict(rope_scaling=dict(rope_type="yarn", factor=4.0)))
    )
    with pytest.raises(ConfigError, match=f"{directory.name}: rope_type='yarn' is not supported"):
        lm.from_hf(directory)


def test_a_directory_that_is_no_model_is_not_overwritten_unasked(tmp_path):
    model, params = tiny()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(WeightsError, match="not empty and holds no model"):
        lm.to_hf(model, params, tmp_path / "notes")
    assert os.listdir(tmp_path / "notes") == ["diary.txt"]
    lm.to_hf(model, params, tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear diary"
    assert identical(lm.from_hf(tmp_path / "notes")[1], params)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match="training run"):
        lm.to_hf(model, params, tmp_path / "run", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="is a file"):
        lm.to_hf(model, params, tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "notes", "run"]


def test_replacing_a_model_leaves_nothing_of_the_old_one(tmp_path):
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "out", max_shard_size=3000)
    (tmp_path / "out" / "README.md").write_text("mine")
    lm.to_hf(model, params, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert os.listdir(tmp_path) == ["out"]


def test_a_failing_export_leaves_the_old_model_as_it_was(tmp_path, monkeypatch):
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "out")
    monkeypatch.setattr(
        save, "write_weights", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        lm.to_hf(model, jax.tree.map(lambda x: x + 1, params), tmp_path / "out")
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
    assert os.listdir(tmp_path) == ["out"]


def test_what_hugging_face_cannot_express_is_refused_before_writing(tmp_path):
    for changes, field in (
        (dict(norm="layernorm"), "norm"),
        (dict(sliding_window=8), "sliding_window"),
        (dict(gated_mlp=False), "gated_mlp"),
    ):
        model, params = tiny(**changes)
        with pytest.raises(ConfigError, match=field):
            lm.to_hf(model, params, tmp_path / "out")
    model, params = tiny()
    params["layers"]["attention"].pop("key")
    with pytest.raises(WeightsError, match=r"missing \['layers/attention/key'\]"):
        lm.to_hf(model, params, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_hub_model_of_an_unsupported_kind_is_refused_before_its_weights_are_downloaded(
    saved, monkeypatch
):
    import huggingface_hub

    directory, _, params = saved
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **kw: asked.append(kw["allow_patterns"]) or str(directory),
    )
    assert identical(lm.from_hf("someone/model")[1], params)
    assert "*.safetensors" not in asked[0] and "*.safetensors" in asked[1]
    assert not any(pattern.endswith((".bin", ".py")) for patterns in asked for pattern in patterns)
    asked.clear()
    (directory / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    with pytest.raises(ConfigError, match="'rwkv' is not supported"):
        lm.from_hf("someone/model")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("RepositoryNotFoundError", "no public repository"),
        ("GatedRepoError", "accept its licence"),
        ("OfflineModeIsEnabled", "Without a network"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(monkeypatch, kind, words):
    import huggingface_hub

    error = getattr(huggingface_hub.errors, kind)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, **__: (_ for _ in ()).throw(error.__new__(error)),
    )
    with pytest.raises(WeightsError, match=words):
        lm.load_tokenizer("someone/model")
