"""Weight tables are bijections for every family, and unknown names give clear errors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lm import families
from lm.distributed.mesh import make_mesh
from lm.distributed.sharding import parameter_shardings
from lm.families.table import conv1d, depthwise, expand, interleaved, linear, norm, row, table
from lm.models import build
from lm.models.config import ConfigError
from lm.weights.load import parameter_shapes

FIXED_EPS = ("opt", "distilbert", "marian", "bart", "mbart")  # not stated in their config.json
TINY = [
    (name, f, c)
    for name, f in families.FAMILIES.items()
    for size, c in f.presets.items()
    if c.d_model <= 128
]


@pytest.mark.parametrize(
    ("name", "family", "config"), TINY, ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_parameter_goes_to_one_tensor_and_comes_back_unchanged(name, family, config):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.replace(vocab_size=31, n_layers=2 * config.period))
    for rows in filter(None, (family.table, family.gguf_table)):
        slots = expand(rows, shapes)
        for slot in slots.values():
            ours = [rng.normal(size=shape) for shape in slot.our_shapes]
            theirs = slot.row.to_theirs(ours)
            assert theirs.shape == slot.their_shape
            assert all(
                np.array_equal(a, b)
                for a, b in zip(slot.row.to_ours(theirs, slot.our_shapes), ours, strict=True)
            )
        covered = [(path, slot.entry) for slot in slots.values() for path in slot.ours]
        assert len(set(covered)) == len(covered)
        assert {path for path, _ in covered} == set(shapes)


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize(
    "changes", [{}, dict(tie_embeddings=False), dict(norm_eps=3e-4, activation="relu")], ids=str
)
def test_configuration_survives_the_journey_to_config_json_and_back(name, changes):
    family = families.get(name)
    if "norm_eps" in changes and name in FIXED_EPS:
        changes = dict(activation="relu")
    config = family.presets["tiny"].replace(**changes)
    head = next(cls for cls, head in family.architectures.items() if head == config.head)
    back = families.config_from_hf(
        {"model_type": name, "architectures": [head], **family.config_to_hf(config)}
    )
    assert back == config


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_parameter_can_be_sharded_by_the_rules(name):
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    model = build(families.get(name).presets["tiny"].replace(vocab_size=256))
    shapes = model.shapes()
    shardings = parameter_shardings(mesh, model.logical_axes(), shapes)
    assert any(axis for leaf in jax.tree.leaves(shardings["layers"]) for axis in leaf.spec)


def test_linear_splits_the_output_into_heads_in_torchs_order():
    weight = np.arange(6 * 4).reshape(6, 4)  # torch: [H * K, D] with H = 3, K = 2, D = 4
    ours = linear().to_ours(weight, (4, 3, 2))
    assert ours[1, 2, 0] == weight[2 * 2 + 0, 1]
    merged = linear(inputs=2).to_ours(weight.T, (3, 2, 4))  # an output projection, [D, H * K]
    assert merged[2, 1, 3] == weight[2 * 2 + 1, 3]


def test_merged_projections_of_unequal_width_are_cut_where_each_begins():
    rows = row("query key value", "qkv", conv1d(), axis=1)
    shapes = [(4, 3, 2), (4, 1, 2), (4, 1, 2)]
    whole = np.arange(4 * 10).reshape(4, 10)
    assert rows.their_shape(shapes) == (4, 10)
    query, key, value = rows.to_ours(whole, shapes)
    assert (
        query[0, 2, 1] == whole[0, 5]
        and key[0, 0, 0] == whole[0, 6]
        and value[3, 0, 1] == whole[3, 9]
    )


def test_interleaved_rotary_pairs_are_moved_half_a_head_apart():
    heads, half, d = 2, 3, 5
    # Rows in the order of our attention.
    rotary = np.arange(heads * 2 * half * d).reshape(heads, 2 * half, d)
    # As LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py: features k and k + K / 2 become
    # neighbours.
    stored = rotary.reshape(heads, 2, half, d).swapaxes(1, 2).reshape(heads * 2 * half, d)
    assert np.array_equal(
        interleaved().to_ours(stored, (d, heads, 2 * half)), np.moveaxis(rotary, 2, 0)
    )
    assert np.array_equal(stored[1], rotary[0, half])


def test_depthwise_convolution_keeps_the_order_of_taps_and_channels():
    torch = pytest.importorskip("torch")
    x, weight = (
        np.random.default_rng(0).normal(size=(7, 3)),
        np.random.default_rng(1).normal(size=(3, 1, 4)),
    )
    theirs = torch.nn.functional.conv1d(torch.tensor(x.T), torch.tensor(weight), groups=3).numpy().T
    kernel = depthwise().to_ours(weight, (4, 3))
    np.testing.assert_allclose(theirs, [np.sum(kernel * x[t : t + 4], axis=0) for t in range(4)])


HYBRID = {  # layers 0 to 5: a, b, a, a, b, a
    "layers/block_0/a/scale": (2, 5),
    "layers/block_0/mlp": (2, 3),
    "layers/block_1/b/scale": (2, 5),
    "layers/block_1/mlp": (2, 3),
    "layers/block_2/a/scale": (2, 5),
    "layers/block_2/mlp": (2, 3),
    "head": (4,),
}


def test_layers_of_a_hybrid_stack_are_counted_across_its_blocks():
    rows = table(
        norm("layers/a", "{i}.norm"),
        norm("layers/b", "{i}.norm"),
        row("layers/mlp", "{i}.mlp"),
        row("head", "head"),
    )
    slots = expand(rows, HYBRID)
    places = {name: (slot.ours, slot.entry) for name, slot in slots.items()}
    kinds = ("a", "b", "a", "a", "b", "a")
    assert places == {
        "head": (("head",), None),
        **{f"{i}.mlp": ((f"layers/block_{i % 3}/mlp",), i // 3) for i in range(6)},
        **{
            f"{i}.norm.weight": ((f"layers/block_{i % 3}/{kind}/scale",), i // 3)
            for i, kind in enumerate(kinds)
        },
    }


def test_a_parameter_of_one_block_without_a_row_is_named():
    with pytest.raises(LookupError, match=r"covers layers/block_1/b/scale$"):
        expand(
            table(norm("layers/a", "{i}.norm"), row("layers/mlp", "{i}.mlp"), row("head", "head")),
            HYBRID,
        )


def test_more_than_ten_blocks_keep_their_order():
    shapes = {f"layers/block_{i}/x": (1, 3) for i in range(12)}
    assert {
        name: slot.ours[0] for name, slot in expand(table(row("layers/x", "{i}.x")), shapes).items()
    } == {f"{i}.x": f"layers/block_{i}/x" for i in range(12)}


def test_a_parameter_without_a_row_is_named():
    with pytest.raises(LookupError, match="layers/mystery"):
        expand(
            table(row("embeddings/token", "wte.weight")),
            {"embeddings/token": (3, 2), "layers/mystery": (2, 2)},
        )


def test_an_unknown_model_type_names_the_nearest_and_all_supported():
    with pytest.raises(
        ConfigError, match=r"'gpt3' is not supported \(did you mean 'gpt2'\?\); supported: albert,"
    ):
        families.config_from_hf({"model_type": "gpt3"})
    with pytest.raises(ConfigError, match="did you mean '124m'"):
        families.preset("gpt2", "124")


LLAMA = dict(
    model_type="llama",
    vocab_size=9,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
QWEN2 = LLAMA | dict(
    model_type="qwen2", use_sliding_window=True, sliding_window=4, num_hidden_layers=2
)
GPT2 = dict(model_type="gpt2", vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8)
BERT = LLAMA | dict(model_type="bert")
NEOX = LLAMA | dict(model_type="gpt_neox")
NEO = LLAMA | dict(model_type="gpt_neo", num_layers=2, num_heads=2)
OPT = LLAMA | dict(model_type="opt", ffn_dim=8)
MAMBA = dict(model_type="mamba", vocab_size=9, hidden_size=20, num_hidden_layers=1)
MAMBA2 = MAMBA | dict(model_type="mamba2", num_heads=5, head_dim=8, n_groups=1)
BAMBA = LLAMA | dict(
    model_type="bamba",
    mamba_n_heads=4,
    num_hidden_layers=4,
    attn_layer_indices=[1, 3],
    num_key_value_heads=2,
)


@pytest.mark.parametrize(
    ("hf", "words"),
    [
        (LLAMA | dict(rope_scaling=dict(type="yarn", factor=2.0)), "rope_type='yarn'"),
        (
            LLAMA | dict(rope_parameters=dict(rope_type="dynamic", factor=2.0)),
            "rope_type='dynamic'",
        ),
        (
            LLAMA | dict(rope_scaling=dict(rope_type="llama3", factor=2.0)),
            "high_freq_factor, low_freq_factor",
        ),
        (
            LLAMA | dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)),
            "partial_rotary_factor=0.5",
        ),
        (LLAMA | dict(hidden_act="quick_gelu"), "hidden_act='quick_gelu'"),
        (LLAMA | dict(num_local_experts=8), "num_local_experts=8"),
        (LLAMA | dict(quantization_config=dict(quant_method="gptq")), "quant_method='gptq'"),
        (LLAMA | dict(architectures=["LlamaForMultipleChoice"]), "LlamaForMultipleChoice"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "'hidden_size'"),
        (LLAMA | dict(hidden_size="8"), "wrong kind"),
        (QWEN2 | dict(layer_types=["full_attention", "chunked_attention"]), "'chunked_attention'"),
        (QWEN2 | dict(layer_types=["full_attention"]), "1 entries for num_hidden_layers=2"),
        (
            LLAMA
            | dict(
                model_type="phi3",
                rope_scaling=dict(type="longrope", short_factor=[1], long_factor=[1]),
            ),
            "rope_type='longrope'",
        ),
        (
            LLAMA | dict(model_type="phi3", rope_scaling=dict(type="linear", factor=2.0)),
            "rope_scaling={'factor': 2.0}",
        ),
        (NEOX | dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type='dynamic'"),
        (NEOX | dict(hidden_act="gelu_fast"), "hidden_act='gelu_fast'"),
        (
            LLAMA | dict(model_type="gemma", use_bidirectional_attention=True),
            "use_bidirectional_attention=True",
        ),
        (LLAMA | dict(model_type="gemma2", hidden_activation="relu2"), "hidden_activation='relu2'"),
        (
            LLAMA | dict(model_type="stablelm", use_parallel_residual=True),
            "use_parallel_residual=True",
        ),
        (LLAMA | dict(model_type="stablelm", qk_layernorm=True), "qk_layernorm=True"),
        (NEO | dict(attention_types=[[["global", "sparse"], 1]]), "'sparse'"),
        (NEO | dict(attention_types=[[["global", "local"], 12]]), "num_layers=2"),
        (OPT | dict(word_embed_proj_dim=4), "word_embed_proj_dim=4"),
        (OPT | dict(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine=False"),
        (OPT | dict(_remove_final_layer_norm=True), "_remove_final_layer_norm=True"),
        (GPT2 | dict(model_type="openai-gpt", afn="gelu_new"), "afn='gelu_new'"),
        (GPT2 | dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (GPT2 | dict(scale_attn_weights=False), "scale_attn_weights=False"),
        (MAMBA | dict(hidden_act="mish"), "hidden_act='mish'"),
        (
            MAMBA2 | dict(num_heads=4),
            "model.ssm_heads=4 times model.ssm_head_dim=8 is not model.ssm_inner=40",
        ),
        (MAMBA2 | dict(n_groups=2), "ssm_groups=2"),
        (MAMBA2 | dict(time_step_limit=[0.1]), "time_step_limit=[0.1]"),
        (MAMBA2 | dict(time_step_limit=["low", "high"]), "time_step_limit=['low', 'high']"),
        (BAMBA | dict(attn_layer_indices=[1, 4]), "attn_layer_indices has [4]"),
        (BAMBA | dict(attn_layer_indices=[0, 1, 2, 3]), "names every layer"),
        (BAMBA | dict(rope_scaling=dict(rope_type="yarn", factor=2.0)), "rope_type='yarn'"),
        (
            BAMBA | dict(architectures=["BambaForSequenceClassification"]),
            "BambaForSequenceClassification",
        ),
        (
            BERT | dict(position_embedding_type="relative_key"),
            "position_embedding_type='relative_key'",
        ),
        (BERT | dict(is_decoder=True), "is_decoder=True"),
        (BERT | dict(model_type="roberta", pad_token_id=-1), "pad_token_id=-1"),
        (BERT | dict(model_type="albert", num_hidden_groups=2), "num_hidden_groups=2"),
        (BERT | dict(model_type="albert", inner_group_num=2), "inner_group_num=2"),
        (BERT | dict(model_type="modernbert", decoder_bias=False), "decoder_bias=False"),
        (BERT | dict(model_type="modernbert", classifier_bias=True), "classifier_bias=True"),
        (
            BERT | dict(model_type="modernbert", rope_scaling=dict(rope_type="yarn")),
            "rope_scaling=",
        ),
        (
            BERT
            | dict(
                model_type="modernbert", rope_parameters=dict(full_attention=dict(rope_type="yarn"))
            ),
            "rope_type='yarn'",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_option_that_would_change_the_result_is_refused_by_name(hf, words):
    with pytest.raises(ConfigError) as error:
        families.config_from_hf(hf)
    assert words in str(error.value)


def test_layers_that_differ_are_read_as_the_shortest_pattern():
    read = lambda **changes: (lambda c: (c.sliding_window, c.layer_pattern))(
        families.config_from_hf(QWEN2 | changes)
    )
    assert read(max_window_layers=1) == (4, ("global", "local"))
    assert read(num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2) == (
        4,
        ("global", "local"),
    )
    assert read(num_hidden_layers=3, max_window_layers=2) == (4, ("global", "global", "local"))
    assert read(max_window_layers=0) == (4, ()) and read(max_window_layers=2) == read(
        use_sliding_window=False
    ) == (0, ())


def test_kinds_of_layers_of_a_hybrid_are_read_as_the_shortest_pattern():
    read = lambda *attention, layers=4: families.config_from_hf(
        BAMBA | dict(num_hidden_layers=layers, attn_layer_indices=list(attention))
    )
    assert (read(1, 3).layer_pattern, read(1, 3).period) == (("ssm", "global"), 2)
    assert (read(2).layer_pattern, read(2).period) == (("ssm", "ssm", "global"), 4)
    assert read(2, 5, layers=7).layer_kinds == (
        "ssm",
        "ssm",
        "global",
        "ssm",
        "ssm",
        "global",
        "ssm",
    )
    assert (read().layer_pattern, read().layer_kinds, read().period) == ((), ("ssm",) * 4, 1)


def test_sizes_of_state_space_layers_are_theirs():
    read = lambda hf=MAMBA, **changes: families.config_from_hf(hf | changes)
    assert (read().ssm_inner, read().ssm_dt_rank, read(time_step_rank=3).ssm_dt_rank) == (40, 2, 3)
    assert read(expand=16, intermediate_size=48).ssm_inner == 48, (
        "FalconMamba's config.json has an expand that is not its width"
    )
    assert read(BAMBA).ssm_head_dim == read(BAMBA, mamba_d_head=4).ssm_head_dim == 4
    infinity = {"__float__": "Infinity"}
    for given, ours in (
        ([0.0, infinity], ()),
        ([0.0, float("inf")], ()),
        ([0.1, infinity], (0.1, float("inf"))),
        ([0.0, 2.0], (0.0, 2.0)),
    ):
        assert read(MAMBA2, time_step_limit=given).ssm_dt_limit == ours
        family = families.get("mamba2")
        assert (
            read(MAMBA2, **family.config_to_hf(read(MAMBA2, time_step_limit=given))).ssm_dt_limit
            == ours
        )


def test_a_hybrid_rotates_half_of_each_head_by_default():
    read = lambda **changes: families.config_from_hf(BAMBA | changes).rotary_fraction
    assert (
        read()
        == read(partial_rotary_factor=1.0)
        == read(rope_parameters=dict(rope_type="default", rope_theta=3.0))
        == 0.5
    )
    assert read(rope_parameters=dict(rope_type="default", partial_rotary_factor=1.0)) == 1.0


def test_older_configurations_mean_what_they_meant():
    old = families.config_from_hf(
        LLAMA | dict(rope_theta=300.0, rope_scaling=dict(type="linear", factor=2))
    )
    assert (old.rope_theta, old.rope_scaling, old.n_kv_heads, old.head_dim) == (
        300.0,
        (("factor", 2.0),),
        2,
        4,
    )
    new = families.config_from_hf(
        LLAMA | dict(rope_parameters=dict(rope_type="linear", rope_theta=300.0, factor=2.0))
    )
    assert new == old
    ids = families.config_from_hf(
        LLAMA | dict(bos_token_id=99, eos_token_id=[3, 4, 99], pad_token_id=-1)
    )
    assert (ids.bos_token_id, ids.eos_token_ids, ids.pad_token_id) == (None, (3, 4), None)
    pythia = families.config_from_hf(NEOX | dict(rotary_pct=0.5, rotary_emb_base=300))
    assert (pythia.rotary_fraction, pythia.rope_theta) == (0.5, 300.0) and families.config_from_hf(
        NEOX | dict(hidden_size=64)
    ).rotary_fraction == 0.25


@pytest.mark.parametrize(
    ("page", "table"),
    [("docs/architectures.md", families.markdown), ("README.md", families.readme)],
)
def test_the_documented_table_is_the_registrys(page, table):
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    assert f"<!-- families -->\n{table()}\n<!-- /families -->" in text, (
        "run: python -m lm.families --write"
    )


def test_the_page_about_adding_a_family_quotes_one():
    """The page quotes a complete family, unchanged, and is short."""
    root = Path(__file__).parents[3]
    page = (root / "docs" / "adding_a_family.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert code == (root / "lm" / "families" / "starcoder2.py").read_text(encoding="utf-8")
    assert len(page.replace(code, "").splitlines()) <= 40
