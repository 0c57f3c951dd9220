"""Searching an open memory: its index, its filters and the ranking of what is found."""

MODES = ("dense", "lexical", "hybrid")  # names of rankings; those of `ranking.MODES`


def main(argv=None):
    """Run `python -m retrieval.search` in this process."""
    from retrieval.search.__main__ import main as command

    return command(argv)
