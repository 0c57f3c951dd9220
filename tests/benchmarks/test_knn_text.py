"""The benchmark of adaptation without training."""

import re

from tests.benchmarks import knn_text
from tests.retrieval.models import save_reader


def test_parts_of_a_text_overlap_or_the_store_exceeds_its_limit(tmp_path):
    documents = [f"{at:02d}" * 5 for at in range(20)]
    found = knn_text.split(documents, tmp_path, most=50)
    read = {
        name: [path.read_text() for path in sorted((tmp_path / name).glob("*.txt"))]
        for name in found
    }
    assert read == {"store": documents[:5], "dev": documents[12:16], "test": documents[16:]}
    text = " = One = \n a = b \n = = Part = = \n = Two = \n c \n"
    assert knn_text.articles(text) == [text[: text.index(" = Two")], text[text.index(" = Two") :]]


def test_fine_tuning_is_not_of_the_text_of_the_store(tmp_path, capsys):
    save_reader(tmp_path / "model")
    article = "".join(
        f" = Title {at} = \n The sky is blue and the sea is green .\n" for at in range(20)
    )
    (tmp_path / "wikitext.txt").write_text(article, encoding="utf-8")
    lines = "To be, or not to be.\n" * 2000
    (tmp_path / "plays.txt").write_text(lines, encoding="utf-8")
    files = [f"--{name}={tmp_path / name}.txt" for name in ("wikitext", "plays")]
    knn_text.main(
        [*files, f"--workdir={tmp_path / 'work'}", f"--model={tmp_path / 'model'}", "--rows=4"]
        + ["--store=5000", "--only=plays", "--steps=12", "--rate=1e-2"]
    )
    said = capsys.readouterr().out
    before, after = (
        float(re.search(rf"^plays, {what}.*perplexity ([\d.]+)", said, re.MULTILINE)[1])
        for what in ("[\\d,]+ tokens: weights alone", "12 updates")
    )
    assert 100 < before < 1000  # a random model of bytes
    assert after < before / 5
