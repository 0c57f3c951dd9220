"""Stages of the study configs/studies/decoupling.py: its data, and its report."""
