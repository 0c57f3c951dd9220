"""Weights of stacks with layers of several shapes, stored a tree for each block of their period."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm
from lm.models import ConfigError
from lm.weights import WeightsError
from tests.lm.small_models import identical, tiny

PERIODIC = dict(n_layers=6, layer_pattern=("ssm", "global", "ssm"))
APERIODIC = dict(n_layers=5, layer_pattern=("global", "ssm", "ssm"))  # 5 layers: no repetition
SMALL = dict(ssm_heads=8, ssm_groups=2, ssm_state=3)


@pytest.fixture(params=[PERIODIC, APERIODIC], ids=["periodic", "aperiodic"])
def hybrid(request):
    return tiny("bamba", **SMALL, **request.param)


def files(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_import_export_import_returns_every_bit_of_a_hybrid_stack(hybrid, tmp_path):
    model, params = hybrid
    lm.to_hf(model, params, tmp_path / "first", max_shard_size=3000)
    again, read = lm.from_hf(tmp_path / "first")
    assert again.config == model.config
    assert identical(read, params)
    lm.to_hf(again, read, tmp_path / "second", max_shard_size=3000)
    assert len(files(tmp_path / "first")) > 4
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_every_layer_is_written_under_its_own_number(hybrid, tmp_path):
    model, params = hybrid
    c = model.config
    lm.to_hf(model, params, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for i, kind in enumerate(c.layer_kinds):
        block, entry = params["layers"][f"block_{i % c.period}"], i // c.period
        theirs = lambda name, i=i: tensors[f"model.layers.{i}.{name}"]
        assert np.array_equal(
            theirs("feed_forward.up_proj.weight"), np.asarray(block["mlp"]["up"][entry]).T
        )
        assert np.array_equal(
            theirs("input_layernorm.weight"),
            block[f"{'ssm' if kind == 'ssm' else 'attention'}_norm"]["scale"][entry],
        )
        if kind == "ssm":
            assert np.array_equal(theirs("mamba.A_log"), block["ssm"]["a_log"][entry])
            convolution = np.concatenate(
                [block["ssm"]["conv"][entry], block["ssm"]["bc_conv"][entry]], axis=1
            )
            assert np.array_equal(theirs("mamba.conv1d.weight")[:, 0], convolution.T)


def test_a_pattern_written_longer_than_it_must_be_is_exported_all_the_same(tmp_path):
    model, params = tiny(
        "bamba", **SMALL, n_layers=4, layer_pattern=("ssm", "global", "ssm", "global")
    )
    lm.to_hf(model, params, tmp_path / "out")
    again, read = lm.from_hf(tmp_path / "out")
    assert again.config.layer_kinds == model.config.layer_kinds
    assert identical(read, params)


@pytest.mark.parametrize("family", ["bamba", "mamba", "mamba2", "llama", "bart"])
def test_layers_separated_for_generation_are_written_as_the_same_files(family, tmp_path):
    model, params = tiny(family, **(SMALL | PERIODIC if family == "bamba" else dict(n_layers=3)))
    lm.to_hf(model, params, tmp_path / "stacked")
    lm.to_hf(*lm.separate(model, params), tmp_path / "separate")
    assert files(tmp_path / "stacked") == files(tmp_path / "separate")


def test_a_damaged_hybrid_is_refused_with_every_tensor_named_as_in_the_file(hybrid, tmp_path):
    lm.to_hf(*hybrid, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    kinds = hybrid[0].config.layer_kinds
    last_ssm, attention = len(kinds) - 1, kinds.index("global")
    del (
        tensors[f"model.layers.{last_ssm}.mamba.A_log"],
        tensors[f"model.layers.{attention}.self_attn.k_proj.weight"],
    )
    # A tensor of a state-space layer in an attention layer.
    tensors[f"model.layers.{attention}.mamba.D"] = np.ones(8, np.float32)
    tensors[f"model.layers.{last_ssm}.mamba.conv1d.weight"] = np.ones((32, 1, 4), np.float32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError) as error:
        lm.from_hf(tmp_path / "out")
    text = str(error.value)
    assert "2 missing: " in text
    assert f"model.layers.{last_ssm}.mamba.A_log" in text
    assert f"model.layers.{attention}.self_attn.k_proj.weight" in text
    assert f"1 extra: model.layers.{attention}.mamba.D" in text
    assert f"model.layers.{last_ssm}.mamba.conv1d.weight is [32, 1, 4], expected [44, 1, 4]" in text


def test_parameters_that_are_not_the_models_are_refused_before_writing(tmp_path):
    model, params = tiny("bamba", **SMALL, **PERIODIC)
    params["layers"]["block_2"]["ssm"].pop("skip")
    with pytest.raises(WeightsError, match=r"missing \['layers/block_2/ssm/skip'\]"):
        lm.to_hf(model, params, tmp_path / "out")
    model, params = tiny("bamba", **SMALL, **PERIODIC)
    model, params = lm.separate(model, params)
    params["layers_3"]["ssm"]["skip"] = params["layers_3"]["ssm"]["skip"][:5]
    with pytest.raises(
        WeightsError, match=r"differ in shape from layer to layer: layers/block_0/ssm/skip"
    ):
        lm.to_hf(model, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_a_scan_is_cut_is_no_obstacle_to_export_and_what_changes_the_model_is(tmp_path):
    model, params = tiny("mamba2", ssm_chunk=16)
    lm.to_hf(model, params, tmp_path / "out")
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
    for family, changes, field in (
        ("mamba", dict(d_ff=8), "d_ff=8"),
        ("mamba2", dict(ssm_inner=20, ssm_heads=5, ssm_groups=1), "ssm"),
        ("bamba", dict(neighbour_layers=(1,)), "neighbour_layers"),
    ):
        model, params = tiny(family, **changes)
        with pytest.raises(ConfigError, match=field):
            lm.to_hf(model, params, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_the_embeddings_older_name_is_understood(tmp_path):
    model, params = tiny("mamba")
    lm.to_hf(model, params, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
