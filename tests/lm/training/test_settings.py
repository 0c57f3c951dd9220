"""Invalid configs are refused with clear errors before any data is read."""

import json
import pathlib
import re

import jax
import pytest

from configs import defaults, pretrain_gpt2, smoke, tiny
from lm import tasks
from lm.batch import Batch
from lm.data import tokenizers
from lm.models import build
from lm.models.config import ConfigError
from lm.tasks import TASKS
from lm.training import command_line, flops, loop, settings
from tests.lm.training import small

ROOT = pathlib.Path(__file__).parents[3]
GOOD = [f"--config={ROOT}/configs/tiny.py", "--workdir=unused"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "optimizer.learning_rate",
            float("nan"),
            "optimizer.learning_rate=nan: expected a finite number",
        ),
        ("optimizer.learning_rate", 0.0, "nothing would be learned"),
        ("optimizer.b1", 1.0, "optimizer.b1=1.0"),
        ("steps", -3, "steps=-3: expected a number of at least 1"),
        ("accumulate", 3, "batch_size=16 does not divide by accumulate=3"),
        (
            "accumulate",
            4,
            r"batch_size=16 / accumulate=4 = 4 rows do not divide over mesh.data x mesh.fsdp = 8; "
            r".* multiple of 32",
        ),
        ("mesh.fsdp", 3, "does not fit"),
        ("task.name", "next_tokn", "did you mean 'next_token'"),
        ("task.label_smoothing", 1.0, r"task.label_smoothing=1.0: expected a share"),
        ("task.z_loss", float("nan"), r"task.z_loss=nan: expected a finite number"),
        ("data.files", "", "set data.files"),
        ("data.synthetic_rows", 8, "and not both"),
        ("tokenizer", "", "tokenizer is not set"),
        (
            {"tokenizer": "", "data.files": "", "data.synthetic_rows": 8},
            None,
            "samples.prompts and eval.data hold text",
        ),
        (
            {"length": 30, "mesh.data": 2, "mesh.sequence": 4},
            None,
            r"length=30 does not divide over mesh.sequence=4: make length a multiple of 4 .next "
            r"that fits: 32., or set mesh.sequence=2",
        ),
        ({"length": 32, "mesh.data": 2, "mesh.sequence": 4}, None, None),
        ("length", 129, "length=129 is more than model.max_length=128"),
        ("model.dtype", "float16", "loss scaling"),
        ("model.n_kv_heads", 3, "n_heads=8 is not a multiple"),
        ("model.head", "masked_lm", "needs 'causal_lm'"),
        ("model.vocab_size", 100, "cannot hold the tokenizer's 257 tokens"),
        ("sharding.activations.length", ("sequences",), "mesh axis 'sequences' .did you mean"),
        ("sharding.activations.length", ("data",), "'data' would shard two dimensions"),
        (
            {"sharding.activations.residual_length": ("tensor",), "length": 30, "mesh.tensor": 4},
            None,
            r"an activation \[batch, residual_length, residual\] of shape .*: dimension 1 "
            r"\('residual_length', size 30\) does not divide by mesh.tensor = 4",
        ),
        (
            "sharding.activations.attention_length",
            ("tensor",),
            r"an activation \[batch, attention_length, heads, head_dim\] .*: the mesh axis "
            "'tensor' would shard two dimensions",
        ),
        ("sharding.activations.heads", ("tensor", "tensor"), "the mesh axis 'tensor' twice"),
        ("sharding.activations.batch", ("data",), None),
        ("sharding.reduce", "steps", "sharding.reduce='steps' is unknown .did you mean 'step'"),
    ],
)
def test_a_config_that_cannot_work_is_started(tmp_path, monkeypatch, field, value, said):
    c = tiny.get_config()
    c.update_from_flattened_dict(field if isinstance(field, dict) else {field: value})
    if said is None:
        settings.check(c, 8)
        return
    # The config's data files do not exist here, so reading them would be a different error.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        loop.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--config.optimizer.lerning_rate=1"],
            "the config has no field 'optimizer.lerning_rate' (did you mean "
            "'optimizer.learning_rate'?)",
        ),
        (["--config.model.d_moddel=1"], "(did you mean 'model.d_model'?)"),
        (["--config.optimizer.lr=1"], "(did you mean 'optimizer.learning_rate'?)"),
        (["--config.optimzer.wd=1"], "(did you mean 'optimizer.weight_decay'?)"),
        (["--config.steps=many"], "flag --config.steps=many: invalid literal for int"),
        (["--steps=3"], "Unknown command line flag 'steps'"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_mistyped_argument_is_not_explained(args, said):
    with pytest.raises(ConfigError) as error:
        command_line.parse(GOOD + args)
    assert said in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("c.optimizer.lerning_rate = 1.0", 'line 4: KeyError: Key "lerning_rate" does not exist'),
        ("c.steps = 'many'", "line 4: TypeError"),
        (
            "return specialise(c, 'tinny', tiny={})",
            "variant 'tinny' is unknown (did you mean 'tiny'?)",
        ),
        ("return specialise(c, 'tiny', tiny={'stepps': 3})", "stepps"),
        ("return 3", "returned no ConfigDict"),
        ("1 / 0", "line 4: ZeroDivisionError"),
    ],
)
def test_a_mistake_in_a_config_file_is_not_explained(tmp_path, content, said):
    (tmp_path / "c.py").write_text(
        "from configs.defaults import defaults, specialise\ndef get_config(v=''):\n"
        f"    c = defaults()\n    {content}\n"
    )
    with pytest.raises(ConfigError) as error:
        command_line.parse([f"--config={tmp_path}/c.py", "--workdir=x"])
    assert said in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    "args", [[], ["--workdir=x"], ["--config=nowhere.py", "--workdir=x"], [GOOD[0]]]
)
def test_a_missing_argument_is_not_named(args):
    with pytest.raises(ConfigError, match=r"--(config|workdir)"):
        command_line.parse(args)


def test_overrides_are_not_applied():
    config, workdir = command_line.parse(
        [
            *GOOD,
            "--config.steps=7",
            "--config.optimizer.learning_rate=2",
            "--config.samples.prompts=('a','b')",
        ]
    )
    assert (config.steps, config.optimizer.learning_rate, config.samples.prompts, workdir) == (
        7,
        2.0,
        ("a", "b"),
        "unused",
    )
    assert config.is_locked


@pytest.mark.parametrize("variant", ["", "gpt2", "fsdp", "tensor"])
def test_a_shipped_config_does_not_build(variant):
    check(tiny.get_config(variant))


@pytest.mark.parametrize("variant", ["", "tiny", "bench"])
def test_the_gpt2_config_does_not_build(variant):
    c = pretrain_gpt2.get_config(variant)
    if not c.data.synthetic_rows:
        c.data.files = "x"
    check(c)


def check(c):
    settings.check(c, 8)
    model = build(settings.model_config(c.model, tokenizers.bytes_only()))
    assert model.logical_axes()
    json.dumps(c.to_dict())


def test_every_field_of_the_model_is_open_to_the_config():
    section = settings.model_section(small.MODEL)
    assert settings.model_config(section, None) == small.MODEL
    section.bos_token_id = 3
    assert settings.model_config(section, None).bos_token_id == 3
    assert defaults.defaults().model.keys() == section.keys()


def test_the_vocabulary_and_special_tokens_are_not_the_tokenizers():
    c = settings.model_config(tiny.get_config().model, tokenizers.bytes_only())
    assert (c.vocab_size, c.bos_token_id, c.eos_token_ids) == (320, 0, (0,))


def test_flops_differ_from_what_the_compiler_counts():
    config = small.MODEL.replace(layers="unrolled", vocab_size=512)
    model = build(config)
    batch = Batch.of([list(range(32))] * 4)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"])
    run = jax.jit(lambda p, b: model.apply({"params": p}, b).logits)
    counted = run.lower(params, batch).compile().cost_analysis()["flops"] / 128
    # XLA computes all scores, masked ones too.
    ours = flops.forward_per_token(config.replace(causal=False, head="none"), 32) + 2 * 512 * 32
    assert ours == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(
    ("variant", "texts"),
    [("contrastive,bert", 3), ("span_corruption,t5", 1), ("next_token,llama", 1)],
)
def test_texts_of_a_row_that_do_not_see_each_other_count_as_one_that_does(variant, texts):
    assert tasks.of(smoke.get_config(variant)).texts == texts


STATE_SPACE = dict(ssm_inner=96, ssm_state=5)
OTHERS = {
    "seq2seq": dict(encoder_layers=3, encoder_d_ff=72, head="seq2seq_lm"),
    "mamba": dict(STATE_SPACE, ssm_dt_rank=4, d_ff=0),
    "mamba2": dict(
        STATE_SPACE, ssm_heads=6, ssm_head_dim=16, ssm_groups=2, layer_pattern=("ssm", "global")
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_matrix_parameters_are_not_those_of_the_model(name):
    """Counts for the flops against the arrays: all matrices but tables and convolutions."""
    config = small.MODEL.replace(tie_embeddings=False, **OTHERS[name])
    shapes = jax.eval_shape(
        lambda: build(config).init(jax.random.key(0), Batch.of([[1, 2]]))["params"]
    )
    sizes = {
        jax.tree_util.keystr(path): x.size
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    small_ones = ("'token'", "norm", "bias", "a_log", "conv", "skip")
    matrices = {
        path: n for path, n in sizes.items() if not any(part in path for part in small_ones)
    }
    decoder = sum(n for path, n in matrices.items() if "['encoder']" not in path)
    assert sum(flops.parameters(config).values()) == decoder
    if config.encoder_layers:
        assert (
            sum(flops.parameters(config.encoder).values()) == sum(matrices.values()) - decoder > 0
        )


def test_the_peak_of_a_device_is_wrong():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    kinds = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "TPU v4": 275e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H200": 989e12,
        "cpu": None,
    }
    assert {kind: flops.peak(Device(kind)) for kind in kinds} == kinds


def test_fields_of_model_are_ignored_with_init_from_in_silence():
    used, loaded = ("dtype", "dropout"), small.MODEL.replace(n_layers=2, eos_token_ids=(3,))
    section = settings.model_section(settings.MODEL)
    section.update(vocab_size=0, dtype="bfloat16", dropout=0.1, max_length=4096)
    settings.check_ignored(section, loaded, used)
    section.update(n_layers=2, d_model=32, eos_token_ids=(3,))  # the same values as the model's
    settings.check_ignored(section, loaded, used)
    section.update(n_layers=99, vocab_size=7)
    with pytest.raises(
        ConfigError,
        match=r"ignored: (model.vocab_size=7 \(it has 64\), )?model.n_layers=99 \(it has 2\)",
    ) as error:
        settings.check_ignored(section, loaded, used)
    assert "model.vocab_size=7" in str(error.value) and "d_model" not in str(error.value)


def test_the_page_counts_other_fields_than_a_config_has():
    page = (ROOT / "docs" / "configs.md").read_text()
    least, most, own, of_task, model, sharded, optimizer, data, others = map(
        int,
        re.search(
            r"has (\d+) to (\d+) fields.*?(\d+) to (\d+) of the task.*?(\d+) of\s+the\s+model, "
            r"(\d+) of sharding, (\d+) of the optimizer, (\d+) of the data, and (\d+) others",
            page,
            re.DOTALL,
        ).groups(),
    )
    count = lambda section: len(list(command_line._dotted(section)))
    c, totals, tasks_ = defaults.defaults(), [], []
    for name in TASKS:
        c.task = tasks.defaults(name)
        totals.append(count(c))
        tasks_.append(count(c.task))
    assert (min(totals), max(totals), min(tasks_), max(tasks_)) == (least, most, own, of_task)
    sections = [count(c[name]) for name in ("model", "sharding", "optimizer", "data")]
    assert sections == [model, sharded, optimizer, data]
    assert others == totals[-1] - tasks_[-1] - sum(sections)
