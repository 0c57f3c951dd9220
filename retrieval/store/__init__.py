"""The memory's table in Lance: passages, vectors, checksums and every version."""
