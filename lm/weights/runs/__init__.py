"""Files of run folders: config, status, model, checkpoints and their digests."""
