"""Stages of the quickstart study: passages and questions from GeoNames, edits, report."""
