"""Text into batches.

sources: files to documents. packing: documents to rows of tokens. batches: rows to device arrays.
"""
