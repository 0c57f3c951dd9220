"""The benchmark of adaptation without training."""

from tests.benchmarks import knn_text


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
