"""Text into batches: sources (documents), packing (rows of tokens), batches (arrays on the devices)."""
