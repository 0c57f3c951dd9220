"""Write small TFDS data sets as files, without TensorFlow: python tfds_sets.py FOLDER."""

import sys
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

TEXTS = [f"The river {i} flows to the town {i * 7 % 5}. " * 4 for i in range(6)]
PAIRS = [(f"word {i}", f"word {'ten' if i % 2 else i}", int(not i % 2)) for i in range(12)]
TRANSLATED = [("The house is old.", "Das Haus ist alt."), ("It is raining.", "Es regnet.")] * 3
TEXT = tfds.features.Text()


class Own(tfds.core.GeneratorBasedBuilder):
    """A data set whose `rows` are those of every split; a subclass has `features` and `rows`."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.features())
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in self.SPLITS}

    def _generate_examples(self):
        yield from enumerate(self.rows())


class TinyNews(Own):
    def features(self):
        return {"body": TEXT, "label": tfds.features.ClassLabel(names=["old", "new"])}

    def rows(self):
        return [{"body": text, "label": i % 2} for i, text in enumerate(TEXTS)]


class Glue(Own):
    """GLUE's MRPC and STS-B with TFDS's fields."""

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in ("mrpc", "stsb")]

    def features(self):
        label = tfds.features.ClassLabel(names=["not_equivalent", "equivalent"])
        if self.builder_config.name == "stsb":
            label = np.float32
        return {"sentence1": TEXT, "sentence2": TEXT, "label": label, "idx": np.int32}

    def rows(self):
        values = self.builder_config.name == "stsb"
        return [
            {"sentence1": a, "sentence2": b, "label": 2.5 * same if values else same, "idx": i}
            for i, (a, b, same) in enumerate(PAIRS)
        ]


class TinyTranslate(Own):
    def features(self):
        return tfds.features.Translation(("de", "en"))

    def rows(self):
        return [{"en": en, "de": de} for en, de in TRANSLATED]


if __name__ == "__main__":
    for kind, configs in ((TinyNews, [None]), (Glue, ["mrpc", "stsb"]), (TinyTranslate, [None])):
        for config in configs:
            kind(
                data_dir=sys.argv[1], config=config, file_format="array_record"
            ).download_and_prepare()
