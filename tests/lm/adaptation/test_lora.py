"""LoRA: no change at first, then W + s A B; only adapters train; PEFT and torch agree."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.adaptation import lora, plan
from lm.adaptation.lora import Lora
from lm.batch import Batch
from lm.distributed import rules, sharding
from lm.losses.tokens import token_loss
from lm.models.config import ConfigError
from lm.models.matrices import matrix
from lm.training import optimizer
from lm.training.state import Extras, abstract_state, create_state
from lm.training.step import make_train_step
from lm.weights import peft
from lm.weights.peft_config import scale_of
from tests.lm.small_models import drawn, identical, tiny
from tests.lm.training import small

FAMILIES = ["gpt2", "gpt_neox", "llama", "t5", "bart", "mamba", "bamba", "albert"]


def adapted(family, rank=3, pattern=lora.PATTERN):
    """Return (model, params, LoRA spec, adapters with all parameters random)."""
    model, params = tiny(family)
    spec = Lora(rank, alpha=1.5, pattern=pattern)
    fresh = lora.initialise(params, rules.by_path(model.logical_axes()), spec, jax.random.key(0))
    rng = np.random.default_rng(1)
    return (
        model,
        params,
        spec,
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), x.dtype), fresh),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_a_bit_or_a_merged_kernel_is_not_w_plus_s_a_b(family):
    model, params, spec, adapters = adapted(family)
    axes = rules.by_path(model.logical_axes())
    fresh = lora.initialise(params, axes, spec, jax.random.key(3))
    assert identical(lora.merge(params, fresh, spec.scale), params)
    merged, before, of = (
        rules.by_path(x) for x in (lora.merge(params, adapters, spec.scale), params, adapters)
    )
    kernels = {path for path, names in axes.items() if "layers/" in path and matrix(path, names)}
    assert {path.rpartition("/")[0] for path in of} == kernels
    for path, w in before.items():
        wanted = np.asarray(w, np.float64)
        if path in kernels:
            a, b = (np.asarray(of[f"{path}/{side}"], np.float64) for side in "ab")
            stacked = axes[path][0] == "layers"
            one = lambda x, y: np.tensordot(x, y, axes=(-1, 0))
            product = (
                np.stack([one(x, y) for x, y in zip(a, b, strict=True)]) if stacked else one(a, b)
            )
            assert product.shape == w.shape
            wanted = wanted + spec.alpha / spec.rank * product
        np.testing.assert_allclose(merged[path], wanted, rtol=1e-5, atol=1e-5, err_msg=path)


def test_a_pattern_adapts_other_kernels_or_none_is_not_refused():
    model, _, _, adapters = adapted("llama", pattern=r"attention/(query|value)")
    assert set(adapters["layers"]) == {"attention"} and set(adapters["layers"]["attention"]) == {
        "query",
        "value",
    }
    with pytest.raises(
        ConfigError, match=r"'qeury' is in no kernel's path; there are .*layers/mlp/up"
    ):
        lora.logical_axes(rules.by_path(model.logical_axes()), "qeury")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (
            "attention/|embeddings/token",
            r"'embeddings/token' is in no kernel's path, only in that of embeddings/token, which "
            r"is looked up",
        ),
        (
            "(attention|embeddings)/",
            "'embeddings' is in no kernel's path, only in that of embeddings/token",
        ),
        (
            "layers/attention/(query|velue)",
            "'velue' is in no kernel's path, there are .*layers/mlp/up",
        ),
        ("cross/|mlp/", "'cross/' is in no kernel's path, there are"),
    ],
)
def test_a_part_of_a_pattern_that_matches_nothing_is_dropped(pattern, said):
    axes = rules.by_path(tiny()[0].logical_axes())
    for good in (
        lora.PATTERN,
        "attention/(query|value)|mlp",
        "(?:layers)/(?!mlp)",
        r"up|(?:gate|down)$",
        "[m|a]",
    ):
        lora.check_pattern(axes, good)
    with pytest.raises(ConfigError, match=said):
        lora.check_pattern(axes, pattern)


def test_dropout_hides_other_inputs_than_its_share_or_changes_the_mean():
    w, a, b = jnp.zeros((400, 5)), jnp.ones((400, 1)), jnp.ones((1, 5))
    out = lora.merge({"k": w}, {"k": {"a": a, "b": b}}, 1.0, dropout=0.25, rng=jax.random.key(0))[
        "k"
    ]
    rows = np.asarray(out[:, 0])
    assert (np.asarray(out) == rows[:, None]).all() and set(np.unique(rows)) == {
        0.0,
        np.float32(1 / 0.75),
    }
    assert abs(rows.mean() - 1) < 0.1
    assert identical(
        lora.merge({"k": w}, {"k": {"a": a, "b": b}}, 1.0, dropout=0.25), {"k": jnp.ones((400, 5))}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_from_peft_s_format_as_another(tmp_path, family):
    model, params, spec, adapters = adapted(family)
    peft.save(tmp_path, model, adapters, spec, "base")
    back = peft.apply(tmp_path, model, params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        back,
        lora.merge(params, adapters, spec.scale),
    )


def ids(model):
    return [(7 * i + 3) % model.config.vocab_size for i in range(9)]


def logits_of(torch_model, model):
    import torch

    tokens = torch.tensor([ids(model)])
    inputs = {"input_ids": tokens} | (
        {"decoder_input_ids": tokens} if model.config.encoder_layers else {}
    )
    with torch.no_grad():
        return torch_model.eval()(**inputs).logits.numpy()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5", "mamba"])
def test_torch_with_the_adapter_s_files_computes_something_else(tmp_path, family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.torch import load_file

    # Without Mamba's out_proj and dt_proj: see docs/forgetting.md.
    model, params, spec, adapters = adapted(
        family, pattern="attention/query|mlp/|ssm/(input|gate|bc)"
    )
    lm.to_hf(model, params, tmp_path / "base")
    peft.save(tmp_path / "adapter", model, adapters, spec, str(tmp_path / "base"))
    cls = getattr(
        transformers,
        json.loads((tmp_path / "base" / "config.json").read_text())["architectures"][0],
    )
    theirs = cls.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config, tensors = (
        peft.read_config(tmp_path / "adapter"),
        load_file(tmp_path / "adapter" / peft.WEIGHTS),
    )
    assert len(tensors) == 2 * len(config["target_modules"])
    for name in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        change = scale_of(config, name) * b @ a
        theirs.get_submodule(name).weight.data += change.T if config["fan_in_fan_out"] else change
    read = dict(encoder_tokens=[ids(model)]) if model.config.encoder_layers else {}
    ours = lm.forward(
        model, lora.merge(params, adapters, spec.scale), Batch.of([ids(model)], **read)
    ).logits
    wanted = logits_of(theirs, model)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    try:
        import peft as library
    except ImportError:
        return
    theirs = library.PeftModel.from_pretrained(
        cls.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "adapter"
    )
    np.testing.assert_allclose(
        logits_of(theirs, model), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max()
    )


def test_an_adapter_that_peft_wrote_is_read_as_another(tmp_path):
    library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    model, params = tiny("gpt2")
    lm.to_hf(model, params, tmp_path / "base")
    config = library.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["c_attn", "mlp.c_proj"],
        rank_pattern={"c_proj": 2},
        alpha_pattern={"h.1.mlp.c_proj": 7},
        layers_to_transform=[1],
        fan_in_fan_out=True,
        use_rslora=True,
    )
    theirs = library.get_peft_model(
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base"), config
    )
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path / "adapter")
    wanted = logits_of(theirs, model)
    ours = lm.forward(
        model, peft.apply(tmp_path / "adapter", model, params), Batch.of([ids(model)])
    ).logits
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_command_for_an_adapter_that_changed_its_base_makes_another_model(tmp_path, start):
    """The message's own command, run by Python."""
    library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model, params = tiny("llama")
    lm.to_hf(model, params, tmp_path / "base")
    theirs = library.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base"),
        library.LoraConfig(
            r=2, target_modules=["q_proj"], init_lora_weights=start, task_type="CAUSAL_LM"
        ),
    )
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            p.data = p.data + 0.1
    theirs.save_pretrained(tmp_path / "adapter")
    wanted = logits_of(theirs, model)
    with pytest.raises(ConfigError, match=INITS.format(start)) as refused:
        peft.load(tmp_path / "adapter", model)
    command = re.search(r'python -c "(.*?)";', str(refused.value))
    assert command is not None
    exec(command[1].replace("MERGED", str(tmp_path / "merged")))
    ours = lm.forward(*lm.from_hf(tmp_path / "merged"), Batch.of([ids(model)])).logits
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


CHANGING = ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "new")
INITS = (
    r"init_lora_weights='{}' changed the weights of the "
    r"base.*path_initial_model_for_weight_conversion"
)


def changed_adapter(folder, model, changed):
    """Change fields of adapter_config.json; the others keep the defaults of PEFT."""
    defaults = dict.fromkeys(
        (
            "auto_mapping",
            "revision",
            "layers_pattern",
            "layer_replication",
            "megatron_config",
            "target_parameters",
        )
    )
    defaults |= dict(
        peft_version="0.21.2",
        init_lora_weights=True,
        loftq_config={},
        lora_bias=False,
        trainable_token_indices=None,
        use_qalora=False,
    )
    stored = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(stored | defaults | changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({"init_lora_weights": x}, INITS.format(x)) for x in CHANGING),
        *(
            ({x: True}, f"{x}=True is not supported")
            for x in ("use_dora", "lora_bias", "use_qalora", "ensure_weight_tying", "new")
        ),
        *(
            ({x: [1]}, rf"{x}=\[1\] is not supported")
            for x in ("trainable_token_indices", "layer_replication", "alora_invocation_tokens")
        ),
        *(
            ({x: ["a"]}, rf"{x}=\['a'\] is not supported")
            for x in ("modules_to_save", "target_parameters", "new")
        ),
        *(
            ({x: {"a": 1}}, rf"{x}=.* is not supported")
            for x in ("megatron_config", "arrow_config", "kasa_config", "use_bdlora")
        ),
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"bias": "all"}, "bias='all'"),
        ({"revision": "v2"}, "revision='v2' of the base"),
        ({"r": 0}, "r=0, expected a positive integer"),
        ({"lora_alpha": "8"}, "lora_alpha='8', expected a number"),
        ({"rank_pattern": {"q_proj": 1.5}}, r"rank_pattern\['q_proj'\]=1.5, expected a positive"),
        ({"rank_pattern": {"(": 3}}, r"'\(.*\(\)\$' is not a regular"),
        ({"rank_pattern": {"q_proj": 4}}, r"q_proj has A \[3, 16\] and B .* not of rank 4"),
        ({"target_modules": ["q_proj"]}, r"up_proj.* which adapter_config.json does not adapt"),
        (
            {"exclude_modules": ["layers.0.mlp.up_proj"]},
            r"has model.layers.0.mlp.up_proj, which adapter_config.json does not adapt",
        ),
        ({"target_modules": "model.*q_proj"}, "does not adapt"),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, "does not adapt"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_read(tmp_path, changed, said):
    model, _, spec, adapters = adapted("llama")
    peft.save(tmp_path, model, adapters, spec, "base")
    changed_adapter(tmp_path, model, {})
    assert peft.load(tmp_path, model)[1] == spec.scale
    changed_adapter(tmp_path, model, changed)
    with pytest.raises(ConfigError, match=said):
        peft.load(tmp_path, model)


@pytest.mark.parametrize(
    "changed",
    [
        {"target_modules": r"model\.layers\.\d+\.self_attn\.[qv]_proj"},
        {"target_modules": ["q_proj", "v_proj", "o_proj"], "exclude_modules": r".*o_proj"},
        {
            "target_modules": ["q_proj", "v_proj"],
            "layers_to_transform": [0, 1],
            "layers_pattern": "layers",
        },
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"init_lora_weights": "gaussian"},
        {
            "init_lora_weights": False,
            "eva_config": {"rho": 2.0},
            "lora_dropout": 0.3,
            "revision": "main",
            "fan_in_fan_out": True,
        },
    ],
)
def test_fields_that_say_what_the_tensors_say_are_refused(tmp_path, changed):
    model, params, spec, adapters = adapted("llama", pattern="attention/(query|value)")
    peft.save(tmp_path, model, adapters, spec, "base")
    changed_adapter(tmp_path, model, changed)
    wanted = lora.merge(params, adapters, spec.scale)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        peft.apply(tmp_path, model, params),
        wanted,
    )


def test_an_adapter_that_lacks_tensors_is_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, _, spec, adapters = adapted("llama")
    peft.save(tmp_path, model, adapters, spec, "base")
    tensors = load_file(tmp_path / peft.WEIGHTS)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    for lost, said in (
        ([f"{stem}.lora_B.weight"], "no pair"),
        ([f"{stem}.lora_{x}.weight" for x in "AB"], "has nothing for it"),
    ):
        save_file(
            {name: x for name, x in tensors.items() if name not in lost}, tmp_path / peft.WEIGHTS
        )
        with pytest.raises(ConfigError, match=f"{said}.*fetch it again"):
            peft.load(tmp_path, model)
    (tmp_path / peft.WEIGHTS).rename(tmp_path / peft.PICKLED)
    with pytest.raises(
        ConfigError, match=r"adapter_model.bin and no adapter_model.safetensors: pickled"
    ):
        peft.load(tmp_path, model)


@pytest.mark.parametrize("head", ["none", "embedding"])
def test_an_adapter_of_a_model_without_a_head_is_named_otherwise_than_theirs(tmp_path, head):
    model, params = tiny("gpt2", head=head)
    spec = Lora(2)
    adapters = lora.initialise(params, rules.by_path(model.logical_axes()), spec, jax.random.key(0))
    peft.save(tmp_path, model, adapters, spec, "base")
    config = peft.read_config(tmp_path)
    assert (
        "h.0.attn.c_attn" in config["target_modules"]
        and config["task_type"] == "FEATURE_EXTRACTION"
    )
    assert identical(peft.apply(tmp_path, model, params), params)


def test_an_adapter_of_another_model_is_read(tmp_path):
    model, _, spec, adapters = adapted("llama")
    peft.save(tmp_path, model, adapters, spec, "base")
    with pytest.raises(ConfigError, match="adapts nothing that this gpt2 model has"):
        peft.load(tmp_path, tiny("gpt2")[0])


def test_the_base_moves_or_has_moments_or_the_adapters_do_not():
    mesh = small.mesh_of(1, 2, 1)
    model, _, schedule = small.parts(small.MODEL.replace(n_layers=1))
    adaptation = plan.Plan(model.logical_axes(), Lora(2))
    adamw, extras = optimizer.adamw(schedule), Extras(plan=adaptation)
    base = drawn(model)
    state = create_state(model, adamw, mesh, 0, params=base, extras=extras)
    assert identical(
        jax.device_get(adaptation.weights(state.params, state.fixed)), jax.device_get(base)
    )
    shardings = jax.tree.map(
        lambda x: x.sharding, abstract_state(model, adamw, mesh, extras=extras)
    )
    step = make_train_step(
        model,
        adaptation.loss(token_loss),
        adamw,
        schedule,
        shardings=shardings.params,
        accumulate=2,
    )
    batch = Batch.of(np.random.default_rng(0).integers(0, 64, (4, 16)))
    with sharding.activate(mesh):
        step, losses = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0), []
        for _ in range(8):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert identical(jax.device_get(state.fixed["base"]), jax.device_get(base))
    moments = rules.by_path(state.opt_state[1].mu)
    assert moments.keys() == rules.by_path(state.params).keys() and all(
        name[-2:] in ("/a", "/b") for name in moments
    )
    assert all(
        np.abs(x).max() > 0
        for name, x in rules.by_path(jax.device_get(state.params)).items()
        if name.endswith("/b")
    )
