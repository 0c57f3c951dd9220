"""The export command and the tokenizer loader."""

import contextlib
import json

import jax
import pytest
import tokenizers

import lm
from lm import export
from lm.training import checkpoints, loop
from lm.weights import WeightsError
from tests.lm.small_models import identical, tiny
from tests.lm.training import runs


@pytest.fixture
def model_directory(tmp_path):
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "The": 1, "capital": 2, "is": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", chat_template="{{ messages }}")
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "model", tokenizer)
    return tmp_path / "model", params


def test_the_command_writes_an_equal_model_and_says_how_far_it_is_from_torch(model_directory, tmp_path, capsys):
    pytest.importorskip("torch")
    source, params = model_directory
    assert export.main([f"--model={source}", f"--output={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert float(said.split("largest difference from transformers on torch: ")[1].split()[0]) < 2e-4
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
    assert lm.load_tokenizer(tmp_path / "out").encode("The capital") == [1, 2]
    assert lm.load_tokenizer(tmp_path / "out").chat_template == "{{ messages }}"


def test_the_command_casts_when_asked(model_directory, tmp_path):
    assert export.main([f"--model={model_directory[0]}", f"--output={tmp_path / 'out'}", "--dtype=bfloat16"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_training_run_is_exported_in_the_dtype_asked_for(model_directory, tmp_path, monkeypatch):
    source, params = model_directory
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "load_params", lambda path: (*lm.from_hf(source), lm.load_tokenizer(source)))
    for options, dtype in (([], "float32"), (["--dtype=float16"], "float16")):
        assert export.main([f"--model={tmp_path / 'run'}", f"--output={tmp_path / dtype}", *options]) == 0
        assert identical(lm.from_hf(tmp_path / dtype, dtype)[1], jax.tree.map(lambda x, d=dtype: x.astype(d), params))
        assert lm.load_tokenizer(tmp_path / dtype).encode("capital") == [2]


def test_a_checkpoint_sharded_over_a_mesh_is_exported(tmp_path, capsys):
    """Written by a run on 8 devices whose parameters are split over two axes; read by a command that knows of no mesh."""
    pytest.importorskip("torch")
    config = runs.config(tmp_path, **{"steps": 2, "mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "model.tie_embeddings": False})
    assert loop.train(config, tmp_path / "run") == 0
    capsys.readouterr()
    assert export.main([f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    assert float(capsys.readouterr().out.split("on torch: ")[1].split()[0]) < 2e-4
    _, params, _ = checkpoints.load_params(str(tmp_path / "run"))
    assert identical(lm.from_hf(tmp_path / "out")[1], params)


@pytest.mark.parametrize("family", ["t5", "bart", "mamba", "bamba", "bert", "gemma2"])
def test_every_kind_of_architecture_is_compared_with_torch(family, tmp_path, capsys):
    pytest.importorskip("torch")
    model, params = tiny(family, initializer_range=0.1)
    lm.to_hf(model, jax.tree.map(lambda x: 0.2 * x, params), tmp_path / "model")
    assert export.main([f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}"]) == 0
    assert float(capsys.readouterr().out.split("on torch: ")[1].split()[0]) < 2e-4


def test_the_command_fails_when_the_export_computes_something_else(model_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "largest_difference", lambda *_: (float("nan"), 1.0))
    assert export.main([f"--model={model_directory[0]}", f"--output={tmp_path / 'out'}"]) == 2
    assert "does not compute what the model computes" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_exit_2(model_directory, tmp_path, capsys):
    assert export.main([f"--model={tmp_path / 'absent'}", f"--output={tmp_path / 'out'}"]) == 2
    assert export.main([f"--model={model_directory[0]}", f"--output={model_directory[0]}"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "does not exist" in errors[0] and "is the model itself" in errors[1]


@pytest.mark.parametrize("family", ["llama", "t5", "mamba"])  # transformers makes an empty one up for the last two
def test_a_directory_without_a_tokenizer_says_what_it_lacks(family, tmp_path):
    lm.to_hf(*tiny(family), tmp_path / "bare")
    with pytest.raises(WeightsError, match=r"it has no tokenizer.json"):
        lm.load_tokenizer(tmp_path / "bare")


def test_a_damaged_tokenizer_is_named(model_directory):
    (model_directory[0] / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"no tokenizer can be read from .*model \(tokenizer.json"):
        lm.load_tokenizer(model_directory[0])


def test_code_in_a_model_directory_is_never_run(model_directory, tmp_path):
    directory = model_directory[0]
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        content["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (directory / name).write_text(json.dumps(content))
    lm.from_hf(directory)
    with contextlib.suppress(WeightsError):
        lm.load_tokenizer(directory)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(model_directory, tmp_path):
    tokenizer = lm.load_tokenizer(model_directory[0])
    model, params = tiny(vocab_size=3)
    with pytest.raises(WeightsError, match="the tokenizer has 4 tokens, more than the model's vocabulary of 3"):
        lm.to_hf(model, params, tmp_path / "out", tokenizer)
