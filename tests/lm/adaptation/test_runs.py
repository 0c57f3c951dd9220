"""Adapted runs: bit-exact resume; evaluation, generation and export use the adapted model."""

import importlib
import json
import shutil

import jax
import numpy as np
import pytest

from lm import evaluate, export, fisher, interpolate
from lm.adaptation import lora
from lm.data import templates, tokenizers
from lm.distributed import rules
from lm.models.config import ConfigError
from lm.training import loop, settings
from lm.weights import peft
from lm.weights.loading import kept_template, load
from lm.weights.runs import weights as run_weights
from tests.lm.small_models import identical
from tests.lm.training import runs

EVERYTHING = {
    "adaptation.lora.rank": 2,
    "adaptation.lora.dropout": 0.1,
    "adaptation.l2_sp": 0.01,
    "adaptation.kl.strength": 0.1,
    "adaptation.ewc.strength": 0.5,
    "optimizer.ema": 0.5,
    "optimizer.skip_above": 20.0,
    "optimizer.learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base run of 2 steps, its Fisher information, and a LoRA run of 4 steps with every penalty.

    The LoRA run exists twice: uninterrupted and resumed.
    """
    folder = tmp_path_factory.mktemp("adapted")
    shared = {"checkpoint.every": 2, "mesh.data": 1, "mesh.fsdp": 8}
    assert loop.train(runs.config(folder, steps=2), folder / "base") == 0
    based = shared | {"init_from": str(folder / "base"), "tokenizer": "", "steps": 4}
    fisher.write(runs.config(folder, **based | {"steps": 1}), str(folder / "fisher"), sampled=True)
    based |= EVERYTHING | {"adaptation.ewc.fisher": str(folder / "fisher" / "fisher.safetensors")}
    assert loop.train(runs.config(folder, **based), folder / "lora") == 0
    shutil.copytree(folder / "lora", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "4")
    assert loop.train(runs.config(folder, **based), folder / "resumed") == 0
    return folder


def test_a_resumed_run_ends_elsewhere(folder):
    base, whole, resumed = (
        run_weights.load_params(folder / name)[1] for name in ("base", "lora", "resumed")
    )
    assert identical(whole, resumed) and not identical(whole, base)


def test_what_a_lora_run_is_loaded_as_is_not_base_and_average_merged(folder):
    _, found, _ = load(str(folder / "lora"))
    _, base, _ = load(str(folder / "base"))
    abstract = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, "float32", sharding=jax.tree.leaves(base)[0].sharding
        ),
        tree,
    )
    model, _, _ = load(str(folder / "base"))
    fresh = lora.initialise(
        base, rules.by_path(model.logical_axes()), lora.Lora(2), jax.random.key(0)
    )
    read = run_weights.read_arrays(
        folder / "lora" / "checkpoints" / "4", {"ema": abstract(fresh)}, partial=True
    )
    assert identical(found, lora.merge(base, read["ema"], 2.0))


def test_the_commands_do_not_take_a_lora_run(folder, capsys):
    assert (
        evaluate.main(
            [f"--model={folder / 'lora'}", f"--data={folder / 'x.txt'}", "--length=16", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    assert (
        importlib.import_module("lm.generate").main(
            [f"--model={folder / 'lora'}", "--prompt=The", "--max-new-tokens=3"]
        )
        == 0
    )
    assert export.main([f"--model={folder / 'lora'}", f"--output={folder / 'exported'}"]) == 0
    _, exported, _ = load(str(folder / "exported"))
    _, merged, _ = load(str(folder / "lora"))
    assert identical(exported, merged)


def test_an_exported_adapter_is_not_the_run(folder, capsys):
    """PEFT cannot load a base that is a run: the message says so, and `--base` names another."""
    args = [f"--model={folder / 'lora'}", f"--output={folder / 'adapter'}", "--adapter"]
    assert export.main(args) == 2 and not (folder / "adapter").exists()
    said = capsys.readouterr().err
    assert f"{folder / 'base'}, which is a training run, and PEFT cannot load that" in said
    assert f"lm.export --model={folder / 'base'} --output=DIR`, then give --base=DIR here" in said
    base = folder / "base-hf"
    assert export.main([f"--model={folder / 'base'}", f"--output={base}"]) == 0
    assert export.main([*args, f"--base={base}"]) == 0
    config = json.loads((folder / "adapter" / peft.CONFIG).read_text())
    assert (
        config["base_model_name_or_path"] == str(base)
        and config["r"] == 2
        and config["lora_alpha"] == 4
    )
    _, merged, _ = load(str(folder / "lora"))
    assert (folder / "adapter" / "tokenizer.json").is_file()
    _, found, _ = load(str(folder / "adapter"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, merged)
    assert (
        export.main([f"--model={folder / 'base'}", f"--output={folder / 'none'}", "--adapter"]) == 2
    )


def test_an_exported_adapter_has_lost_its_template_or_has_another_runs(folder):
    template = templates.get("plain", tokenizers.bytes_only())
    (folder / "resumed" / "model" / "template.json").write_text(
        json.dumps(templates.remember(template))
    )
    base = f"--base={folder / 'base-hf'}"
    for name, kept in (("resumed", templates.remember(template)), ("lora", None)):
        args = [f"--model={folder / name}", f"--output={folder / 'either'}", "--adapter"]
        assert export.main([*args, base]) == 0
        assert kept_template(str(folder / "either")) == kept


def test_a_sweep_does_not_end_in_the_models_themselves(folder):
    args = [
        f"--base={folder / 'base'}",
        f"--tuned={folder / 'lora'}",
        f"--data={folder / 'x.txt'}",
        "--length=16",
    ]
    assert (
        interpolate.main(
            [
                *args,
                "--alphas=0,0.5,1",
                f"--output={folder / 'mixed'}",
                f"--json={folder / 'sweep.json'}",
            ]
        )
        == 0
    )
    rows = json.loads((folder / "sweep.json").read_text())
    assert [row["alpha"] for row in rows] == [0, 0.5, 1]
    for alpha, run in (("0", "base"), ("1", "lora")):
        assert identical(
            load(str(folder / "mixed" / f"alpha-{alpha}"))[1], load(str(folder / run))[1]
        )
    assert len({round(row["loss"][str(folder / "x.txt")], 6) for row in rows}) == 3
    # A greedy soup is at least as good as its best member.
    loss = {
        name: row["loss"][str(folder / "x.txt")]
        for name, row in (("base", rows[0]), ("lora", rows[2]))
    }
    soup = [
        f"--soup={folder / 'base'},{folder / 'lora'}",
        "--greedy",
        f"--data={folder / 'x.txt'}",
        "--length=16",
    ]
    assert interpolate.main([*soup, f"--json={folder / 'soup.json'}"]) == 0
    (row,) = json.loads((folder / "soup.json").read_text())
    assert str(folder / min(loss, key=loss.get)) in row["soup"]
    assert row["loss"][str(folder / "x.txt")] <= min(loss.values()) + 1e-6
    assert interpolate.main([f"--soup={folder / 'base'},nowhere", "--data=x"]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adaptation.lora.rank": 2},
            r"adaptation.lora.rank=2 keeps a model near its base, and there is none: set init_from",
        ),
        ({"adaptation.lora.alpha": 3.0}, "would be ignored: set adaptation.lora.rank"),
        ({"adaptation.lora.rank": -1}, "expected a finite number, 0 or more"),
        ({"adaptation.lora.rank": 2, "adaptation.lora.pattern": "("}, "not a regular expression"),
        ({"adaptation.ewc.strength": 1.0}, "set both or neither"),
        ({"adaptation.kl.direction": "back"}, "unknown.*forward or reverse"),
        ({"adaptation.kl.direction": "reverse"}, "would be ignored: set adaptation.kl.strength"),
        ({"adaptation.l2_sp": float("nan")}, "adaptation.l2_sp=nan"),
    ],
)
def test_a_section_that_cannot_work_is_accepted(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        settings.check(runs.config(tmp_path, **changes), 8)
