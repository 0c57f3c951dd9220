"""kNN-LM by command: build, tune, update, ask with sources; and the config of a run with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.memory import knn_lm
from lm.training import loop, trackers
from retrieval import Memory, Passage, ask, build_datastore
from retrieval.datastore.datastore import Datastore
from retrieval.doors.knn_mixture import Mixture, skipping, tune
from retrieval.doors.knn_perplexity import score
from tests.retrieval.datastore.stores import built, memory, observer
from tests.retrieval.doors.test_knn import packed_of
from tests.retrieval.models import save_encoder, save_reader

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("compiled_once")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Encoder, reader, a memory made with the encoder, and text to tune on."""
    from retrieval.encoders.encoder import Encoder

    path = tmp_path_factory.mktemp("commands")
    save_encoder(path / "encoder")
    save_reader(path / "reader", chat_template=None, context=256)
    made = Memory.create(path / "memory", Encoder.from_hf(path / "encoder"))
    made.add([Passage(f"p{i}", f"town {i} lies in land {i}") for i in range(4)])
    (path / "dev.txt").write_text("town 2 lies in land 2. town 3 lies in land 4.")
    return path


def run(folder, *more):
    return build_datastore.main(
        [f"--datastore={folder / 'store'}", f"--model={folder / 'reader'}", *more]
    )


def test_commands_build_tune_update_and_ask_with_sources(folder, capsys):
    both = f"--memory={folder / 'memory'}"
    tuning = [f"--dev={folder / 'dev.txt'}", "-k=8"]
    assert run(folder, both, "--index=exact", "--length=64", *tuning) == 0
    said = capsys.readouterr().out
    assert "version 1, 88 entries; read 4 passages" in said and "k 8, share" in said
    mixture = Mixture.load(folder / "store")
    assert mixture.k == 8 and 0 <= mixture.share <= 1
    asked = [both, f"--reader={folder / 'reader'}", f"--datastore={folder / 'store'}"]
    asked += ["--max-new-tokens=4", "-k=1", "Where is town 2?"]
    Mixture(8, 0.9, 1.0).save(folder / "store")
    assert ask.main([*asked, "--explain"]) == 0
    said = capsys.readouterr().out
    assert "  kNN-LM:      " in said and said.count("memory 0.") == 4 and "p1@" in said
    assert ask.main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["knn"]["tokens"]
    assert len(told) == 4 and {"text", "probability", "share", "sources"} == set(told[0])
    total = [sum(source[3] for source in token["sources"]) for token in told]
    assert total == pytest.approx([token["share"] for token in told])

    Memory.open(folder / "memory").delete(["p1"])
    assert ask.main([*asked, "--explain"]) == 0  # before the datastore is updated
    assert "p1@" not in capsys.readouterr().out
    assert run(folder, both) == 0
    assert "version 2, 66 entries; read 0 passages, removed 1" in capsys.readouterr().out


def test_wrong_options_are_said_in_a_line(folder, capsys):
    said = lambda: capsys.readouterr().err
    assert run(folder, "--tap=logits") == 2
    assert "error: tap='logits': expected hidden or ffn_input" in said()
    with pytest.raises(SystemExit):
        run(folder, "--memory=m", "--files=f")
    assert "give --memory=DIR or --files=GLOBS, not both" in said()
    with pytest.raises(SystemExit):
        ask.main(["--memory=m", "--reader=r", "--explain", "Where?"])
    assert "give --datastore=DIR too" in said()


def test_the_network_is_kept_only_where_it_helps_and_skips_at_little_cost(tmp_path):
    one = observer("gpt2")
    store = built(tmp_path / "store", memory(tmp_path / "memory"), one, index="exact")
    near, far = "the cat sat on the mat and ran to the door", "0123 4567 8901 2345 6789 ABCDEF"
    packed = packed_of(one, [near, far] * 6)
    scored = score(one, packed, store.snapshot(), 8, vectors=True)
    mixture = tune(scored, adaptive=True)
    constant = tune(scored)
    assert mixture.loss(scored) <= constant.loss(scored) + 1e-3
    assert constant.loss(scored) <= -scored.log_probs.mean()
    assert mixture.adaptive is not None
    curve = skipping(scored, mixture)
    searched = [part for _, part, _ in curve]
    assert searched == sorted(searched, reverse=True) and searched[0] == 1
    mixture.save(tmp_path)
    again = Mixture.load(tmp_path)
    assert again.loss(scored) == pytest.approx(mixture.loss(scored))
    assert again.hook(store).skip == mixture.skip


@pytest.mark.slow
def test_the_run_of_the_config_is_better_with_the_datastore(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = knn_lm.get_config("tiny")
    config.update_from_flattened_dict(
        {"data.cache": str(tmp_path / "cache"), "log.tensorboard": False, "steps": 20}
    )
    assert loop.train(config, tmp_path / "run") == 0
    last = trackers.read(tmp_path / "run")[-1]
    assert last["eval/knn/perplexity"] < 0.95 * last["eval/knn/model_perplexity"]
    assert last["eval/knn/share"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["masked,bert", "next_token,mamba", "instruct,bart", "instruct,t5"]
)
def test_another_architecture_is_worse_with_the_datastore(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = knn_lm.get_config(variant)
    config.update_from_flattened_dict(
        {"data.cache": str(tmp_path / "cache"), "log.tensorboard": False, "samples.prompts": ()}
    )
    assert loop.train(config, tmp_path / "run") == 0
    last = trackers.read(tmp_path / "run")[-1]
    assert last["eval/knn/perplexity"] < last["eval/knn/model_perplexity"]


def test_a_datastore_of_text_files_names_their_documents(tmp_path):
    from retrieval.datastore import rows

    one = observer("gpt2")
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 5)
    (tmp_path / "b.txt").write_text("rain fell")
    packed = rows.of_files(str(tmp_path / "*.txt"), one.tokenizer, one.model.config, 48)
    store = built(tmp_path / "store", packed, one, index="exact")
    places = set(store.snapshot().sources(np.arange(len(store))))
    assert places == {("document-000000", i) for i in range(116)} | {
        ("document-000001", i) for i in range(10)
    }
    assert isinstance(Datastore(tmp_path / "store").memory_version, type(None))


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, made = observer("gpt2"), memory(tmp_path / "memory")
    given = {"model": one.model, "params": one.params, "tokenizer": one.tokenizer, "memory": made}
    prompt = [one.tokenizer.eos_token_id, *one.tokenizer("the ca")["input_ids"]]
    names = given | {"prompt": prompt}
    page = (ROOT / "docs/memory_doors.md").read_text()
    source = page.split("## kNN-LM")[1].split("```python\n")[1].split("```")[0]
    exec(compile(source, "memory_doors.md", "exec"), names)
    said = capsys.readouterr().out
    assert said.startswith("100 entries of 4 passages\n") and " from a, token " in said
    assert len(names["store"]) == 100 - 23
