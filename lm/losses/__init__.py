"""Loss functions of arrays, shared by several objectives."""
