"""What begins and ends a document, for each objective; it is kept in the tokenizer of the run."""

from lm.data import packing
from lm.objectives import OBJECTIVES
from lm.training import unused


def as_trained(tokenizer, objective: str):
    """The tokenizer (or None), which then frames a text as that objective trains it; of text objectives only. Works in place."""
    if tokenizer is None or objective not in unused.TEXT:
        return tokenizer
    return packing.as_documents(tokenizer, OBJECTIVES[objective].whole)
