"""Instruction data from a model itself: Self-Instruct (Wang et al. 2023, arXiv 2212.10560)."""
