"""Read files, tables and data sets: bytes to rows."""
