"""python -m lm.families prints the table of docs/architectures.md."""

from lm.families import markdown

print(markdown())
