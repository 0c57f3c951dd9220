"""A toy encoder with a path and a tokenizer, to build without a model."""

from retrieval import Encoder
from tests.retrieval.models import word_tokenizer
from tests.retrieval.toy import encode


class Toy:
    """An encoder that sees 64 tokens; its path is its fingerprint."""

    max_length, passage_prefix = 64, ""

    def __init__(self, path, **options):
        self.source = self.fingerprint = str(path)

    def __call__(self, texts):
        return encode(texts)


def save(folder):
    """Save what a build reads besides the encoder."""
    word_tokenizer().save_pretrained(folder)
    return folder


def use(patch=setattr):
    """Replace every encoder of this process by a toy."""
    patch(Encoder, "from_hf", Toy)
