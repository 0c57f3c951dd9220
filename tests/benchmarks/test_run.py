"""The benchmarks run at tiny shapes, and their tables say what the results say."""

import json

import pytest

from tests.benchmarks import children, gpu, run, tables
from tests.benchmarks.rows import OURS, PEER, ROWS

ROWS_TESTED = ("train-bert-base-f32", "input")
PAGE = f"# Page\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder of results of two rows, and a page that they were written into."""
    folder = tmp_path_factory.mktemp("results")
    page = folder / "page.md"
    page.write_text(PAGE)
    only = f"--only={','.join(ROWS_TESTED)}"
    assert run.main([only, "--quick", f"--results={folder}", f"--write-docs={page}"]) == 0
    return folder, page


def test_two_rows_are_measured_and_written(results):
    folder, page = results
    found = json.loads((folder / "train-bert-base-f32.json").read_text())
    assert found["settings"]["threads"] == 1 and found["versions"] == run.versions()
    assert found["rates"]["matmul_gflops"] > 0 and found["rates"]["copy_gb_per_s"] > 0
    ours, theirs = (found["sides"][side] for side in (OURS, PEER))
    tokens = ROWS["train-bert-base-f32"].at(True).tokens
    for side in (ours, theirs):
        assert len(side["turns"]["cpu"]) == run.QUICK_TURNS
        assert side["turns"]["loss"][-1] < side["turns"]["loss"][0]  # both learn the same batch
        speeds = [tokens / cpu for cpu in side["turns"]["cpu"]]
        assert side["tokens_per_cpu_second"]["max"] == pytest.approx(max(speeds), rel=1e-3)
    pairs = zip(theirs["turns"]["cpu"], ours["turns"]["cpu"], strict=True)
    ratios = [their / our for their, our in pairs]
    assert found["ratios"][PEER]["min"] == pytest.approx(min(ratios), rel=1e-3)
    text = page.read_text()
    assert text.startswith("# Page\n") and text.endswith(f"{tables.END}\n\nafter\n")
    assert "old" not in text
    median = f"{found['ratios'][PEER]['median']:.2f}"
    row = next(line for line in text.splitlines() if line.startswith("| bert-base, 4 × 128 |"))
    assert f"| {median} |" in row
    assert "| masked | 1,024 |" in text
    assert (folder / "images" / tables.PLOT).read_text().count("train-bert-base-f32") >= 1


def test_what_is_measured_is_measured_again_only_if_something_changed(results, monkeypatch):
    folder, _ = results
    path, row = folder / "input.json", ROWS["input"]
    assert run.current(path, row, True)
    assert not run.current(path, row, False)
    assert not run.current(folder / "none.json", row, True)
    monkeypatch.setattr(run, "versions", lambda: {"jax": "0"})
    assert not run.current(path, row, True)


def test_a_side_that_fails_is_shown_with_what_it_printed():
    child = children.Child("train-bert-base-f32", "nobody", True)
    with pytest.raises(children.ChildFailed, match=r"(?s)nobody ended \(1\).*KeyError: .nobody"):
        child.ready()
    child.close()


def test_a_side_that_fails_leaves_no_other_side_running(monkeypatch):
    running = []

    class Child:
        def __init__(self, row, side, quick):
            self.side = side
            running.append(side)

        def ready(self):
            if self.side == PEER:
                raise children.ChildFailed("no weights")
            return {}

        def close(self):
            running.remove(self.side)

    monkeypatch.setattr(children, "Child", Child)
    with pytest.raises(children.ChildFailed, match="no weights"):
        run.in_turns(ROWS["train-bert-base-f32"], True)
    assert not running


def test_a_peer_that_is_missing_is_a_row_that_says_so():
    result = {
        "what": "gpt2",
        "load": 0.0,
        "settings": {"dtype": "float32"},
        "rates": {},
        "ratios": {},
        "sides": {
            OURS: {"tokens_per_cpu_second": {"median": 1234.5}},
            "CTranslate2": {"missing": "ctranslate2 is not installed"},
        },
    }
    text = tables.markdown({"decode-gpt2-124m-b1-f32": result})
    assert "| gpt2 | float32 | CTranslate2 | 1,234 | not installed |" in text


def test_unknown_rows_and_pages_without_markers_are_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--only=train-bert"])
    assert "no row 'train-bert'" in capsys.readouterr().err
    (tmp_path / "page.md").write_text("# Page\n")
    with pytest.raises(ValueError, match=r"page\.md: expected the lines"):
        tables.write(tmp_path, tmp_path / "page.md")


def test_the_page_holds_the_committed_results():
    """docs/performance.md is what --write-docs makes of tests/benchmarks/results."""
    found = {
        name: json.loads((run.RESULTS / f"{name}.json").read_text())
        for name in ROWS
        if (run.RESULTS / f"{name}.json").exists()
    }
    assert tables.markdown(found) in tables.PAGE.read_text()


def test_the_gpu_script_runs_dry_on_a_cpu(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    parts = ["attention", "train gpt2-124m at 1,024"]
    only = [f"--only={part}" for part in parts]
    assert gpu.main(["--dry-run", f"--out={out}", *only]) == 0, capsys.readouterr()
    found = json.loads(out.read_text())["parts"]
    assert [*found] == parts
    errors = found["attention"]["largest_relative_error"]
    own = [name for name in errors if "; dense; " in name or "; chunked; " in name]
    assert len(own) == 16 and not found["attention"]["failed"]
    assert any("; cudnn; " in name for name in found["attention"]["refused"])
    exact = {name: x for name, x in errors.items() if name.endswith("float32")}
    assert max(exact.values()) < 1e-5 < min(errors[name] for name in errors.keys() - exact)
    trained = found[parts[1]]
    assert 0 < len(trained["slowest"]) <= 10 and trained["tokens_per_second"] > 0
    shares = [one["share"] for one in trained["slowest"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001


def test_the_gpu_script_says_what_it_lacks(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only=attentive"])
    assert "--only='attentive'" in capsys.readouterr().err
    assert sum(limit for limit, _ in gpu.PARTS.values()) <= 600
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "JAX has no GPU here" in capsys.readouterr().err


def test_the_rows_are_listed(capsys):
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [*ROWS] and len(ROWS) > 30
