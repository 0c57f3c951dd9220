"""Vector indexes: exact, approximate (ScaNN) and sharded over processes."""
