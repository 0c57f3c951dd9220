"""Training: a mesh, a sharded state, a pure step, and the loop around it."""
