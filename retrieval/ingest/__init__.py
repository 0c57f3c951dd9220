"""Ingestion: find files, read documents, cut them into passages, find duplicates, update a memory.

report = Report()
files, documents = read(["notes", "rows.jsonl"], report)
passages = [p for d in documents for p in cut(d, Chunking(size=254), token_counter(tokenizer))]
inputs = ["notes", "rows.jsonl"]
apply(memory, plan(passages, store, covers(inputs, files), covers_names(inputs, files)))
"""
