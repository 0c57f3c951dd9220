"""The model card of an export, read with the library of the Hugging Face hub."""

import json

import huggingface_hub
import pytest

import lm
from lm import card, export
from lm.data.tokenizers import bytes_only
from lm.training import loop
from tests.lm.small_models import tiny
from tests.lm.training import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model with a licence, and a run of one step from it."""
    folder = tmp_path_factory.mktemp("card")
    model, params = tiny("gpt2", vocab_size=258, max_length=64)
    lm.to_hf(model, params, folder / "base", bytes_only(mask=False))
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    config = runs.config(folder, steps=1, tokenizer="", init_from=str(folder / "base"))
    plain = runs.tiny.get_config().model
    with config.unlocked():
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "max_length",
        ):
            config.model[name] = (
                getattr(model.config, name) if hasattr(model.config, name) else plain[name]
            )
    assert loop.train(config, folder / "run") == 0
    return folder


def test_the_card_of_a_run_lacks_its_base_its_data_or_its_figures(folder):
    assert export.main([f"--model={folder / 'run'}", f"--output={folder / 'out'}"]) == 0
    read = huggingface_hub.ModelCard.load(
        folder / "out" / "README.md", ignore_metadata_errors=False
    )
    assert (read.data.license, read.data.library_name, read.data.pipeline_tag) == (
        "mit",
        "transformers",
        "text-generation",
    )
    last = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for part in (
        f"`{folder / 'base'}`",
        "`next_token`",
        f"`{folder / 'x.txt'}`",
        f"training loss {last['loss']:.4g}",
    ):
        assert part in read.text, part


def test_a_card_that_someone_wrote_is_replaced_or_an_own_one_stays(folder, capsys):
    out = folder / "own"
    assert export.main([f"--model={folder / 'base'}", f"--output={out}"]) == 0
    first = (out / "README.md").read_text()
    assert card.MARK in first and "license: mit" in first
    (out / "README.md").write_text(first.replace("mit", "none"))
    assert (
        card.write(str(out), str(folder / "base"), tiny("gpt2")[0].config)
        and (out / "README.md").read_text() == first
    )
    (out / "README.md").write_text("mine")
    assert export.main([f"--model={folder / 'base'}", f"--output={out}"]) == 0
    assert (
        out / "README.md"
    ).read_text() == "mine" and "no model card was written" in capsys.readouterr().err


def test_a_base_without_a_licence_is_given_one(tmp_path):
    assert card.licence_of("") is None and card.licence_of("nowhere/model") is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert card.licence_of(str(tmp_path)) is None
    said = card.text("x", str(tmp_path), tiny("bert")[0].config, adapter_of="nowhere/model")
    assert "base_model: nowhere/model" in said and "library_name: peft" in said
    assert "not known here" in said and "license" not in said.split("---")[1]
