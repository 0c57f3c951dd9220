"""The export command and the tokenizer loader."""

import contextlib
import json

import jax
import pytest
import tokenizers

import lm
from lm import evaluate, export
from lm.adaptation import lora
from lm.adaptation.lora import Lora
from lm.data import templates
from lm.data.tokenizers import bytes_only
from lm.distributed import rules
from lm.models.config import ConfigError
from lm.training import loop
from lm.training.checkpoints import Checkpoints
from lm.training.state import create_state
from lm.weights import WeightsError, peft
from lm.weights.loading import GENERATION, keep_generation, kept, load_template
from lm.weights.runs import model_files
from lm.weights.runs import weights as run_weights
from tests.lm.small_models import identical, tiny
from tests.lm.training import runs, small


@pytest.fixture
def model_directory(tmp_path):
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {"[UNK]": 0, "The": 1, "capital": 2, "is": 3}, unk_token="[UNK]"
        )
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", chat_template="{{ messages }}"
    )
    model, params = tiny()
    lm.to_hf(model, params, tmp_path / "model", tokenizer)
    return tmp_path / "model", params


def test_the_command_writes_an_equal_model_and_says_how_far_it_is_from_torch(
    model_directory, tmp_path, capsys
):
    pytest.importorskip("torch")
    source, params = model_directory
    assert export.main([f"--model={source}", f"--output={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert float(said.split("largest difference from transformers on torch: ")[1].split()[0]) < 2e-4
    assert identical(lm.from_hf(tmp_path / "out")[1], params)
    assert lm.load_tokenizer(tmp_path / "out").encode("The capital") == [1, 2]
    assert lm.load_tokenizer(tmp_path / "out").chat_template == "{{ messages }}"


def test_the_command_casts_when_asked(model_directory, tmp_path):
    assert (
        export.main(
            [f"--model={model_directory[0]}", f"--output={tmp_path / 'out'}", "--dtype=bfloat16"]
        )
        == 0
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_training_run_is_exported_in_the_dtype_asked_for(model_directory, tmp_path, monkeypatch):
    source, params = model_directory
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = lm.from_hf(source)[0].config
    monkeypatch.setattr(model_files, "load_model_config", lambda path: config)
    monkeypatch.setattr(
        run_weights, "load_params", lambda path: (*lm.from_hf(source), lm.load_tokenizer(source))
    )
    for options, dtype in (([], "float32"), (["--dtype=float16"], "float16")):
        assert (
            export.main([f"--model={tmp_path / 'run'}", f"--output={tmp_path / dtype}", *options])
            == 0
        )
        assert identical(
            lm.from_hf(tmp_path / dtype, dtype)[1],
            jax.tree.map(lambda x, d=dtype: x.astype(d), params),
        )
        assert lm.load_tokenizer(tmp_path / dtype).encode("capital") == [2]


def test_a_checkpoint_sharded_over_a_mesh_is_exported(tmp_path, capsys):
    """A run on 8 devices shards the parameters over two axes; the command uses no mesh."""
    pytest.importorskip("torch")
    config = runs.config(
        tmp_path,
        **{
            "steps": 2,
            "mesh.data": 1,
            "mesh.fsdp": 4,
            "mesh.tensor": 2,
            "model.tie_embeddings": False,
        },
    )
    assert loop.train(config, tmp_path / "run") == 0
    capsys.readouterr()
    assert export.main([f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    assert float(capsys.readouterr().out.split("on torch: ")[1].split()[0]) < 2e-4
    _, params, _ = run_weights.load_params(str(tmp_path / "run"))
    assert identical(lm.from_hf(tmp_path / "out")[1], params)


@pytest.mark.parametrize("family", ["t5", "bart", "mamba", "bamba", "bert", "gemma2"])
def test_every_kind_of_architecture_is_compared_with_torch(family, tmp_path, capsys):
    pytest.importorskip("torch")
    model, params = tiny(family, initializer_range=0.1)
    lm.to_hf(model, jax.tree.map(lambda x: 0.2 * x, params), tmp_path / "model")
    assert export.main([f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}"]) == 0
    assert float(capsys.readouterr().out.split("on torch: ")[1].split()[0]) < 2e-4


def test_the_command_fails_when_the_export_computes_something_else(
    model_directory, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export, "largest_difference", lambda *_: (float("nan"), 1.0))
    assert export.main([f"--model={model_directory[0]}", f"--output={tmp_path / 'out'}"]) == 2
    assert "does not compute what the model computes" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_exit_2(model_directory, tmp_path, capsys):
    assert export.main([f"--model={tmp_path / 'absent'}", f"--output={tmp_path / 'out'}"]) == 2
    assert export.main([f"--model={model_directory[0]}", f"--output={model_directory[0]}"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "does not exist" in errors[0] and "is the model itself" in errors[1]


# For T5 and Mamba transformers would invent an empty tokenizer.
@pytest.mark.parametrize("family", ["llama", "t5", "mamba"])
def test_a_directory_without_a_tokenizer_says_what_it_lacks(family, tmp_path):
    lm.to_hf(*tiny(family), tmp_path / "bare")
    with pytest.raises(WeightsError, match=r"it has no tokenizer.json"):
        lm.load_tokenizer(tmp_path / "bare")


def test_a_damaged_tokenizer_is_named(model_directory):
    (model_directory[0] / "tokenizer.json").write_text("{")
    with pytest.raises(
        WeightsError, match=r"no tokenizer can be read from .*model \(tokenizer.json"
    ):
        lm.load_tokenizer(model_directory[0])


def test_code_in_a_model_directory_is_never_run(model_directory, tmp_path):
    directory = model_directory[0]
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        (directory / name).write_text(json.dumps(content))
    lm.from_hf(directory)
    with contextlib.suppress(WeightsError):
        lm.load_tokenizer(directory)
    assert not (tmp_path / "ran").exists()


SETTINGS = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
}


def adapter_of(folder, base, model, params, **changed):
    """Write a PEFT adapter of `base`. Returns (its folder, the merged params)."""
    spec = Lora(2)
    fresh = lora.initialise(params, rules.by_path(model.logical_axes()), spec, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.1, fresh)
    peft.save(folder, model, adapters, spec, base)
    config = json.loads((folder / peft.CONFIG).read_text()) | changed
    (folder / peft.CONFIG).write_text(json.dumps(config))
    return folder, lora.merge(params, adapters, spec.scale)


def test_settings_of_generation_are_lost_on_the_way_through_a_run(
    model_directory, tmp_path, capsys
):
    source, _ = model_directory
    own = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(
        json.dumps(own | SETTINGS | {"transformers_version": "4.0.0"})
    )
    model, params, tokenizer = lm.load(source)
    model_files.save_model(tmp_path / "run", model.config, tokenizer)
    keep_generation(tmp_path / "run", str(source))
    (tmp_path / "run" / "checkpoints").mkdir()
    adapter, _ = adapter_of(tmp_path / "adapter", str(source), model, params)
    for path in (source, tmp_path / "run", adapter):
        lm.to_hf(model, params, tmp_path / "out", tokenizer, generation=kept(str(path), GENERATION))
        written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert (
            SETTINGS.items() <= written.items()
            and not {"_from_model_config", "transformers_version"} & written.keys()
        )
        assert written["eos_token_id"] == own["eos_token_id"]
    transformers = pytest.importorskip("transformers")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.6
    assert export.main([f"--model={source}", f"--output={tmp_path / 'again'}"]) == 0
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["top_p"] == 0.9


def test_settings_of_generation_that_are_not_used_are_not_said(model_directory):
    from lm import generation_flags

    source, _ = model_directory
    said = lambda *flags: generation_flags.unused_settings(
        generation_flags.arguments("", [f"--model={source}", *flags])
    )
    assert said() == ""
    flags = "--temperature=0.6 --top-k=20 --top-p=0.9 --repetition-penalty=1.1"
    for given, wanted in (
        (
            SETTINGS,
            f"unless you add {flags}, and has settings that are not supported: "
            "no_repeat_ngram_size=3",
        ),
        (
            SETTINGS | {"do_sample": False, "no_repeat_ngram_size": 0},
            "unless you add --repetition-penalty=1.1",
        ),
        ({"num_beams": 4, "length_penalty": 0.6}, "unless you add --beams=4 --length-penalty=0.6"),
        ({"do_sample": True}, "unless you add --temperature=1.0"),
    ):
        (source / "generation_config.json").write_text(json.dumps(given))
        assert said().endswith(wanted) and said("--temperature=0.5") == ""


def test_an_adapter_is_exported_otherwise_than_merged_into_its_base(
    model_directory, tmp_path, capsys
):
    source, params = model_directory
    adapter, merged = adapter_of(tmp_path / "adapter", str(source), *lm.from_hf(source))
    assert export.main([f"--model={adapter}", f"--output={tmp_path / 'out'}"]) == 0
    assert identical(lm.from_hf(tmp_path / "out")[1], merged) and not identical(merged, params)
    assert lm.load_tokenizer(tmp_path / "out").encode("The capital") == [1, 2]
    with pytest.raises(WeightsError, match=r"is an adapter: lm.load"):
        lm.from_hf(adapter)


def test_an_adapter_s_own_tokenizer_or_chat_template_is_ignored(model_directory, tmp_path):
    source, _ = model_directory
    adapter, _ = adapter_of(tmp_path / "adapter", str(source), *lm.from_hf(source))
    (adapter / "chat_template.jinja").write_text("{{ 'own' }}")
    assert lm.load(adapter)[2].chat_template == "{{ 'own' }}"
    tokenizer = lm.load_tokenizer(source)
    tokenizer.chat_template = "{{ 'other' }}"
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    loaded = lm.load(adapter)[2]
    assert loaded.chat_template == "{{ 'other' }}" and loaded.encode("<new>") == [4]
    tokenizer.add_tokens([f"<{i}>" for i in range(40)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(WeightsError, match="adapter has 45 tokens, and its base's vocabulary 37"):
        lm.load(adapter)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "=None names no base: write"),
        ("", "='' names no base"),
        ("no/such/base/here", "the base of .*does not exist"),
    ],
)
def test_an_adapter_without_a_base_is_not_refused_in_words(model_directory, tmp_path, base, said):
    adapter, _ = adapter_of(
        tmp_path / "adapter", "x", *lm.from_hf(model_directory[0]), base_model_name_or_path=base
    )
    with pytest.raises(ValueError, match=said):
        lm.load(str(adapter))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(model_directory, tmp_path):
    tokenizer = lm.load_tokenizer(model_directory[0])
    model, params = tiny(vocab_size=3)
    with pytest.raises(
        WeightsError, match="the tokenizer has 4 tokens, more than the model's vocabulary of 3"
    ):
        lm.to_hf(model, params, tmp_path / "out", tokenizer)


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """A folder with x.jsonl, a run trained with a template and options, and its export `out`."""
    folder, tokenizer = tmp_path_factory.mktemp("instructed"), bytes_only()
    (folder / "x.jsonl").write_text('{"instruction": "Say 1.", "input": "", "output": "1"}\n')
    config = small.MODEL.replace(vocab_size=320, n_layers=1, max_length=256, eos_token_ids=(0,))
    template = templates.get("tk_instruct", tokenizer, positive=1, explanations=True)
    model_files.save_model(folder / "run", config, tokenizer, template)
    writer = Checkpoints(folder / "run", keep=1)
    writer.save(1, create_state(*small.parts(config)[:2], small.mesh_of(1, 1, 1), 0), {})
    writer.close()
    assert export.main([f"--model={folder / 'run'}", f"--output={folder / 'out'}"]) == 0
    return folder


def test_an_exported_model_is_asked_otherwise_than_its_run(instructed, capsys):
    kept = load_template(str(instructed / "out"), lm.load_tokenizer(instructed / "out"))
    taught = templates.get("tk_instruct", bytes_only(), positive=1, explanations=True)
    assert kept is not None and templates.remember(kept) == templates.remember(taught)
    scored = {}
    for name in ("run", "out"):
        args = [
            f"--model={instructed / name}",
            f"--examples={instructed / 'x.jsonl'}",
            "--max-new-tokens=4",
            "--metrics=f1",
        ]
        assert evaluate.main([*args, f"--answers={instructed / name}.jsonl", "--json"]) == 0
        scored[name] = json.loads(capsys.readouterr().out)
        assert evaluate.main([*args, "--template=tulu"]) == 2
        assert "was trained with the template 'tk_instruct' and options" in capsys.readouterr().err
    assert (
        scored["out"]["template"] == scored["run"]["template"]
        and scored["out"]["all"] == scored["run"]["all"]
    )
    assert (instructed / "out.jsonl").read_text() == (instructed / "run.jsonl").read_text()
    assert (
        evaluate.main([*args, "--template=tulu", "--force-template"]) == 0
        and "template tulu" in capsys.readouterr().out
    )


def test_generate_spells_prompts_of_an_exported_model_otherwise(instructed):
    from lm import generation_flags

    tokenizer = lm.load_tokenizer(instructed / "out")
    chosen = lambda *more: generation_flags.chosen_template(
        generation_flags.arguments("", [f"--model={instructed / 'out'}", *more]), tokenizer
    )
    kept = chosen()
    assert (
        kept is not None
        and dict(kept.options)["positive"] == 1
        and chosen("--template=none") is None
    )


def test_a_system_message_without_a_chat_is_ignored(instructed, model_directory):
    from lm import generation_flags

    tokenizer, (model, _) = bytes_only(), tiny(vocab_size=320)
    turns = [{"role": "system", "content": "yes"}, {"role": "user", "content": "cat?"}]
    older = [
        turns[0],
        {"role": "user", "content": "dog?"},
        {"role": "assistant", "content": "no"},
        turns[1],
    ]
    for given in (turns, older):
        ids = generation_flags.spelled(
            model, tokenizer, templates.get("tulu", tokenizer), given, chat=False
        )
        assert tokenizer.decode(ids).startswith("<|system|>\nyes\n<|user|>\ncat?\n<|assistant|>")
    for path, more in ((model_directory[0], []), (instructed / "out", ["--template=none"])):
        args = generation_flags.arguments("", [f"--model={path}", "--system=yes", *more])
        with pytest.raises(ValueError, match=r"--system='yes' would be ignored.*add --chat"):
            generation_flags.chosen_template(args, lm.load_tokenizer(path))


def test_an_export_of_an_export_or_over_one_has_a_stale_template(
    instructed, model_directory, tmp_path
):
    for name in ("first", "second"):
        source = instructed / "out" if name == "first" else tmp_path / "first"
        assert export.main([f"--model={source}", f"--output={tmp_path / name}"]) == 0
        assert (tmp_path / name / "template.json").read_text() == (
            instructed / "out" / "template.json"
        ).read_text()
    assert export.main([f"--model={model_directory[0]}", f"--output={tmp_path / 'first'}"]) == 0
    assert not (tmp_path / "first" / "template.json").exists()
    lm.to_hf(*tiny(), tmp_path / "second")
    assert not (tmp_path / "second" / "template.json").exists()


@pytest.mark.parametrize(
    "foreign", ["[1]", '{"name": "x"}', '{"name": 3, "options": {}, "fingerprint": "x"}']
)
def test_a_template_of_another_program_is_read(model_directory, foreign):
    (model_directory[0] / "template.json").write_text(foreign)
    assert load_template(str(model_directory[0]), lm.load_tokenizer(model_directory[0])) is None


def test_a_template_that_cannot_be_is_not_refused_in_words(instructed, tmp_path, capsys):
    assert export.main([f"--model={instructed / 'out'}", f"--output={tmp_path / 'out'}"]) == 0
    file, kept = (
        tmp_path / "out" / "template.json",
        json.loads((instructed / "out" / "template.json").read_text()),
    )
    args = [
        f"--model={tmp_path / 'out'}",
        f"--examples={instructed / 'x.jsonl'}",
        "--max-new-tokens=4",
    ]
    for text, said in (
        (json.dumps(kept | {"fingerprint": "0"}), "spells records differently"),
        ("{", "is not JSON"),
    ):
        file.write_text(text)
        capsys.readouterr()
        assert evaluate.main(args) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error
        with pytest.raises(ConfigError, match=said):
            load_template(str(tmp_path / "out"), bytes_only())
