"""Training: device mesh, sharded state, pure train step and the loop around it."""
