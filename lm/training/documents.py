"""Special tokens around documents, for each objective; they are kept in the run's tokenizer."""

from lm.data import packing
from lm.objectives import OBJECTIVES
from lm.training import unused


def as_trained(tokenizer, objective: str):
    """Make the tokenizer add the special tokens of a text objective, in place; else return it.

    tokenizer may be None.
    """
    if tokenizer is None or objective not in unused.TEXT:
        return tokenizer
    return packing.as_documents(tokenizer, OBJECTIVES[objective].whole)
