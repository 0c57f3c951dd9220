"""Searching an open memory: its index, its filters and the ranking of what is found."""

MODES = ("dense", "lexical", "hybrid")  # names of rankings; those of `ranking.MODES`
